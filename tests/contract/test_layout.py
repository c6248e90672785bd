"""What stands where: the top level, folders without Python, and the README's tree against the disk."""

import re
import subprocess
from pathlib import Path

import pytest

TOP_LEVEL = {
    ".ci",
    ".github",
    ".gitignore",
    "LICENSE",
    "Makefile",
    "README.md",
    "constraints.txt",
    "deploy",
    "glm_cluster",
    "k8s",
    "model",
    "pyproject.toml",
    "tests",
}
TESTS = {
    "unit",
    "contract",
    "parallel",
    "cluster",
    "gpu",
    "install",
    "bench",
    "support",
    "oracle",
    "structured",
    "clients",
}


@pytest.fixture(scope="module")
def files(root: Path) -> set[str]:
    """What git holds or would take in."""
    if not (root / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.split("\n")
    return {name for name in listed if name and (root / name).exists()}


def test_top_level_holds_these_and_nothing_else(files: set[str]) -> None:
    assert {name.split("/")[0] for name in files} == TOP_LEVEL


def test_no_python_in_artefact_folders(files: set[str]) -> None:
    """A bare package `model` or `deploy` on somebody's path would clash with Ray's pickles."""
    assert [name for name in files if name.startswith(("model/", "deploy/", "k8s/")) and name.endswith(".py")] == []


def test_every_package_folder_is_a_package(files: set[str]) -> None:
    folders = {name.rpartition("/")[0] for name in files if name.startswith("glm_cluster/") and name.endswith(".py")}
    assert {f"{folder}/__init__.py" for folder in folders} <= files


def test_tests_stand_in_their_folders(files: set[str]) -> None:
    """Test modules share no package, so none may hide beside the folders that `make test` names."""
    tests = [name.split("/")[1:] for name in files if name.startswith("tests/")]
    assert {parts[0] for parts in tests if len(parts) > 1} <= TESTS
    assert {parts[0] for parts in tests if len(parts) == 1} <= {"conftest.py", "smoke.py"}
    assert not [parts for parts in tests if parts[-1] == "__init__.py"]


def test_modules_say_what_they_know(root: Path, files: set[str]) -> None:
    import ast

    silent = [
        name
        for name in files
        if name.startswith("glm_cluster/")
        and name.endswith(".py")
        and "_pb2" not in name
        and (root / name).stat().st_size  # a package of generated code needs no words
        and not ast.get_docstring(ast.parse((root / name).read_text(encoding="utf-8")))
    ]
    assert silent == []


def test_readme_tree_is_the_disk(root: Path, files: set[str], readme_blocks: list[tuple[str, str]]) -> None:
    """Every path in the tree exists, and every module and artefact is in the tree."""
    (tree,) = [text for language, text in readme_blocks if language == "" and text.startswith("glm_cluster/")]
    named = set(tree_paths(tree))
    wanted = {
        name
        for name in files
        if re.match(r"(glm_cluster|deploy|model|k8s)/", name)
        and not name.endswith(("__init__.py", ".md", "py.typed"))
        and "_pb2" not in name
    }
    listed = {name for name in named if not name.endswith("/")}
    assert listed - files == set(), "named in the README, not on the disk"
    assert wanted - listed == set(), "on the disk, not in the README"
    assert [name for name in named if name.endswith("/") and not (root / name).is_dir()] == []


def tree_paths(tree: str) -> list[str]:
    """The paths of an indented tree, two spaces a level; a folder ends in `/`, a note follows two spaces."""
    folders: list[str] = []
    paths = []
    for line in filter(str.strip, tree.split("\n")):
        level = (len(line) - len(line.lstrip())) // 2
        name = line.strip().split("  ")[0]
        del folders[level:]
        paths.append("".join(folders) + name)
        folders += [name] if name.endswith("/") else []
    return paths
