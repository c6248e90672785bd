"""A tokenizer and a template small enough for a tiny model's vocabulary, in the files that transformers reads."""

import json
from pathlib import Path
from typing import Any

VOCAB_SIZE = 261  # ids 0..255 the bytes, 256 `hi`, then the four below
SPECIALS = ("<|user|>", "<|assistant|>", "<|system|>", "<|endoftext|>")
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write_tiny_text(directory: Path, *, template: str | None = TEMPLATE) -> Path:
    """Write tokenizer.json, tokenizer_config.json and, unless told otherwise, a chat template."""
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer_json()), encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    if template is not None:
        (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    return directory


def tokenizer_json() -> dict[str, Any]:
    """Byte-level BPE of the 256 bytes and one merge."""
    from glm_cluster.text.alphabet import BYTE_OF

    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": 257 + i, "content": token, **flags} for i, token in enumerate(SPECIALS)],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "vocab": dict(BYTE_OF) | {"hi": 256},
            "merges": [["h", "i"]],
            "ignore_merges": False,
        },
    }
