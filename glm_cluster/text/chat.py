"""Messages to a prompt, by the checkpoint's own chat template.

Knows Jinja and which special-token strings the template writes. Refuses to let a message write one (see shield), and to
know what roles or tools mean: that is the template's business.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from glm_cluster.errors import CheckpointError, InvalidRequest
from glm_cluster.text.shield import Shield, strings_in
from glm_cluster.text.tokenizer import Plain, Segment, Special, Tokenizer

NO_TEMPLATE = "{{ raise_exception('this model has no chat template; send a plain completion instead') }}"


class ChatTemplate:
    """A compiled template. Rendering is a pure function of the messages (but for templates that ask for the date)."""

    def __init__(self, source: str, special_ids: Mapping[str, int], variables: Mapping[str, str]) -> None:
        environment = _environment()
        self._template = environment.from_string(source, globals=dict(variables))
        self._source = source
        self._special_ids = special_ids
        self._sought = _sought(environment.parse(source), special_ids)

    @classmethod
    def from_directory(cls, path: Path, tokenizer: Tokenizer) -> "ChatTemplate":
        """Read `chat_template.jinja`, else the `chat_template` of `tokenizer_config.json`.

        A checkpoint with neither gets a template that refuses every request.
        """
        config = _tokenizer_config(path / "tokenizer_config.json")
        file = path / "chat_template.jinja"
        source = file.read_text(encoding="utf-8") if file.is_file() else _default(config.get("chat_template"))
        try:
            return cls(source or NO_TEMPLATE, tokenizer.special_ids, _token_variables(config))
        except jinja2.TemplateSyntaxError as error:
            raise CheckpointError(f"the chat template in {path} is broken at line {error.lineno}: {error}") from error

    def render(
        self, messages: Sequence[Mapping[str, object]], *, add_generation_prompt: bool = True
    ) -> tuple[Segment, ...]:
        """Return the prompt, or raise InvalidRequest if the template cannot make one of these messages."""
        try:
            shield = Shield(self._special_ids, avoid=(self._source, *strings_in(messages)))
            covered = [self._cover(message, shield) for message in messages]
            prompt = self._template.render(messages=covered, add_generation_prompt=add_generation_prompt)
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, RecursionError) as error:
            raise InvalidRequest(f"the chat template refused the messages: {error}", param="messages") from error
        return tuple(self._segments(prompt, shield))

    def _cover(self, message: Mapping[str, object], shield: Shield) -> object:
        """Shield a message. What the template itself looks for in an answer (`</think>`) must stay findable."""
        exempt = self._sought if message.get("role") == "assistant" else ()
        return shield.cover(message, exempt)

    def _segments(self, prompt: str, shield: Shield) -> Iterator[Segment]:
        for text, special in shield.split(prompt):
            if text:
                yield Plain(text)
            if special is not None:
                yield Special(self._special_ids[special])


def model_opens_line(prompt: Sequence[Segment]) -> bool:
    """Whether the template ends its prompt at the role (`<|assistant|>`): GLM-4 then writes the line break itself."""
    return bool(prompt) and isinstance(prompt[-1], Special)


def _environment() -> ImmutableSandboxedEnvironment:
    """Return the environment that checkpoints' templates are written for."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json  # Jinja's own escapes for HTML
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _sought(tree: nodes.Template, specials: Mapping[str, int]) -> frozenset[str]:
    """Return the specials that the template compares with or hands to a method: `'</think>' in x`, `x.split(..)`."""
    consts = [const for parent in tree.find_all(nodes.Compare) for const in parent.find_all(nodes.Const)]
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr):
            consts += [argument for argument in call.args if isinstance(argument, nodes.Const)]
    literals = [const.value for const in consts if isinstance(const.value, str)]
    return frozenset(special for special in specials if any(special in literal for literal in literals))


def _tokenizer_config(file: Path) -> dict[str, Any]:
    """Return the file's mapping; empty where there is no file."""
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON ({error}); fetch it again") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} must hold a mapping")
    return config


def _default(template: object) -> str | None:
    """Return the template, or the one named default where a checkpoint has several."""
    if isinstance(template, list):
        return next((_default(one.get("template")) for one in template if one.get("name") == "default"), None)
    return template if isinstance(template, str) else None


def _token_variables(config: Mapping[str, Any]) -> dict[str, str]:
    """Return `bos_token` and its like, which templates may write; a token is a string or a mapping with its content."""
    tokens = {key: value.get("content") if isinstance(value, dict) else value for key, value in config.items()}
    return {key: value for key, value in tokens.items() if key.endswith("_token") and isinstance(value, str)}
