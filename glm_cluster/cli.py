"""The command line: reads arguments, calls one function for each command, turns errors into a sentence.

Knows the terminal and the order of things. Knows nothing of HTTP, Ray or tensors; the modules that do are imported by
the command that needs them, so that `--help` answers at once.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar, get_args

from glm_cluster import __version__
from glm_cluster.bench.command import add_bench
from glm_cluster.errors import ConfigError, GlmError
from glm_cluster.records import Quantization

if TYPE_CHECKING:
    from glm_cluster.deploy.local import Endpoints

    Commands: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]

T = TypeVar("T")

DEMO = "demo"
DEVICES = ("auto", "cpu", "cuda")
QUANTIZATIONS = get_args(Quantization)
QUANTIZATION_HELP = "int8: matrices and activations in bytes, on CPUs: half the memory, faster, less exact"
TASKS = ("generate", "classify", "classify-tokens", "embed")
HOST, PORT, GRPC_PORT = "127.0.0.1", 8000, 9000
LOWEST_TEMPERATURE = 1e-5  # the wire's
MODEL_HELP = "checkpoint directory, a name that `glm-cluster models` lists, or a hub repository owner/name"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. 0: done; 1: failed, or `verify` found a difference; 2: asked for wrongly; 130: Ctrl-C."""
    options = build_parser().parse_args(argv)
    try:
        return options.run(options) or 0
    except GlmError as error:
        print(f"glm-cluster: {error.message}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        return 130


def build_parser() -> argparse.ArgumentParser:
    """The whole command line, without running any of it."""
    parser = argparse.ArgumentParser(
        prog="glm-cluster",
        description="Serve GLM models: OpenAI-compatible HTTP and gRPC in front of a tensor-parallel engine.",
        epilog="Start with `glm-cluster serve`: it fetches a small demo model and prints a line to try.",
    )
    parser.add_argument("--version", action="version", version=f"glm-cluster {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_serve(commands)
    _add_generate(commands)
    _add_chat(commands)
    _add_keys(commands)
    _add_models(commands)
    _add_verify(commands)
    _add_convert(commands)
    _add_demo_model(commands)
    add_bench(commands)
    return parser


def _add_serve(commands: "Commands") -> None:
    parser = commands.add_parser(
        "serve",
        help="start a cluster on this machine and serve until Ctrl-C",
        description="Start a cluster on this machine and serve until Ctrl-C. Flags override the values of --config.",
    )
    parser.add_argument("--model", metavar="PATH|NAME", help=f"{MODEL_HELP} (default: demo)")
    parser.add_argument("--tp", type=_count, metavar="N", help="ranks in a tensor-parallel group (default 1)")
    parser.add_argument("--replicas", metavar="N|MIN:MAX", help="groups; MIN:MAX lets Serve autoscale (default 1)")
    parser.add_argument("--host", metavar="H", help=f"address to listen on (default {HOST}: this machine only)")
    parser.add_argument("--port", type=_port, metavar="P", help=f"HTTP port (default {PORT})")
    parser.add_argument("--grpc-port", type=_port, metavar="P", help=f"gRPC port (default {GRPC_PORT})")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), help="default auto: what config.json says")
    parser.add_argument("--device", choices=DEVICES, help="default auto: cuda if every rank gets a GPU, else cpu")
    parser.add_argument("--quantization", choices=QUANTIZATIONS, help=f"{QUANTIZATION_HELP} (default none)")
    parser.add_argument("--task", choices=TASKS, help="what it answers with (default generate)")
    parser.add_argument("--max-model-len", type=_count, metavar="N", help="tokens of a sequence (default: all it can)")
    parser.add_argument(
        "--speculative-tokens",
        type=_drafts,
        metavar="N",
        help="most tokens guessed in a step from a request's own text (default 7; 0: none)",
    )
    parser.add_argument(
        "--sampling-defaults",
        choices=("model", "openai"),
        help="of requests that say nothing: the checkpoint's (default), or temperature 1",
    )
    parser.add_argument("--api-keys", type=Path, metavar="FILE", help="who may call (default: anyone); see `keys new`")
    parser.add_argument("--usage-log", type=Path, metavar="FILE", help="gets a JSON line for each request")
    parser.add_argument(
        "--allowed-origin", metavar="URL", action="append", help="web page whose scripts may ask, or *; repeatable"
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="Serve config file, such as deploy/serve/demo.yaml")
    parser.set_defaults(run=_serve)


def _add_generate(commands: "Commands") -> None:
    parser = commands.add_parser(
        "generate",
        help="answer one prompt offline, without a cluster",
        description="Answer one prompt with the engine alone: no Ray, no network, one rank.",
    )
    parser.add_argument("--model", metavar="PATH|NAME", default=DEMO, help=f"{MODEL_HELP} (default: demo)")
    parser.add_argument("--prompt", metavar="TEXT", required=True, help="what to answer")
    parser.add_argument("--max-tokens", type=_count, metavar="N", default=256, help="longest answer (default 256)")
    parser.add_argument("--temperature", type=_temperature, metavar="T", default=0.0, help="0 is greedy (default)")
    parser.add_argument("--seed", type=_seed, metavar="N", default=0, help="of the sampling (default 0)")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="default auto")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="default auto: cuda if there is one")
    parser.add_argument(
        "--quantization", choices=QUANTIZATIONS, default="none", help=f"{QUANTIZATION_HELP} (default none)"
    )
    parser.add_argument("--max-model-len", type=_count, metavar="N", help="tokens of a sequence (default: all it can)")
    parser.set_defaults(run=_generate)


def _add_chat(commands: "Commands") -> None:
    parser = commands.add_parser("chat", help="talk to a running cluster", description="Talk to a running cluster.")
    parser.add_argument("--url", metavar="U", default=f"http://{HOST}:{PORT}", help=f"default http://{HOST}:{PORT}")
    parser.add_argument("--max-tokens", type=_count, metavar="N", default=1024, help="longest answer (default 1024)")
    parser.add_argument("--api-key", metavar="KEY", help="default: the environment's GLM_API_KEY")
    parser.set_defaults(run=_chat)


def _add_keys(commands: "Commands") -> None:
    parser = commands.add_parser("keys", help="make API keys", description="Make the keys that a server asks for.")
    kinds = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    new = kinds.add_parser(
        "new",
        help="make a key",
        description="Print a new key, once, and the entry for the file of keys, which holds its SHA-256 alone.",
    )
    new.add_argument("--name", metavar="NAME", required=True, help="what usage records call its bearer")
    new.add_argument("--file", type=Path, metavar="FILE", help="add the entry to this file, which is made if need be")
    new.set_defaults(run=_new_key)


def _add_models(commands: "Commands") -> None:
    parser = commands.add_parser(
        "models",
        help="list the published checkpoints that have a recipe",
        description="List the published checkpoints that `--model NAME` knows: what each needs, and which are here.",
    )
    parser.add_argument("--json", action="store_true", help="as JSON, with everything a recipe says")
    parser.set_defaults(run=_models)


def _add_verify(commands: "Commands") -> None:
    parser = commands.add_parser(
        "verify",
        help="compare a checkpoint as we run it with Hugging Face's transformers",
        description="Compare config, tokenizer, template, logits, tokens, cache paths and tensor-parallel sizes with "
        "Hugging Face's transformers, or our own plain forward where it is not installed. Exits 1 on a difference.",
    )
    parser.add_argument("--model", metavar="PATH|NAME", default=DEMO, help=f"{MODEL_HELP} (default: demo)")
    parser.add_argument("--against", choices=("auto", "transformers", "self"), default="auto", help="default auto")
    parser.add_argument("--tp", type=_count, nargs="+", metavar="N", help="sizes to try (default: legal ones up to 4)")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="default auto")
    parser.add_argument("--max-tokens", type=_count, metavar="N", default=16, help="tokens a prompt (default 16)")
    parser.add_argument("--prompt", metavar="TEXT", action="append", help="instead of the built-in ones; repeatable")
    parser.set_defaults(run=_verify)


def _add_convert(commands: "Commands") -> None:
    parser = commands.add_parser(
        "convert",
        help="write a checkpoint anew in Hugging Face's layout",
        description="Write THUDM's `chatglm` files in Hugging Face's layout, or any checkpoint in new shards.",
    )
    parser.add_argument("source", metavar="SRC", help=MODEL_HELP)
    parser.add_argument("target", metavar="DST", type=Path, help="a directory that does not exist or is empty")
    parser.add_argument("--max-shard-size", metavar="SIZE", default="5GB", help="of one weight file (default 5GB)")
    parser.set_defaults(run=_convert)


def _add_demo_model(commands: "Commands") -> None:
    parser = commands.add_parser(
        "demo-model",
        help="fetch and convert the demo model",
        description="Fetch the demo model, check its SHA-256 and write it in Hugging Face's layout.",
    )
    parser.add_argument("directory", metavar="DIR", nargs="?", type=Path, help="default: the user's cache")
    parser.set_defaults(run=_demo_model)


def _serve(options: argparse.Namespace) -> None:
    from glm_cluster.config import ClusterConfig
    from glm_cluster.deploy.files import ServeFile, read_serve_file
    from glm_cluster.deploy.local import serve
    from glm_cluster.launch import check_access, greeting, is_demo, serve_args, with_room
    from glm_cluster.preflight import check_ports
    from glm_cluster.terminal import Stages

    file = ServeFile() if options.config is None else read_serve_file(options.config)
    host = _first(options.host, file.host, HOST)
    port = _first(options.port, file.port, PORT)
    grpc_port = _first(options.grpc_port, file.grpc_port, GRPC_PORT)
    check_ports(host, port, grpc_port)
    config = ClusterConfig.from_mapping(serve_args(options, file))
    check_access(config, host)
    config = with_room(config)
    keys = config.api_keys_file is not None
    demo = any(is_demo(model.engine.model) for model in config.models)
    stages = Stages()

    def on_ready(endpoints: "Endpoints") -> None:
        stages.close()
        print("\n".join(greeting(endpoints, demo=demo, keys=keys)), flush=True)

    with stages:
        serve(
            config=config,
            host=host,
            port=port,
            grpc_port=grpc_port,
            on_stage=stages.show,
            on_read=stages.show_read,
            on_ready=on_ready,
        )


def _generate(options: argparse.Namespace) -> None:
    from glm_cluster.model.threads import prepare_threads

    prepare_threads()
    from glm_cluster.config import EngineConfig
    from glm_cluster.launch import engine_with_room, model_directory
    from glm_cluster.offline import Offline
    from glm_cluster.records import SamplingParams
    from glm_cluster.terminal import weights_bar

    settings = {
        "model": str(model_directory(options.model)),
        "dtype": options.dtype,
        "device": options.device,
        "quantization": options.quantization,
        "max_model_len": options.max_model_len,
    }
    config, checkpoint = engine_with_room(EngineConfig.from_mapping(settings))
    with weights_bar() as on_read:
        offline = Offline.load(config, on_read=on_read)
    sampling = SamplingParams(
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        seed=options.seed,
        stop_token_ids=checkpoint.eos_token_ids,
    )
    for piece in offline.answer(options.prompt, sampling):
        print(piece, end="", flush=True)
    print()


def _models(options: argparse.Namespace) -> None:
    from glm_cluster.catalogue import rows, table
    from glm_cluster.model.checkpoints.hub import installed
    from glm_cluster.model.checkpoints.recipes import load_recipe, recipe_names

    recipes = [load_recipe(name) for name in recipe_names()]
    here = installed(recipes)
    listing = json.dumps(rows(recipes, installed=here), indent=2) if options.json else table(recipes, installed=here)
    print(listing)


def _verify(options: argparse.Namespace) -> int:
    from glm_cluster.model.threads import prepare_threads

    prepare_threads()
    from glm_cluster.launch import model_directory
    from glm_cluster.verify import render, verify

    report = verify(
        model_directory(options.model),
        against=options.against,
        tp=options.tp,
        dtype=options.dtype,
        max_new_tokens=options.max_tokens,
        prompts=options.prompt,
        on_check=lambda check: print(f"{check.name}: {check.verdict}", file=sys.stderr),
    )
    print(render(report))
    return 0 if report.first_difference is None else 1


def _convert(options: argparse.Namespace) -> None:
    from glm_cluster.convert import convert_checkpoint
    from glm_cluster.launch import model_directory
    from glm_cluster.model.checkpoints.weights import num_bytes
    from glm_cluster.terminal import progress_bars

    limit = num_bytes(options.max_shard_size)
    source = model_directory(options.source)
    with progress_bars() as on_progress:
        convert_checkpoint(source, options.target, max_shard_bytes=limit, on_progress=on_progress)
    print(options.target)


def _chat(options: argparse.Namespace) -> None:
    from glm_cluster.chat import chat

    chat(options.url, options.max_tokens, options.api_key or os.environ.get("GLM_API_KEY"))


def _new_key(options: argparse.Namespace) -> None:
    from glm_cluster.keys import append_key, entry_line, new_key

    secret, entry = new_key(options.name)
    if options.file is not None:
        append_key(options.file, entry)
    print(secret)
    print("It is not kept anywhere: note it down now.", file=sys.stderr)
    print(entry_line(entry) if options.file is None else f"{options.file} has its entry.", file=sys.stderr)


def _demo_model(options: argparse.Namespace) -> None:
    from glm_cluster.model.checkpoints.demo import ensure_demo_model
    from glm_cluster.terminal import progress_bars

    with progress_bars() as on_progress:
        directory = ensure_demo_model(options.directory, on_progress=on_progress)
    print(directory)


def _first(*values: T | None) -> T:
    """The first value that was given."""
    return next(value for value in values if value is not None)


def _count(text: str) -> int:
    return _whole(text, 1, 2**31 - 1)


def _drafts(text: str) -> int:
    return _whole(text, 0, 2**31 - 1)


def _port(text: str) -> int:
    return _whole(text, 1, 65535)


def _seed(text: str) -> int:
    return _whole(text, 0, 2**63 - 1)


def _whole(text: str, low: int, high: int) -> int:
    if not text.isdecimal() or not low <= int(text) <= high:
        raise argparse.ArgumentTypeError(f"must be a whole number from {low} to {high}, not {text!r}")
    return int(text)


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not (value == 0 or LOWEST_TEMPERATURE <= value <= 2):
        allowed = f"0, which is greedy, or a number from {LOWEST_TEMPERATURE:g} to 2"
        raise argparse.ArgumentTypeError(f"must be {allowed}, not {text!r}")
    return value


if __name__ == "__main__":
    sys.exit(main())
