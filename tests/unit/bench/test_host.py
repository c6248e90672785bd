"""What a result of record says of where it was made."""

from pathlib import Path

import pytest

from glm_cluster.bench.host import about, commit, processor


def test_everything_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/glm-cluster", "bench", "serve", "--url", "http://a b"])
    found = about(load_before=0.126)
    assert found["command"] == "glm-cluster bench serve --url 'http://a b'"
    assert " cores " in found["machine"]
    assert found["machine"].endswith(" GiB")
    assert found["load_before"] == 0.13
    assert found["date"].endswith("Z")


def test_processor_by_the_kernels_name(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: EPYC 9\nprocessor\t: 1\nmodel name\t: EPYC 9\n")
    assert processor(tmp_path / "cpuinfo") == "EPYC 9"
    assert processor(tmp_path / "absent")


def test_no_commit_outside_a_checkout(tmp_path: Path) -> None:
    assert commit(tmp_path) is None
