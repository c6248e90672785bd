"""Recipes are strict, and every figure in them follows from the shape of the checkpoint they describe."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from glm_cluster.errors import ConfigError
from glm_cluster.model.checkpoints import recipes
from glm_cluster.model.checkpoints.recipes import (
    GpuSetup,
    HubSource,
    Recipe,
    Shape,
    WheelSource,
    find_recipe,
    load_recipe,
    recipe_names,
)
from glm_cluster.model.config import GlmConfig

TWICE = {"glm-edge-1.5b-chat", "glm-edge-4b-chat"}  # their files hold the tied matrix twice
CARDS_GB = (16, 24, 40, 48, 80, 141)
every_recipe = pytest.mark.parametrize("recipe", [load_recipe(name) for name in recipe_names()], ids=lambda r: r.name)


def raw_recipe(name: str) -> dict[str, object]:
    return yaml.safe_load((recipes._directory() / f"{name}.yaml").read_text(encoding="utf-8"))


def test_the_published_checkpoints_are_there() -> None:
    assert {
        "codegeex4-all-9b",
        "demo",
        "glm-4-32b-0414",
        "glm-4-9b-0414",
        "glm-4-9b-chat",
        "glm-4-9b-chat-1m-hf",
        "glm-4-9b-chat-hf",
        "glm-edge-1.5b-chat",
        "glm-z1-32b-0414",
        "longwriter-glm4-9b",
    } <= set(recipe_names())


# --- figures that follow from the shape


@every_recipe
def test_kv_bytes_follow_from_the_shape(recipe: Recipe) -> None:
    shape = recipe.shape
    values = shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim
    assert recipe.dtype == "bfloat16"
    assert recipe.kv_bytes_per_token == 2 * values * 2  # keys and values, of two bytes


@every_recipe
def test_legal_tp_is_the_engines_rule(recipe: Recipe) -> None:
    assert recipe.legal_tp == GlmConfig(**asdict(recipe.shape)).legal_tp_sizes()


@every_recipe
def test_parameters_follow_from_the_shape(recipe: Recipe) -> None:
    assert recipe.parameters == count_parameters(recipe.shape, norms=4 if recipe.model_type == "glm4" else 2)
    again = recipe.shape.vocab_size * recipe.shape.hidden_size if recipe.name in TWICE else 0
    assert recipe.weights_bytes == 2 * (recipe.parameters + again)


def count_parameters(shape: Shape, *, norms: int) -> int:
    hidden, heads, kv_heads = shape.hidden_size, shape.num_attention_heads, shape.num_key_value_heads
    projected = (heads + 2 * kv_heads) * shape.head_dim  # rows of q, k and v
    attention = projected * hidden + heads * shape.head_dim * hidden + (projected if shape.attention_bias else 0)
    layer = attention + 3 * shape.intermediate_size * hidden + norms * hidden
    vocabularies = 1 if shape.tie_word_embeddings else 2
    return vocabularies * shape.vocab_size * hidden + shape.num_hidden_layers * layer + hidden


@every_recipe
def test_gpus_follow_from_the_rule(recipe: Recipe) -> None:
    """The rule of model/README.md, written a second time."""
    expected: list[GpuSetup] = []
    for gb in CARDS_GB:
        fitting = [tp for tp in recipe.legal_tp if rank_bytes(recipe, tp) <= 0.9 * gb * 10**9]
        if fitting and (not expected or fitting[0] < expected[-1].tp):
            expected.append(GpuSetup(memory_gb=gb, tp=fitting[0]))
    assert recipe.gpus == tuple(expected)


def rank_bytes(recipe: Recipe, tp: int) -> float:
    kv_heads = recipe.shape.num_key_value_heads
    kv = min(recipe.context, 8192) * recipe.kv_bytes_per_token * max(1, kv_heads // tp) / kv_heads
    return recipe.weights_bytes / tp + 2 * 2**30 + kv


@pytest.mark.parametrize(
    ("name", "billions", "gigabytes"),
    [
        ("glm-4-9b-chat", 9.40, 18.8),
        ("glm-4-9b-chat-1m", 9.48, 18.97),
        ("glm-edge-1.5b-chat", 1.47, 3.19),
        ("glm-edge-4b-chat", 4.15, 8.66),
        ("glm-4-32b-0414", 32.57, 65.1),
    ],
)
def test_sizes_are_the_published_ones(name: str, billions: float, gigabytes: float) -> None:
    recipe = load_recipe(name)
    assert recipe.parameters / 1e9 == pytest.approx(billions, abs=0.005)
    assert recipe.weights_bytes / 1e9 == pytest.approx(gigabytes, rel=0.002)


@pytest.mark.parametrize(
    "name", ["glm-4-9b-chat-hf", "glm-edge-1.5b-chat", "glm-edge-4b-chat", "GLM-4-9B-0414", "GLM-4-32B-0414"]
)
def test_shapes_are_those_of_the_stored_configs(name: str, shared_data: Path) -> None:
    stored = json.loads((shared_data / "configs" / "checkpoints.json").read_text(encoding="utf-8"))[name]["config"]
    recipe = load_recipe(name)
    assert asdict(recipe.shape) == {key: stored[key] for key in asdict(recipe.shape)}
    assert (recipe.model_type, recipe.context) == (stored["model_type"], stored["max_position_embeddings"])


@pytest.mark.parametrize("name", ["glm-4-9b-chat", "glm-4-9b-chat-1m"])
def test_shapes_are_those_of_the_stored_chatglm_configs(name: str, shared_data: Path) -> None:
    stored = json.loads((shared_data / "configs" / "checkpoints.json").read_text(encoding="utf-8"))[name]["config"]
    recipe = load_recipe(name)
    assert asdict(recipe.shape) == {
        "hidden_size": stored["hidden_size"],
        "num_hidden_layers": stored["num_layers"],
        "num_attention_heads": stored["num_attention_heads"],
        "num_key_value_heads": stored["multi_query_group_num"],
        "head_dim": stored["kv_channels"],
        "intermediate_size": stored["ffn_hidden_size"],
        "vocab_size": stored["padded_vocab_size"],
        "attention_bias": stored["add_qkv_bias"],
        "tie_word_embeddings": stored["tie_word_embeddings"],
    }
    assert (recipe.model_type, recipe.context) == ("chatglm", stored["seq_length"])
    assert f"theta {10000 * stored['rope_ratio']}" in recipe.card


# --- names


@every_recipe
def test_a_recipe_is_named_like_its_repository(recipe: Recipe) -> None:
    assert recipe.title
    if recipe.name == "demo":
        assert isinstance(recipe.source, WheelSource)
    else:
        assert isinstance(recipe.source, HubSource)
        owner, _, repository = recipe.source.repo.partition("/")
        assert owner == "THUDM"
        assert repository.lower() == recipe.name == recipe.title.lower()


@pytest.mark.parametrize("name", ["glm-4-9b-0414", "GLM-4-9B-0414", "THUDM/GLM-4-9B-0414", "thudm/glm-4-9b-0414"])
def test_names_are_found_in_any_spelling(name: str) -> None:
    recipe = find_recipe(name)
    assert recipe is not None
    assert recipe.name == "glm-4-9b-0414"
    assert load_recipe(name) == recipe


@pytest.mark.parametrize("name", ["", "glm", "elsewhere/glm-4-9b-0414", "THUDM/demo", "../demo", "THUDM/", "demo.yaml"])
def test_other_names_are_not_found(name: str) -> None:
    assert find_recipe(name) is None


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no recipe '\.\./demo'; there are codegeex4-all-9b, demo, glm-4-32b-0414, "):
        load_recipe("../demo")


def test_a_file_that_calls_itself_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(raw_recipe("demo")), encoding="utf-8")
    monkeypatch.setattr(recipes, "_directory", lambda: tmp_path)
    with pytest.raises(ConfigError, match=r"mine\.yaml calls itself 'demo'"):
        load_recipe("mine")


# --- keys


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, "colour"),
        ({"context": "8192"}, "context cannot be '8192'"),
        ({"context": True}, "context cannot be True"),
        ({"parameters": 1.5e8}, "parameters cannot be 150000000.0"),
        ({"model_type": "llama"}, "model_type cannot be 'llama'"),
        ({"legal_tp": [1, 0]}, "legal_tp"),
        ({"gpus": [{"memory_gb": 16}]}, "gpus: keys unknown or missing: tp"),
        ({"gpus": [{"memory_gb": 16, "tp": 0}]}, "gpus: tp cannot be 0"),
        ({"gpus": "16"}, "gpus cannot be '16'"),
        ({"shape": None}, "shape cannot be None"),
        ({"shape": {"hidden_size": 1}}, "shape: keys unknown or missing: attention_bias"),
        ({"source": None}, "source cannot be None; give a `repo`"),
        ({"source": "somewhere"}, "source"),
        ({"source": {"package": "p"}}, "source: keys unknown or missing: gguf"),
        ({"source": {"repo": "a/b", "revision": "main"}}, "source: keys unknown or missing: revision"),
        ({"source": {"repo": 1}}, "source: repo cannot be 1"),
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


@pytest.mark.parametrize(
    ("key", "name", "value", "message"),
    [
        ("source", "version", 0.1, r"source: version cannot be 0\.1"),
        ("source", "wheel_bytes", "many", "source: wheel_bytes cannot be 'many'"),
        ("shape", "head_dim", True, "shape: head_dim cannot be True"),
        ("shape", "tie_word_embeddings", 1, "shape: tie_word_embeddings cannot be 1"),
    ],
)
def test_inner_values_have_types(key: str, name: str, value: object, message: str) -> None:
    raw = raw_recipe("demo")
    inner = raw[key]
    assert isinstance(inner, dict)
    with pytest.raises(ConfigError, match=message):
        Recipe.from_mapping({**raw, key: {**inner, name: value}}, "demo.yaml")


# --- the page about them


@every_recipe
def test_the_page_says_what_the_recipe_says(recipe: Recipe) -> None:
    page = Path(__file__).parents[4] / "model" / "README.md"
    (row,) = re.findall(rf"^\| \[`{re.escape(recipe.name)}`\].*$", page.read_text(encoding="utf-8"), re.M)
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        f"[`{recipe.name}`](recipes/{recipe.name}.yaml)",
        recipe.title,
        recipe.model_type,
        recipe.licence,
        f"{recipe.parameters / 1e9:.2f} B",
        f"{recipe.context:,}",
        f"{recipe.kv_bytes_per_token / 1024:g} KiB",
        ", ".join(map(str, recipe.legal_tp)),
        ", ".join(f"{gpu.tp} x {gpu.memory_gb} GB" for gpu in recipe.gpus),
    ]
