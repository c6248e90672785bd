"""What a processor can do, read from the kernel's text."""

from pathlib import Path

import pytest

from glm_cluster.model.kernels.cpu import Cpu

X86 = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Xeon
cpu MHz\t\t: 2000.1
flags\t\t: fpu avx512f avx512_bf16

processor\t: 1
flags\t\t: fpu
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd bf16\nCPU part\t: 0xd40\n"


@pytest.mark.parametrize(
    ("text", "features"), [(X86, {"fpu", "avx512f", "avx512_bf16"}), (ARM, {"fp", "asimd", "bf16"}), ("", set())]
)
def test_features_are_those_of_the_first_processor(tmp_path: Path, text: str, features: set[str]) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert Cpu.of_host(tmp_path / "cpuinfo").features == features


def test_the_clock_does_not_describe_a_processor(tmp_path: Path) -> None:
    (tmp_path / "one").write_text(X86)
    (tmp_path / "two").write_text(X86.replace("2000.1", "3100.7"))
    (tmp_path / "three").write_text(X86.replace("avx512_bf16", "avx512_fp16"))
    one, two, three = (Cpu.of_host(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two
    assert one.description != three.description


def test_a_host_that_tells_nothing(tmp_path: Path) -> None:
    assert Cpu.of_host(tmp_path / "absent").features == frozenset()
