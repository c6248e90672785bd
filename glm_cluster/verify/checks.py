"""The comparisons: ours and the oracle's side by side, a `Check` each. Loads nothing and runs no model.

Shape legend: T tokens of a prompt, V vocabulary.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from glm_cluster.errors import CheckpointError
from glm_cluster.model.checkpoints.checkpoint import Checkpoint
from glm_cluster.model.config import GlmConfig
from glm_cluster.model.rope_parameters import rope_parameters
from glm_cluster.model.sharding import Sharding
from glm_cluster.text.tokenizer_file import Ranges
from glm_cluster.verify.corpus import CONVERSATIONS, TEXTS
from glm_cluster.verify.engine_answers import CHUNK_TOKENS, GroupAnswers, Run
from glm_cluster.verify.oracle import Answer, Ids
from glm_cluster.verify.report import Check
from glm_cluster.verify.text import ServedText, TextReader

if TYPE_CHECKING:
    from torch import Tensor

# What the engine's kernels may differ by, as a share of the largest logit. bf16 keeps 8 bits, and errors add up over
# the layers: 4e-2 measured on the demo model.
LOGIT_BOUND: Mapping[str, float] = {"float32": 1e-3, "bfloat16": 1e-1}
# Ids may part only where the oracle's two highest logits are closer
NEAR_TIE = 1e-3
NEAR_TIE_SHARE_BF16 = 2.0**-6  # of the largest logit
_SHAPING = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "attention_bias",
    "tie_word_embeddings",
    "max_position_embeddings",
    "pad_token_id",
    "eos_token_id",
)
_ROPE = ("rope_type", "rope_theta", "partial_rotary_factor")
_SHOWN = 60  # characters of a value in a detail
_SAMPLED, _RUN = 5000, 50  # tokens of a vocabulary, and how many of them make a text


def config_check(ours: GlmConfig, theirs: Mapping[str, object] | None) -> Check:
    """The keys that shape the forward pass, as each side reads them."""
    name = "config"
    if theirs is None:
        return _skipped(name, "the oracle has no reading of its own of this config.json")
    own = ours.to_dict()
    for key in _SHAPING:
        if _plain(own.get(key)) != _plain(theirs.get(key)):
            return _different(name, f"{key} is {_short(own.get(key))} here and {_short(theirs.get(key))} there")
    rope = rope_parameters(theirs, ours.max_position_embeddings)  # in whichever spelling its version has
    for key in sorted({*_ROPE, *(ours.rope_parameters.keys() & rope.keys())} - {"type"}):
        if ours.rope_parameters.get(key) != rope.get(key):
            return _different(
                name, f"{key} is {_short(ours.rope_parameters.get(key))} here and {_short(rope.get(key))} there"
            )
    return _equal(name, f"{len(_SHAPING)} keys and rope_parameters; theta {ours.rope_theta:g}")


def files_check(directory: Path, config: GlmConfig) -> Check:
    """Every tensor is there, of the right shape, in a dtype that is read."""
    try:
        checkpoint = Checkpoint.open(directory, config)
        dtypes = checkpoint.check(Sharding(config, 0, 1).tensors())
    except CheckpointError as error:
        return _different("files", error.message)
    stored = ", ".join(f"{count} {dtype}" for dtype, count in sorted(dtypes.items()))
    return _equal("files", f"{stored} in {len(set(checkpoint.files.values()))} file(s), every shape as configured")


def tokenizer_check(served: ServedText | None, page: TextReader | None, theirs: TextReader | None) -> Check:
    """Every token's name; ids and texts of the corpus, with special tokens' strings as control tokens and as text."""
    name = "tokenizer"
    if served is None or page is None or theirs is None:
        return _skipped(name, "the checkpoint has none")
    for id, (a, b) in enumerate(zip(page.tokens(), theirs.tokens(), strict=False)):
        if a != b:
            return _different(name, f"token {id} is {_short(a)} here and {_short(b)} there")
    if (a_count := len(page.tokens())) != (b_count := len(theirs.tokens())):
        return _different(name, f"{a_count} tokens here and {b_count} there")
    specials = tuple(served.tokenizer.special_ids)
    texts = [*TEXTS, *_vocabulary_texts(served), *specials, " ".join(["x", *specials, "好"])]
    for text in texts:
        if (found := _text_difference(text, page, theirs)) or (found := _served_difference(text, served, theirs)):
            return _different(name, found)
    return _equal(name, f"{a_count} tokens; ids and decoded text of {len(texts)} texts")


def template_check(served: ServedText | None, page: TextReader | None, theirs: TextReader | None) -> Check:
    """What conversations become, as text and as the ids that are served."""
    name = "chat template"
    if served is None or served.template is None or page is None or theirs is None:
        return _skipped(name, "the checkpoint has none")
    refused = 0
    for number, (conversation, tools) in enumerate(CONVERSATIONS, 1):
        ours, expected = page.render(conversation, tools), theirs.render(conversation, tools)
        if ours != expected:
            return _different(name, f"conversation {number} is {_apart(ours, expected)}")
        ids = served.render(conversation, tools)
        if ids != (None if expected is None else tuple(theirs.encode(expected, False))):
            return _different(name, f"conversation {number} is the same text and is served as other ids")
        refused += expected is None
    detail = f"text and ids of {len(CONVERSATIONS)} conversations"
    return _equal(name, detail + (f", {refused} refused on both sides" if refused else ""))


def exact_logits_check(name: str, ours: Sequence["Tensor"], answers: Sequence[Answer]) -> Check:
    """The same bits at every position."""
    import torch

    if (found := _other_shape(ours, answers)) is not None:
        return _different(name, found)
    measured, worst = _furthest(ours, answers)
    pairs = list(zip(ours, answers, strict=True))
    if all(
        row_TV.dtype == answer.logits_TV.dtype and torch.equal(row_TV, answer.logits_TV) for row_TV, answer in pairs
    ):
        return _equal(name, f"bit-equal at {sum(map(len, ours))} positions", bound=0.0, measured=measured)
    return _different(name, worst, bound=0.0, measured=measured)


def close_logits_check(name: str, ours: Sequence["Tensor"], answers: Sequence[Answer], dtype: str) -> Check:
    """No further apart than the dtype's bound times the largest logit."""
    if (found := _other_shape(ours, answers)) is not None:
        return _different(name, found)
    bound = LOGIT_BOUND[dtype]
    measured, worst = _furthest(ours, answers)
    if not measured <= bound:  # not a number is no distance
        return _different(name, worst, bound=bound, measured=measured)
    detail = f"largest difference over largest logit, {sum(map(len, ours))} positions"
    return Check(name=name, detail=detail, verdict="within", bound=bound, measured=measured)


def greedy_check(name: str, ours: Sequence[Ids], answers: Sequence[Answer], near_tie: float) -> Check:
    """The same new ids; where they part, the oracle's two highest logits are closer than `near_tie`."""
    ties: list[float] = []
    for number, (row, answer) in enumerate(zip(ours, answers, strict=True), 1):
        if row == answer.greedy:
            continue
        step = _parting(row, answer.greedy)
        gap = answer.gaps[step] if step < min(len(row), len(answer.gaps)) else float("inf")
        if not gap < near_tie:
            there = f"new token {step + 1} of prompt {number} is {_at(row, step)} here and {_at(answer.greedy, step)}"
            return _different(name, f"{there} there, by {gap:.2g} in logits", bound=near_tie, measured=gap)
        ties.append(gap)
    total = sum(map(len, ours))
    if ties:
        detail = f"{total} tokens; {len(ties)} of {len(ours)} prompts part at a near tie of the oracle's"
        return Check(name=name, detail=detail, verdict="within", bound=near_tie, measured=max(ties))
    return _equal(name, f"{total} tokens of {len(ours)} prompts")


def near_tie(dtype: str, answers: Sequence[Answer]) -> float:
    """How close two logits must be for the engine's rounding to swap them."""
    return NEAR_TIE if dtype == "float32" else NEAR_TIE_SHARE_BF16 * _scale(answers)


def chunks_check(name: str, group: GroupAnswers) -> Check:
    """The same tokens whether a prompt is computed in one step or in pieces."""
    if (found := _run_difference(group.chunked, group.whole)) is not None:
        return _different(name, found)
    return _equal(name, f"the same tokens in steps of {CHUNK_TOKENS}")


def prefix_check(name: str, group: GroupAnswers) -> Check:
    """The same tokens from the prefix cache as without it."""
    if group.warm.num_cached == 0:
        return _skipped(name, "no prompt is longer than a block, so nothing was cached")
    if (found := _run_difference(group.warm, group.whole)) is not None:
        return _different(name, found)
    return _equal(name, f"the same tokens with {group.warm.num_cached} prompt tokens from the cache")


def unused_check(unused: Ranges | None, sampled: Iterable[Ids]) -> Check:
    """Rows that the model has and the tokenizer has no token for are never sampled."""
    name = "padding rows"
    if unused is None:
        return _skipped(name, "the checkpoint has no tokenizer to say which they are")
    ids = [id for row in sampled for id in row]
    if nameless := [id for id in ids if any(start <= id < stop for start, stop in unused)]:
        return _different(name, f"id {nameless[0]}, which names no token, was sampled")
    return _equal(name, f"none of the {sum(b - a for a, b in unused)} ids without a token among {len(ids)} sampled")


def _vocabulary_texts(served: ServedText) -> list[str]:
    """Tokens from all over the vocabulary run together: what merges and splits make of them is seldom the same ids."""
    tokenizer = served.tokenizer
    texts = [tokenizer.decode([id]) for id in range(0, tokenizer.vocab_size, 1 + tokenizer.vocab_size // _SAMPLED)]
    return ["".join(texts[start : start + _RUN]) for start in range(0, len(texts), _RUN)]


def _text_difference(text: str, page: TextReader, theirs: TextReader) -> str | None:
    for framed in (True, False):
        ours, expected = page.encode(text, framed), theirs.encode(text, framed)
        if ours != expected:
            return f"{_short(text)} is {_apart(ours, expected)}"
        for skip in (True, False):
            if page.decode(ours, skip) != theirs.decode(expected, skip):
                return f"the ids of {_short(text)} decode to other texts"
    return None


def _served_difference(text: str, served: ServedText, theirs: TextReader) -> str | None:
    """What is served makes no control token of text, and the oracle's ids of text that has none."""
    ids = served.encode(text)
    controls = served.tokenizer.special_ids
    if any(special in text for special in controls):
        if set(ids) & set(controls.values()):
            return f"{_short(text)} typed by a user would become a control token"
        return None if served.tokenizer.decode(ids) == text else f"{_short(text)} does not come back from its ids"
    expected = tuple(theirs.encode(text, False))
    if ids != expected:
        return f"{_short(text)} is served as {_apart(ids, expected)}"
    return None if served.tokenizer.decode(ids) == theirs.decode(ids, True) else f"{_short(text)} decodes differently"


def _run_difference(ours: Run, whole: Run) -> str | None:
    for number, (row, expected) in enumerate(zip(ours.ids, whole.ids, strict=True), 1):
        if row != expected:
            step = _parting(row, expected)
            return f"new token {step + 1} of prompt {number} is {_at(row, step)}, in one step {_at(expected, step)}"
    return None


def _other_shape(ours: Sequence["Tensor"], answers: Sequence[Answer]) -> str | None:
    for number, (row_TV, answer) in enumerate(zip(ours, answers, strict=True), 1):
        if row_TV.shape != answer.logits_TV.shape:
            return f"prompt {number} has logits {list(row_TV.shape)} here and {list(answer.logits_TV.shape)} there"
    return None


def _furthest(ours: Sequence["Tensor"], answers: Sequence[Answer]) -> tuple[float, str]:
    """The largest difference as a share of the largest logit, and where it is; not a number where one side has none."""
    import torch

    pairs = [(row_TV.float(), answer.logits_TV.float()) for row_TV, answer in zip(ours, answers, strict=True)]
    largest = torch.stack([(a_TV - b_TV).abs().max() for a_TV, b_TV in pairs])
    prompt = int(largest.argmax())  # that of a not-a-number, if there is one
    a_TV, b_TV = pairs[prompt]
    position, id = divmod(int((a_TV - b_TV).abs().flatten().argmax()), a_TV.shape[-1])
    where = f"prompt {prompt + 1}: the logit of id {id} at position {position} is"
    text = f"{where} {float(a_TV[position, id]):.6g} here and {float(b_TV[position, id]):.6g} there"
    return float(largest.max()) / (_scale(answers) or 1.0), text


def _scale(answers: Sequence[Answer]) -> float:
    return max(float(answer.logits_TV.float().abs().max()) for answer in answers)


def _parting(ours: Sequence[object], theirs: Sequence[object]) -> int:
    """The first index at which two sequences differ."""
    pairs = enumerate(zip(ours, theirs, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(ours), len(theirs)))


def _apart(ours: Sequence[object] | str | None, theirs: Sequence[object] | str | None) -> str:
    """Both sides from a little before the place where they part."""
    if ours is None or theirs is None:
        return (
            f"{'refused' if ours is None else 'rendered'} here and {'refused' if theirs is None else 'rendered'} there"
        )
    start = max(0, _parting(ours, theirs) - 4)
    return f"{_short(ours[start:])} here and {_short(theirs[start:])} there, from place {start}"


def _at(row: Ids, step: int) -> str:
    return str(row[step]) if step < len(row) else "the end"


def _plain(value: object) -> object:
    """A list and the tuple of the same ids are the same; so is a list of one id."""
    if isinstance(value, list | tuple):
        return value[0] if len(value) == 1 else list(value)
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _equal(name: str, detail: str, *, bound: float | None = None, measured: float | None = None) -> Check:
    return Check(name=name, detail=detail, verdict="equal", bound=bound, measured=measured)


def _different(name: str, detail: str, *, bound: float | None = None, measured: float | None = None) -> Check:
    return Check(name=name, detail=detail, verdict="different", bound=bound, measured=measured)


def _skipped(name: str, detail: str) -> Check:
    return Check(name=name, detail=detail, verdict="skipped")
