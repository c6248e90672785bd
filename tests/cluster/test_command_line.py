"""`glm-cluster serve` as a person meets it: what it prints works when pasted, and Ctrl-C leaves nothing behind."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from support.ports import free_ports
from support.served import COMMAND, Served, serve_command

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.cluster, pytest.mark.demo]


@pytest.fixture(scope="module")
def served(demo_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """It also has to end well on Ctrl-C: see `serve_command`."""
    with serve_command(tmp_path_factory.mktemp("serve") / "log") as one:
        yield one


def printed(served: Served, program: str) -> str:
    (line,) = (line for line in served.greeting.split("\n") if line.startswith(program + " "))
    return line


def test_greeting_says_what_is_served(served: Served) -> None:
    assert f"http://127.0.0.1:{served.port}/v1" in served.greeting
    assert f"127.0.0.1:{served.grpc_port}" in served.greeting
    assert "SmolLM2-135M" in served.greeting


def test_printed_curl_line_answers(served: Served) -> None:
    answer = subprocess.run(
        ["bash", "-c", printed(served, "curl")], check=False, capture_output=True, text=True, timeout=60
    )
    assert "Paris" in answer.stdout


def test_readme_s_demanded_call_parses(served: Served) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (line,) = (line for line in readme.splitlines() if line.startswith("curl ") and "tool_choice" in line)
    command = line.replace("http://127.0.0.1:8000", f"http://127.0.0.1:{served.port}")
    run = subprocess.run(["bash", "-c", command], check=False, capture_output=True, text=True, timeout=60)
    (choice,) = json.loads(run.stdout)["choices"]
    assert choice["finish_reason"] == "tool_calls"
    for call in choice["message"]["tool_calls"]:
        assert call["function"]["name"] == "get_weather"
        assert list(json.loads(call["function"]["arguments"])) == ["city"]


def test_printed_chat_line_answers(served: Served) -> None:
    """Lines on stdin that is no terminal: two questions, two answers, then the end of the input."""
    run = subprocess.run(
        [*printed(served, COMMAND).split(), "--max-tokens", "16"],
        input="What is the capital of France?\nAnd what is two and two?\n",
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.count("\n") >= 2


def readme_examples() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)


def test_readme_s_offline_example_answers() -> None:
    (example,) = (text for text in readme_examples() if "glm_cluster.auto" in text)
    run = subprocess.run([sys.executable, "-c", example], check=False, capture_output=True, text=True, timeout=120)
    assert "Paris" in run.stdout, run.stderr


@pytest.mark.parametrize("index", [0, 1])
def test_readme_example_answers(index: int, served: Served) -> None:
    example = readme_examples()[index]
    program = example.replace(":8000", f":{served.port}").replace(":9000", f":{served.grpc_port}")
    assert program != example
    run = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60)
    assert "Paris" in run.stdout, run.stderr


def test_grpc_describes_itself(served: Served) -> None:
    """By reflection, so that the printed grpcurl line needs no .proto file."""
    with grpc.insecure_channel(served.grpc) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert {"glm_cluster.v1.Glm", "grpc.health.v1.Health"} <= set(database.get_services())
        file = database.FindFileContainingSymbol("glm_cluster.v1.Glm")
    (service,) = file.service
    assert {method.name for method in service.method} == {
        "Chat",
        "ChatStream",
        "Generate",
        "ListModels",
        "Classify",
        "ClassifyTokens",
        "Embed",
        "GetModel",
        "Tokenize",
        "Detokenize",
        "GetServerInfo",
        "GetLoad",
    }


def test_second_cluster_on_the_port_is_refused(served: Served) -> None:
    command = [COMMAND, "serve", "--port", str(served.port), "--grpc-port", str(*free_ports(1))]
    run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    assert run.returncode == 2
    assert f"port {served.port} on 127.0.0.1 is in use" in run.stderr
