"""Who may import whom, and which part alone may import ray, torch, fastapi and grpc."""

import ast
import subprocess
import sys
from collections.abc import Iterator

import pytest

PACKAGE = "glm_cluster"
RECORDS = {"records", "config", "errors", "metrics"}
# part -> the parts it may import; a part is the name after `glm_cluster.`
ALLOWED = {
    "errors": set(),
    "config": {"errors", "records"},
    "records": set(),
    "metrics": set(),
    "keys": {"errors"},
    "model": RECORDS,
    "text": RECORDS,
    "engine": {"model", *RECORDS},
    "api": {"keys", "text", *RECORDS},
    "deploy": {"api", "text", "engine", "model", *RECORDS},
    # the command line's own parts
    "terminal": set(),
    "chat": {"errors"},
    "auto": {"model", "text", *RECORDS},  # what a user imports in the place of transformers
    "catalogue": {"model"},
    "convert": {"model", "text", *RECORDS},
    "verify": {"engine", "model", "text", *RECORDS},
    "launch": {"deploy", "keys", "model", "preflight", "terminal", *RECORDS},
    "offline": {"engine", "model", "text", *RECORDS},
    "preflight": {"model", "text", *RECORDS},
    "bench": {"api", "chat", "engine", "launch", "model", "terminal", "text", *RECORDS},
    "cli": {
        "bench",
        "catalogue",
        "convert",
        "deploy",
        "keys",
        "launch",
        "verify",
        "model",
        "terminal",
        "chat",
        "offline",
        "preflight",
        *RECORDS,
    },
}
# library -> the parts that may import it
CONFINED = {
    "ray": {"deploy"},
    "torch": {"auto", "bench", "model", "engine", "deploy", "verify"},  # deploy: in its rank processes only, see below
    "fastapi": {"api", "deploy"},
    "starlette": {"api"},
    "grpc": {"api", "bench", "deploy"},
    "grpc_health": {"api", "deploy"},
    "zmq": {"deploy"},
    "tokenizers": {"text", "model"},
    "jinja2": {"text", "verify"},
    "pynvml": {"preflight"},
    "gguf": {"model"},
    "llguidance": {"text"},
    "httpx": {"bench", "chat"},
    "rich": {"terminal", "chat"},
    "huggingface_hub": {"model"},
    "transformers": {"verify"},
    "matplotlib": {"bench"},
}
Modules = dict[str, ast.Module]


def part(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module named by an import statement, at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module
            # `from glm_cluster.model import demo` names the module glm_cluster.model.checkpoints.demo
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_at_start(tree: ast.Module) -> Iterator[str]:
    """What importing the module imports: statements outside functions and TYPE_CHECKING."""
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imported(node)


def test_every_part_is_placed(modules: Modules) -> None:
    assert {part(module) for module in modules} - {""} == set(ALLOWED)


def test_directions(modules: Modules) -> None:
    wrong = [
        f"{module} imports {name}"
        for module, tree in modules.items()
        for name in imported(tree)
        if name.split(".")[0] == PACKAGE
        and part(name) in ALLOWED
        and part(name) != part(module)
        and part(name) not in ALLOWED.get(part(module), set())
    ]
    assert wrong == []


@pytest.mark.parametrize("library", CONFINED)
def test_confinement(library: str, modules: Modules) -> None:
    wrong = [
        module
        for module, tree in modules.items()
        if part(module) not in CONFINED[library] and any(name.split(".")[0] == library for name in imported(tree))
    ]
    assert wrong == []


def test_most_processes_start_without_torch(modules: Modules) -> None:
    """`--help`, refusals, the ingress and the replica do not pay for torch: only ranks do."""
    wrong = [
        f"{module} imports {name}"
        for module, tree in modules.items()
        if part(module) not in ("model", "engine")
        for name in imported_at_start(tree)
        if name.split(".")[0] == "torch"
    ]
    assert wrong == []


def test_help_answers_without_the_rest() -> None:
    """The command line reads its arguments before anything heavy is imported."""
    heavy = ("torch", "ray", "numpy", "pydantic", "httpx", "rich", "yaml")
    program = f"import sys, glm_cluster.cli as c; c.build_parser(); print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_no_module_is_a_grab_bag(modules: Modules) -> None:
    """File names are nouns of the domain."""
    assert not {module.rpartition(".")[2] for module in modules} & {"utils", "helpers", "common", "misc", "base"}


def test_broad_excepts_stand_at_the_edges(modules: Modules) -> None:
    """`except Exception` only where a process meets the outside, and where a library raises nothing narrower."""
    wrong = [
        f"{module}:{node.lineno}"
        for module, tree in modules.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")))
        and part(module) not in ("deploy", "api")
        and module != "glm_cluster.text.tokenizer"  # the tokenizers library raises bare Exception
    ]
    assert wrong == []
