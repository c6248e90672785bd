"""Where schemas stand, and where something only looks like one."""

from glm_cluster.text.grammar.places import rewritten, schemas

SCHEMA = {
    "properties": {"format": {"n": 1}, "enum": {"n": 2}, "const": True},
    "const": {"n": 0},
    "enum": [{"n": 0}],
    "default": {"n": 0},
    "examples": [{"n": 0}],
    "anyOf": [{"n": 3}, {"items": [{"n": 4}, False]}],
    "$defs": {"properties": {"n": 5, "not": {"n": 6}}},
    "dependencies": {"a": ["b"], "default": {"n": 7}},
    "components": {"schemas": {"A": {"n": 8}}},
    "n": 9,
}


def test_each_schema_is_found_once() -> None:
    assert sorted(one["n"] for one in schemas(SCHEMA) if "n" in one) == [*range(1, 10)]


def test_a_copy_differs_where_schemas_stand_alone() -> None:
    copy = rewritten(SCHEMA, lambda one: {key: value for key, value in one.items() if key != "n"})
    assert [one for one in schemas(copy) if "n" in one] == []
    for keyword in ("const", "enum", "default", "examples"):
        assert copy[keyword] == SCHEMA[keyword]
    assert copy["properties"] == {"format": {}, "enum": {}, "const": True}
    assert list(copy) == [key for key in SCHEMA if key != "n"]
    assert SCHEMA["n"] == 9


def test_the_outer_is_rewritten_before_what_it_then_holds() -> None:
    seen = []

    def rewrite(one):
        seen.append(one["n"])
        return {"n": one["n"], "items": {"n": one["n"] + 1}} if one["n"] < 3 else one

    assert rewritten({"n": 1}, rewrite) == {"n": 1, "items": {"n": 2, "items": {"n": 3}}}
    assert seen == [1, 2, 3]
