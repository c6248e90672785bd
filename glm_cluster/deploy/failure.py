"""Errors of ours by name: how they cross a wire, and how they are found in the text Serve leaves of a failure."""

import re

from glm_cluster import errors
from glm_cluster.errors import EngineUnavailable, GlmError, InternalError

_OURS = re.compile(r"glm_cluster\.errors\.(\w+): (.+)")


def named_error(name: str, message: str, *, param: str | None = None) -> GlmError:
    """The error of ours called `name`; an InternalError where there is none."""
    kind = vars(errors).get(name)
    if isinstance(kind, type) and issubclass(kind, GlmError):
        return kind(message, param=param)
    return InternalError(message)


def error_within(text: str) -> GlmError:
    """The last error of ours in a traceback, or the whole text in one of ours."""
    if not (found := _OURS.findall(text)):
        return EngineUnavailable(text)
    name, sentence = found[-1]
    return named_error(name, sentence)
