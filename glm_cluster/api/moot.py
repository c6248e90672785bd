"""Fields of OpenAI's and vLLM's by which a client may ask for what is done anyway, each with the values that do.

Such a value is granted, and null is none; any other asks for something that is not there, and is refused. Knows names
and values. Refuses to know the fields that do something.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

Moot: TypeAlias = Mapping[str, tuple[object, ...]]

GENERATION: Moot = {
    "use_beam_search": (False,),
    "length_penalty": (1.0, 1),  # of beams
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "return_tokens_as_token_ids": (False,),
}
CHAT: Moot = {
    **GENERATION,
    "store": (False,),
    "service_tier": ("auto", "default"),
    "modalities": (["text"],),
    "verbosity": ("medium",),
    "metadata": ({},),
    "include_reasoning": (True,),
    "echo": (False,),
    "add_special_tokens": (False,),
    "documents": ([],),
    **dict.fromkeys(("audio", "function_call", "functions", "moderation", "prediction", "reasoning_effort"), ()),
    **dict.fromkeys(("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "safety_identifier"), ()),
    **dict.fromkeys(("mm_processor_kwargs", "web_search_options"), ()),
}
COMPLETION: Moot = {**GENERATION, "suffix": ()}
MESSAGE: Moot = {"annotations": ([],)}
STREAM_OPTIONS: Moot = {"include_obfuscation": (False,)}
EMBEDDING: Moot = {"dimensions": (), "user": ()}


def without(raw: Mapping[str, object], moot: Moot) -> dict[str, object]:
    """The fields that ask for something."""
    return {name: value for name, value in raw.items() if name not in moot or not _grants(value, moot[name])}


def describe(schema: dict[str, Any], moot: Moot) -> None:
    """Add them to the JSON schema of a body."""
    given = {name: {"enum": [None, *values], "default": None} for name, values in moot.items()}
    schema["properties"] = {**schema.get("properties", {}), **given}


def _grants(value: object, values: tuple[object, ...]) -> bool:
    """True is no 1."""
    return value is None or any(value == one and type(value) is type(one) for one in values)
