"""A model's name turned into the directory of its files: a directory, a hub repository or a recipe.

Knows which files a checkpoint consists of, and the optional `huggingface_hub`, which fetches and caches them. Refuses
to know what is in them, and never fetches pickles or code.
"""

import io
import json
import re
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, TypedDict, Unpack

from glm_cluster.errors import ConfigError
from glm_cluster.model.checkpoints.demo import OnProgress, default_directory, ensure_demo_model
from glm_cluster.model.checkpoints.recipes import HubSource, Recipe, find_recipe, recipe_names

PATTERNS = (
    "*.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.model",
    "*.jinja",
    "LICENSE*",
    "README.md",
)
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")


class HubOptions(TypedDict, total=False):
    """Where the hub's library looks: a branch, tag or commit; its cache; who asks; and whether it may ask at all."""

    revision: str | None
    cache_dir: str | Path | None
    token: str | bool | None
    local_files_only: bool


def resolve(
    name: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    on_progress: OnProgress | None = None,
) -> Path:
    """Return the directory that `name` stands for, fetching what is not on this machine.

    An existing directory comes first, then a recipe, then a hub repository `owner/name`, of which `revision` is one.
    The other options are the hub library's, which is asked about repositories alone.
    """
    options = HubOptions(revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only)
    if Path(name).is_dir():
        return Path(name).resolve()
    if str(name).startswith(("/", ".", "~")):
        raise ConfigError(f"{name}: no such directory; give one with a checkpoint in it, or a model's name")
    recipe = find_recipe(str(name))
    if recipe is None and _REPOSITORY.fullmatch(str(name)):
        return fetch(str(name), on_progress=on_progress, **options)
    if recipe is None:
        raise ConfigError(
            f"{str(name)!r} is no directory, no hub repository (owner/name) and no recipe; "
            f"the recipes are {', '.join(recipe_names())}"
        )
    if isinstance(recipe.source, HubSource):
        return fetch(recipe.source.repo, on_progress=on_progress, **options)
    return ensure_demo_model(on_progress=on_progress)


def fetch(repo: str, *, on_progress: OnProgress | None = None, **options: Unpack[HubOptions]) -> Path:
    """Return the local directory of a hub repository: fetched, or as cached where the hub cannot be reached."""
    library = _library()
    if library is None:
        raise ConfigError(
            f"{repo} is not a directory here, and fetching it from the Hugging Face hub takes a library: "
            "`pip install huggingface_hub`, or give the directory of a checkpoint"
        )
    errors = import_module("huggingface_hub.errors")
    report = on_progress or _ignore
    try:
        directory = _snapshot(library, repo, tqdm_class=_bar_class(report), **{"revision": None, **options})
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise ConfigError(_refusal(errors, error, repo, options.get("revision"))) from error
    except (OSError, errors.HTTPError) as error:  # which library's HTTPError depends on the release
        if kept := cached(repo, revision=options.get("revision"), cache_dir=options.get("cache_dir")):
            return kept
        raise ConfigError(_absence(error, repo, bool(options.get("local_files_only")))) from error
    report("download", 1.0)
    return directory


def cached(repo: str, *, revision: str | None = None, cache_dir: str | Path | None = None) -> Path | None:
    """Return the hub cache's copy of a repository if there is one with weights. Never asks the network."""
    library = _library()
    if library is None:
        return None
    errors = import_module("huggingface_hub.errors")
    try:
        directory = _snapshot(library, repo, revision=revision, cache_dir=cache_dir, local_files_only=True)
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        return None
    return directory if _is_whole(directory) else None


def installed(recipes: Iterable[Recipe]) -> frozenset[str]:
    """The names of those recipes whose checkpoint is on this machine, in the cache it would be fetched to."""
    return frozenset(recipe.name for recipe in recipes if _is_installed(recipe))


def _is_installed(recipe: Recipe) -> bool:
    if isinstance(recipe.source, HubSource):
        return cached(recipe.source.repo) is not None
    return (default_directory(recipe.source.version) / "config.json").is_file()


def _is_whole(directory: Path) -> bool:
    """Whether config.json and every weight file are there: those the index names, or any. A broken link is none."""
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    else:
        files = {path.name for path in directory.glob("*.safetensors")}
    return bool(files) and all((directory / name).is_file() for name in {*files, "config.json"})


def _library() -> ModuleType | None:
    try:
        return import_module("huggingface_hub")
    except ImportError:
        return None


def _snapshot(library: ModuleType, repo: str, **options: Any) -> Path:
    return Path(library.snapshot_download(repo, allow_patterns=list(PATTERNS), **options))


def _absence(error: Exception, repo: str, local_files_only: bool) -> str:
    """Say what to do about a repository that was neither fetched nor in the cache."""
    if local_files_only:
        return (
            f"{repo} is not in the Hugging Face hub's cache, and local_files_only=True forbids fetching it; "
            "leave that out, or give the directory of a checkpoint"
        )
    return (
        f"{repo} could not be fetched from the Hugging Face hub and no complete copy is cached "
        f"({_sentence(error)}); check the connection and HF_HUB_OFFLINE, or give the directory of a checkpoint"
    )


def _refusal(errors: ModuleType, error: Exception, repo: str, revision: str | None) -> str:
    """Say what to do about a repository that the hub was asked for and does not give."""
    if isinstance(error, errors.GatedRepoError):
        return f"{repo} is given out only to those who accepted its terms: accept them on the hub and set HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo} has no revision {revision!r}; name a branch, a tag or a commit of it"
    return (
        f"there is no repository {repo!r} on the Hugging Face hub, or it is private; "
        "check the name, set HF_TOKEN, or give the directory of a checkpoint"
    )


def _sentence(error: Exception) -> str:
    """The first line of an error of the hub's; the others repeat addresses and request ids."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip().rstrip(".")


def _bar_class(on_progress: OnProgress) -> type[Any]:
    """A tqdm that draws nothing and reports: the one way the hub's library has of telling how far it is."""
    bars: list[Any] = []

    class Bar(import_module("tqdm").tqdm):  # type: ignore[misc]  # tqdm ships no types
        monitor_interval = 0  # no thread of tqdm's own

        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)  # known to the hub's own bars alone
            super().__init__(*args, **{**options, "file": io.StringIO(), "disable": False})
            bars.append(self)

        def display(self, *_: object, **__: object) -> None:
            on_progress("download", _fraction(bars))

    return Bar


def _fraction(bars: list[Any]) -> float:
    """How much is done: bytes where they are counted, which grow as files are begun, else files."""
    known = [bar for bar in bars if bar.total]
    known = [bar for bar in known if bar.unit == "B"] or known
    return min(1.0, max(bar.n for bar in known) / max(bar.total for bar in known)) if known else 0.0


def _ignore(stage: str, fraction: float) -> None:
    """Report to nobody."""
