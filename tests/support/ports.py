"""Ports to listen on: drawn where neither the kernel nor a cluster draws its own."""

import random
import socket

_OURS = range(30_000, 32_768)  # above the ranges of `deploy.local`, below what a connection gets for its own end


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on, distinct. Drawn without the seed that the tests of several processes share."""
    draw = random.SystemRandom()
    ports: set[int] = set()
    while len(ports) < count:
        if _binds(port := draw.choice(_OURS)):
            ports.add(port)
    return list(ports)


def _binds(port: int) -> bool:
    try:
        with socket.create_server(("", port)):
            return True
    except OSError:
        return False
