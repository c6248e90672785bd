"""A run under `python -O`, which strips assertions: nothing of ours may hang on one.

Answers one prompt with the demo model offline, and checks that what must be refused still is. Raises on any surprise.
"""

import contextlib
import io
import socket
import sys
from collections.abc import Sequence

from glm_cluster.cli import main


def run(arguments: Sequence[str]) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(arguments)
    return status, out.getvalue(), err.getvalue()


def expect(holds: bool, what: str) -> None:
    if not holds:
        raise SystemExit(f"smoke: {what}")


def free_ports() -> list[str]:
    with socket.create_server(("127.0.0.1", 0)) as http, socket.create_server(("127.0.0.1", 0)) as grpc:
        return ["--port", str(http.getsockname()[1]), "--grpc-port", str(grpc.getsockname()[1])]


def smoke() -> None:
    expect(sys.flags.optimize > 0, "run this with python -O")
    question = "What is the capital of France?"
    status, answer, err = run(["generate", "--prompt", question, "--max-tokens", "16"])
    expect(status == 0 and "Paris" in answer, f"no Paris: {status} {answer!r} {err!r}")
    status, _, err = run(["serve", "--tp", "2", *free_ports()])
    expect(status == 2 and "1, 3" in err, f"tp 2 does not divide the demo model: {status} {err!r}")
    status, _, err = run(["generate", "--model", "/nowhere", "--prompt", question])
    expect(status == 2 and "no such directory" in err, f"no checkpoint there: {status} {err!r}")
    status, _, err = run(["generate", "--prompt", question * 4000])
    expect(status == 1, f"the prompt is longer than the model's limit: {status} {err!r}")
    print("smoke: ok")


if __name__ == "__main__":
    smoke()
