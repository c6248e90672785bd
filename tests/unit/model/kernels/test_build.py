"""Sources become a library once, and everything that can go wrong is a sentence."""

import multiprocessing
import os
import shutil
from pathlib import Path

import pytest

from glm_cluster.model.kernels import build as module
from glm_cluster.model.kernels.build import SWITCH, Native, Refusal, build, cache_directory, native_kernels
from glm_cluster.model.kernels.cpu import Cpu
from glm_cluster.model.kernels.native import NEEDS, library

CPU = Cpu(description="a", features=frozenset({"avx2"}))

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "two.h").write_text("inline int two() { return 2; }\n")
    (folder / "one.cc").write_text('#include "two.h"\nextern "C" int answer() { return 20 * two(); }\n')
    return folder


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """g++ that writes a line to the file returned for each time that it compiles or links."""
    log, script = tmp_path / "calls", tmp_path / "compiler"
    log.touch()
    script.write_text(f'#!/bin/sh\n[ "$1" = --version ] || echo . >> {log}\nexec g++ "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    return log


def _calls(log: Path) -> int:
    return len(log.read_text().splitlines())


def _answer(kernels: Native | Refusal) -> int:
    assert isinstance(kernels, Native), kernels
    return kernels.library.answer()


def test_a_second_build_compiles_nothing(sources: Path, tmp_path: Path, compiler: Path) -> None:
    assert _answer(build(sources, tmp_path / "cache", CPU)) == 40
    assert _calls(compiler) == 2
    assert _answer(build(sources, tmp_path / "cache", CPU)) == 40
    assert _calls(compiler) == 2


def test_a_change_of_source_header_or_cpu_compiles_again(sources: Path, tmp_path: Path, compiler: Path) -> None:
    build(sources, tmp_path / "cache", CPU)
    (sources / "two.h").write_text("inline int two() { return 3; }\n")
    assert _answer(build(sources, tmp_path / "cache", CPU)) == 60
    (sources / "one.cc").write_text('extern "C" int answer() { return 5; }\n')
    assert _answer(build(sources, tmp_path / "cache", CPU)) == 5
    assert _calls(compiler) == 6
    build(sources, tmp_path / "cache", Cpu(description="b", features=CPU.features))
    assert _calls(compiler) == 8


def test_the_cache_holds_libraries_and_a_lock(sources: Path, tmp_path: Path) -> None:
    build(sources, tmp_path / "cache", CPU)
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == ["", ".so"]


def test_processes_that_start_at_once_compile_once(sources: Path, tmp_path: Path, compiler: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        answers = pool.starmap(_build_and_ask, [(sources, tmp_path / "cache")] * 4, chunksize=1)
    assert answers == [40] * 4
    assert _calls(compiler) == 2


def _build_and_ask(sources: Path, cache: Path) -> int:
    return _answer(build(sources, cache, CPU))


def test_a_broken_source_is_refused_with_the_compilers_words(sources: Path, tmp_path: Path) -> None:
    (sources / "one.cc").write_text("int answer() { return nothing; }\n")
    refusal = build(sources, tmp_path / "cache", CPU)
    assert isinstance(refusal, Refusal)
    assert "do not compile" in refusal.reason
    assert "nothing" in refusal.reason
    assert "\n" not in refusal.reason


def test_no_compiler_is_refused(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -v")
    refusal = build(sources, tmp_path / "cache", CPU)
    assert isinstance(refusal, Refusal)
    assert "CXX names no-such-compiler" in refusal.reason
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    refusal = build(sources, tmp_path / "cache", CPU)
    assert isinstance(refusal, Refusal)
    assert refusal.reason.startswith("No C++ compiler")


def test_a_cache_that_cannot_be_made_is_done_without(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    assert _answer(build(sources, tmp_path / "file" / "cache", CPU)) == 40
    assert os.listdir(tmp_path / "tmp") == []


def test_a_source_whose_needs_the_cpu_lacks_is_left_out(sources: Path, tmp_path: Path) -> None:
    (sources / "wide.cc").write_text("// needs: avx2 avx512_bf16\nnonsense\n")
    assert _answer(build(sources, tmp_path / "cache", CPU)) == 40
    able = Cpu(description="a", features=CPU.features | {"avx512_bf16"})
    assert isinstance(build(sources, tmp_path / "cache", able), Refusal)


def test_a_feature_that_the_cpu_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setattr(module, "_cpu", lambda: CPU)
    refusal = native_kernels(["avx2", "avx512_bf16"])
    assert isinstance(refusal, Refusal)
    assert "with avx512_bf16;" in refusal.reason


def test_the_switch_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "off")
    refusal = native_kernels()
    assert isinstance(refusal, Refusal)
    assert SWITCH in refusal.reason


def test_the_cache_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "glm_cluster" / "kernels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "glm_cluster" / "kernels"


def test_a_host_that_can_run_the_kernels_has_them() -> None:
    """Their own tests skip where they are refused: here a source that no longer compiles is a failure."""
    if lacking := set(NEEDS) - Cpu.of_host().features:
        pytest.skip(f"this CPU has no {', '.join(sorted(lacking))}")
    if os.environ.get(SWITCH, "").lower() == "off":
        pytest.skip(f"{SWITCH} is off")
    assert not isinstance(library(), Refusal), library()


def test_a_cached_library_that_is_damaged_is_made_again(sources: Path, tmp_path: Path, compiler: Path) -> None:
    cache = tmp_path / "cache"
    with multiprocessing.get_context("fork").Pool(1) as another:  # here the path would stand for what was loaded once
        another.apply(_build_and_ask, (sources, cache))
    (cached,) = cache.glob("*.so")
    cached.write_bytes(b"half a library")
    assert _answer(build(sources, cache, CPU)) == 40
    assert _answer(build(sources, cache, CPU)) == 40
    assert _calls(compiler) == 4
