"""Who sends a request: the bearer of an API key, or anyone where there are no keys.

Knows keys and the ids of requests. Refuses to know wires: it is given what stood behind `authorization`.
"""

import asyncio
import hashlib
import logging
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from glm_cluster.errors import ConfigError, PermissionDenied, Unauthenticated
from glm_cluster.keys import ApiKey, find_key, read_keys

POLL_S = 2.0
_SAFE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_BEARER = b"bearer "


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """One request's sender. `request_id` is ours and unique; an answer's id ends in it."""

    request_id: str
    key: ApiKey | None = None  # None: there are no keys here
    client_request_id: str | None = None  # what the client calls it: shown again, never relied on

    @classmethod
    def unknown(cls, client_request_id: str | None = None) -> "Caller":
        """Anyone."""
        return cls(request_id=secrets.token_hex(12), client_request_id=safe_id(client_request_id))

    def check_model(self, model: str) -> None:
        """Refuse a model that the key is not for."""
        if self.key is not None and self.key.models is not None and model not in self.key.models:
            names = ", ".join(map(repr, self.key.models))
            raise PermissionDenied(f"model: key {self.key.name!r} is for {names}, not {model!r}", param="model")

    def check_priority(self, priority: int) -> None:
        """Refuse to let a bearer's request go before those of others, unless the key is for that."""
        if self.key is not None and priority < (lowest := self.key.lowest_priority):
            raise PermissionDenied(
                f"priority: key {self.key.name!r} may ask for {lowest} or more, not {priority}", param="priority"
            )

    def cache_salt(self, given: str | None) -> str | None:
        """What keeps its prompts' cache apart: from the key, and from what the client gave beside it."""
        if self.key is None:
            return given
        secret = f"glm_cluster cache salt\0{self.key.sha256}\0{given or ''}"
        return hashlib.sha256(secret.encode()).hexdigest()


def safe_id(given: str | None) -> str | None:
    """A client's id for its request, if it is one that may be shown again."""
    return given if given is not None and _SAFE_ID.fullmatch(given) else None


class Callers:
    """Those who may call. Without a file, anyone; with one, the bearers of its keys, whenever it changes."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self.keys: tuple[ApiKey, ...] = () if path is None else read_keys(path)
        self._seen = None if path is None else _mark(path)

    def identify(self, authorizations: Sequence[bytes], caller: Caller) -> Caller:
        """Find out who an unknown caller with these `authorization` values is; refuse one who may not call."""
        if self._path is None:
            return caller
        if len(authorizations) != 1 or authorizations[0][: len(_BEARER)].lower() != _BEARER:
            raise Unauthenticated("no API key came with the request; send one as `Authorization: Bearer KEY`")
        if (key := find_key(self.keys, authorizations[0][len(_BEARER) :].strip())) is None:
            raise Unauthenticated("the API key is not one of this cluster's; check it, or ask for a new one")
        return replace(caller, key=key)

    async def watch(self) -> None:
        """Take up changes of the file for as long as this runs. One that cannot be read changes nothing."""
        while self._path is not None:
            await asyncio.sleep(POLL_S)
            await self.refresh()

    async def refresh(self) -> None:
        """Take up a change of the file, if there is one."""
        if self._path is None:
            return
        try:
            seen = await asyncio.to_thread(_mark, self._path)
            if seen != self._seen:
                self.keys = await asyncio.to_thread(read_keys, self._path)
                self._seen = seen  # what could not be read is read again: a change of its mode leaves no mark
        except (OSError, ConfigError) as error:
            logging.getLogger(__name__).error("API keys stay as they were: %s", error)
        except Exception:  # the edge of a task that nobody awaits: keys would never be taken away again
            logging.getLogger(__name__).exception("API keys stay as they were")


def _mark(path: Path) -> tuple[int, int, int]:
    """What differs when a file has been changed or replaced."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino
