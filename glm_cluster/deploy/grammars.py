"""The grammars of the rank that samples, compiled for its checkpoint's own tokens.

Knows where a checkpoint's tokenizer is. It is read from the start, so that it is there when the weights are.
"""

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


def _vocabulary(directory: Path) -> Vocabulary:
    from glm_cluster.model.config import GlmConfig
    from glm_cluster.text.tokenizer import Tokenizer

    stored = GlmConfig.from_directory(directory)
    tokenizer = Tokenizer.from_directory(directory)
    return Vocabulary.of(tokenizer, stop_ids=stored.eos_token_ids, vocab_size=stored.vocab_size)
