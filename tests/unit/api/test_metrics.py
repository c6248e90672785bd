"""Every metric that is declared is reported, and exporters can take all of them."""

import ast
import re
from pathlib import Path

import glm_cluster
from glm_cluster import metrics

DECLARED = {name: value for name, value in vars(metrics).items() if isinstance(value, metrics.Metric)}


def names_used(folder: Path) -> set[str]:
    trees = (ast.parse(path.read_text()) for path in folder.rglob("*.py") if "_pb2" not in path.name)
    return {node.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name)}


def test_every_metric_is_reported_by_somebody():
    package = Path(glm_cluster.__file__).parent
    unused = DECLARED.keys() - names_used(package / "api") - names_used(package / "deploy")
    assert not unused, f"metrics nobody reports: {sorted(unused)}"


def test_names_are_unique_and_legal():
    names = [metric.name for metric in DECLARED.values()]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"glm_[a-z_]+", name) for name in names)


def test_histograms_alone_have_boundaries():
    for metric in DECLARED.values():
        assert bool(metric.boundaries) == (metric.kind == "histogram"), metric.name
        assert sorted(metric.boundaries) == list(metric.boundaries)
        assert all(edge > 0 for edge in metric.boundaries)  # Ray refuses an edge of 0
