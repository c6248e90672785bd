"""The wheel: what a user installs, built from this checkout without a network."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SOURCES = ("glm_cluster", "model", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def names(root: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The paths in the wheel, built from a copy so that nothing is left in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    for source in SOURCES:
        if (root / source).is_dir():
            shutil.copytree(root / source, folder / source, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(root / source, folder)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-build-isolation",
        "--no-deps",
        "--no-index",
        "-w",
        "out",
        ".",
    ]
    built = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = (folder / "out").glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_one_package_and_nothing_else(names: set[str]) -> None:
    top = {name.split("/")[0] for name in names}
    (metadata,) = (name for name in top if name.endswith(".dist-info"))
    assert top == {"glm_cluster", metadata}
    assert f"{metadata}/licenses/LICENSE" in names


def test_every_file_of_the_package(names: set[str], root: Path) -> None:
    files = {path for path in (root / "glm_cluster").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path.relative_to(root).as_posix() for path in files} <= names


def test_recipes_stubs_and_protocol(names: set[str], root: Path) -> None:
    recipes = {f"glm_cluster/recipes/{path.name}" for path in (root / "model" / "recipes").glob("*.yaml")}
    proto = {f"glm_cluster/api/proto/{name}" for name in ("glm.proto", "glm_pb2.py", "glm_pb2.pyi", "glm_pb2_grpc.py")}
    assert recipes
    assert recipes | proto | {"glm_cluster/py.typed"} <= names


def test_command_is_installed() -> None:
    from importlib.metadata import entry_points

    (command,) = entry_points(group="console_scripts", name="glm-cluster")
    assert command.value == "glm_cluster.cli:main"
