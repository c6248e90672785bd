"""Web pages that ask from a browser: what lets their scripts read our answers (CORS).

Knows origins. Refuses to know keys: a page's scripts send theirs as any client does, in `Authorization`, and the gate
asks for it. This stands outside the gate, so that a browser's question beforehand needs none and refusals can be read.
"""

from collections.abc import Sequence

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware


def shared_with(origins: Sequence[str]) -> list[Middleware]:
    """What goes around the application so that pages of these origins may ask; nothing where there are none."""
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            allow_private_network=True,  # an inner address is where such a server stands
            expose_headers=("x-request-id", "retry-after"),
        )
    ]
