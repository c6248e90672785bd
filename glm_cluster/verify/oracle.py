"""What a checkpoint is compared with: answers to the same questions, text, config.

An oracle loads its model when asked for answers and has dropped it when it returns them, so that two models are never
in memory together.
Shape legend: T tokens of a prompt, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from glm_cluster.verify.text import TextReader

if TYPE_CHECKING:
    from torch import Tensor

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model makes of one prompt: logits of every position, and its greedy continuation.

    `gaps` are the distances between the two highest logits where each new token was chosen.
    """

    logits_TV: "Tensor"
    greedy: Ids
    gaps: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """What every model is asked alike. Ids in `unused` name no token and are never chosen."""

    prompts: Sequence[Ids]
    max_new_tokens: int
    eos_ids: Ids
    pad_id: int
    unused: tuple[tuple[int, int], ...]
    dtype: str

    @property
    def suppressed(self) -> list[int]:
        """The unused ids one by one."""
        return [id for start, stop in self.unused for id in range(start, stop)]


class Oracle(Protocol):
    """The other side of every comparison."""

    @property
    def name(self) -> str: ...
    @property
    def is_self(self) -> bool: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    def config(self) -> Mapping[str, object] | None:
        """The keys of its own reading of config.json; None where it cannot read it."""
        ...

    def text(self) -> TextReader | None:
        """Its own tokenizer and template; None where the checkpoint has none."""
        ...

    def answers(self, questions: Questions) -> list[Answer]: ...


def answers_of(model: Any, questions: Questions) -> list[Answer]:
    """Ask a model with HF's forward and `generate`, transformers' or ours, one prompt at a time.

    The model's own generation config holds nothing but special ids: engines know no other part of one.
    """
    import torch

    answers = []
    with torch.inference_mode():
        for prompt in questions.prompts:
            ids_1T = torch.tensor([prompt])
            logits_TV = model(ids_1T).logits[0]
            out = model.generate(
                ids_1T,
                attention_mask=torch.ones_like(ids_1T),
                do_sample=False,
                max_new_tokens=questions.max_new_tokens,
                eos_token_id=list(questions.eos_ids) or None,
                pad_token_id=questions.pad_id,
                suppress_tokens=questions.suppressed or None,
                return_dict_in_generate=True,
                output_scores=True,
            )
            top = [scores_1V[0].float().topk(2).values for scores_1V in out.scores]
            gaps = tuple(float(first - second) for first, second in top)
            answers.append(Answer(logits_TV, tuple(out.sequences[0, len(prompt) :].tolist()), gaps))
    return answers
