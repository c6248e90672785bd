"""What may be called a JSON schema: keywords with values of any kind, at random."""

from typing import Any

from hypothesis import strategies as st

KEYWORDS = st.sampled_from(
    ["type", "properties", "patternProperties", "items", "prefixItems", "enum", "const", "pattern", "required", "$ref",
     "$defs", "anyOf", "allOf", "oneOf", "minimum", "maxLength", "minItems", "additionalProperties", "format",
     "$schema", "uniqueItems", "multipleOf", "propertyNames", "$id", "x-guidance", "a"]
)  # fmt: skip


def odd_schemas(*leaves: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Of values in which `leaves`, among others, stand innermost."""
    innermost = st.none() | st.booleans() | st.integers() | st.sampled_from(["object", "string", "(", "#", *leaves])
    floats = st.floats(allow_nan=False, allow_infinity=False)
    values = st.recursive(
        innermost | floats,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYWORDS, inner, max_size=4),
        max_leaves=12,
    )
    return st.dictionaries(KEYWORDS, values, max_size=5)
