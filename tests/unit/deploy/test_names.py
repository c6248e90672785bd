"""What deployments are called."""

import pytest

from glm_cluster.deploy.names import replica_names
from glm_cluster.errors import ConfigError


def test_one_model_keeps_the_plain_name():
    assert replica_names(["glm/4"]) == ("GlmReplica",)


def test_several_are_told_apart_by_their_models():
    names = replica_names(["glm-4.5_air", "org/topics", "a#b 智"])
    assert names == ("GlmReplica-glm-4.5_air", "GlmReplica-org-topics", "GlmReplica-a-b--")


def test_names_that_would_meet_are_refused():
    with pytest.raises(ConfigError, match=r"models\[1\] and models\[2\] would both be deployed as GlmReplica-a-b"):
        replica_names(["x", "a/b", "a-b"])
