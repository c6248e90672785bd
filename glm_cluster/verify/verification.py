"""One verification from start to end: which oracle, which prompts, whether there is room, which checks in which order.

Knows the order of things. Knows neither how the oracle answers nor how answers are compared.
"""

import gc
from collections.abc import Callable, Sequence
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Literal, TypeAlias

from glm_cluster import __version__
from glm_cluster.errors import CheckpointError, ConfigError
from glm_cluster.model.checkpoints.checkpoint import Checkpoint
from glm_cluster.model.config import GlmConfig
from glm_cluster.model.sharding import Sharding
from glm_cluster.verify import checks
from glm_cluster.verify.corpus import PROMPTS, random_prompts
from glm_cluster.verify.oracle import Answer, Ids, Oracle, Questions, answers_of
from glm_cluster.verify.plain_oracle import PlainOracle, load_plain, static_cache_ids
from glm_cluster.verify.report import Check, Report
from glm_cluster.verify.text import PageText, ServedText

Against: TypeAlias = Literal["auto", "transformers", "self"]
OnCheck: TypeAlias = Callable[[Check], None]

GIB = 1024**3
MAX_NEW_TOKENS = 16
TP_SIZES = (2, 3, 4)  # looked at unless told; larger groups compute nothing new
_DTYPES = ("auto", "float32", "bfloat16")
_OVERHEAD = 1.2  # of the weights: while one is converted it is there twice
_FIXED_BYTES = 2**29  # activations, logits and a small cache
_RANDOM_LENGTHS = (5, 33, 64, 100)


def verify(
    directory: Path,
    *,
    against: Against = "auto",
    tp: Sequence[int] | None = None,
    dtype: str = "auto",
    max_new_tokens: int = MAX_NEW_TOKENS,
    prompts: Sequence[str] | None = None,
    on_check: OnCheck | None = None,
) -> Report:
    """Compare the checkpoint as it would be served with transformers, or with our own plain forward without it.

    `on_check` is told each comparison as it is made. Raises ConfigError where nothing could be compared: a directory
    that is no checkpoint, a model without room in memory, an oracle that is not installed.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such directory; give the directory of a checkpoint")
    oracle = choose_oracle(directory, against)
    return compare(
        directory,
        oracle,
        tp=tp,
        dtype=dtype,
        max_new_tokens=max_new_tokens,
        prompts=prompts,
        on_check=on_check,
    )


def choose_oracle(directory: Path, against: Against) -> Oracle:
    """The oracle that was asked for; for `auto`, transformers where it is installed."""
    from glm_cluster.verify.transformers_oracle import TransformersOracle

    if against == "self":
        return PlainOracle(directory)
    oracle = TransformersOracle.open(directory)
    if oracle is None and against == "transformers":
        raise ConfigError("transformers is not installed; `pip install transformers`, or leave --against out")
    return oracle or PlainOracle(directory)


def compare(
    directory: Path,
    oracle: Oracle,
    *,
    tp: Sequence[int] | None = None,
    dtype: str = "auto",
    max_new_tokens: int = MAX_NEW_TOKENS,
    prompts: Sequence[str] | None = None,
    on_check: OnCheck | None = None,
) -> Report:
    """Compare a checkpoint with a given oracle, which may be looking at another directory."""
    config = GlmConfig.from_directory(directory)
    _check_kind(directory, config)
    sizes = _sizes(config, tp)
    resolved = _resolve_dtype(Checkpoint.open(directory, config).with_stored_dtype(config), dtype)
    made = _Checks(on_check)
    made.add(checks.config_check(GlmConfig.from_pretrained(directory), oracle.config()))
    files = made.add(checks.files_check(directory, config))
    served, page, theirs = ServedText.open(directory), PageText.open(directory), oracle.text()
    made.add(checks.tokenizer_check(served, page, theirs))
    made.add(checks.template_check(served, page, theirs))
    questions = _questions(config, served, prompts, dtype=resolved, max_new_tokens=max_new_tokens)
    if files.verdict != "different":
        _check_room(directory, config, resolved)
        _compare_models(directory, oracle, questions, sizes, made, has_tokenizer=served is not None)
    return Report(
        model=str(directory),
        against=oracle.name,
        is_self_check=oracle.is_self,
        facts=(*_facts(questions), *oracle.notes),
        checks=tuple(made.all),
    )


class _Checks:
    """The comparisons so far."""

    def __init__(self, on_check: OnCheck | None) -> None:
        self.all: list[Check] = []
        self._on_check = on_check

    def add(self, check: Check) -> Check:
        self.all.append(check)
        if self._on_check is not None:
            self._on_check(check)
        return check


def _compare_models(
    directory: Path, oracle: Oracle, questions: Questions, sizes: Sequence[int], made: _Checks, *, has_tokenizer: bool
) -> None:
    """One model at a time: the oracle, our plain forward, the engine, each tensor-parallel size."""
    from glm_cluster.verify.engine_answers import ask_engine

    answers = oracle.answers(questions)
    near_tie = checks.near_tie(questions.dtype, answers)
    _compare_plain(directory, oracle, questions, answers, made)
    gc.collect()
    sampled: list[Ids] = []
    for size in (1, *sizes):
        group = ask_engine(directory, questions, size=size)
        who = "engine" if size == 1 else f"tp {size}"
        made.add(checks.close_logits_check(f"logits ({who})", group.logits, answers, questions.dtype))
        made.add(checks.greedy_check(f"greedy ({who})", group.whole.ids, answers, near_tie))
        made.add(checks.chunks_check(f"chunked prefill ({who})", group))
        made.add(checks.prefix_check(f"prefix cache ({who})", group))
        sampled += group.whole.ids
    made.add(checks.unused_check(questions.unused if has_tokenizer else None, sampled))


def _compare_plain(directory: Path, oracle: Oracle, questions: Questions, answers: list[Answer], made: _Checks) -> None:
    """The forward that promises the oracle's bits. Held against itself it has nothing to show but its static cache."""
    model = load_plain(directory, questions.dtype)
    if not oracle.is_self:
        ours = answers_of(model, questions)
        made.add(checks.exact_logits_check("logits (plain forward)", [a.logits_TV for a in ours], answers))
        made.add(checks.greedy_check("greedy (plain forward)", [a.greedy for a in ours], answers, 0.0))
    near_tie = checks.near_tie(questions.dtype, answers)
    made.add(checks.greedy_check("static cache", static_cache_ids(model, questions), answers, near_tie))


def _questions(
    config: GlmConfig, served: ServedText | None, prompts: Sequence[str] | None, *, dtype: str, max_new_tokens: int
) -> Questions:
    """The prompts as ids, cut to what the model has room for."""
    room = config.context_limit - max_new_tokens
    if max_new_tokens < 1 or room < 1:
        raise ConfigError(f"max_new_tokens must lie between 1 and {config.context_limit - 1}, not {max_new_tokens}")
    pad = config.pad_token_id
    return Questions(
        prompts=[ids[:room] for ids in _prompt_ids(config, served, prompts)],
        max_new_tokens=max_new_tokens,
        eos_ids=config.eos_token_ids,
        pad_id=pad if pad is not None else next(iter(config.eos_token_ids), 0),
        unused=() if served is None else served.tokenizer.unused_ids(config.vocab_size),
        dtype=dtype,
    )


def _prompt_ids(config: GlmConfig, served: ServedText | None, prompts: Sequence[str] | None) -> list[Ids]:
    if prompts is not None and (served is None or not prompts):
        raise ConfigError("prompts are texts: give one or more, and a checkpoint with a tokenizer; or leave them out")
    if served is not None:
        ids = [served.prompt(text) for text in prompts or PROMPTS]
        if all(row and max(row) < config.vocab_size for row in ids):
            return ids
        if prompts is not None:
            raise ConfigError(f"a prompt is empty, or has ids that this model of {config.vocab_size} ids does not know")
    avoid = {*config.eos_token_ids, -1 if config.pad_token_id is None else config.pad_token_id}
    return random_prompts(_RANDOM_LENGTHS, vocab_size=config.vocab_size, avoid=avoid)


def _check_kind(directory: Path, config: GlmConfig) -> None:
    """Refuse what continues no text."""
    named = config.extra.get("architectures") or ()
    kinds = ("Model", "ForSequenceClassification", "ForTokenClassification")
    if others := [name for name in map(config.architecture, kinds) if name in named]:
        raise ConfigError(f"{directory} holds a {others[0]}; only language models are compared")


def _sizes(config: GlmConfig, tp: Sequence[int] | None) -> tuple[int, ...]:
    """Group sizes beyond one rank, which is always looked at."""
    if tp is None:
        return tuple(size for size in TP_SIZES if size in config.legal_tp_sizes())
    for size in tp:
        config.check_tp(size)
    return tuple(size for size in tp if size > 1)


def _resolve_dtype(config: GlmConfig, dtype: str) -> str:
    from glm_cluster.model.loading import resolve_dtype

    if dtype not in _DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(_DTYPES)}, not {dtype!r}")
    return str(resolve_dtype(config, dtype)).removeprefix("torch.")


def _check_room(directory: Path, config: GlmConfig, dtype: str) -> None:
    """Refuse a model that memory has no room for once; there are never two."""
    import torch

    from glm_cluster.engine.memory import free_bytes

    numbers = sum(prod(shard.full) for shard in Sharding(config, 0, 1).tensors().values())
    needed = int(numbers * (4 if dtype == "float32" else 2) * _OVERHEAD) + _FIXED_BYTES
    free = free_bytes(torch.device("cpu"))
    if needed > free:
        raise ConfigError(
            f"{directory} takes {needed / GIB:.1f} GiB to verify in {dtype} and {free / GIB:.1f} GiB of memory are "
            "free; free some, or verify on a larger machine"
        )


def _facts(questions: Questions) -> tuple[str, ...]:
    shortest, longest = (pick(map(len, questions.prompts)) for pick in (min, max))
    asked = f"{len(questions.prompts)} prompts of {shortest} to {longest} tokens, {questions.max_new_tokens} new each"
    return (f"glm_cluster {__version__}, torch {version('torch')}, {questions.dtype} on the CPU; {asked}",)
