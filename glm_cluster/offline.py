"""One prompt answered by an engine in this process, as text that comes while it is made.

Knows engine and text. Knows no Ray and no wire.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from glm_cluster.config import EngineConfig
from glm_cluster.engine.engine import Engine, open_engine
from glm_cluster.model.config import GlmConfig
from glm_cluster.records import GenerationRequest, SamplingParams
from glm_cluster.text.chat import ChatTemplate, model_opens_line
from glm_cluster.text.stream import Detokenizer
from glm_cluster.text.tokenizer import Plain, Tokenizer
from glm_cluster.text.tokenizer_config import TokenizerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Offline:
    """A loaded model with its text, for one request at a time."""

    engine: Engine
    tokenizer: Tokenizer
    template: ChatTemplate | None  # None: the checkpoint has none, and prompts go in as they are

    @classmethod
    def load(cls, config: EngineConfig, *, on_read: Callable[[int, int], None] | None = None) -> Self:
        """Read tokenizer and template first: they are quick to refuse."""
        directory = Path(config.model)
        tokenizer = Tokenizer.from_directory(directory)
        has_template = TokenizerConfig.from_directory(directory).chat_template is not None
        template = ChatTemplate.from_directory(directory, tokenizer) if has_template else None
        unused = tokenizer.unused_ids(GlmConfig.from_directory(directory).vocab_size)
        engine = open_engine(config, on_read=on_read, unused_token_ids=unused)
        return cls(engine=engine, tokenizer=tokenizer, template=template)

    def answer(self, prompt: str, sampling: SamplingParams) -> Iterator[str]:
        """Yield the answer as it is generated, never half a character."""
        message = {"role": "user", "content": prompt}
        text = self.template.render([message]) if self.template else (Plain(prompt),)
        (ids,) = self.tokenizer.encode_batch([text])
        self.engine.add(GenerationRequest(request_id="offline", prompt=ids, sampling=sampling))
        characters = Detokenizer(self.tokenizer, skip_newline=model_opens_line(text))
        while self.engine.has_work:
            for event in self.engine.step():
                shown = event.tokens[:-1] if event.finish == "stop" else event.tokens
                yield characters.push(shown)
        yield characters.finish()
