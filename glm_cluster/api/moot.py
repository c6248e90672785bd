"""Fields of OpenAI's and vLLM's by which a client may ask for what is done anyway, each with the values that do.

Such a value is granted (a type stands for all of its own), and null is none; any other asks for something that is not
there, and is refused. What clients note on the turns of a conversation and send back with them asks for nothing at all.
Knows names and values. Refuses to know the fields that do something.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

Moot: TypeAlias = Mapping[str, tuple[object, ...]]
_KINDS: dict[object, str] = {str: "string", int: "integer", bool: "boolean"}

GENERATION: Moot = {
    "use_beam_search": (False,),
    "length_penalty": (1.0, 1),  # of beams
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "return_tokens_as_token_ids": (False,),
    "detokenize": (True,),
    "do_sample": (True,),
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
    "prompt_cache_key": (str,),  # what prompts share is found by what they are
    "prompt_cache_retention": ("in_memory", "in-memory"),
    "documents": ([],),
    "functions": ([],),
    "function_call": ("none", "auto"),  # of no functions
    **dict.fromkeys(("audio", "moderation", "prediction"), ()),
    **dict.fromkeys(("mm_processor_kwargs", "prompt_cache_options", "web_search_options"), ()),
}
COMPLETION: Moot = {**GENERATION, "suffix": ("",)}
_NOTED: Moot = dict.fromkeys(("cache_control", "extra_content", "provider_specific_fields"), (object,))
MESSAGE: Moot = {
    **_NOTED,
    "id": (str,),
    "type": ("message", "text"),
    **dict.fromkeys(("audio", "function_call"), ()),
}
ANSWER: Moot = {
    **dict.fromkeys(("annotations", "images", "parsed", "reasoning_details", "thinking_blocks"), (object,)),
    "index": (int,),
    "status": (str,),
}
RESULT: Moot = {"is_error": (bool,), "status": (str,)}
PART: Moot = {**_NOTED, "id": (str,), "annotations": (object,)}
CALL: Moot = {**_NOTED, "index": (int,)}
CALLED: Moot = {**_NOTED, "parsed_arguments": (object,)}
STRUCTURED: Moot = {"disable_any_whitespace": (False,), "disable_fallback": (False,), "whitespace_pattern": ()}
TOOL: Moot = _NOTED
STREAM_OPTIONS: Moot = {"include_obfuscation": (False,)}
EMBEDDING: Moot = {"dimensions": ()}


def without(raw: Mapping[str, object], moot: Moot) -> dict[str, object]:
    """The fields that ask for something."""
    return {name: value for name, value in raw.items() if name not in moot or not _grants(value, moot[name])}


def describe(schema: dict[str, Any], moot: Moot) -> None:
    """Add them to the JSON schema of a body."""
    schema["properties"] = {**schema.get("properties", {}), **{name: _schema(moot[name]) for name in moot}}


def _schema(values: tuple[object, ...]) -> dict[str, Any]:
    kinds = [_KINDS[one] for one in values if isinstance(one, type) and one is not object]
    if kinds or object in values:
        return {**({"type": [*kinds, "null"]} if kinds else {}), "default": None}
    return {"enum": [None, *values], "default": None}


def _grants(value: object, values: tuple[object, ...]) -> bool:
    """True is no 1."""
    if value is None or object in values or type(value) in values:
        return True
    return any(value == one and type(value) is type(one) for one in values)
