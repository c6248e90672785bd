"""API keys as they are kept: a file that holds the SHA-256 of each key and what its bearer may do.

Knows the file and how a key is made. Refuses to know wires, and never stores a key itself.
"""

import hashlib
import hmac
import json
import os
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from glm_cluster.errors import ConfigError

MAX_NAME = 64
_MODE = 0o600
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """One entry of the file. The budgets hold over all ingresses, half a second late; None: no such budget."""

    name: str  # what usage records call its bearer
    sha256: str  # of the key, in hex
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None  # prompt and output together
    max_concurrent: int | None = None
    models: tuple[str, ...] | None = None  # None: all
    lowest_priority: int = 0  # of its requests: those of the lowest begin first, before everybody else's

    @classmethod
    def from_mapping(cls, raw: object, at: str) -> Self:
        """Build from one parsed entry, naming any key or value that cannot be right."""
        if not isinstance(raw, Mapping):
            raise ConfigError(f"{at} must be a mapping as {{name: ..., sha256: ...}}, not a {type(raw).__name__}")
        known = {field.name for field in fields(cls)}
        if unknown := sorted(str(key) for key in raw if key not in known):
            raise ConfigError(f"{at}: unknown {unknown}; known are {sorted(known)}")
        values: dict[str, Any] = {name: value for name, value in raw.items() if value is not None}
        _check_name(values.get("name"), at)
        values["sha256"] = _digest(values.get("sha256"), at)
        for name in ("requests_per_minute", "tokens_per_minute", "max_concurrent"):
            _check_budget(values.get(name), f"{at}.{name}")
        _check_priority(values.get("lowest_priority", 0), f"{at}.lowest_priority")
        if "models" in values:
            values["models"] = _models(values["models"], f"{at}.models")
        return cls(**values)


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """The entries of the file at `path`; refuse the whole of it if one is wrong."""
    try:
        return parse_keys(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}") from error


def parse_keys(text: str) -> tuple[ApiKey, ...]:
    """The entries that `text`, YAML or JSON, lists."""
    import yaml

    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        raise ConfigError(f"is not YAML{f' (line {where.line + 1})' if where else ''}") from error
    except (ValueError, RecursionError) as error:  # its words may hold what stands there
        raise ConfigError("holds a value that is none, as a 13th month, or lists in lists in lists") from error
    if not isinstance(raw, list):
        raise ConfigError("must be a list of entries {name: ..., sha256: ...}; `glm-cluster keys new` prints one")
    keys = tuple(ApiKey.from_mapping(entry, f"[{index}]") for index, entry in enumerate(raw))
    _check_distinct(keys)
    return keys


def find_key(keys: Sequence[ApiKey], given: bytes) -> ApiKey | None:
    """The entry of the key `given`. Takes as long whichever it is, and if it is none."""
    digest = hashlib.sha256(given).hexdigest()
    found = None
    for key in keys:
        if hmac.compare_digest(key.sha256, digest):
            found = key
    return found


def new_key(name: str) -> tuple[str, ApiKey]:
    """A fresh key, which nobody will see again, and its entry."""
    secret = "glm-" + secrets.token_urlsafe(32)
    digest = hashlib.sha256(secret.encode()).hexdigest()
    return secret, ApiKey.from_mapping({"name": name, "sha256": digest}, "the new entry")


def entry_line(key: ApiKey) -> str:
    """The entry as a line of the file."""
    unsaid = {field.name: field.default for field in fields(key)}
    return "- " + json.dumps({name: value for name, value in asdict(key).items() if value != unsaid[name]})


def append_key(path: Path, key: ApiKey) -> None:
    """Add an entry to the file, which is made if there is none. Readers see the old file or the new one, whole."""
    path = path.resolve()
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if text.lstrip().startswith("["):
        text = text.rstrip().removesuffix("]").rstrip() + ("" if json.loads(text) == [] else ",")
        text = f"{text}\n  {entry_line(key)[2:]}\n]\n"
    else:
        text = f"{text.rstrip()}\n{entry_line(key)}\n".lstrip()
    try:
        parse_keys(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: with the new entry it {error.message}") from error
    _replace(path, text)


def _replace(path: Path, text: str) -> None:
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as directory:
            made = Path(directory) / path.name
            with open(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE), "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            made.replace(path)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written ({error.strerror}); name a file in a directory of yours"
        ) from error


def _check_name(name: object, at: str) -> None:
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME or not name.isprintable():
        raise ConfigError(f"{at}.name must be 1 to {MAX_NAME} printable characters; give the entry one")


def _digest(value: object, at: str) -> str:
    if not isinstance(value, str) or len(value) != 64 or not _HEX.issuperset(value.lower()):
        raise ConfigError(f"{at}.sha256 must be the 64 hex digits of the key's SHA-256, never the key itself")
    return value.lower()


def _check_budget(value: object, at: str) -> None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ConfigError(f"{at} must be a whole number of 1 or more, not {value!r}; leave it out for none")


def _check_priority(value: object, at: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not -(2**31) <= value < 2**31:
        raise ConfigError(f"{at} must be a whole number, below 0 for a bearer who may go before others, not {value!r}")


def _models(value: object, at: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        raise ConfigError(f"{at} must be a list of model names, not {value!r}; leave it out for all")
    return tuple(value)


def _check_distinct(keys: Sequence[ApiKey]) -> None:
    for what, values in (("name", [key.name for key in keys]), ("sha256", [key.sha256 for key in keys])):
        for index, value in enumerate(values):
            if (first := values.index(value)) != index:
                raise ConfigError(f"[{first}] and [{index}] have the same {what}; give each key one entry of its own")
