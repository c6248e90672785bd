"""Pairs of models with one set of weights, Hugging Face's and ours, and the options that both are compared over.

Whatever transformers is installed is the oracle: 5.23.0 in `make test`, 5.0.0rc1 in `make test-rc1`. What the two are
asked is in `scenarios`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from support.checkpoints import TINY
from torch import Tensor

from glm_cluster.model import cache as our_caches
from glm_cluster.model.config import GlmConfig
from glm_cluster.model.glm import GlmForCausalLM, GlmModel
from glm_cluster.model.heads import GlmForSequenceClassification, GlmForTokenClassification
from glm_cluster.model.loading import MODEL_OF, load_model
from glm_cluster.model.ranks import Ranks

SMALL: dict[str, Any] = {**TINY, "vocab_size": 97, "intermediate_size": 96, "num_hidden_layers": 2}
OURS: dict[str, Any] = {
    "Model": GlmModel,
    "ForCausalLM": GlmForCausalLM,
    "ForSequenceClassification": GlmForSequenceClassification,
    "ForTokenClassification": GlmForTokenClassification,
}


def rope(kind: str, theta: float = 10000.0, **more: Any) -> dict[str, Any]:
    """The `rope_parameters` of one type; half of a head is rotated unless told."""
    return {"rope_type": kind, "rope_theta": theta, "partial_rotary_factor": 0.5, **more}


def factors(count: int, first: float) -> list[float]:
    """LongRoPE's numbers, all different."""
    return [first + 0.25 * i for i in range(count)]


# Every type, and those that follow the length within the tests' 19 tokens. R is 16 unless the head is wider.
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_parameters": rope("default")},
    "theta": {"rope_parameters": rope("default", 5e6)},
    "full": {"rope_parameters": rope("default", partial_rotary_factor=1.0)},
    "linear": {"rope_parameters": rope("linear", factor=2.0)},
    "dynamic": {"rope_parameters": rope("dynamic", factor=2.0), "max_position_embeddings": 12},
    "yarn": {
        "rope_parameters": rope("yarn", factor=4.0, original_max_position_embeddings=128),
        "max_position_embeddings": 512,
    },
    "yarn, scaled": {
        "rope_parameters": rope(
            "yarn", factor=4.0, attention_factor=1.7, beta_fast=16, beta_slow=2, original_max_position_embeddings=64
        ),
        "max_position_embeddings": 256,
    },
    "longrope": {
        "rope_parameters": rope(
            "longrope",
            short_factor=factors(8, 1.0),
            long_factor=factors(8, 2.0),
            factor=4.0,
        ),
        "original_max_position_embeddings": 12,  # beside the mapping: where 5.0.0rc1 looks for the length to cross
        "max_position_embeddings": 48,
    },
    "llama3": {
        "rope_parameters": rope(
            "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
        )
    },
}
GROUPED, MULTI_QUERY = {"num_key_value_heads": 2}, {"num_key_value_heads": 1}
MULTI_HEAD = {"num_attention_heads": 8, "num_key_value_heads": 8}
THREE = {"num_attention_heads": 6, "num_key_value_heads": 3}
NO_BIAS, TIED, WIDE = {"attention_bias": False}, {"tie_word_embeddings": True}, {"head_dim": 64}
GLM4 = {"model_type": "glm4", "rms_norm_eps": 1e-5}
EAGER, BF16, FP16 = {"attn": "eager"}, {"dtype": "bfloat16"}, {"dtype": "float16"}
BY_STATE, BY_ENGINE = {"way": "state_dict"}, {"way": "load_model"}

# Every value of every axis, and the pairs that could hide a fault behind each other.
GRID: dict[str, dict[str, Any]] = {
    "glm": GROUPED,
    "eager": EAGER,
    "bf16": BF16,
    "bf16 eager": EAGER | BF16,
    "fp16": FP16 | MULTI_QUERY | ROPES["theta"],
    "tied, no bias": NO_BIAS | TIED | ROPES["full"],
    "tied, bf16, by state": TIED | BF16 | MULTI_HEAD | BY_STATE,
    "multi-head": MULTI_HEAD | EAGER | ROPES["theta"],
    "multi-query, wide": MULTI_QUERY | WIDE | NO_BIAS,
    "multi-query, wide, bf16": MULTI_QUERY | WIDE | BF16 | EAGER | ROPES["full"],
    "six by three": THREE | BY_ENGINE | ROPES["llama3"],
    "glm4": GLM4 | BY_ENGINE,
    "glm4, eager": GLM4 | EAGER | NO_BIAS | TIED,
    "glm4, bf16": GLM4 | BF16 | THREE | BY_STATE,
    "glm4, bf16 eager": GLM4 | EAGER | BF16 | MULTI_HEAD | ROPES["yarn"],
    "glm4, full, llama3": GLM4 | WIDE | MULTI_QUERY | ROPES["llama3"],
    "linear": ROPES["linear"] | NO_BIAS,
    "linear, bf16": ROPES["linear"] | BF16 | EAGER | TIED,
    "dynamic": ROPES["dynamic"],
    "dynamic, glm4": ROPES["dynamic"] | GLM4 | EAGER | BF16,
    "yarn": ROPES["yarn"] | EAGER | BY_STATE,
    "yarn, bf16": ROPES["yarn"] | BF16 | NO_BIAS,
    "yarn, scaled": ROPES["yarn, scaled"] | MULTI_QUERY,
    "longrope": ROPES["longrope"] | TIED,
    "longrope, bf16": ROPES["longrope"] | BF16 | EAGER,
    "llama3, eager": ROPES["llama3"] | EAGER | MULTI_HEAD,
    "soft": {"initializer_range": 0.05},  # attention that spreads; elsewhere it is nearly one token's
    "soft, bf16": {"initializer_range": 0.05} | BF16 | EAGER | GLM4,
    "gelu": {"hidden_act": "gelu"},
    "gelu tanh": {"hidden_act": "gelu_pytorch_tanh"} | EAGER,
    "relu": {"hidden_act": "relu"} | BF16,
}


@dataclass(frozen=True, kw_only=True)
class Side:
    """One model of a pair, and its library's caches."""

    model: Any
    caches: Any

    def dynamic_cache(self) -> Any:
        return self.caches.DynamicCache(config=self.model.config)

    def static_cache(self, max_cache_len: int) -> Any:
        return self.caches.StaticCache(config=self.model.config, max_cache_len=max_cache_len)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Hugging Face's model and ours on the same checkpoint, in eval mode."""

    directory: Path
    theirs: Side
    ours: Side

    def both(self, ask: Callable[[Side], Any]) -> tuple[Any, Any]:
        """What each answers, ours first, without gradients."""
        with torch.no_grad():
            return ask(self.ours), ask(self.theirs)


class Pairs:
    """Makes pairs, one for each distinct set of options; they are shared, so leave them as they were."""

    def __init__(self, make_directory: Callable[[], Path]) -> None:
        self._make_directory = make_directory
        self._made: dict[str, Pair] = {}

    def __call__(self, kind: str = "ForCausalLM", **options: Any) -> Pair:
        key = repr((kind, sorted(options.items())))
        if key not in self._made:
            self._made[key] = self.fresh(kind, **options)
        return self._made[key]

    def fresh(
        self,
        kind: str = "ForCausalLM",
        *,
        attn: str = "sdpa",
        dtype: str = "float32",
        way: str = "file",
        **changes: Any,
    ) -> Pair:
        """A pair of nobody else's."""
        from transformers import cache_utils

        directory = self._make_directory()
        theirs = save_random(directory, kind, dtype, **changes)
        theirs = type(theirs).from_pretrained(directory, dtype=getattr(torch, dtype), attn_implementation=attn).eval()
        theirs.requires_grad_(way != "load_model")  # torch picks a GEMM by it, also where no gradient is kept
        ours = _WAYS[way](OURS[kind], directory, theirs, attn)
        return Pair(
            directory=directory,
            theirs=Side(model=theirs, caches=cache_utils),
            ours=Side(model=ours, caches=our_caches),
        )


def save_random(
    directory: Path, kind: str = "ForCausalLM", dtype: str = "float32", *, model_type: str = "glm", **changes: Any
) -> Any:
    """Save a model of Hugging Face's, biases and norms random too, and return it."""
    import transformers

    family = {"glm": "Glm", "glm4": "Glm4"}[model_type]
    torch.manual_seed(1)
    model = getattr(transformers, family + kind)(getattr(transformers, family + "Config")(**{**SMALL, **changes}))
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.3)
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    return model


def _by_file(kind: Any, directory: Path, theirs: Any, attn: str) -> Any:
    return kind.from_pretrained(directory, attn_implementation=attn, dtype=theirs.dtype)


def _by_state(kind: Any, directory: Path, theirs: Any, attn: str) -> Any:
    """Into a model made anew, from the oracle's own parameters in memory."""
    model = kind(GlmConfig.from_pretrained(directory).replace(attn_implementation=attn)).to(theirs.dtype)
    model.load_state_dict(theirs.state_dict())
    return model.eval()


def _by_engine(kind: Any, directory: Path, theirs: Any, attn: str) -> Any:
    """As the engine loads it."""
    task = next(task for task, of in MODEL_OF.items() if of is kind)
    return load_model(directory, ranks=Ranks.single(), task=task, dtype=str(theirs.dtype).removeprefix("torch."))


_WAYS = {"file": _by_file, "state_dict": _by_state, "load_model": _by_engine}


def ids(rows: int, length: int, seed: int = 5) -> Tensor:
    """Random ids [rows, length], none of them the padding."""
    return torch.randint(2, SMALL["vocab_size"], (rows, length), generator=torch.Generator().manual_seed(seed))


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference over the largest number; 0 only where every bit is the same, NaN included."""
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    if torch.equal(ours.nan_to_num(7.0), theirs.nan_to_num(7.0)) and torch.equal(ours.isnan(), theirs.isnan()):
        return 0.0
    difference = (ours.double() - theirs.double()).abs().max()
    return float(difference / theirs.double().abs().max())


def assert_same(ours: Sequence[Tensor], theirs: Sequence[Tensor], bound: float = 0.0, *, name: str = "") -> None:
    """Equal tensors, bit for bit unless a bound on the relative error is given."""
    assert len(ours) == len(theirs)
    errors = [relative_error(a, b) for a, b in zip(ours, theirs, strict=True)]
    assert max(errors) <= bound, f"{name}: relative errors {errors}, bound {bound}"
