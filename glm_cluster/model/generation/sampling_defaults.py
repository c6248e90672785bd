"""How a served model samples what a request leaves open, as its generation_config.json has it.

Knows five keys of that file and which values an engine can take of them. Refuses to know requests, and leaves every
other key alone: `generate` goes by those.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm_cluster.config import ModelConfig
from glm_cluster.errors import CheckpointError
from glm_cluster.model.config import read_json
from glm_cluster.model.generation.config import FILE_NAME
from glm_cluster.records import SamplingDefaults

_LOWEST_TEMPERATURE = 1e-5  # logits divided by less overflow fp32; files that say less mean greedy


@dataclass(frozen=True, slots=True, kw_only=True)
class _Range:
    """The numbers that a key may have: `low` to `high`."""

    low: float
    high: float
    whole: bool = False

    def holds(self, value: object) -> bool:
        """Whether it is such a number; true and false are none, nor is NaN, which JSON has no name for."""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        return self.low <= value <= self.high

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        return f"{kind} from {self.low:.10g} to {self.high:.10g}"


# What requests may ask for, too.
_RANGES: Mapping[str, _Range] = {
    "temperature": _Range(low=0, high=2),
    "top_p": _Range(low=0, high=1),
    "top_k": _Range(low=-1, high=2**31 - 1, whole=True),
    "min_p": _Range(low=0, high=1),
    "repetition_penalty": _Range(low=0.01, high=10),
}


def sampling_defaults(model: ModelConfig) -> SamplingDefaults:
    """What a request to this model gets that says nothing: its checkpoint's way, or OpenAI's where the settings say so.

    Values count as they are written whatever `do_sample` says, as with vLLM and SGLang, while HF's `generate` is greedy
    unless it is true: who switches servers gets the same. What is not written, or null, is off, and not what HF would
    fill in, its top_k of 50. A value that no request could ask for is a CheckpointError.
    """
    path = Path(model.engine.model) / FILE_NAME
    if model.engine.task != "generate" or model.sampling_defaults == "openai" or not path.is_file():
        return SamplingDefaults()
    written = {name: value for name, value in read_json(path).items() if name in _RANGES and value is not None}
    for name, value in written.items():
        if not _RANGES[name].holds(value):
            raise CheckpointError(
                f"{path}: {name} must be {_RANGES[name]}, not {repr(value)[:80]}; correct it, or serve the model "
                "with sampling_defaults: openai"
            )
    return SamplingDefaults(**{name: _taken(name, value) for name, value in written.items()})


def _taken(name: str, value: Any) -> Any:
    if name == "top_k":
        return value if value > 0 else None
    if name == "temperature" and value < _LOWEST_TEMPERATURE:
        return 0.0
    return float(value)
