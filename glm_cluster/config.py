"""Settings: frozen, keyword-only, strict, resolved once. Values found at start-up are results, never written back."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, TypeAlias

from glm_cluster.errors import ConfigError

DtypeName: TypeAlias = Literal["auto", "float32", "bfloat16"]
DeviceName: TypeAlias = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """One engine: the checkpoint it runs and how it batches."""

    model: str  # checkpoint directory, the same path on every node
    tp: int = 1  # ranks in the tensor-parallel group
    dtype: DtypeName = "auto"  # auto: what config.json says
    device: DeviceName = "auto"  # auto: cuda when there is one
    max_running: int = 64  # sequences in one step
    max_waiting: int = 1024  # requests queued before an engine answers 429
    step_tokens: int = 512  # token budget of one step
    block_tokens: int = 16  # slots in a KV block
    kv_cache_bytes: int | None = None  # a rank's share; None: from free memory
    max_model_len: int | None = None  # None: the checkpoint's limit
    step_deadline_s: float = 120.0  # a step slower than this kills its group

    @classmethod
    def from_mapping(cls, raw: Mapping[str, Any]) -> Self:
        """Build from parsed YAML or JSON, naming any key or value that cannot be right."""
        _refuse_unknown(cls, raw)
        config = cls(**raw)
        _check_type("model", config.model, str)
        for name in ("tp", "max_running", "step_tokens", "block_tokens"):
            _check_positive_int(name, getattr(config, name))
        for name in ("kv_cache_bytes", "max_model_len"):
            if (value := getattr(config, name)) is not None:
                _check_positive_int(name, value)
        _check_choice("dtype", config.dtype, ("auto", "float32", "bfloat16"))
        _check_choice("device", config.device, ("auto", "cpu", "cuda"))
        if 64 % config.block_tokens:
            raise ConfigError(f"block_tokens must divide 64, the attention tile, not {config.block_tokens}")
        if not config.step_deadline_s > 0:
            raise ConfigError(f"step_deadline_s must be above 0, not {config.step_deadline_s}")
        return config


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """The application: one engine config, and how many of it. This is the `args:` mapping of a Serve config file."""

    engine: EngineConfig
    model_name: str  # the name clients send
    min_replicas: int = 1
    max_replicas: int = 1
    target_ongoing_requests: int = 32  # per replica, autoscaling's aim
    upscale_delay_s: float = 5.0
    downscale_delay_s: float = 60.0
    num_ingresses: int = 1
    placement: Literal["STRICT_PACK", "PACK", "SPREAD", "STRICT_SPREAD"] = "STRICT_PACK"
    cpus_per_rank: float = 0.1  # logical Ray CPUs; placement only
    max_migrations: int = 3  # re-entries of one request after engine deaths
    request_timeout_s: float = 600.0

    @classmethod
    def from_mapping(cls, raw: Mapping[str, Any]) -> Self:
        """Build from a flat mapping: the keys of EngineConfig and of this class side by side."""
        engine_keys = {f.name for f in fields(EngineConfig)}
        engine = EngineConfig.from_mapping({k: v for k, v in raw.items() if k in engine_keys})
        own = {k: v for k, v in raw.items() if k not in engine_keys}
        _refuse_unknown(cls, own, hidden=("engine",))
        own.setdefault("model_name", engine.model.rstrip("/").rsplit("/", 1)[-1])
        config = cls(engine=engine, **own)
        _check_type("model_name", config.model_name, str)
        for name in ("min_replicas", "max_replicas", "target_ongoing_requests", "num_ingresses"):
            _check_positive_int(name, getattr(config, name))
        if config.max_replicas < config.min_replicas:
            raise ConfigError(
                f"max_replicas ({config.max_replicas}) must be at least min_replicas ({config.min_replicas})"
            )
        _check_choice("placement", config.placement, ("STRICT_PACK", "PACK", "SPREAD", "STRICT_SPREAD"))
        for name in ("upscale_delay_s", "downscale_delay_s", "cpus_per_rank", "request_timeout_s", "max_migrations"):
            if not isinstance(value := getattr(config, name), int | float) or isinstance(value, bool) or value < 0:
                raise ConfigError(f"{name} must be a number of 0 or more, not {value!r}")
        return config


def _refuse_unknown(cls: type[Any], raw: Mapping[str, Any], hidden: tuple[str, ...] = ()) -> None:
    known = {f.name for f in fields(cls)} - set(hidden)
    if unknown := sorted(raw.keys() - known):
        raise ConfigError(f"unknown settings {unknown}; known are {sorted(known)}")
    if cls is EngineConfig and "model" not in raw:
        raise ConfigError("the setting `model` (a checkpoint directory) is missing")


def _check_type(name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise ConfigError(f"{name} must be a {kind.__name__}, not {value!r}")


def _check_positive_int(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} must be a whole number of 1 or more, not {value!r}")


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
