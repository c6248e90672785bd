"""Our own plain forward: one side of a comparison with transformers, and the oracle where that is not installed."""

from pathlib import Path

from glm_cluster.model.cache import StaticCache
from glm_cluster.model.glm import GlmForCausalLM
from glm_cluster.model.loading import load_model
from glm_cluster.model.ranks import Ranks
from glm_cluster.verify.oracle import Answer, Ids, Questions, answers_of
from glm_cluster.verify.text import PageText, TextReader


class PlainOracle:
    """Shows that engine, caches and groups are true to our plain forward. Says nothing of transformers."""

    name = "our own plain forward"
    is_self = True
    notes: tuple[str, ...] = ()

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def config(self) -> None:
        """Ours, so there is nothing to compare it with."""
        return

    def text(self) -> TextReader | None:
        """The tokenizer as Transformers' users know it, which the served one is held against."""
        return PageText.open(self._directory)

    def answers(self, questions: Questions) -> list[Answer]:
        """Load, answer, forget."""
        return answers_of(load_plain(self._directory, questions.dtype), questions)


def load_plain(directory: Path, dtype: str) -> GlmForCausalLM:
    """Our model, loaded the engine's way: it knows nothing of generation_config.json but the end-of-sequence ids."""
    model: GlmForCausalLM = load_model(directory, ranks=Ranks.single(), dtype=dtype)
    return model


def static_cache_ids(model: GlmForCausalLM, questions: Questions) -> list[Ids]:
    """Greedy continuations over a cache of fixed size."""
    import torch

    rows = []
    for prompt in questions.prompts:
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=questions.max_new_tokens,
            eos_token_id=list(questions.eos_ids) or None,
            pad_token_id=questions.pad_id,
            suppress_tokens=questions.suppressed or None,
            past_key_values=StaticCache(model.config, len(prompt) + questions.max_new_tokens),
        )
        rows.append(tuple(out[0, len(prompt) :].tolist()))
    return rows
