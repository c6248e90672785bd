"""Names become directories: what is here is used, what is not is fetched without pickles. No test asks a network."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from glm_cluster.errors import ConfigError
from glm_cluster.model.checkpoints import hub
from glm_cluster.model.checkpoints.hub import cached, fetch, installed, resolve
from glm_cluster.model.checkpoints.recipes import load_recipe, recipe_names

REPO = "THUDM/glm-4-9b-chat-hf"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
Snapshot = Callable[..., str]
Serve = Callable[[Snapshot], list[dict[str, Any]]]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The real library with an empty cache and no network."""
    library = importlib.import_module("huggingface_hub")
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return library


@pytest.fixture
def serve(library: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Put a function in the place of snapshot_download; the list holds the calls."""

    def replace(snapshot: Snapshot) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []

        def record(repo: str, **options: Any) -> str:
            calls.append({"repo": repo, **options})
            return snapshot(**options)

        monkeypatch.setattr(library, "snapshot_download", record)
        return calls

    return replace


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)


def lay_out(cache: Path, *names: str, repo: str = REPO, revision: str = "main") -> Path:
    """A snapshot as the hub's library leaves it: files by hash, links to them by commit, branches as references."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    for part in (folder / "blobs", folder / "refs", snapshot):
        part.mkdir(parents=True)
    (folder / "refs" / revision).write_text(COMMIT)
    for name in names:
        (folder / "blobs" / f"hash-of-{name}").write_text("{}")
        (snapshot / name).symlink_to(Path("../../blobs") / f"hash-of-{name}")
    return snapshot


# --- fetching


def test_neither_pickles_nor_code_are_asked_for(serve: Serve, tmp_path: Path) -> None:
    calls = serve(lambda **_: str(tmp_path))
    assert fetch(REPO) == tmp_path
    (call,) = calls
    assert (call["repo"], call["revision"]) == (REPO, None)
    wanted = {name for name in PUBLISHED if any(fnmatch(name, pattern) for pattern in call["allow_patterns"])}
    assert wanted == PUBLISHED - UNWANTED


UNWANTED = {
    "modeling_chatglm.py",
    "pytorch_model-00001-of-00010.bin",
    "consolidated.pt",
    "figure.png",
    ".gitattributes",
}
PUBLISHED = UNWANTED | {
    "LICENSE",
    "LICENSE.txt",
    "README.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model-00001-of-00010.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
}


def test_a_revision_is_passed_on(serve: Serve, tmp_path: Path) -> None:
    calls = serve(lambda **_: str(tmp_path))
    fetch(REPO, revision="v1")
    assert [call["revision"] for call in calls] == ["v1"]


def test_progress_is_of_bytes(serve: Serve, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The library makes a bar of files and one or more of bytes, whose total grows as files are begun."""

    def snapshot(tqdm_class: type[Any], **_: object) -> str:
        files = tqdm_class(total=2, desc="Fetching 2 files")
        with tqdm_class(total=0, unit="B", unit_scale=True, name="the hub's own") as received:
            for size in (100, 300):
                received.total += size
                received.refresh()
                received.update(size // 2)
                received.refresh()
        files.update(1)
        files.close()
        return str(tmp_path)

    serve(snapshot)
    told: list[tuple[str, float]] = []
    fetch(REPO, on_progress=lambda stage, fraction: told.append((stage, fraction)))
    assert {stage for stage, _ in told} == {"download"}
    fractions = [fraction for _, fraction in told]
    assert list(dict.fromkeys(fractions)) == [0.0, 0.5, 0.125, 1.0]
    assert capfd.readouterr().err == ""


def test_progress_is_of_files_where_bytes_are_not_counted(serve: Serve, tmp_path: Path) -> None:
    def snapshot(tqdm_class: type[Any], **_: object) -> str:
        with tqdm_class(total=4, desc="Fetching 4 files") as bar:
            for _ in range(4):
                bar.update(1)
                bar.refresh()
        return str(tmp_path)

    serve(snapshot)
    told: list[float] = []
    fetch(REPO, on_progress=lambda _, fraction: told.append(fraction))
    assert list(dict.fromkeys(told)) == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_without_the_library_it_says_what_to_install(no_library: None) -> None:
    with pytest.raises(
        ConfigError, match=r"THUDM/glm-4-9b-chat-hf is not .*`pip install huggingface_hub`, or give the"
    ):
        fetch(REPO)
    assert cached(REPO) is None


# --- the cache


def test_the_cached_snapshot_is_used_offline(library: ModuleType, tmp_path: Path) -> None:
    snapshot = lay_out(tmp_path / "hub", "config.json", "model.safetensors")
    assert fetch(REPO) == snapshot
    assert cached(REPO) == snapshot
    assert cached(REPO, revision=COMMIT) == snapshot
    assert cached(REPO, revision="v2") is None


def test_the_environment_decides_in_a_fresh_process(tmp_path: Path) -> None:
    snapshot = lay_out(tmp_path / "hub", "config.json", "model.safetensors")
    program = "import sys; from glm_cluster.model.checkpoints.hub import resolve; print(resolve(sys.argv[1]))"
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        environment.pop(name, None)
    command = [sys.executable, "-c", program, "glm-4-9b-chat-hf"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str(snapshot)


@pytest.mark.parametrize("names", [(), ("config.json",), ("model.safetensors",)])
def test_half_a_checkpoint_is_not_a_cached_one(library: ModuleType, tmp_path: Path, names: tuple[str, ...]) -> None:
    lay_out(tmp_path / "hub", *names)
    assert cached(REPO) is None


def test_weights_that_are_gone_are_not_cached(library: ModuleType, tmp_path: Path) -> None:
    snapshot = lay_out(tmp_path / "hub", "config.json", "model.safetensors")
    (snapshot / "model.safetensors").resolve().unlink()
    assert cached(REPO) is None


def test_offline_with_an_empty_cache_is_refused(library: ModuleType) -> None:
    with pytest.raises(ConfigError, match=r"could not be fetched .* and no complete copy is cached \(.*HF_HUB_OFFLINE"):
        fetch(REPO)


def test_another_cache_is_used_where_one_is_given(library: ModuleType, tmp_path: Path) -> None:
    snapshot = lay_out(tmp_path / "other", "config.json", "model.safetensors")
    assert resolve(REPO, cache_dir=tmp_path / "other", local_files_only=True) == snapshot
    assert cached(REPO, cache_dir=tmp_path / "other") == snapshot
    assert cached(REPO) is None


def test_local_files_only_that_are_not_there_are_refused(library: ModuleType) -> None:
    with pytest.raises(ConfigError, match=r"local_files_only=True forbids fetching it; leave that out"):
        resolve(REPO, local_files_only=True)


def test_the_options_are_the_library_s(serve: Serve, tmp_path: Path) -> None:
    options: dict[str, Any] = {"revision": "v1", "cache_dir": tmp_path, "token": False, "local_files_only": False}
    calls = serve(lambda **_: str(tmp_path))
    resolve("glm-4-9b-chat-hf", **options)
    resolve("someone/glm", **options)
    assert [call.items() >= options.items() for call in calls] == [True, True]


@pytest.mark.parametrize("failure", ["OSError", "HTTPError"])
def test_a_failing_network_falls_back_to_the_cache(
    serve: Serve, library: ModuleType, tmp_path: Path, failure: str
) -> None:
    """The HTTP library's errors are no OSErrors in newer releases of the hub's library."""
    kinds = {"OSError": OSError, "HTTPError": importlib.import_module("huggingface_hub.errors").HTTPError}
    real = library.snapshot_download

    def snapshot(local_files_only: bool = False, **options: Any) -> str:
        if not local_files_only:
            raise kinds[failure]("the connection broke.\nrequest 42")
        return str(real(REPO, local_files_only=True, **options))

    calls = serve(snapshot)
    with pytest.raises(ConfigError, match=r"is cached \(the connection broke\); check"):
        fetch(REPO)
    kept = lay_out(tmp_path / "hub", "config.json", "model.safetensors", revision="v1")
    assert fetch(REPO, revision="v1") == kept
    assert [call.get("local_files_only", False) for call in calls] == [False, True, False, True]


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("RepositoryNotFoundError", "there is no repository 'THUDM/glm-4-9b-chat-hf' on the Hugging Face hub"),
        ("GatedRepoError", "accept them on the hub and set HF_TOKEN"),
        ("RevisionNotFoundError", "has no revision 'v9'"),
    ],
)
def test_refusals_say_what_to_do_and_look_for_no_copy(serve: Serve, kind: str, sentence: str) -> None:
    error = getattr(importlib.import_module("huggingface_hub.errors"), kind)

    def snapshot(**_: object) -> str:
        raise error.__new__(error)

    calls = serve(snapshot)
    with pytest.raises(ConfigError, match=sentence):
        fetch(REPO, revision="v9")
    assert len(calls) == 1


def test_a_name_the_hub_cannot_have_is_refused(library: ModuleType) -> None:
    with pytest.raises(ConfigError, match=r"there is no repository 'THUDM/glm\.\.4'"):
        resolve("THUDM/glm..4")
    assert cached("THUDM/glm..4") is None


# --- names


def test_a_directory_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_library: None) -> None:
    (tmp_path / REPO).mkdir(parents=True)
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve(REPO) == tmp_path / REPO
    assert resolve(Path("demo")) == tmp_path / "demo"


@pytest.mark.parametrize(
    ("name", "repo"),
    [
        ("glm-4-9b-chat-hf", REPO),
        ("GLM-4-9B-0414", "THUDM/GLM-4-9B-0414"),
        ("thudm/longwriter-GLM4-9b", "THUDM/LongWriter-glm4-9b"),
        ("someone/glm-4-9b-0414", "someone/glm-4-9b-0414"),
    ],
)
def test_recipes_and_repositories_are_fetched(serve: Serve, tmp_path: Path, name: str, repo: str) -> None:
    calls = serve(lambda **_: str(tmp_path))
    assert resolve(name, revision="v1") == tmp_path
    assert [(call["repo"], call["revision"]) for call in calls] == [(repo, "v1")]


def test_the_demo_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_library: None) -> None:
    told: list[tuple[str, float]] = []

    def ensure(*, on_progress: Callable[[str, float], None]) -> Path:
        on_progress("convert", 0.5)
        return tmp_path

    monkeypatch.setattr(hub, "ensure_demo_model", ensure)
    assert resolve("demo", on_progress=lambda *progress: told.append(progress)) == tmp_path
    assert told == [("convert", 0.5)]


@pytest.mark.parametrize("name", ["./nothing", "../owner/name", "/nothing/here", "~/model"])
def test_a_path_is_never_sought_on_the_hub(serve: Serve, name: str) -> None:
    calls = serve(lambda **_: "never")
    with pytest.raises(ConfigError, match="no such directory"):
        resolve(name)
    assert calls == []


@pytest.mark.parametrize("name", ["nothing", "a/b/c", "owner/"])
def test_other_names_are_refused_with_the_recipes(serve: Serve, name: str) -> None:
    calls = serve(lambda **_: "never")
    with pytest.raises(
        ConfigError, match=r"is no directory, no hub repository \(owner/name\) and no recipe; .*demo, glm"
    ):
        resolve(name)
    assert calls == []


def test_installed_are_those_with_files(library: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    recipes = [load_recipe(name) for name in recipe_names()]
    assert installed(recipes) == frozenset()
    lay_out(tmp_path / "hub", "config.json", "model.safetensors")
    demo = hub.default_directory("0.1.2")
    demo.mkdir(parents=True)
    (demo / "config.json").touch()
    assert installed(recipes) == {"demo", "glm-4-9b-chat-hf"}


def test_installed_without_the_library_is_the_demo_alone(
    no_library: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert installed([load_recipe("glm-4-9b-chat-hf")]) == frozenset()
