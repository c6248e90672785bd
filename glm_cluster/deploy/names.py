"""What the deployments of an application are called: by Ray's dashboard, in metrics and in `deployments:` overrides.

Knows the names of models. Knows no Ray.
"""

import re
from collections.abc import Sequence

from glm_cluster.errors import ConfigError

INGRESS = "GlmIngress"
POOL = "GlmPool"
REPLICA = "GlmReplica"
_STRANGE = re.compile(r"[^A-Za-z0-9_.-]")  # Serve refuses `#`, and HAProxy would rename `/`


def replica_names(models: Sequence[str]) -> tuple[str, ...]:
    """The replica deployment of each model: GlmReplica, or GlmReplica-<model name> where there are several models."""
    if len(models) == 1:
        return (REPLICA,)
    names = tuple(f"{REPLICA}-{_STRANGE.sub('-', model)}" for model in models)
    for index, name in enumerate(names):
        if (first := names.index(name)) != index:
            raise ConfigError(
                f"models[{first}] and models[{index}] would both be deployed as {name}; give one another model_name"
            )
    return names
