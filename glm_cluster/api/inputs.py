"""What a client may ask of a model that answers with numbers: the bodies of its three routes.

Knows shapes and ranges, for both wires. Refuses to know the model: its name, vocabulary and length are checked when
the inputs are tokenised.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Discriminator, Tag

from glm_cluster.api.fields import Name
from glm_cluster.api.moot import EMBEDDING, Moot
from glm_cluster.api.schema import Body, FirstFault, TokenIds, at_most, not_empty

MAX_INPUTS = 2048

_Text: TypeAlias = Annotated[str, AfterValidator(not_empty)]
_Ids: TypeAlias = Annotated[TokenIds, AfterValidator(not_empty)]
_Texts: TypeAlias = Annotated[list[_Text], FirstFault(), BeforeValidator(at_most(MAX_INPUTS))]
_ManyIds: TypeAlias = Annotated[list[_Ids], FirstFault(), BeforeValidator(at_most(MAX_INPUTS))]


def _shape(value: object) -> str | None:
    """Which of the four forms it must be in, from the outermost type and the first item's."""
    if isinstance(value, str):
        return "text"
    if not isinstance(value, list):
        return None
    match value:
        case [] | [int(), *_]:
            return "token_ids"
        case [str(), *_]:
            return "texts"
        case [list(), *_]:
            return "many_token_ids"
    return None


Input: TypeAlias = Annotated[
    Annotated[_Text, Tag("text")]
    | Annotated[_Texts, Tag("texts")]
    | Annotated[_Ids, Tag("token_ids")]
    | Annotated[_ManyIds, Tag("many_token_ids")],
    Discriminator(
        _shape,
        custom_error_type="input_type",
        custom_error_message="Input should be a string, a list of strings, a list of token ids or a list of such lists",
    ),
]


class EncodingBody(Body):
    """The fields the three routes share."""

    input: Input
    add_special_tokens: bool = True  # those that the tokenizer puts around a text; token ids are left alone
    user: Name | None = None  # noted, and never interpreted

    @property
    def inputs(self) -> Sequence[str | list[int]]:
        """The inputs one by one, whichever form they came in."""
        return [self.input] if self._is_single else self.input  # type: ignore[list-item, return-value]  # by its shape

    def name_of(self, index: int) -> str:
        """What to call an input when refusing it: `input`, or `input.3` of several."""
        return "input" if self._is_single else f"input.{index}"

    @property
    def _is_single(self) -> bool:
        return isinstance(self.input, str) or isinstance(self.input[0], int)


class EmbeddingRequest(EncodingBody):
    """Body of POST /v1/embeddings."""

    moot: ClassVar[Moot] = EMBEDDING
    encoding_format: Literal["float", "base64"] = "float"
    pooling: Literal["last", "mean"] = "last"
    normalize: bool = True


class ClassifyRequest(EncodingBody):
    """Body of POST /v1/classify."""

    raw_scores: bool = False  # logits


class ClassifyTokensRequest(EncodingBody):
    """Body of POST /v1/classify_tokens."""

    raw_scores: bool = False  # logits
    include_scores: bool = False  # of all labels, beside the best one's
