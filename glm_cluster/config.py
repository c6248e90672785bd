"""Settings: frozen, keyword-only, strict, resolved once. Values found at start-up are results, never written back."""

import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self, TypeAlias, get_args

from glm_cluster.errors import ConfigError
from glm_cluster.records import Quantization, ReasoningParser, SamplingSource, Task, ToolParser

DtypeName: TypeAlias = Literal["auto", "float32", "bfloat16"]
DeviceName: TypeAlias = Literal["auto", "cpu", "cuda"]
MOST_CHOICES = 256  # that any setting allows: each is a generation of its own
ALL_ORIGINS = "*"
_ORIGIN = re.compile(
    r"(?!http://[^/]+:80$|https://[^/]+:443$)"  # browsers leave these out
    r"[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[1-9][0-9]{0,4})?",
    re.ASCII,
)
PlacementName: TypeAlias = Literal["STRICT_PACK", "PACK", "SPREAD", "STRICT_SPREAD"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """One engine: the checkpoint it runs and how it batches."""

    model: str  # checkpoint directory, the same path on every node
    task: Task = "generate"  # what it answers with: tokens, or a head's numbers
    tp: int = 1  # ranks in the tensor-parallel group
    dtype: DtypeName = "auto"  # auto: what config.json says
    device: DeviceName = "auto"  # auto: cuda when there is one
    quantization: Quantization = "none"  # int8: weights by output row, activations by token; CPU only
    max_running: int = 64  # sequences in one step
    max_waiting: int = 1024  # requests queued before an engine answers 429
    step_tokens: int = 256  # token budget of one step: a long prompt holds the others up for one such step at a time
    block_tokens: int = 16  # slots in a KV block
    speculative_tokens: int = 7  # most tokens guessed for a request in one step, from its text or its grammar; 0: none
    kv_cache_bytes: int | None = None  # a rank's share; None: from free memory
    max_model_len: int | None = None  # None: the checkpoint's limit
    step_deadline_s: float = 120.0  # a step slower than this kills its group

    @classmethod
    def from_mapping(cls, raw: Mapping[str, Any]) -> Self:
        """Build from parsed YAML or JSON, naming any key or value that cannot be right."""
        _refuse_unknown(raw, _keys(cls))
        if "model" not in raw:
            raise ConfigError("model (a checkpoint directory) is missing")
        config = cls(**raw)
        _check_type("model", config.model, str)
        for name in ("tp", "max_running", "max_waiting", "step_tokens", "block_tokens"):
            _check_whole(name, getattr(config, name), low=1)
        _check_whole("speculative_tokens", config.speculative_tokens, low=0)
        for name in ("kv_cache_bytes", "max_model_len"):
            if (value := getattr(config, name)) is not None:
                _check_whole(name, value, low=1)
        _check_number("step_deadline_s", config.step_deadline_s, above=0)
        _check_choice("task", config.task, get_args(Task))
        _check_choice("dtype", config.dtype, get_args(DtypeName))
        _check_choice("device", config.device, get_args(DeviceName))
        _check_choice("quantization", config.quantization, get_args(Quantization))
        if config.quantization != "none" and config.device == "auto":
            config = replace(config, device="cpu")
        if config.quantization != "none" and config.device == "cuda":
            raise ConfigError(
                f"quantization {config.quantization} is computed on CPUs alone; leave it out, or use device cpu"
            )
        if 64 % config.block_tokens:
            raise ConfigError(f"block_tokens must divide 64, the attention tile, not {config.block_tokens}")
        return config


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """One served model: its engine, the name clients send, and how many groups of it there are."""

    engine: EngineConfig
    name: str  # the setting `model_name`
    min_replicas: int = 1
    max_replicas: int = 1
    target_ongoing_requests: int = 32  # per replica, autoscaling's aim
    upscale_delay_s: float = 5.0
    downscale_delay_s: float = 60.0
    placement: PlacementName = "STRICT_PACK"
    cpus_per_rank: float = 0.1  # logical Ray CPUs; placement only
    tool_parser: ToolParser = "auto"  # auto: told from the checkpoint's template and tokens
    reasoning_parser: ReasoningParser = "auto"  # the same
    sampling_defaults: SamplingSource = "model"  # model: what generation_config.json says; openai: temperature 1 alone

    @classmethod
    def from_mapping(cls, raw: Mapping[str, Any]) -> Self:
        """Build from a flat mapping: the keys of EngineConfig and of this class side by side."""
        engine_keys = _keys(EngineConfig)
        _refuse_unknown(raw, _model_keys())
        engine = EngineConfig.from_mapping({k: v for k, v in raw.items() if k in engine_keys})
        own = {k: v for k, v in raw.items() if k not in engine_keys}
        name = own.pop("model_name", engine.model.rstrip("/").rsplit("/", 1)[-1])
        _check_type("model_name", name, str)
        config = cls(engine=engine, name=name, **own)
        for name in ("min_replicas", "max_replicas", "target_ongoing_requests"):
            _check_whole(name, getattr(config, name), low=1)
        if config.max_replicas < config.min_replicas:
            raise ConfigError(
                f"max_replicas ({config.max_replicas}) must be at least min_replicas ({config.min_replicas})"
            )
        _check_choice("placement", config.placement, get_args(PlacementName))
        _check_choice("tool_parser", config.tool_parser, get_args(ToolParser))
        _check_choice("reasoning_parser", config.reasoning_parser, get_args(ReasoningParser))
        _check_choice("sampling_defaults", config.sampling_defaults, get_args(SamplingSource))
        for name in ("upscale_delay_s", "downscale_delay_s", "cpus_per_rank"):
            _check_number(name, getattr(config, name), low=0)
        return config


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The most that one front process takes of anybody. The mapping `limits:` of the cluster's settings."""

    max_body_bytes: int = 4 << 20  # of one request, on either wire
    max_prompt_tokens: int | None = None  # None: what the model can take
    max_output_tokens: int | None = None  # of one choice; None: what the prompt leaves of the model's length
    max_choices: int = MOST_CHOICES  # of one request: n times its prompts
    max_concurrent_requests: int | None = None  # None: the engines' queues decide

    @classmethod
    def from_mapping(cls, raw: object) -> Self:
        """Build from parsed YAML or JSON, naming any key or value that cannot be right."""
        if not isinstance(raw, Mapping):
            raise ConfigError(f"limits must be a mapping as {{max_output_tokens: ...}}, not {raw!r}")
        if unknown := sorted(str(key) for key in raw if key not in _keys(cls)):
            raise ConfigError(f"limits: unknown settings {unknown}; known are {sorted(_keys(cls))}")
        config = cls(**raw)
        for name in sorted(_keys(cls)):
            value = getattr(config, name)
            if value is not None or name in ("max_body_bytes", "max_choices"):
                _check_whole(f"limits.{name}", value, low=1)
        if config.max_choices > MOST_CHOICES:
            raise ConfigError(f"limits.max_choices must be {MOST_CHOICES} at most, not {config.max_choices}")
        return config


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """The application: the models behind one front. This is the `args:` mapping of a Serve config file."""

    models: tuple[ModelConfig, ...]
    num_ingresses: int = 1
    max_migrations: int = 3  # re-entries of one request after engine deaths
    request_timeout_s: float = 600.0
    # API keys, each with its budgets. Ingresses tell each other every half second what was used: requests that come to
    # several within that time may each find the same room. A path that is the same on every node with an ingress.
    # None: anyone may call.
    api_keys_file: str | None = None
    usage_log: str | None = None  # file that gets a JSON line for each request, on every node with an ingress
    allowed_origins: tuple[str, ...] = ()  # web pages whose scripts may ask: scheme://host[:port] each, or * for all
    limits: Limits = field(default_factory=Limits)

    @classmethod
    def from_mapping(cls, raw: Mapping[str, Any]) -> Self:
        """Build from the settings of one model and of the cluster side by side, or from a list `models:` of them.

        A setting that is wrong in the list is named with its place: models[1].tp.
        """
        own_keys = _keys(cls) - {"models"}
        if "models" in raw:
            _refuse_strays(raw, own_keys)
            models = _listed(raw["models"])
        else:
            _refuse_unknown(raw, _model_keys() | own_keys)
            models = (ModelConfig.from_mapping({k: v for k, v in raw.items() if k not in own_keys}),)
        own = {k: v for k, v in raw.items() if k in own_keys}
        own["limits"] = Limits.from_mapping(own.get("limits", {}))
        own["allowed_origins"] = _origins(own.get("allowed_origins", []))
        config = cls(models=models, **own)
        _check_whole("num_ingresses", config.num_ingresses, low=1)
        _check_whole("max_migrations", config.max_migrations, low=0)
        _check_number("request_timeout_s", config.request_timeout_s, above=0)
        for name in ("api_keys_file", "usage_log"):
            if (path := getattr(config, name)) is not None:
                _check_type(name, path, str)
        return config


def _origins(raw: object) -> tuple[str, ...]:
    """Origins as browsers name them: they are compared with what a browser sends, letter by letter."""
    if not isinstance(raw, list | tuple):
        raise ConfigError(f"allowed_origins must be a list as [https://chat.example.com], not {raw!r}")
    for index, origin in enumerate(raw):
        if not isinstance(origin, str) or not (origin == ALL_ORIGINS or _ORIGIN.fullmatch(origin)):
            raise ConfigError(
                f"allowed_origins[{index}] must be scheme://host[:port] as browsers send it (small letters, no path, "
                f"no port that goes without saying), or {ALL_ORIGINS} for any page, not {origin!r}"
            )
    return tuple(raw)


def _refuse_strays(raw: Mapping[str, Any], own_keys: Collection[str]) -> None:
    """Refuse what may not stand beside `models`, apart from misspelt keys: a model's own settings."""
    if strays := sorted(_model_keys().intersection(raw)):
        raise ConfigError(f"{strays} beside `models` would belong to no model; move them into the entries of `models`")
    _refuse_unknown(raw, {"models", *own_keys})


def _listed(raw: object) -> tuple[ModelConfig, ...]:
    if not isinstance(raw, list | tuple) or not raw:
        raise ConfigError(f"models must be a list of one model or more, each a mapping as {{model: ...}}, not {raw!r}")
    models = tuple(_entry(entry, f"models[{index}]") for index, entry in enumerate(raw))
    places: dict[str, int] = {}
    for index, model in enumerate(models):
        if (first := places.setdefault(model.name, index)) != index:
            raise ConfigError(
                f"models[{first}] and models[{index}] are both named {model.name!r}; give one another model_name"
            )
    return models


def _entry(raw: object, at: str) -> ModelConfig:
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{at} must be a mapping as {{model: ...}}, not {raw!r}")
    if unknown := sorted(str(key) for key in raw if key not in _model_keys()):
        named = ", ".join(f"{at}.{key}" for key in unknown)
        raise ConfigError(f"unknown settings {named}; a model's are {sorted(_model_keys())}")
    try:
        return ModelConfig.from_mapping(raw)
    except ConfigError as error:
        raise ConfigError(f"{at}.{error.message}") from error


def _model_keys() -> set[str]:
    return _keys(EngineConfig) | _keys(ModelConfig) - {"engine", "name"} | {"model_name"}


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
