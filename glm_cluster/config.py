"""Settings: frozen, keyword-only, strict, resolved once. Values found at start-up are results, never written back."""

import sys
from collections.abc import Collection, Mapping
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
        _refuse_unknown(raw, _keys(cls))
        if "model" not in raw:
            raise ConfigError("the setting `model` (a checkpoint directory) is missing")
        config = cls(**raw)
        _check_type("model", config.model, str)
        for name in ("tp", "max_running", "max_waiting", "step_tokens", "block_tokens"):
            _check_whole(name, getattr(config, name), low=1)
        for name in ("kv_cache_bytes", "max_model_len"):
            if (value := getattr(config, name)) is not None:
                _check_whole(name, value, low=1)
        _check_number("step_deadline_s", config.step_deadline_s, above=0)
        _check_choice("dtype", config.dtype, ("auto", "float32", "bfloat16"))
        _check_choice("device", config.device, ("auto", "cpu", "cuda"))
        if 64 % config.block_tokens:
            raise ConfigError(f"block_tokens must divide 64, the attention tile, not {config.block_tokens}")
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
        engine_keys = _keys(EngineConfig)
        _refuse_unknown(raw, engine_keys | _keys(cls) - {"engine"})
        engine = EngineConfig.from_mapping({k: v for k, v in raw.items() if k in engine_keys})
        own = {k: v for k, v in raw.items() if k not in engine_keys}
        own.setdefault("model_name", engine.model.rstrip("/").rsplit("/", 1)[-1])
        config = cls(engine=engine, **own)
        _check_type("model_name", config.model_name, str)
        for name in ("min_replicas", "max_replicas", "target_ongoing_requests", "num_ingresses"):
            _check_whole(name, getattr(config, name), low=1)
        _check_whole("max_migrations", config.max_migrations, low=0)
        if config.max_replicas < config.min_replicas:
            raise ConfigError(
                f"max_replicas ({config.max_replicas}) must be at least min_replicas ({config.min_replicas})"
            )
        _check_choice("placement", config.placement, ("STRICT_PACK", "PACK", "SPREAD", "STRICT_SPREAD"))
        for name in ("upscale_delay_s", "downscale_delay_s", "cpus_per_rank"):
            _check_number(name, getattr(config, name), low=0)
        _check_number("request_timeout_s", config.request_timeout_s, above=0)
        return config


def _keys(cls: type[Any]) -> set[str]:
    return {f.name for f in fields(cls)}


def _refuse_unknown(raw: Mapping[str, Any], known: Collection[str]) -> None:
    if unknown := sorted(str(key) for key in raw if key not in known):
        raise ConfigError(f"unknown settings {unknown}; known are {sorted(known)}")


def _check_type(name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise ConfigError(f"{name} must be a {kind.__name__}, not {value!r}")


def _check_whole(name: str, value: object, *, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ConfigError(f"{name} must be a whole number of {low} or more, not {value!r}")


def _check_number(name: str, value: object, *, low: float | None = None, above: float | None = None) -> None:
    """Refuse what is no finite number of `low` or more, or `above` that bound. A whole number is one too."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= sys.float_info.max:
        raise ConfigError(f"{name} must be a finite number, not {value!r}")
    if low is not None and value < low:
        raise ConfigError(f"{name} must be {low:g} or more, not {value!r}")
    if above is not None and value <= above:
        raise ConfigError(f"{name} must be above {above:g}, not {value!r}")


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
