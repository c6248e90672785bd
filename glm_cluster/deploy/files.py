"""Serve config files as people write them: read strictly, then reduced to what a local cluster is started from.

Knows Serve's schema, which itself ignores misspelt keys, and refuses what a local run would not honour. Starts nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from glm_cluster.config import ClusterConfig
from glm_cluster.deploy.names import INGRESS, REPLICA, replica_names
from glm_cluster.errors import ConfigError

IMPORT_PATH = "glm_cluster.deploy.app:build_app"
SERVICERS = (
    "glm_cluster.api.servicer.add_glm_to_server",
    "grpc_health.v1.health_pb2_grpc.add_HealthServicer_to_server",
)

_REPLICAS = "autoscaling_config."
# Overrides in `deployments:` that are settings of ours under another name.
_INGRESS_OVERRIDES: Mapping[str, tuple[str, ...]] = {"num_replicas": ("num_ingresses",)}
_REPLICA_OVERRIDES: Mapping[str, tuple[str, ...]] = {
    "num_replicas": ("min_replicas", "max_replicas"),
    _REPLICAS + "min_replicas": ("min_replicas",),
    _REPLICAS + "max_replicas": ("max_replicas",),
    _REPLICAS + "target_ongoing_requests": ("target_ongoing_requests",),
    _REPLICAS + "upscale_delay_s": ("upscale_delay_s",),
    _REPLICAS + "downscale_delay_s": ("downscale_delay_s",),
}
_HONOURED: Mapping[str, frozenset[str]] = {
    "": frozenset({"proxy_location", "http_options", "grpc_options", "applications"}),
    "http_options": frozenset({"host", "port"}),
    "grpc_options": frozenset({"port", "grpc_servicer_functions"}),
    "applications": frozenset({"name", "route_prefix", "import_path", "args", "deployments"}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeFile:
    """What a Serve config file asks of a local cluster; None where it does not say."""

    args: Mapping[str, object] = field(default_factory=dict)  # the mapping of ClusterConfig
    host: str | None = None
    port: int | None = None
    grpc_port: int | None = None


def read_serve_file(path: Path) -> ServeFile:
    """Read one application of ours from `path`, naming whatever is misspelt or would be ignored."""
    raw = _parse(path)
    try:
        return _reduce(raw)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}") from error


def unknown_keys(raw: Any, model: type[BaseModel], at: str = "") -> Iterator[str]:
    """Yield the dotted path of every key in `raw` that `model` has no field for."""
    if not isinstance(raw, Mapping):
        return
    for key, value in raw.items():
        path = f"{at}.{key}" if at else str(key)
        if key not in model.model_fields:
            yield path
        elif (inner := _model_within(model.model_fields[key].annotation)) is not None:
            items = value if isinstance(value, list) else [value]
            for index, item in enumerate(items):
                yield from unknown_keys(item, inner, f"{path}[{index}]" if isinstance(value, list) else path)


def _model_within(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model inside `list[M]`, `M | None` or `dict | M`; None where values are free-form."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_within(part))), None)


def _parse(path: Path) -> dict[str, Any]:
    import yaml

    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: must hold a mapping, as the files in deploy/serve do")
    return raw


def _reduce(raw: dict[str, Any]) -> ServeFile:
    _check_schema(raw)
    _check_honoured(raw, "")
    http, grpc = raw.get("http_options") or {}, raw.get("grpc_options") or {}
    _check_honoured(http, "http_options")
    _check_honoured(grpc, "grpc_options")
    if raw.get("proxy_location") == "Disabled":
        raise ConfigError("proxy_location Disabled leaves nothing to connect to; remove it")
    if missing := set(SERVICERS) ^ set(grpc.get("grpc_servicer_functions", SERVICERS)):
        raise ConfigError(f"grpc_servicer_functions must be exactly {list(SERVICERS)}; at odds: {sorted(missing)}")
    return ServeFile(
        args=_args(raw["applications"]), host=http.get("host"), port=http.get("port"), grpc_port=grpc.get("port")
    )


def _check_schema(raw: dict[str, Any]) -> None:
    from pydantic import ValidationError
    from ray.serve.schema import ServeDeploySchema

    if unknown := list(unknown_keys(raw, ServeDeploySchema)):
        raise ConfigError(f"Ray Serve has no {', '.join(unknown)}; correct the spelling or remove it")
    try:
        ServeDeploySchema.model_validate(raw)
    except (ValidationError, ValueError) as error:
        raise ConfigError(f"Ray Serve refuses it: {error}") from error


def _check_honoured(raw: Mapping[str, Any], section: str) -> None:
    if ignored := sorted(raw.keys() - _HONOURED[section]):
        where = f"{section}: " if section else ""
        raise ConfigError(
            f"{where}{', '.join(ignored)} would have no effect in a local run; remove it or use serve deploy"
        )


def _args(applications: list[dict[str, Any]]) -> Mapping[str, object]:
    if len(applications) != 1:
        raise ConfigError(f"a local run serves one application, and this file has {len(applications)}")
    application = applications[0]
    _check_honoured(application, "applications")
    if application["import_path"] != IMPORT_PATH:
        raise ConfigError(f"import_path must be {IMPORT_PATH}, not {application['import_path']}")
    if application.get("route_prefix", "/") != "/":
        raise ConfigError(f"route_prefix must be /, not {application['route_prefix']}")
    return _overridden(dict(application.get("args") or {}), application.get("deployments") or [])


def _overridden(args: dict[str, Any], overrides: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings with what `deployments:` says of the ingress and of each model's replicas."""
    for override in overrides:
        if override["name"] == INGRESS:
            args |= _settings(override, _INGRESS_OVERRIDES)
    replicas = [override for override in overrides if override["name"] != INGRESS]
    if not replicas:
        return args
    if "models" not in args:
        return args | _of_replicas(replicas, [REPLICA])[0]
    names = replica_names([model.name for model in ClusterConfig.from_mapping(args).models])
    models = zip(args["models"], _of_replicas(replicas, names), strict=True)
    return args | {"models": [{**model, **settings} for model, settings in models]}


def _of_replicas(overrides: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, object]]:
    """The settings that `overrides` have for each of the replica deployments called `names`."""
    found: dict[str, dict[str, object]] = {name: {} for name in names}
    for override in overrides:
        name = override["name"]
        if name not in found:
            raise ConfigError(f"deployments: there is no {name} here, only {', '.join([INGRESS, *names])}; correct it")
        found[name] |= _settings(override, _REPLICA_OVERRIDES)
    return list(found.values())


def _settings(override: Mapping[str, Any], known: Mapping[str, tuple[str, ...]]) -> dict[str, object]:
    """One entry of `deployments:` as settings of ours."""
    settings: dict[str, object] = {}
    for key, value in _leaves(override):
        if key == "name":
            continue
        if key not in known:
            raise ConfigError(f"deployments: {override['name']}.{key} cannot be honoured in a local run; remove it")
        settings |= dict.fromkeys(known[key], value)
    return settings


def _leaves(raw: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, object]]:
    for key, value in raw.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{at}{key}.")
        else:
            yield at + key, value
