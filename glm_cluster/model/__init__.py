"""GLM in torch. Knows ranks; has never heard of a request.

`from glm_cluster.model import GlmConfig, GlmForCausalLM, load_model, ...` imports torch on first use only, so that
processes which read nothing but a config stay light.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glm_cluster.model.cache import DynamicCache as DynamicCache
    from glm_cluster.model.cache import StaticCache as StaticCache
    from glm_cluster.model.config import GlmConfig as GlmConfig
    from glm_cluster.model.generation.config import GenerationConfig as GenerationConfig
    from glm_cluster.model.glm import GlmForCausalLM as GlmForCausalLM
    from glm_cluster.model.glm import GlmModel as GlmModel
    from glm_cluster.model.heads import GlmForSequenceClassification as GlmForSequenceClassification
    from glm_cluster.model.heads import GlmForTokenClassification as GlmForTokenClassification
    from glm_cluster.model.loading import load_model as load_model
    from glm_cluster.model.ranks import Ranks as Ranks

__all__ = [
    "DynamicCache",
    "GenerationConfig",
    "GlmConfig",
    "GlmForCausalLM",
    "GlmForSequenceClassification",
    "GlmForTokenClassification",
    "GlmModel",
    "Ranks",
    "StaticCache",
    "load_model",
]

_HOMES = {
    "DynamicCache": "cache",
    "GenerationConfig": "generation.config",
    "GlmConfig": "config",
    "GlmForCausalLM": "glm",
    "GlmForSequenceClassification": "heads",
    "GlmForTokenClassification": "heads",
    "GlmModel": "glm",
    "Ranks": "ranks",
    "StaticCache": "cache",
    "load_model": "loading",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
