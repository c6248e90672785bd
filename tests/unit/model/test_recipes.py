"""Recipes are strict, and true of the checkpoints they describe."""

import pytest
import yaml

from glm_cluster.errors import ConfigError
from glm_cluster.model import recipes
from glm_cluster.model.recipes import Recipe, load_recipe, recipe_names

GLM4 = {"layers": 40, "kv_heads": 2, "head_dim": 128, "heads": 32, "feed_forward": 13696, "vocab": 151552}
DEMO = {"layers": 30, "kv_heads": 3, "head_dim": 64, "heads": 9, "feed_forward": 1536, "vocab": 49152}


def raw_recipe(name: str) -> dict[str, object]:
    return yaml.safe_load((recipes._directory() / f"{name}.yaml").read_text(encoding="utf-8"))


def test_every_recipe_loads() -> None:
    assert {"demo", "glm-4-9b-chat-hf"} <= set(recipe_names())
    assert [load_recipe(name).name for name in recipe_names()] == list(recipe_names())


@pytest.mark.parametrize(("name", "shape"), [("demo", DEMO), ("glm-4-9b-chat-hf", GLM4)])
def test_figures_follow_from_the_shape(name: str, shape: dict[str, int]) -> None:
    recipe = load_recipe(name)
    assert recipe.kv_bytes_per_token == 2 * shape["layers"] * shape["kv_heads"] * shape["head_dim"] * 2
    assert recipe.legal_tp == tuple(tp for tp in range(1, 65) if divides(tp, shape))


def divides(tp: int, shape: dict[str, int]) -> bool:
    """Heads, feed-forward and vocabulary are split evenly; KV heads are split, or replicated evenly."""
    split = all(shape[axis] % tp == 0 for axis in ("heads", "feed_forward", "vocab"))
    return split and (shape["kv_heads"] % tp == 0 or tp % shape["kv_heads"] == 0)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no recipe '\.\./demo'; there are demo, glm-4-9b-chat-hf"):
        load_recipe("../demo")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, "colour"),
        ({"context": "8192"}, "context cannot be '8192'"),
        ({"context": True}, "context cannot be True"),
        ({"legal_tp": [1, 0]}, "legal_tp"),
        ({"source": "somewhere"}, "source"),
        ({"source": {"package": "p"}}, "source: keys unknown or missing: gguf"),
        ({"title": None}, "title"),
    ],
)
def test_a_wrong_key_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recipe.from_mapping(raw_recipe("demo") | change, "demo.yaml")


def test_a_missing_key_is_named() -> None:
    raw = raw_recipe("demo")
    del raw["licence"]
    with pytest.raises(ConfigError, match="licence"):
        Recipe.from_mapping(raw, "demo.yaml")


def test_wheel_values_have_types() -> None:
    raw = raw_recipe("demo")
    source = raw["source"]
    assert isinstance(source, dict)
    with pytest.raises(ConfigError, match=r"source: version cannot be 0\.1"):
        Recipe.from_mapping({**raw, "source": {**source, "version": 0.1}}, "demo.yaml")
