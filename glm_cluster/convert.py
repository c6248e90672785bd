"""A checkpoint directory written anew in Hugging Face's layout, whole or not at all.

Knows the target directory, and which files beside the weights belong to a checkpoint. Knows neither tensors (`model`)
nor vocabularies (`text`).
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glm_cluster.errors import CheckpointError, ConfigError
from glm_cluster.text.tiktoken import FILE as RANKS_FILE
from glm_cluster.text.tokenizer_config import TokenizerConfig
from glm_cluster.text.tokenizer_file import TokenizerFile

MAX_SHARD_BYTES = 5 * 10**9
OnProgress = Callable[[str, float], None]
_COPIED = ("LICENSE*", "MODEL_LICENSE*", "NOTICE*", "README.md", "special_tokens_map.json")
_TOKENIZER_CLASS = "PreTrainedTokenizerFast"  # any byte-level BPE, without code of the checkpoint's


def convert_checkpoint(
    source: Path, target: Path, *, max_shard_bytes: int = MAX_SHARD_BYTES, on_progress: OnProgress | None = None
) -> None:
    """Write the checkpoint in `source`, THUDM's or HF's, into `target`, which must be new or empty.

    transformers loads the result without remote code, and so do we. Nothing stands under the name of `target` before
    all of it is written, and no more than one shard is in memory at once.
    """
    source, target = source.resolve(), target.resolve()
    _check(source, target, max_shard_bytes)
    from glm_cluster.model.checkpoints.convert import convert_weights  # brings torch

    report = on_progress or _ignore
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            _convert_text(source, work)  # first: it is quick to refuse
            convert_weights(
                source,
                work,
                max_shard_bytes=max_shard_bytes,
                on_read=lambda done, total: report("convert", done / total),
            )
            _publish(work, target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise ConfigError(f"{target} cannot be written ({error}); name another directory, or make room") from error


def _check(source: Path, target: Path, max_shard_bytes: int) -> None:
    if max_shard_bytes < 1:
        raise ConfigError(f"a shard must have room for 1 byte or more, not {max_shard_bytes}")
    if not source.is_dir():
        raise CheckpointError(f"{source}: no such directory; give the checkpoint to convert")
    if target == source:
        raise ConfigError(f"{target} is the source itself; name a new directory to write to")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} already holds something; name an empty or a new directory")


def _publish(work: Path, target: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    work.chmod(0o777 & ~umask)  # a temporary directory is its owner's alone
    os.rename(work, target)


def _convert_text(source: Path, work: Path) -> None:
    """Tokenizer, template and the papers that come with a checkpoint, as far as it has them."""
    template = TokenizerConfig.from_directory(source).chat_template
    for pattern in _COPIED:
        for path in source.glob(pattern):
            shutil.copyfile(path, work / path.name)
    if (source / "tokenizer.json").exists() or (source / RANKS_FILE).exists():
        _convert_vocabulary(source, work)
        _convert_tokenizer_config(source, work)
    if template is not None:
        (work / "chat_template.jinja").write_text(template, encoding="utf-8")


def _convert_vocabulary(source: Path, work: Path) -> None:
    file = TokenizerFile.from_directory(source)
    if file.path.name == "tokenizer.json":
        shutil.copyfile(file.path, work / file.path.name)
    else:
        text = json.dumps(file.content, ensure_ascii=False, indent=2)
        (work / "tokenizer.json").write_text(text + "\n", encoding="utf-8")


def _convert_tokenizer_config(source: Path, work: Path) -> None:
    """The same keys without those that name code of the checkpoint's; the template has a file of its own."""
    path = source / "tokenizer_config.json"
    raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "auto_map" in raw or "tokenizer_class" not in raw:
        raw["tokenizer_class"] = _TOKENIZER_CLASS
        raw["model_input_names"] = ["input_ids", "attention_mask"]
        raw.setdefault("padding_side", "left")
        raw.setdefault("clean_up_tokenization_spaces", False)
    kept = {key: value for key, value in raw.items() if key not in ("auto_map", "chat_template")}
    text = json.dumps(kept, ensure_ascii=False, indent=2)
    (work / path.name).write_text(text + "\n", encoding="utf-8")


def _ignore(stage: str, fraction: float) -> None:
    """Report to nobody."""
