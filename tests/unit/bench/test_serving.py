"""`bench serve` from its arguments to its output, against servers that answer at once."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager

import pytest
from support.checkpoints import write_tokenizer

from glm_cluster.cli import main

ANSWER = [
    json.dumps({"choices": [{"text": "a"}]}),
    json.dumps({"choices": [{"text": "b"}]}),
    json.dumps({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}}),
    "[DONE]",
]


@contextmanager
def served(*servers) -> Iterator[None]:
    """Run fake servers on a loop of their own: the command runs one itself."""
    loop, up = asyncio.new_event_loop(), threading.Event()
    stop = asyncio.Event()

    async def run():
        async with AsyncExitStack() as stack:
            for server in servers:
                await stack.enter_async_context(server.running())
            up.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    assert up.wait(10)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


@pytest.fixture
def tokenizer_directory(tmp_path) -> str:
    return str(write_tokenizer(tmp_path))


def bench(server, directory, *arguments):
    size = ["--requests", "4", "--prompt-tokens", "9", "--max-tokens", "2"]
    return main(["bench", "serve", "--url", server.url, "--tokenizer", directory, *size, *arguments])


def test_table(fake_server, tokenizer_directory, capsys) -> None:
    server = fake_server()
    server.events = ANSWER
    with served(server):
        assert bench(server, tokenizer_directory, "--clients", "2") == 0
    shown = capsys.readouterr().out
    assert "4 requests, 0 failed" in shown
    assert "36 prompt and 8 output tokens" in shown
    assert "TTFT" in shown
    assert "first token:" in shown
    assert len(server.bodies) == 5  # one to warm up
    assert all(len(body["prompt"]) == 9 for body in server.bodies)
    assert len({tuple(body["prompt"]) for body in server.bodies}) == 5


def test_open_loop_with_report(fake_server, tokenizer_directory, capsys, tmp_path) -> None:
    server = fake_server()
    server.events = ANSWER
    report = tmp_path / "x.html"
    with served(server):
        arguments = ["--rate", "500", "--arrivals", "fixed", "--prompt-text", "--json", "--report", str(report)]
        assert bench(server, tokenizer_directory, *arguments) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    (side,) = found["sides"]
    rows = side["rounds"]
    assert side["url"] == server.url
    assert (rows[0]["num_requests"], rows[0]["num_output_tokens"], rows[0]["good_share"]) == (4, 8, 1.0)
    assert all(isinstance(body["prompt"], str) for body in server.bodies)
    assert server.url in report.read_text()
    assert str(report) in captured.err


def test_peer_gets_the_same_prompts_and_its_own_fields(fake_server, tokenizer_directory, capsys) -> None:
    ours, peer = fake_server(), fake_server()
    ours.events = peer.events = ANSWER
    with served(ours, peer):
        arguments = ["--against", peer.url, "--rounds", "2", "--ignore-eos", "--clients", "1", "--json"]
        assert bench(ours, tokenizer_directory, *arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["comparison"]["ours"].keys() == found["comparison"]["ratio"].keys()
    assert [(side["url"], len(side["rounds"])) for side in found["sides"]] == [(ours.url, 2), (peer.url, 2)]
    assert [body["prompt"] for body in ours.bodies] == [body["prompt"] for body in peer.bodies]
    assert {"ignore_eos" in body for body in ours.bodies} == {False}
    assert {body.get("ignore_eos") for body in peer.bodies} == {True}


def test_a_server_that_refuses_ends_the_run_in_a_sentence(fake_server, tokenizer_directory, capsys) -> None:
    server = fake_server()
    server.status = 400
    with served(server):
        assert bench(server, tokenizer_directory) == 1
    assert "too long" in capsys.readouterr().err


def test_an_address_of_another_kind_is_refused(tokenizer_directory, capsys) -> None:
    assert main(["bench", "serve", "--url", "ftp://x", "--tokenizer", tokenizer_directory]) == 2
    assert "ftp://x is no http" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ("bench",),
        ("bench", "serve", "--rate", "0"),
        ("bench", "serve", "--rate", "1", "--clients", "2"),
        ("bench", "serve", "--slo-ttft-ms", "nan"),
        ("bench", "throughput", "--requests", "0"),
        ("bench", "gemm-floor", "--rows", "-1"),
    ],
)
def test_wrong_arguments_exit_2(arguments, capsys) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert "error:" in capsys.readouterr().err
