"""The file of API keys: strict, hashed, replaced whole."""

import hashlib
import json
import os
import stat
from pathlib import Path

import pytest

from glm_cluster.errors import ConfigError
from glm_cluster.keys import ApiKey, append_key, entry_line, find_key, new_key, parse_keys, read_keys

DIGEST = hashlib.sha256(b"secret").hexdigest()


def test_an_entry_says_all_a_bearer_may(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(
        f"- {{name: ada, sha256: {DIGEST.upper()}, tokens_per_minute: 9, max_concurrent: 2, models: [a]}}\n"
    )
    assert read_keys(path) == (ApiKey(name="ada", sha256=DIGEST, tokens_per_minute=9, max_concurrent=2, models=("a",)),)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "must be a list of entries"),
        ("", "must be a list of entries"),
        ("[", r"is not YAML \(line 2\)|is not YAML"),
        ("- secret", r"\[0\] must be a mapping"),
        ("- {name: 2024-13-01}", "holds a value that is none"),
        ("[" * 5000, "holds a value that is none"),
        (f"- {{name: a, sha256: {DIGEST}, lowest_priority: -0.5}}", r"\[0\].lowest_priority must be a whole"),
        (f"- {{sha256: {DIGEST}}}", r"\[0\].name must be"),
        ('- {name: "a\\nb", sha256: x}', r"\[0\].name must be"),
        ("- {name: a}", r"\[0\].sha256 must be the 64 hex"),
        ("- {name: a, sha256: secret}", r"\[0\].sha256 must be the 64 hex"),
        (f"- {{name: a, sha256: {DIGEST}, rpm: 1}}", r"\[0\]: unknown \['rpm'\]"),
        (f"- {{name: a, sha256: {DIGEST}, requests_per_minute: 0}}", r"\[0\].requests_per_minute must be a whole"),
        (f"- {{name: a, sha256: {DIGEST}, max_concurrent: true}}", r"\[0\].max_concurrent must be a whole"),
        (f"- {{name: a, sha256: {DIGEST}, models: m}}", r"\[0\].models must be a list"),
        (f"- {{name: a, sha256: {DIGEST}}}\n- {{name: b, sha256: {DIGEST}}}", r"\[0\] and \[1\] have the same sha256"),
    ],
)
def test_what_is_wrong_is_named(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_keys(text)


def test_a_refusal_does_not_repeat_what_may_be_a_key() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_keys("- {name: a, sha256: glm-abcdef}")
    assert "abcdef" not in caught.value.message


def test_the_entry_of_a_key_is_found_wherever_it_stands() -> None:
    made = [new_key(name) for name in "abc"]
    entries = [entry for _, entry in made]
    assert [find_key(entries, secret.encode()) for secret, _ in made] == entries
    assert find_key(entries, b"") is None
    assert find_key(entries, entries[0].sha256.encode()) is None
    assert find_key([], b"x") is None


@pytest.mark.parametrize("start", [None, "# who may call\n", "[]", json.dumps([{"name": "old", "sha256": DIGEST}])])
def test_entries_are_added_one_by_one(start: str | None, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    if start is not None:
        path.write_text(start)
    _, first = new_key("first")
    _, second = new_key("second")
    append_key(path, first)
    append_key(path, second)
    assert read_keys(path)[-2:] == (first, second)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["keys"]
    assert "# who" not in (start or "") or "# who may call" in path.read_text()


def test_a_second_entry_of_a_name_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    append_key(path, new_key("ada")[1])
    before = path.read_text()
    with pytest.raises(ConfigError, match="the same name"):
        append_key(path, new_key("ada")[1])
    assert path.read_text() == before


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "keys")
    append_key(tmp_path / "link", new_key("ada")[1])
    assert (tmp_path / "link").is_symlink()
    assert len(read_keys(tmp_path / "keys")) == 1


def test_a_printed_entry_is_a_line_of_the_file() -> None:
    _, entry = new_key("it's: #1")
    assert parse_keys(entry_line(entry)) == (entry,)
