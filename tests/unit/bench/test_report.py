"""The page holds the numbers and stands alone."""

import importlib.util
import re
import xml.etree.ElementTree as ET

import pytest

from glm_cluster.bench.against import compare
from glm_cluster.bench.report import Side, page, write_report
from glm_cluster.bench.summary import Slo, summarise
from glm_cluster.bench.timing import Timing

GOOD = Timing(due_s=0.0, arrivals_s=(0.125, 0.5), end_s=0.5, num_tokens=2, num_prompt_tokens=3)
BAD = Timing(due_s=0.0, arrivals_s=(), end_s=0.25, num_tokens=0, num_prompt_tokens=3, error="<refused>")


def side(name, timings):
    return Side(name=name, rounds=(summarise(timings, Slo()),), timings=(tuple(timings),))


@pytest.fixture
def sides():
    return [side("http://ours", [GOOD, BAD]), side("http://peer", [GOOD, GOOD])]


def test_page_holds_the_numbers(sides) -> None:
    text = page({"commit": "abc123", "machine": "2 cores"}, sides, compare(sides[0].rounds, sides[1].rounds))
    for said in (
        "abc123",
        "2 cores",
        "http://ours",
        "http://peer",
        "125.0",
        "375.0",
        "500.0",
        "1 failed",
        "4.0 tokens/s",
    ):
        assert said in text, said
    assert "1 × &lt;refused&gt;" in text
    assert "<td>output_tokens_per_s</td><td>4</td><td>8</td><td>0.5</td>" in text


def test_page_stands_alone(sides) -> None:
    text = page({}, sides, None)
    assert "<script" not in text
    assert not re.search(r"(src|href)=", text)
    assert "ours / peer" not in text


def test_charts_are_well_formed_and_failed_requests_are_red(sides) -> None:
    charts = re.findall(r"<svg.*?</svg>", page({}, sides, None))
    assert len(charts) == 8
    drawn = [ET.fromstring(chart) for chart in charts]
    lines = [rect for rect in drawn[3] if rect.tag == "rect"]
    assert [rect.get("fill") for rect in lines] == ["#bbb", "#36c", "#bbb", "#c33"]
    assert [float(rect.get("width")) for rect in lines] == [140.0, 420.0, 280.0, 0.0]


def test_all_requests_failed(sides) -> None:
    assert "2 failed" in page({}, [side("x", [BAD, BAD])], None)


def test_png_becomes_html_where_it_cannot_be_drawn(sides, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glm_cluster.bench.report.find_spec", lambda name: None)
    written = write_report(tmp_path / "x.png", {}, sides, None)
    assert written == tmp_path / "x.html"
    assert "http://ours" in written.read_text()


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_png(sides, tmp_path) -> None:
    written = write_report(tmp_path / "x.png", {}, sides, None)
    assert written.read_bytes().startswith(b"\x89PNG")
