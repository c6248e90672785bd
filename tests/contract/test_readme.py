"""The README's code blocks: every command in them is one that a test or a Makefile target runs."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from glm_cluster.cli import build_parser
from glm_cluster.launch import greeting

Blocks = list[tuple[str, str]]
LANGUAGES = {"bash", "python", "text", ""}


@pytest.fixture
def commands(readme_blocks: Blocks) -> list[list[str]]:
    return [
        shlex.split(line, comments=True)
        for language, text in readme_blocks
        if language == "bash"
        for line in text.split("\n")
        if line.strip()
    ]


@pytest.fixture(scope="module")
def targets(root: Path) -> set[str]:
    return set(re.findall(r"^([\w-]+):(?!=)", (root / "Makefile").read_text(encoding="utf-8"), re.M))


def glm_cluster_arguments(commands: list[list[str]]) -> Iterator[list[str]]:
    yield from (words[1:] for words in commands if words[0] == ".venv/bin/glm-cluster")


def test_blocks_are_of_known_languages(readme_blocks: Blocks) -> None:
    assert {language for language, _ in readme_blocks} == LANGUAGES


def test_every_command_is_checked_below(commands: list[list[str]]) -> None:
    assert {words[0] for words in commands} == {"make", ".venv/bin/glm-cluster", "curl", "kubectl"}


def test_make_commands_are_targets(commands: list[list[str]], targets: set[str]) -> None:
    named = {words[1] for words in commands if words[0] == "make"}
    assert named >= {"serve", "test"}
    assert named <= targets


def test_targets_named_in_prose_exist(root: Path, targets: set[str]) -> None:
    for name in ("README.md", ".github/CONTRIBUTING.md"):
        assert set(re.findall(r"`make ([\w-]+)", (root / name).read_text(encoding="utf-8"))) <= targets, name


def test_command_lines_parse(commands: list[list[str]], root: Path) -> None:
    parsed = [build_parser().parse_args(arguments) for arguments in glm_cluster_arguments(commands)]
    assert len(parsed) >= 4
    files = [options.config for options in parsed if getattr(options, "config", None)]
    assert files
    assert all((root / file).is_file() for file in files)


def test_curl_line_is_the_printed_one(commands: list[list[str]]) -> None:
    from glm_cluster.deploy.local import Endpoints

    endpoints = Endpoints(http_url="http://127.0.0.1:8000", grpc_address="127.0.0.1:9000", model_name="demo")
    printed = [shlex.split(line) for line in greeting(endpoints, demo=True) if line.startswith("curl")]
    curls = [words for words in commands if words[0] == "curl"]
    assert printed == curls[:1]
    assert len(curls) == 3  # the others ask real clusters in tests/cluster for a tool call and for labels


def test_manifests_exist(commands: list[list[str]], root: Path) -> None:
    applied = [words[words.index("-f") + 1] for words in commands if words[0] == "kubectl"]
    assert applied
    assert all((root / file).is_file() for file in applied)


def test_python_compiles(readme_blocks: Blocks) -> None:
    """They are run in tests/cluster, two of them against a real cluster."""
    examples = [text for language, text in readme_blocks if language == "python"]
    assert len(examples) == 3
    for text in examples:
        compile(text, "README.md", "exec")


def test_links_lead_somewhere(root: Path) -> None:
    for page in (root / "README.md", *root.glob("*/README.md"), root / ".github" / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_glossary_words_are_used_in_the_code(root: Path) -> None:
    text = (root / "README.md").read_text(encoding="utf-8")
    glossary = re.search(r"## Words\n(.*?)\n## ", text, re.S)
    assert glossary
    words = re.findall(r"^\| ([\w-]+) \|", glossary[1], re.M)[1:]
    assert {"request", "sequence", "block", "slot", "step", "rank", "shard", "replica"} <= set(words)
    source = "".join(path.read_text(encoding="utf-8") for path in (root / "glm_cluster").rglob("*.py"))
    assert [word for word in words if word not in source] == []
