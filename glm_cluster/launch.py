"""What `serve` starts: settings from flags and file, checked against the machine; and what it says once it runs.

Knows settings, checkpoints and GPUs. Starts nothing: it hands a ClusterConfig to `deploy.local`.
"""

import ipaddress
import json
import shlex
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from glm_cluster.config import ALL_ORIGINS, ClusterConfig, EngineConfig
from glm_cluster.errors import ConfigError
from glm_cluster.keys import read_keys
from glm_cluster.model.config import GlmConfig
from glm_cluster.model.generation.sampling_defaults import sampling_defaults
from glm_cluster.preflight import Demand, check_checkpoint, check_gpus, choose_device
from glm_cluster.records import Task

if TYPE_CHECKING:  # ray
    from glm_cluster.deploy.files import ServeFile
    from glm_cluster.deploy.local import Endpoints

DEMO = "demo"
# Flags that are named as the settings are.
_SETTINGS = (
    "tp",
    "dtype",
    "device",
    "quantization",
    "task",
    "max_model_len",
    "speculative_tokens",
    "sampling_defaults",
)
QUESTION = "What is the capital of France?"
_ROUTES: Mapping[Task, str] = {
    "classify": "/v1/classify",
    "classify-tokens": "/v1/classify_tokens",
    "embed": "/v1/embeddings",
}


def serve_args(options: Namespace, file: "ServeFile") -> dict[str, object]:
    """The mapping of ClusterConfig: the file's values, overridden by the flags that were given."""
    args = {**file.args, **_files(options, file)}
    if options.allowed_origin is not None:
        args["allowed_origins"] = options.allowed_origin
    if "models" in args:
        return _of_several(options, args)
    flags = {name: getattr(options, name) for name in _SETTINGS}
    args |= {name: value for name, value in flags.items() if value is not None}
    if options.replicas is not None:
        args["min_replicas"], args["max_replicas"] = _replicas(options.replicas)
    if options.model is not None or "model" not in args:
        args.pop("model_name", None)  # the name of the file's model
        args["model"] = options.model or DEMO
    return _fetched(args)


def _files(options: Namespace, file: "ServeFile") -> dict[str, object]:
    """The files that are not a model's, absolute: the cluster's processes run elsewhere."""
    given = {"api_keys_file": options.api_keys, "usage_log": options.usage_log}
    named = {name: path if path is not None else file.args.get(name) for name, path in given.items()}
    return {name: str(Path(path).resolve()) for name, path in named.items() if isinstance(path, str | Path)}


def _of_several(options: Namespace, args: dict[str, object]) -> dict[str, object]:
    """A file's list of models is taken as it stands: a flag would not say which of them it means."""
    flags = ("model", "replicas", *_SETTINGS)
    if given := [f"--{name.replace('_', '-')}" for name in flags if getattr(options, name) is not None]:
        raise ConfigError(f"{', '.join(given)} cannot say which of the file's models is meant; set it in the file")
    models = args["models"]
    if isinstance(models, list):
        args["models"] = [_fetched(entry) if isinstance(entry, Mapping) else entry for entry in models]
    return args


def _fetched(args: Mapping[str, object]) -> dict[str, object]:
    """The settings of a model with a name in the place of its directory fetched, and served by that name."""
    name = args.get("model")
    if not isinstance(name, str):
        return dict(args)
    if Path(name).is_dir() or name.startswith(("/", ".", "~")):
        return {**args, "model": str(Path(name).resolve())}
    _check_recipe(name, args.get("tp"))
    return {"model_name": _recipe_name(name), **args, "model": str(model_directory(name))}


def _check_recipe(name: str, tp: object) -> None:
    """Refuse a group size that cannot be before the checkpoint is fetched."""
    from glm_cluster.model.checkpoints.recipes import find_recipe

    recipe = None if Path(name).is_dir() else find_recipe(name)
    if recipe is not None and isinstance(tp, int) and tp not in recipe.legal_tp:
        raise ConfigError(
            f"tp {tp} does not divide {recipe.title}; legal sizes are {', '.join(map(str, recipe.legal_tp))}"
        )


def _replicas(text: str) -> tuple[int, int]:
    low, colon, high = text.partition(":")
    try:
        return int(low), int(high if colon else low)
    except ValueError as error:
        raise ConfigError(f"--replicas takes a number or MIN:MAX, not {text!r}") from error


def model_directory(name: str) -> Path:
    """The directory of a checkpoint given by path, recipe or hub repository, fetching it where need be."""
    from glm_cluster.model.checkpoints.hub import resolve
    from glm_cluster.terminal import progress_bars

    if Path(name).is_dir():
        return resolve(name)
    with progress_bars() as on_progress:
        return resolve(name, on_progress=on_progress)


def _recipe_name(name: str) -> str | None:
    """What a model fetched by name is served as: a cache's directories are named after commits. None for a path."""
    from glm_cluster.model.checkpoints.recipes import find_recipe

    if Path(name).is_dir():
        return None
    recipe = find_recipe(name)
    return name.rsplit("/", 1)[-1] if recipe is None else recipe.name


def check_access(config: ClusterConfig, host: str) -> None:
    """Refuse keys that cannot be read and a log that cannot be written; say it if anybody on the network may call."""
    if config.api_keys_file is not None:
        read_keys(Path(config.api_keys_file))
    elif not is_loopback(host):
        print(f"Anyone who reaches {host} may call: there are no API keys (see --api-keys).", file=sys.stderr)
    if ALL_ORIGINS in config.allowed_origins and config.api_keys_file is None:
        print(f"Any page in a browser that reaches {host} may call: there are no API keys.", file=sys.stderr)
    if config.usage_log is not None:
        try:
            Path(config.usage_log).open("a").close()
        except OSError as error:
            raise ConfigError(f"usage_log: {config.usage_log} cannot be written ({error.strerror})") from error


def with_room(config: ClusterConfig) -> ClusterConfig:
    """The settings with every `auto` replaced by a device; refused where a model does not fit this machine."""
    stored = [check_checkpoint(model.engine) for model in config.models]
    for model in config.models:
        sampling_defaults(model)  # refused here if at all, not in each front process anew
    engines = _placed([(model.engine, model.min_replicas) for model in config.models], stored)
    models = tuple(replace(model, engine=engine) for model, engine in zip(config.models, engines, strict=True))
    return replace(config, models=models)


def engine_with_room(engine: EngineConfig) -> tuple[EngineConfig, GlmConfig]:
    """The same for one engine in this process, and what its checkpoint says."""
    stored = check_checkpoint(engine)
    (placed,) = _placed([(engine, 1)], [stored])
    return placed, stored


def _placed(engines: Sequence[tuple[EngineConfig, int]], stored: Sequence[GlmConfig]) -> list[EngineConfig]:
    num_gpus = sum(engine.tp * replicas for engine, replicas in engines if engine.device != "cpu")
    placed, reasons = [], []
    for engine, _ in engines:
        chosen = choose_device(engine.device, num_gpus=num_gpus)
        placed.append(replace(engine, device=chosen.device))
        reasons += [chosen.why] if chosen.why else []
    for why in dict.fromkeys(reasons):
        print(why, file=sys.stderr)
    counts = [replicas for _, replicas in engines]
    check_gpus([Demand(*demand) for demand in zip(placed, stored, counts, strict=True)])
    return placed


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_demo(directory: str) -> bool:
    """Whether this is the demo model in the user's cache, whatever it is served as."""
    from glm_cluster.model.checkpoints.demo import default_directory
    from glm_cluster.model.checkpoints.recipes import WheelSource, load_recipe

    source = load_recipe(DEMO).source
    return isinstance(source, WheelSource) and Path(directory).resolve() == default_directory(source.version).resolve()


def greeting(endpoints: "Endpoints", *, demo: bool, keys: bool = False) -> Iterator[str]:
    """What a person needs to try the cluster, each line ready to paste; with `keys`, once GLM_API_KEY is set."""
    tasks: dict[str, Task] = {model.name: model.engine.task for model in endpoints.models}
    tasks = tasks or {endpoints.model_name: "generate"}
    yield f"\nServing {', '.join(tasks)}. Ctrl-C stops everything."
    if demo:
        yield "The demo weights are SmolLM2-135M-Instruct in GLM's architecture, not a GLM checkpoint."
    yield f"\n  HTTP   {endpoints.http_url}/v1"
    yield f"  gRPC   {endpoints.grpc_address}\n"
    if keys:
        yield "export GLM_API_KEY=...  # one of the keys"
    key = ' -H "Authorization: Bearer $GLM_API_KEY"' if keys else ""
    for name, task in tasks.items():
        yield from _chats(endpoints, name, key) if task == "generate" else _encodes(endpoints, name, task, key)
    if "generate" in tasks.values():
        yield f"{_program()} chat --url {endpoints.http_url}"


def _chats(endpoints: "Endpoints", name: str, key: str) -> Iterator[str]:
    asked = {"model": name, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
    typed = {"model": name, "messages": [{"role": "ROLE_USER", "content": QUESTION}], "sampling": {"temperature": 0}}
    yield _curl(f"{endpoints.http_url}/v1/chat/completions", asked, key)
    yield f"grpcurl -plaintext{key} -d {_quoted(typed)} {endpoints.grpc_address} glm_cluster.v1.Glm/Chat"


def _encodes(endpoints: "Endpoints", name: str, task: Task, key: str) -> Iterator[str]:
    yield _curl(endpoints.http_url + _ROUTES[task], {"model": name, "input": [QUESTION]}, key)


def _curl(url: str, body: Mapping[str, object], key: str) -> str:
    return f"curl {url}{key} -H 'Content-Type: application/json' -d {_quoted(body)}"


def _quoted(body: Mapping[str, object]) -> str:
    return shlex.quote(json.dumps(body))


def _program() -> str:
    """This command as it was called, so that it is found again where it is not on the PATH."""
    return sys.argv[0] if Path(sys.argv[0]).name == "glm-cluster" else "glm-cluster"
