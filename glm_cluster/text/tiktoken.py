"""THUDM's `tokenizer.model` (tiktoken's text format: a token in base64, its rank) to the content of a `tokenizer.json`.

Knows GLM's split pattern, its control tokens and that its tokenizer opens every text with `[gMASK]<sop>`. Refuses to
know how text is encoded.
"""

import binascii
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from glm_cluster.errors import CheckpointError
from glm_cluster.text.alphabet import spell
from glm_cluster.text.tokenizer_config import TokenizerConfig

Ranks: TypeAlias = Mapping[bytes, int]  # in the order of the ranks

FILE = "tokenizer.model"
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PREFIX = ("[gMASK]", "<sop>")
# GLM-4's control tokens, for a checkpoint whose tokenizer_config.json lists none
CONTROL_IDS_START = 151329
CONTROL_TOKENS = (
    *("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    *("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"),
)


def tokenizer_json(directory: Path) -> dict[str, Any]:
    """Convert the directory's `tokenizer.model`, or raise CheckpointError naming it and what is malformed."""
    file = directory / FILE
    ranks = _ranks(file)
    added = TokenizerConfig.from_directory(directory).added_tokens or _glm4_control_tokens()
    ids = {token["content"]: token["id"] for token in added}
    _check_added(ids, ranks, file)
    spelt = {token: spell(token) for token in ranks}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [dict(token) for token in added],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [_split(), _byte_level(use_regex=False)]},
        "post_processor": _post_processor({token: ids[token] for token in PREFIX}),
        "decoder": _byte_level(use_regex=True),
        "model": {
            "type": "BPE",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # a word that is a token is that token, though merges may not lead to it
            "vocab": {spelt[token]: rank for token, rank in ranks.items()},
            "merges": [[spelt[left], spelt[right]] for left, right in _merges(ranks)],
        },
    }


def _ranks(file: Path) -> Ranks:
    """Read the ranks: every number from 0 once, every token once, all single bytes among them."""
    by_rank: dict[int, bytes] = {}
    for where, token, rank in _entries(file):
        if rank in by_rank:
            raise CheckpointError(f"{where} gives rank {rank} a second time; fetch it again")
        by_rank[rank] = token
    if (missing := next((rank for rank in range(len(by_rank)) if rank not in by_rank), None)) is not None:
        raise CheckpointError(f"{file} has no token of rank {missing}, but higher ones; fetch it again")
    ranks = {by_rank[rank]: rank for rank in range(len(by_rank))}
    if len(ranks) < len(by_rank):
        twice = next(token for rank, token in by_rank.items() if ranks[token] != rank)
        raise CheckpointError(f"{file} gives the token {twice!r} two ranks; fetch it again")
    if absent := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise CheckpointError(f"{file} has no token for the single byte {absent[0]:#04x}; it cannot encode every text")
    return ranks


def _entries(file: Path) -> Iterator[tuple[str, bytes, int]]:
    """Yield where a line is, its token and its rank."""
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror}); fetch it again") from error
    for number, line in enumerate(lines, start=1):
        if line:
            where = f"{file}, line {number},"
            yield where, *_entry(line, where)


def _entry(line: bytes, where: str) -> tuple[bytes, int]:
    try:
        spelt, rank = line.split()
        token = binascii.a2b_base64(spelt, strict_mode=True)
        if not token or not rank.isdigit():
            raise ValueError(f"rank {rank!r} of token {token!r}")
    except ValueError as error:  # binascii.Error is one
        raise CheckpointError(
            f"{where} is not a base64 token and its rank ({error}); GLM's file is in tiktoken's format: fetch it again"
        ) from error
    return token, int(rank)


def _merges(ranks: Ranks) -> Iterator[tuple[bytes, bytes]]:
    """Yield every way to put a token together from two others: those of a low rank first, as Transformers does.

    One way a token is not enough: BPE would never arrive at some tokens that tiktoken finds.
    """
    for token in ranks:
        cuts = [cut for cut in range(1, len(token)) if token[:cut] in ranks and token[cut:] in ranks]
        for cut in sorted(cuts, key=lambda cut: (ranks[token[:cut]], ranks[token[cut:]])):
            yield token[:cut], token[cut:]


def _glm4_control_tokens() -> Sequence[Mapping[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": CONTROL_IDS_START + index, "content": token, **flags} for index, token in enumerate(CONTROL_TOKENS)]


def _check_added(ids: Mapping[str, int], ranks: Ranks, file: Path) -> None:
    """Control tokens stand beyond the ranks, and the prefix is among them."""
    if taken := [token for token, id in ids.items() if id < len(ranks)]:
        raise CheckpointError(
            f"{file} has {len(ranks)} ranks, and {taken[0]!r} has id {ids[taken[0]]}, which is one of them; "
            "fetch it and tokenizer_config.json again"
        )
    if absent := [token for token in PREFIX if token not in ids]:
        raise CheckpointError(f"tokenizer_config.json beside {file} lists no {absent[0]!r}, which opens GLM's prompts")


def _split() -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}


def _byte_level(*, use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _post_processor(prefix: Mapping[str, int]) -> dict[str, Any]:
    """Open every text, or pair of texts, with the prefix."""
    opening = [{"SpecialToken": {"id": token, "type_id": 0}} for token in prefix]
    first, second = ({"Sequence": {"id": name, "type_id": index}} for index, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [*opening, first],
        "pair": [*opening, first, second],
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]} for token, id in prefix.items()},
    }
