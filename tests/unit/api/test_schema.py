"""Long lists of ids pass at a glance, and only those that would pass a closer look."""

import pytest
from pydantic import TypeAdapter, ValidationError

from glm_cluster.api import schema
from glm_cluster.api.schema import FewIds, TokenIds


def verdict(adapter: TypeAdapter[list[int]], value: object) -> object:
    try:
        return adapter.validate_python(value, strict=True)
    except ValidationError as error:
        return [(fault["loc"], fault["msg"]) for fault in error.errors()]


@pytest.mark.parametrize(
    "value",
    [
        [],
        [0],
        [1, 2, 3, 4, 2**63 - 1],
        [1, 2, 3, 4, 2**63],
        [1, 2, 3, 4, -1],
        [1, 2, 3, True],
        [1, 2, 3, 4.0],
        [1, 2, "3"],
        [[1]],
        (1, 2),
        "12",
        None,
    ],
)
def test_a_glance_finds_what_a_closer_look_finds(value: object, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(schema, "_GLANCE", 2)
    assert verdict(TypeAdapter(TokenIds), value) == verdict(TypeAdapter(FewIds), value)
