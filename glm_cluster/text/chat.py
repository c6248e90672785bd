"""Messages to a prompt, by the checkpoint's own chat template.

Knows Jinja and which special-token strings the template writes. Refuses to let a message write one (see shield), and to
know what roles or tools mean: that is the template's business.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn

import jinja2
from jinja2 import meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from glm_cluster.errors import CheckpointError, InvalidRequest
from glm_cluster.text.shield import Shield, strings_in
from glm_cluster.text.tokenizer import Plain, Segment, Special, Tokenizer
from glm_cluster.text.tokenizer_config import TokenizerConfig

NO_TEMPLATE = "{{ raise_exception('this model has no chat template; send a plain completion instead') }}"
# What Transformers always defines, though it be nothing: some templates ask whether `tools is not none`
VARIABLES: Mapping[str, object] = MappingProxyType({"tools": None, "documents": None})


class ChatTemplate:
    """A compiled template. Rendering is a pure function of the messages (but for templates that ask for the date)."""

    def __init__(self, source: str, special_ids: Mapping[str, int], variables: Mapping[str, str]) -> None:
        environment = _environment()
        self._template = environment.from_string(source, globals=dict(variables))
        self._source = source
        self._special_ids = special_ids
        tree = environment.parse(source)
        self._sought = _sought(tree, special_ids)
        self._variables = meta.find_undeclared_variables(tree)

    @classmethod
    def from_directory(cls, path: Path, tokenizer: Tokenizer) -> "ChatTemplate":
        """Read `chat_template.jinja`, else the one of `tokenizer_config.json`, else `chat_template.json`.

        A checkpoint with none of them gets a template that refuses every request.
        """
        return cls.from_config(TokenizerConfig.from_directory(path), tokenizer.special_ids, path)

    @classmethod
    def from_config(cls, config: TokenizerConfig, special_ids: Mapping[str, int], where: Path) -> "ChatTemplate":
        """Compile the template of a config that was read in `where`, or raise CheckpointError naming the place."""
        try:
            return cls(config.chat_template or NO_TEMPLATE, special_ids, config.tokens)
        except jinja2.TemplateSyntaxError as error:
            raise CheckpointError(f"the chat template in {where} is broken at line {error.lineno}: {error}") from error

    @property
    def source(self) -> str:
        """The template as it was given."""
        return self._source

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, object] = VARIABLES,
    ) -> tuple[Segment, ...]:
        """Return the prompt, or raise InvalidRequest if the template cannot make one of these messages.

        `variables` are the template's others, such as `tools`; strings in them are shielded as in messages. With
        `continue_final_message` the prompt ends where the final message's content does.
        """
        with _refusals():
            shield = Shield(self._special_ids, avoid=(self._source, *strings_in(messages), *strings_in(variables)))
            covered = [self._cover(message, shield) for message in messages]
            if continue_final_message:
                covered[-1] = _marked(covered[-1], shield.end)
            values = {name: shield.cover(value) for name, value in variables.items()}
            prompt = self._fill(covered, add_generation_prompt, values)
            if continue_final_message:
                prompt = _up_to(prompt, shield.end)
        return tuple(self._segments(prompt, shield))

    def render_text(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool,
        variables: Mapping[str, object] = VARIABLES,
    ) -> str:
        """Return the prompt as one string, in which nothing tells the template's `<|user|>` from a message's.

        This is what Transformers' `apply_chat_template(tokenize=False)` returns. For messages of one's own, offline.
        """
        with _refusals():
            return self._fill(messages, add_generation_prompt, variables)

    def asks_for(self, variable: str) -> bool:
        """Whether the template looks at a variable of that name."""
        return variable in self._variables

    def check_variables(self, given: Iterable[str]) -> None:
        """Refuse variables that the template does not ask for: they would change nothing."""
        if unknown := sorted(set(given) - self._variables):
            raise InvalidRequest(
                f"chat_template_kwargs: this model's template asks for no {', '.join(unknown)}; leave that out",
                param="chat_template_kwargs",
            )

    def _fill(self, messages: Sequence[object], add_generation_prompt: bool, variables: Mapping[str, object]) -> str:
        values = {**VARIABLES, **variables}
        present = [_present(message) for message in messages]
        return self._template.render(messages=present, add_generation_prompt=add_generation_prompt, **values)

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


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn what a template raises into InvalidRequest."""
    try:
        yield
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, RecursionError) as error:
        raise InvalidRequest(f"the chat template refused the messages: {error}", param="messages") from error


def _marked(message: object, end: str) -> object:
    """Put a mark, and a space that shows whether the template trims, behind the content of a message."""
    if not isinstance(message, Mapping) or not isinstance(content := message.get("content"), str):
        raise ValueError("the final message has no text to continue")
    return {**message, "content": f"{content}{end} "}


def _up_to(prompt: str, end: str) -> str:
    """What comes before the mark; a template that trims a content would have trimmed it without the mark too."""
    place = prompt.rindex(end)
    return prompt[:place] if prompt.startswith(" ", place + 1) else prompt[:place].rstrip()


def _present(message: object) -> object:
    """Leave out the keys without a value, as Transformers does: templates ask whether a key is there."""
    if isinstance(message, Mapping):
        return {key: value for key, value in message.items() if value is not None}
    return message


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
