"""A tool that a request offers to the model."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

BUILT_IN = MappingProxyType({"python": "code", "simple_browser": "call", "cogview": "prompt"})
"""GLM-4's All Tools, and under which name a call's raw body stands in its arguments.

The model writes Python source to `python`, `search("...")` or the like to `simple_browser` and a description in
English to `cogview`. OpenAI's calls have JSON objects for arguments, so the body becomes the one string of an object.
"""

_DESCRIBED = {
    "python": "Run Python code in a stateful Jupyter notebook and return its output.",
    "simple_browser": 'Use a browser: search("query", recency_days=7), mclick([1, 2, 3]) or open_url("https://...").',
    "cogview": "Draw an image from a description in English.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function with the JSON schema of its arguments, or one of All Tools."""

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = False
    built_in: bool = False

    @property
    def body_key(self) -> str | None:
        """Under which key the body of a call stands in its arguments; None for functions, whose body is JSON."""
        return BUILT_IN[self.name] if self.built_in else None

    @property
    def schema(self) -> Mapping[str, Any]:
        """Which arguments a call may have."""
        if (key := self.body_key) is None:
            return {"type": "object", **self.parameters}
        return {"type": "object", "properties": {key: {"type": "string"}}, "required": [key]}

    def as_function(self) -> "Tool":
        """The tool for a model that knows functions only."""
        if not self.built_in:
            return self
        return replace(self, built_in=False, description=_DESCRIBED[self.name], parameters=self.schema)

    def for_template(self) -> dict[str, Any]:
        """The tool in the form that templates read."""
        if self.built_in:
            return {"type": self.name}
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        if self.parameters:
            function["parameters"] = self.parameters
        return {"type": "function", "function": function}
