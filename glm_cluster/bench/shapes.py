"""The matrices of a model and what multiplying by them costs in FLOP and bytes.

Arithmetic on a config. Knows no weights and no torch.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from glm_cluster.errors import ConfigError
from glm_cluster.model.config import GlmConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemm:
    """One weight [num_out, num_in], met `count` times in a forward pass."""

    name: str
    num_in: int
    num_out: int
    count: int

    def flop(self, rows: int) -> int:
        """Of one call with so many rows: a multiplication and an addition for each weight and row."""
        return 2 * rows * self.num_in * self.num_out

    def weight_bytes(self, item_bytes: int) -> int:
        """Of one call."""
        return self.num_in * self.num_out * item_bytes


def gemms(config: GlmConfig) -> tuple[Gemm, ...]:
    """The matrices of one forward pass, unsharded, with q, k and v in one. The head is met once."""
    width, layers = config.hidden_size, config.num_hidden_layers
    mixed = config.num_attention_heads * config.head_dim
    qkv = mixed + 2 * config.num_key_value_heads * config.head_dim
    return (
        Gemm(name="qkv", num_in=width, num_out=qkv, count=layers),
        Gemm(name="o", num_in=mixed, num_out=width, count=layers),
        Gemm(name="gate_up", num_in=width, num_out=2 * config.intermediate_size, count=layers),
        Gemm(name="down", num_in=config.intermediate_size, num_out=width, count=layers),
        Gemm(name="lm_head", num_in=width, num_out=config.vocab_size, count=1),
    )


def chunks(num_tokens: int, step_tokens: int) -> tuple[int, ...]:
    """The rows of each step that a prompt is computed in."""
    whole, rest = divmod(num_tokens, step_tokens)
    return (step_tokens,) * whole + ((rest,) if rest else ())


def config_of(name: str) -> GlmConfig:
    """The config of a directory's config.json, or a recipe's numbers in one; nothing is fetched."""
    from glm_cluster.model.checkpoints.recipes import find_recipe

    if Path(name).is_dir():
        return GlmConfig.from_directory(Path(name))
    recipe = find_recipe(name)
    if recipe is None:
        raise ConfigError(f"{name!r} is no directory and no recipe; `glm-cluster models` lists the recipes")
    return GlmConfig(**asdict(recipe.shape), dtype=recipe.dtype)
