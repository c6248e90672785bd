"""The native kernels: every `*.cc` of this folder compiled on this host into one library, once, and kept in a cache.

Knows compilers, the cache and what the processor lacks; refuses to know what the kernels compute. Whatever goes wrong
is a `Refusal` with a sentence for the log, never an error: whoever asks has a slower way.

A source that begins with `// needs: avx512f ...` is left out where the processor lacks one of these.
"""

import ctypes
import fcntl
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from glm_cluster.model.kernels.cpu import Cpu

SWITCH = "GLM_CLUSTER_KERNELS"  # an environment variable: "off" refuses the kernels
# No -ffast-math and no contraction: a sum has the order that the source gives it.
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-fno-math-errno", "-ffp-contract=off", "-pthread")

_SOURCES = Path(__file__).parent
_COMPILERS = ("g++", "c++", "clang++")
_COMPILE_TIMEOUT_S = 600.0
_NEEDS = "// needs:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Native:
    """The compiled kernels. Calls into `library` do not hold the interpreter's lock."""

    library: ctypes.CDLL


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why there are no kernels."""

    reason: str  # a sentence for the start-up log


class _CompileError(Exception):
    """What the compiler said first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recipe:
    """What the library is made of, and with what."""

    compiler: tuple[str, ...]
    sources: tuple[Path, ...]
    key: str  # equal only where the same library would come out


def native_kernels(needs: Iterable[str] = ()) -> Native | Refusal:
    """The kernels, compiled on the first call on this host; a refusal where the CPU lacks a feature in `needs`."""
    if os.environ.get(SWITCH, "").lower() == "off":
        return Refusal(reason=f"The native kernels are switched off by {SWITCH}.")
    lacking = [feature for feature in needs if feature not in _cpu().features]
    if lacking:
        return Refusal(reason=f"The native kernels need a CPU with {', '.join(lacking)}; this one has none.")
    return _host_kernels()


def build(sources: Path, cache: Path, cpu: Cpu) -> Native | Refusal:
    """The library of a folder's sources, from the cache if it is there, else compiled into it by one process alone."""
    compiler = _compiler()
    if isinstance(compiler, Refusal):
        return compiler
    try:
        recipe = _recipe(compiler, sources, cpu)
        try:
            return _load_cached(recipe, cache)
        except OSError:  # a cache that cannot be written, locked or mapped
            with tempfile.TemporaryDirectory(prefix="glm_cluster-") as folder:
                return _load(_compile(recipe, Path(folder)))
    except _CompileError as error:
        return Refusal(reason=f"The native kernels do not compile with {shlex.join(compiler)}: {error}")
    except OSError as error:
        return Refusal(reason=f"The native kernels cannot be built or loaded: {error}")


def cache_directory() -> Path:
    """Where libraries are kept, in the user's cache; a place that cannot be written for a user without a home."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        cache = Path(os.devnull)
    return cache / "glm_cluster" / "kernels"


@functools.cache
def _host_kernels() -> Native | Refusal:
    return build(_SOURCES, cache_directory(), _cpu())


@functools.cache
def _cpu() -> Cpu:
    return Cpu.of_host()


def _compiler() -> tuple[str, ...] | Refusal:
    named = shlex.split(os.environ.get("CXX", ""))
    if named:
        if shutil.which(named[0]) is None:
            return Refusal(reason=f"No C++ compiler: CXX names {named[0]}, which is not there.")
        return tuple(named)
    found = next((name for name in _COMPILERS if shutil.which(name)), None)
    if found is None:
        return Refusal(reason=f"No C++ compiler ({', '.join(_COMPILERS)}) for the native kernels; install one.")
    return (found,)


def _recipe(compiler: tuple[str, ...], folder: Path, cpu: Cpu) -> _Recipe:
    sources = tuple(path for path in sorted(folder.glob("*.cc")) if _needs(path) <= cpu.features)
    version = _run([*compiler, "--version"])
    digest = hashlib.sha256(repr((compiler, version, FLAGS, cpu.description)).encode())
    for path in (*sources, *sorted(folder.glob("*.h"))):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return _Recipe(compiler=compiler, sources=sources, key=digest.hexdigest()[:32])


def _needs(source: Path) -> set[str]:
    first, _, _ = source.read_text(encoding="utf-8").partition("\n")
    return set(first.removeprefix(_NEEDS).split()) if first.startswith(_NEEDS) else set()


def _load_cached(recipe: _Recipe, cache: Path) -> Native:
    try:
        return _load(_cached(recipe, cache))
    except OSError:  # half a library, after a power cut
        (cache / f"{recipe.key}.so").unlink(missing_ok=True)
        return _load(_cached(recipe, cache))


def _cached(recipe: _Recipe, cache: Path) -> Path:
    """The library's place in the cache, where it is when this returns. Who compiles holds the lock, others wait."""
    library = cache / f"{recipe.key}.so"
    if library.exists():
        return library
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock, tempfile.TemporaryDirectory(prefix="glm_cluster-") as folder:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            part = library.with_suffix(".part")  # one name: what a killed compiler leaves, the next one overwrites
            shutil.copyfile(_compile(recipe, Path(folder)), part)
            part.replace(library)
    return library


def _compile(recipe: _Recipe, folder: Path) -> Path:
    """Compile the sources side by side and link them in `folder`."""
    objects = [folder / f"{source.stem}.o" for source in recipe.sources]
    compilers = [
        _start([*recipe.compiler, *FLAGS, "-c", str(source), "-o", str(target)])
        for source, target in zip(recipe.sources, objects, strict=True)
    ]
    try:
        for compiler in compilers:
            _finish(compiler)
    finally:
        for compiler in compilers:
            compiler.kill()
            compiler.wait()
    library = folder / "kernels.so"
    _run([*recipe.compiler, *FLAGS, "-shared", *map(str, objects), "-o", str(library)])
    return library


def _load(library: Path) -> Native:
    return Native(library=ctypes.CDLL(str(library)))


def _run(command: list[str]) -> str:
    return _finish(_start(command))


def _start(command: list[str]) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, encoding="utf-8", errors="replace"
    )


def _finish(process: subprocess.Popen[str]) -> str:
    """What it printed, or a _CompileError with the line that says most."""
    try:
        printed, complaint = process.communicate(timeout=_COMPILE_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        process.kill()
        process.communicate()
        raise _CompileError(f"no end after {_COMPILE_TIMEOUT_S:g} s") from error
    if process.returncode:
        lines = complaint.strip().split("\n")
        raise _CompileError(next((line for line in lines if "error" in line), lines[0]) or f"exit {process.returncode}")
    return printed
