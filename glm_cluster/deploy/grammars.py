"""The grammars of one process: compiled for a checkpoint's own tokens by the rank that samples, looked over by a front.

Knows where a checkpoint's tokenizer is. The rank starts to read it at once, so that it is there when the weights are.
"""

from collections.abc import Collection
from pathlib import Path

from glm_cluster.config import EngineConfig
from glm_cluster.text.grammar.vocabulary import Vocabulary
from glm_cluster.text.grammar.workshop import Workshop
from glm_cluster.text.tokenizer_file import has_tokenizer


def open_workshop(engine: EngineConfig) -> Workshop | None:
    """Compiles for the model's vocabulary; None where the checkpoint has no tokenizer or generates nothing."""
    directory = Path(engine.model)
    if engine.task != "generate" or not has_tokenizer(directory):
        return None
    return Workshop(lambda: _vocabulary(directory))


def open_look_over(control_tokens: Collection[str]) -> Workshop:
    """Compiles for a vocabulary of bytes: quick, and finds the faults that a grammar has anywhere."""
    return Workshop(lambda: Vocabulary.of_bytes(control_tokens))


def _vocabulary(directory: Path) -> Vocabulary:
    from glm_cluster.model.config import GlmConfig
    from glm_cluster.text.tokenizer import Tokenizer

    stored = GlmConfig.from_directory(directory)
    tokenizer = Tokenizer.from_directory(directory)
    return Vocabulary.of(tokenizer, stop_ids=stored.eos_token_ids, vocab_size=stored.vocab_size)
