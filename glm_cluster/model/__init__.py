"""GLM in torch. Knows ranks; has never heard of a request.

`from glm_cluster.model import GlmConfig, GlmForCausalLM, load_model, ...` imports torch on first use only, so that
processes which read nothing but a config stay light.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glm_cluster.model.checkpoint import load_model as load_model
    from glm_cluster.model.config import GlmConfig as GlmConfig
    from glm_cluster.model.generation import generate as generate
    from glm_cluster.model.glm import GlmForCausalLM as GlmForCausalLM
    from glm_cluster.model.glm import GlmModel as GlmModel
    from glm_cluster.model.ranks import Ranks as Ranks

__all__ = ["GlmConfig", "GlmForCausalLM", "GlmModel", "Ranks", "generate", "load_model"]

_HOMES = {
    "GlmConfig": "config",
    "GlmForCausalLM": "glm",
    "GlmModel": "glm",
    "Ranks": "ranks",
    "generate": "generation",
    "load_model": "checkpoint",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
