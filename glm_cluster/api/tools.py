"""What a client says of tools: those it offers, those it wants called, and the calls that were made.

Shapes and bounds, for both wires. Refuses to know how a model is told of tools and how it calls them.
"""

import json
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from glm_cluster.api.moot import CALL, CALLED, TOOL, Moot
from glm_cluster.api.schema import FirstFault, Schema, at_most
from glm_cluster.text.tools.tool import Tool

MAX_TOOLS = 128
MAX_CALLS = 128  # of one message
MAX_PARAMETERS_BYTES = 64 << 10
MAX_PARAMETERS_DEPTH = 32
MAX_ARGUMENTS = 1 << 20  # characters of one call's
FunctionName: TypeAlias = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


def _bounded(parameters: dict[str, Any]) -> dict[str, Any]:
    """A schema that is neither deep nor long. Its depth is told first, as writing it out would recurse."""
    level: list[object] = [parameters]
    for _ in range(MAX_PARAMETERS_DEPTH):
        level = [inner for outer in level for inner in _inside(outer)]
    if level:
        raise ValueError(f"Input should be nested at most {MAX_PARAMETERS_DEPTH} deep")
    try:
        num_bytes = len(json.dumps(parameters, allow_nan=False))
    except ValueError as error:
        raise ValueError("Input should have finite numbers only") from error
    if num_bytes > MAX_PARAMETERS_BYTES:
        raise ValueError(f"Input should have at most {MAX_PARAMETERS_BYTES} bytes as JSON")
    if parameters.get("type") not in ("object", None):
        raise ValueError('Input should be the schema of an object: {"type": "object", "properties": ...}')
    if not isinstance(parameters.get("properties"), dict | None):
        raise ValueError("properties should be an object")
    return parameters


def _inside(value: object) -> list[object]:
    """The objects and arrays directly inside."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [one for one in inner if isinstance(one, dict | list)]


class FunctionBody(Schema):
    """A function that a model may call."""

    moot: ClassVar[Moot] = TOOL
    name: FunctionName
    description: Annotated[str, Field(max_length=65536)] | None = None
    parameters: Annotated[dict[str, Any], AfterValidator(_bounded)] | None = None  # JSON schema of its arguments
    strict: bool | None = None  # calls keep to all of the schema, or the schema is refused


class ToolBody(Schema):
    """A function, or one of GLM-4's All Tools, which have no fields of their own."""

    moot: ClassVar[Moot] = TOOL
    type: Literal["function", "python", "simple_browser", "cogview"]
    function: FunctionBody | None = None

    @property
    def tool(self) -> Tool:
        """The same for the text layer."""
        if self.function is None:
            return Tool(name=self.type, built_in=True)
        return Tool(
            name=self.function.name,
            description=self.function.description,
            parameters=self.function.parameters or {},
            strict=bool(self.function.strict),
        )

    @model_validator(mode="after")
    def _functions_are_described(self) -> Self:
        if (self.type == "function") != (self.function is not None):
            raise ValueError("function: a tool of type function has this field, and no other tool")
        return self


class NamedFunction(Schema):
    """A function by its name."""

    name: str


class NamedChoice(Schema):
    """The one tool to call."""

    type: Literal["function"]
    function: NamedFunction


class CalledFunction(Schema):
    """What was called, with what."""

    moot: ClassVar[Moot] = CALLED
    name: FunctionName
    arguments: Annotated[str, Field(max_length=MAX_ARGUMENTS)]  # JSON, as the model wrote it


class CallBody(Schema):
    """A call that a model made earlier."""

    moot: ClassVar[Moot] = CALL
    id: Annotated[str, Field(min_length=1, max_length=256)]
    type: Literal["function"] = "function"
    function: CalledFunction


def _choice_shape(choice: object) -> str | None:
    if isinstance(choice, str):
        return "mode"
    return "named" if isinstance(choice, dict) else None


Tools: TypeAlias = Annotated[list[ToolBody], FirstFault(), BeforeValidator(at_most(MAX_TOOLS))]
Calls: TypeAlias = Annotated[list[CallBody], FirstFault(), BeforeValidator(at_most(MAX_CALLS))]
ToolChoice: TypeAlias = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("mode")] | Annotated[NamedChoice, Tag("named")],
    Discriminator(
        _choice_shape,
        custom_error_type="tool_choice_type",
        custom_error_message='Input should be "none", "auto", "required" or a {"type": "function", "function": ...}',
    ),
]


class ToolFields(Schema):
    """The fields of a request that are about tools."""

    tools: Tools = Field(default=[])
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True

    @property
    def offered(self) -> list[Tool]:
        """The tools that the model is told of."""
        return [] if self.tool_choice == "none" else [body.tool for body in self.tools]

    @property
    def demanded(self) -> list[Tool]:
        """The tools of which one must be called; none where the model may choose to answer."""
        if isinstance(self.tool_choice, str):
            return self.offered if self.tool_choice == "required" else []
        return [tool for tool in self.offered if tool.name == self.tool_choice.function.name]

    def check_demand_alone(self, **others: object) -> None:
        """Raise ValueError if a call is demanded, or held to its schema, and one of `others`, by name, is given."""
        is_held = self.demanded or any(tool.strict for tool in self.offered)
        if is_held and (given := [name for name, value in others.items() if value]):
            asking = "tool_choice" if self.demanded else "tools: strict"
            raise ValueError(f"{asking} cannot be kept together with {', '.join(given)}; leave one out")

    @model_validator(mode="after")
    def _tools_have_different_names(self) -> Self:
        names = [body.tool.name for body in self.tools]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"tools: {twice!r} stands twice in it; name each tool differently")
        return self

    @model_validator(mode="after")
    def _there_is_a_choice(self) -> Self:
        if self.tool_choice == "required" and not self.tools:
            raise ValueError("tool_choice: there are no tools to call; give some, or leave this out")
        if not isinstance(self.tool_choice, str) and not self.demanded:
            raise ValueError(f"tool_choice: {self.tool_choice.function.name!r} is none of the tools; name one of them")
        return self
