"""The command line: what it accepts, what it hands on, and how it refuses."""

import argparse
import json
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.hollow import write_hollow

from glm_cluster import __version__, preflight
from glm_cluster.cli import build_parser, main
from glm_cluster.config import ClusterConfig, EngineConfig
from glm_cluster.deploy.files import IMPORT_PATH, ServeFile
from glm_cluster.deploy.local import Endpoints
from glm_cluster.errors import CheckpointError, ConfigError
from glm_cluster.keys import find_key, read_keys
from glm_cluster.launch import check_access, greeting, serve_args, with_room
from glm_cluster.model.checkpoints.demo import default_directory
from glm_cluster.model.checkpoints.recipes import load_recipe, recipe_names
from glm_cluster.preflight import GIB, Gpu

COMMANDS = ("serve", "generate", "chat", "keys", "models", "verify", "convert", "demo-model", "bench")
FLAGS = {
    "serve": {"--model", "--tp", "--replicas", "--host", "--port", "--grpc-port", "--dtype", "--device", "--config"}
    | {"--task", "--max-model-len", "--speculative-tokens", "--quantization", "--api-keys", "--usage-log"}
    | {"--allowed-origin", "--sampling-defaults"},
    "generate": {
        "--model",
        "--prompt",
        "--max-tokens",
        "--temperature",
        "--seed",
        "--dtype",
        "--device",
        "--quantization",
        "--max-model-len",
    },
    "chat": {"--url", "--max-tokens", "--api-key"},
    "keys": set(),
    "models": {"--json"},
    "verify": {"--model", "--against", "--tp", "--dtype", "--max-tokens", "--prompt"},
    "convert": {"--max-shard-size"},
    "demo-model": set(),
    "bench": set(),
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_hollow(tmp_path)


@pytest.fixture
def free_ports() -> list[str]:
    with socket.create_server(("127.0.0.1", 0)) as http, socket.create_server(("127.0.0.1", 0)) as grpc:
        return ["--port", str(http.getsockname()[1]), "--grpc-port", str(grpc.getsockname()[1])]


def parse(*arguments: str) -> argparse.Namespace:
    return build_parser().parse_args(arguments)


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.strip().split("\n")
    assert line.startswith("glm-cluster: ")
    return line.removeprefix("glm-cluster: ")


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_flags_are_these(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A new flag is a decision: it fails here first."""
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = capsys.readouterr().out
    options = {word.strip("[],") for word in shown.split() if word.strip("[],").startswith("--")}
    assert options - {"--help", "--config."} == FLAGS[command]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"glm-cluster {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("serv",),
        ("serve", "--tp", "0"),
        ("serve", "--tp", "two"),
        ("serve", "--port", "65536"),
        ("serve", "--dtype", "float16"),
        ("serve", "--device", "tpu"),
        ("serve", "--mdoel", "x"),
        ("generate",),
        ("generate", "--prompt", "a", "--max-tokens", "0"),
        ("generate", "--prompt", "a", "--temperature", "nan"),
        ("generate", "--prompt", "a", "--temperature", "-1"),
        ("generate", "--prompt", "a", "--temperature", "1e-300"),
        ("generate", "--prompt", "a", "--seed", str(2**63)),
    ],
)
def test_wrong_arguments_exit_2(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_flags_become_settings() -> None:
    options = parse("serve", "--tp", "2", "--dtype", "float32", "--device", "cpu", "--replicas", "1:4", "--config", "x")
    args = serve_args(options, ServeFile(args={"model": "/m", "tp": 1, "max_running": 8}))
    assert args == {
        "model": "/m",
        "tp": 2,
        "max_running": 8,
        "dtype": "float32",
        "device": "cpu",
        "min_replicas": 1,
        "max_replicas": 4,
    }


def test_file_stands_where_no_flag_is_given() -> None:
    args = {"model": "/m", "tp": 2, "dtype": "bfloat16", "min_replicas": 2, "max_replicas": 2}
    assert serve_args(parse("serve", "--config", "x"), ServeFile(args=args)) == args


def test_model_given_by_path_is_made_absolute(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks run in other directories than the command does."""
    monkeypatch.chdir(checkpoint.parent)
    args = serve_args(parse("serve", "--model", checkpoint.name), ServeFile())
    assert args == {"model": str(checkpoint.resolve())}


def test_another_model_does_not_keep_the_name_of_the_files(checkpoint: Path) -> None:
    """Clients would ask for one model and be answered by another."""
    file = ServeFile(args={"model": "/m/glm-4", "model_name": "glm-4", "step_tokens": 64})
    args = serve_args(parse("serve", "--config", "x", "--model", str(checkpoint)), file)
    assert args == {"model": str(checkpoint.resolve()), "step_tokens": 64}


@pytest.mark.parametrize(
    ("name", "served_as"),
    [
        ("GLM-4-9B-chat-hf", "glm-4-9b-chat-hf"),
        ("THUDM/glm-4-9b-chat-hf", "glm-4-9b-chat-hf"),
        ("somebody/tuned-glm", "tuned-glm"),
    ],
)
def test_what_is_fetched_by_name_is_served_by_name(
    name: str, served_as: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory is called after a commit."""
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo, **_: str(checkpoint))
    args = serve_args(parse("serve", "--model", name), ServeFile())
    assert args == {"model": str(checkpoint), "model_name": served_as}


def test_a_files_model_may_be_a_name(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo, **_: str(checkpoint))
    named = {"model": str(checkpoint), "model_name": "glm-4-9b-chat-hf"}
    assert serve_args(parse("serve"), ServeFile(args={"model": "glm-4-9b-chat-hf"})) == named
    several = ServeFile(args={"models": [{"model": "glm-4-9b-chat-hf", "tp": 2}, {"model": "/m"}]})
    assert serve_args(parse("serve"), several) == {"models": [{**named, "tp": 2}, {"model": "/m"}]}


def test_a_size_that_cannot_be_is_refused_before_the_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo, **_: pytest.fail("fetched"))
    with pytest.raises(ConfigError, match=r"tp 5 does not divide GLM-4-9B-Chat; legal sizes are 1, 2, 4, 8, 16, 32"):
        serve_args(parse("serve", "--model", "glm-4-9b-chat", "--tp", "5"), ServeFile())
    with pytest.raises(ConfigError, match="tp 3 does not divide"):
        serve_args(parse("serve"), ServeFile(args={"models": [{"model": "glm-4-9b-chat", "tp": 3}]}))


def test_task_and_length_are_handed_on(checkpoint: Path) -> None:
    args = serve_args(
        parse("serve", "--model", str(checkpoint), "--task", "embed", "--max-model-len", "64"), ServeFile()
    )
    assert args == {"model": str(checkpoint.resolve()), "task": "embed", "max_model_len": 64}


def test_unknown_name_says_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"no recipe; the recipes are .*glm-4-9b-chat-hf"):
        serve_args(parse("serve", "--model", "glm-5"), ServeFile())


def test_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    listing = capsys.readouterr().out
    assert "glm-4-9b-chat-hf" in listing
    assert max(map(len, listing.splitlines())) <= 120
    assert main(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in rows} == set(recipe_names())


@pytest.mark.parametrize("replicas", ["two", "1:", ":2", "1:2:3", ""])
def test_replicas_in_words(replicas: str) -> None:
    with pytest.raises(ConfigError, match="--replicas"):
        serve_args(parse("serve", "--replicas", replicas), ServeFile(args={"model": "/m"}))


@pytest.mark.parametrize("number", [0, 12])
def test_speculation_is_a_flag_and_a_setting(number: int) -> None:
    file = ServeFile(args={"model": "/m", "speculative_tokens": 3})
    for given, expected in ((["--speculative-tokens", str(number)], number), ([], 3)):
        (model,) = ClusterConfig.from_mapping(serve_args(parse("serve", *given), file)).models
        assert model.engine.speculative_tokens == expected
    (model,) = ClusterConfig.from_mapping({"model": "/m"}).models
    assert f"(default {model.engine.speculative_tokens}; 0: none)" in _help("serve")


def test_int8_is_a_flag_and_a_setting() -> None:
    file = ServeFile(args={"model": "/m", "quantization": "int8"})
    for given, expected in (([], "int8"), (["--quantization", "none"], "none")):
        (model,) = ClusterConfig.from_mapping(serve_args(parse("serve", *given), file)).models
        assert model.engine.quantization == expected


def test_sampling_defaults_are_a_flag_and_a_setting() -> None:
    file = ServeFile(args={"model": "/m", "sampling_defaults": "openai"})
    for given, expected in (([], "openai"), (["--sampling-defaults", "model"], "model")):
        (model,) = ClusterConfig.from_mapping(serve_args(parse("serve", *given), file)).models
        assert model.sampling_defaults == expected


def test_sampling_defaults_that_cannot_be_are_refused_before_anything_starts(checkpoint: Path) -> None:
    (checkpoint / "generation_config.json").write_text('{"top_p": 8}')
    settings = {"model": str(checkpoint), "device": "cpu"}
    with pytest.raises(CheckpointError, match=r"generation_config\.json: top_p must be"):
        with_room(ClusterConfig.from_mapping(settings))
    assert with_room(ClusterConfig.from_mapping({**settings, "sampling_defaults": "openai"}))


def _help(command: str) -> str:
    (commands,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return " ".join(commands.choices[command].format_help().split())


def test_fixed_replicas() -> None:
    args = serve_args(parse("serve", "--replicas", "3"), ServeFile(args={"model": "/m"}))
    assert (args["min_replicas"], args["max_replicas"]) == (3, 3)


def test_taken_port_is_refused_before_anything_else(capsys: pytest.CaptureFixture[str]) -> None:
    """Not a hang, not a traceback, and not after a download: the model does not even exist."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert main(["serve", "--model", "/nowhere", "--port", str(port)]) == 2
    assert f"port {port} on 127.0.0.1 is in use" in sentence(capsys)


def test_port_of_the_file_is_checked_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        file = tmp_path / "serve.yaml"
        application = {"import_path": IMPORT_PATH, "args": {"model": "/nowhere"}}
        file.write_text(
            json.dumps({"http_options": {"host": "127.0.0.1", "port": port}, "applications": [application]})
        )
        assert main(["serve", "--config", str(file)]) == 2
    assert f"port {port}" in sentence(capsys)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--tp", "3"], "1, 2, 4, 8"),
        (["--replicas", "3:2"], "max_replicas"),
        (["--host", "192.0.2.1"], "not an address of this machine"),
        (["--config", "/nowhere.yaml"], "cannot be read"),
    ],
)
def test_serve_refuses_in_one_sentence(
    flags: list[str], said: str, checkpoint: Path, free_ports: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--model", str(checkpoint), *free_ports, *flags]) == 2
    assert said in sentence(capsys)


def test_generate_refuses_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--model", str(tmp_path / "nowhere"), "--prompt", "a"]) == 2
    assert "no such directory" in sentence(capsys)


def test_chat_without_a_cluster_exits_1(free_ports: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--url", f"http://127.0.0.1:{free_ports[1]}"]) == 1
    assert "glm-cluster serve" in sentence(capsys)


def test_serve_hands_over_and_greets(
    checkpoint: Path, free_ports: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from glm_cluster.deploy import local

    handed: dict[str, Any] = {}

    def serve(**given: Any) -> None:
        handed.update(given)
        given["on_stage"]("Starting")
        given["on_ready"](Endpoints("http://127.0.0.1:1", "127.0.0.1:2", "glm"))

    monkeypatch.setattr(local, "serve", serve)
    monkeypatch.setattr(preflight, "visible_gpus", lambda: (Gpu("0", "RTX", GIB, GIB),))
    monkeypatch.setattr(preflight, "torch_is_cpu_build", lambda: False)
    assert main(["serve", "--model", str(checkpoint), "--tp", "2", *free_ports]) == 0
    (model,) = handed["config"].models
    assert model.engine == EngineConfig(model=str(checkpoint.resolve()), tp=2, device="cpu")
    assert [handed["host"], str(handed["port"]), str(handed["grpc_port"])] == ["127.0.0.1", *free_ports[1::2]]
    captured = capsys.readouterr()
    said, stage = captured.err.splitlines()
    assert said.startswith("Running on the CPU: 2 GPUs would be needed")
    assert stage == "Starting"
    assert "curl http://127.0.0.1:1/v1/chat/completions" in captured.out


def test_interrupt_leaves_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from glm_cluster import chat

    def interrupted(url: str, max_tokens: int, api_key: str | None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(chat, "chat", interrupted)
    assert main(["chat"]) == 130


@pytest.mark.parametrize("name", ["demo", "other"])
def test_demo_is_announced_by_what_is_served_not_by_its_name(
    name: str,
    tmp_path: Path,
    free_ports: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A GLM checkpoint in a directory called demo is a GLM checkpoint."""
    from glm_cluster.deploy import local

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = load_recipe("demo").source
    assert source
    cached = write_hollow(default_directory(source.version))
    elsewhere = write_hollow(tmp_path / name)
    monkeypatch.setattr(local, "serve", lambda **given: given["on_ready"](Endpoints("http://h:1", "h:2", name)))
    for directory, announced in ((cached, True), (elsewhere, False)):
        assert main(["serve", "--model", str(directory), *free_ports]) == 0
        assert ("SmolLM2-135M" in capsys.readouterr().out) is announced


def test_flags_do_not_choose_among_several_models() -> None:
    file = ServeFile(args={"models": [{"model": "/a"}, {"model": "/b"}]})
    assert serve_args(parse("serve", "--config", "x", "--port", "1"), file) == file.args
    with pytest.raises(ConfigError, match="--tp, --device cannot say which"):
        serve_args(parse("serve", "--config", "x", "--tp", "2", "--device", "cpu"), file)


def test_greeting_shows_each_task() -> None:
    raw = [{"model": "/m/a"}, {"model": "/m/b", "task": "classify"}, {"model": "/m/c", "task": "embed"}]
    models = ClusterConfig.from_mapping({"models": raw}).models
    lines = list(greeting(Endpoints("http://h:1", "h:2", "a", models), demo=False))
    assert any("Serving a, b, c." in line for line in lines)
    curls = [shlex.split(line) for line in lines if line.startswith("curl ")]
    asked = [(words[1].removeprefix("http://h:1"), json.loads(words[-1])["model"]) for words in curls]
    assert asked == [("/v1/chat/completions", "a"), ("/v1/classify", "b"), ("/v1/embeddings", "c")]


@pytest.mark.parametrize("demo", [True, False])
def test_greeting_is_ready_to_paste(demo: bool) -> None:
    lines = list(greeting(Endpoints("http://h:1", "h:2", "it's a model"), demo=demo))
    assert any("SmolLM2-135M" in line for line in lines) is demo
    (curl,) = (shlex.split(line) for line in lines if line.startswith("curl "))
    body = json.loads(curl[curl.index("-d") + 1])
    assert (body["model"], body["temperature"]) == ("it's a model", 0)
    (grpcurl,) = (shlex.split(line) for line in lines if line.startswith("grpcurl "))
    assert json.loads(grpcurl[grpcurl.index("-d") + 1])["messages"][0]["role"] == "ROLE_USER"
    assert grpcurl[-2:] == ["h:2", "glm_cluster.v1.Glm/Chat"]


def test_greeting_shows_where_the_key_goes() -> None:
    lines = list(greeting(Endpoints("http://h:1", "h:2", "m"), demo=False, keys=True))
    asking = [line for line in lines if line.startswith(("curl ", "grpcurl "))]
    assert len(asking) == 2
    assert all('-H "Authorization: Bearer $GLM_API_KEY"' in line for line in asking)


def test_keys_and_log_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative names are the user's; the cluster's processes run in other directories."""
    monkeypatch.chdir(tmp_path)
    file = ServeFile(args={"models": [{"model": "/a"}], "usage_log": "usage.jsonl"})
    args = serve_args(parse("serve", "--config", "x", "--api-keys", "keys.yaml"), file)
    assert (args["api_keys_file"], args["usage_log"]) == (str(tmp_path / "keys.yaml"), str(tmp_path / "usage.jsonl"))


def test_origins_are_those_of_the_file_unless_flags_name_some() -> None:
    file = ServeFile(args={"models": [{"model": "/a"}], "allowed_origins": ["https://a"]})
    assert serve_args(parse("serve", "--config", "x"), file)["allowed_origins"] == ["https://a"]
    named = ["--allowed-origin", "https://b", "--allowed-origin", "*"]
    args = serve_args(parse("serve", "--config", "x", *named), file)
    assert ClusterConfig.from_mapping(args).allowed_origins == ("https://b", "*")


def test_an_origin_that_cannot_be_is_refused_at_start(
    checkpoint: Path, free_ports: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--model", str(checkpoint), "--allowed-origin", "chat.example.com", *free_ports]) == 2
    assert "allowed_origins[0] must be scheme://host[:port]" in sentence(capsys)


@pytest.mark.parametrize("keys", [False, True])
def test_a_door_open_to_any_page_is_announced(keys: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = {}
    if keys:
        more = {"api_keys_file": str(tmp_path / "keys")}
        main(["keys", "new", "--name", "ada", "--file", more["api_keys_file"]])
    check_access(ClusterConfig.from_mapping({"model": "m", "allowed_origins": ["*"], **more}), "localhost")
    assert ("Any page" in capsys.readouterr().err) is not keys


def test_a_broken_file_of_keys_is_refused_at_start(
    checkpoint: Path, free_ports: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "keys").write_text("- {name: a, sha256: secret}")
    assert main(["serve", "--model", str(checkpoint), "--api-keys", str(tmp_path / "keys"), *free_ports]) == 2
    assert "[0].sha256 must be the 64 hex digits" in sentence(capsys)


@pytest.mark.parametrize(("host", "said"), [("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)])
def test_an_open_door_is_announced(host: str, said: bool, capsys: pytest.CaptureFixture[str]) -> None:
    check_access(ClusterConfig.from_mapping({"model": "m"}), host)
    assert ("may call" in capsys.readouterr().err) is said


def test_a_log_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        check_access(ClusterConfig.from_mapping({"model": "m", "usage_log": str(tmp_path / "no" / "log")}), "localhost")


def test_new_key_is_printed_once_and_kept_as_a_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys"
    assert main(["keys", "new", "--name", "ada", "--file", str(path)]) == 0
    secret = capsys.readouterr().out.strip()
    assert secret not in path.read_text()
    (found,) = read_keys(path)
    assert find_key([found], secret.encode()) == found


def test_runs_as_a_command() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "glm_cluster.cli", "--version"], capture_output=True, text=True, check=True
    )
    assert run.stdout == f"glm-cluster {__version__}\n"
