"""Settings: strict, and every refusal names what is wrong."""

import math
from typing import Any

import pytest

from glm_cluster.config import ClusterConfig, EngineConfig, Limits
from glm_cluster.errors import ConfigError


def test_defaults_need_only_a_model() -> None:
    config = ClusterConfig.from_mapping({"model": "/models/glm-4-9b-chat-hf/"})
    (model,) = config.models
    assert model.engine == EngineConfig(model="/models/glm-4-9b-chat-hf/")
    assert model.engine.task == "generate"
    assert model.name == "glm-4-9b-chat-hf"
    assert (model.min_replicas, model.max_replicas) == (1, 1)


def test_each_model_says_whose_sampling_it_has() -> None:
    models = [{"model": "m"}, {"model": "n", "sampling_defaults": "openai"}]
    config = ClusterConfig.from_mapping({"models": models})
    assert [model.sampling_defaults for model in config.models] == ["model", "openai"]


def test_a_flat_mapping_reaches_every_level() -> None:
    config = ClusterConfig.from_mapping(
        {"model": "m", "tp": 2, "task": "embed", "model_name": "glm", "max_replicas": 3, "num_ingresses": 2}
    )
    (model,) = config.models
    assert (model.engine.tp, model.engine.task, model.name, model.max_replicas) == (2, "embed", "glm", 3)
    assert config.num_ingresses == 2


def test_a_list_of_models_stands_beside_the_clusters_settings() -> None:
    models = [
        {"model": "/models/glm-4"},
        {"model": "/models/topics", "model_name": "t", "task": "classify", "tp": 2, "max_replicas": 4},
    ]
    config = ClusterConfig.from_mapping({"models": models, "request_timeout_s": 5})
    assert [(m.name, m.engine.task, m.engine.tp) for m in config.models] == [
        ("glm-4", "generate", 1),
        ("t", "classify", 2),
    ]
    assert (config.models[1].max_replicas, config.request_timeout_s) == (4, 5)


def test_one_model_is_the_same_in_either_form() -> None:
    flat = ClusterConfig.from_mapping({"model": "m", "tp": 2, "max_migrations": 1})
    assert ClusterConfig.from_mapping({"models": [{"model": "m", "tp": 2}], "max_migrations": 1}) == flat


def test_configs_are_frozen() -> None:
    config = EngineConfig(model="m")
    with pytest.raises(AttributeError):
        config.tp = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        ({}, r"model \(a checkpoint directory\) is missing"),
        ({"model": 3}, "model"),
        ({"model": "m", "tpp": 2}, "tpp"),
        ({"model": "m", "engine": {}}, "engine"),
        ({"model": "m", "tp": 0}, "tp"),
        ({"model": "m", "tp": True}, "tp"),
        ({"model": "m", "tp": "2"}, "tp"),
        ({"model": "m", "max_running": -1}, "max_running"),
        ({"model": "m", "step_tokens": 1.5}, "step_tokens"),
        ({"model": "m", "block_tokens": 0}, "block_tokens"),
        ({"model": "m", "speculative_tokens": -1}, "speculative_tokens must be a whole number of 0 or more"),
        ({"model": "m", "speculative_tokens": True}, "speculative_tokens"),
        ({"model": "m", "kv_cache_bytes": 0}, "kv_cache_bytes"),
        ({"model": "m", "max_model_len": "8k"}, "max_model_len"),
        ({"model": "m", "dtype": "float16"}, "dtype"),
        ({"model": "m", "device": "tpu"}, "device"),
        ({"model": "m", "task": "rank"}, "task must be one of generate, classify, classify-tokens, embed"),
        ({"model": "m", "task": None}, "task"),
        ({"model": "m", "step_deadline_s": 0}, "step_deadline_s"),
        ({"model": "m", "step_deadline_s": "5"}, "step_deadline_s must be a finite number"),
        ({"model": "m", "step_deadline_s": None}, "step_deadline_s"),
        ({"model": "m", "step_deadline_s": True}, "step_deadline_s"),
        ({"model": "m", "step_deadline_s": math.inf}, "step_deadline_s must be a finite number"),
        ({"model": "m", "step_deadline_s": math.nan}, "step_deadline_s"),
        ({"model": "m", "step_deadline_s": 10**400}, "step_deadline_s"),
        ({"model": "m", "max_waiting": 0}, "max_waiting"),
        ({"model": "m", 3: 4}, "unknown settings"),
        ({"model": "m", "model_name": None}, "model_name"),
        ({"model": "m", "min_replicas": 0}, "min_replicas"),
        ({"model": "m", "min_replicas": 2}, "max_replicas"),
        ({"model": "m", "target_ongoing_requests": 0}, "target_ongoing_requests"),
        ({"model": "m", "num_ingresses": 0}, "num_ingresses"),
        ({"model": "m", "placement": "pack"}, "placement"),
        ({"model": "m", "tool_parser": "glm"}, "tool_parser"),
        ({"model": "m", "reasoning_parser": True}, "reasoning_parser"),
        ({"model": "m", "sampling_defaults": "vllm"}, "sampling_defaults must be one of model, openai"),
        ({"model": "m", "sampling_defaults": None}, "sampling_defaults"),
        ({"model": "m", "upscale_delay_s": -1}, "upscale_delay_s"),
        ({"model": "m", "downscale_delay_s": math.inf}, "downscale_delay_s"),
        ({"model": "m", "cpus_per_rank": "1"}, "cpus_per_rank"),
        ({"model": "m", "request_timeout_s": 0}, "request_timeout_s must be above 0"),
        ({"model": "m", "request_timeout_s": math.nan}, "request_timeout_s"),
        ({"model": "m", "max_migrations": True}, "max_migrations"),
        ({"model": "m", "max_migrations": 1.5}, "max_migrations"),
        ({"model": "m", "max_migrations": -1}, "max_migrations"),
        ({"models": []}, "models must be a list of one model or more"),
        ({"models": {"model": "m"}}, "models must be a list"),
        ({"models": "m"}, "models must be a list"),
        ({"models": None}, "models must be a list"),
        ({"models": ["m"]}, r"models\[0\] must be a mapping"),
        ({"models": [{"model": "m"}, None]}, r"models\[1\] must be a mapping"),
        ({"models": [{"model": "m"}, {}]}, r"models\[1\]\.model \(a checkpoint directory\) is missing"),
        ({"models": [{"model": "m"}, {"model": "n", "tp": 0}]}, r"models\[1\]\.tp must be a whole number"),
        ({"models": [{"model": "m", "tpp": 2, "x": 1}]}, r"models\[0\]\.tpp, models\[0\]\.x;"),
        ({"models": [{"model": "m", "num_ingresses": 2}]}, r"models\[0\]\.num_ingresses"),
        ({"models": [{"model": "m", "name": "x"}]}, r"models\[0\]\.name"),
        ({"models": [{"model": "m", "min_replicas": 2}]}, r"models\[0\]\.max_replicas"),
        (
            {"models": [{"model": "a/m"}, {"model": "x"}, {"model": "b/m"}]},
            r"models\[0\] and models\[2\] are both named 'm'",
        ),
        ({"models": [{"model": "m"}], "model": "n", "tp": 2}, r"\['model', 'tp'\] beside `models`"),
        ({"models": [{"model": "m"}], "num_ingress": 2}, r"\['num_ingress'\]; known are .*'num_ingresses'"),
        ({"models": [{"model": "m"}], "num_ingresses": 0}, "num_ingresses"),
    ],
)
def test_refusal_names_the_setting(raw: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        ClusterConfig.from_mapping(raw)


def test_a_misspelt_key_is_answered_with_every_key() -> None:
    """It may be meant for either level: once the engine's keys were missing from the list."""
    with pytest.raises(ConfigError, match=r"\['tpp'\]; known are .*'max_migrations'.*'step_tokens'.*'tp'") as caught:
        ClusterConfig.from_mapping({"model": "m", "tpp": 2})
    assert "'engine'" not in caught.value.message


def test_whole_numbers_do_where_a_fraction_may_stand() -> None:
    config = ClusterConfig.from_mapping(
        {"model": "m", "step_deadline_s": 5, "request_timeout_s": 60, "max_migrations": 0}
    )
    assert (config.models[0].engine.step_deadline_s, config.request_timeout_s, config.max_migrations) == (5, 60, 0)


def test_int8_is_for_cpus_and_chooses_one_where_the_device_is_open() -> None:
    assert EngineConfig.from_mapping({"model": "/m", "quantization": "int8"}).device == "cpu"
    with pytest.raises(ConfigError, match="computed on CPUs alone"):
        EngineConfig.from_mapping({"model": "/m", "quantization": "int8", "device": "cuda"})
    with pytest.raises(ConfigError, match="quantization must be one of none, int8"):
        EngineConfig.from_mapping({"model": "/m", "quantization": "int4"})


def test_limits_are_a_mapping_of_their_own() -> None:
    config = ClusterConfig.from_mapping({"model": "m", "limits": {"max_output_tokens": 7, "max_body_bytes": 10}})
    assert config.limits == Limits(max_output_tokens=7, max_body_bytes=10)
    assert ClusterConfig.from_mapping({"model": "m"}).limits == Limits()


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (3, "limits must be a mapping"),
        ({"max_outputs": 1}, r"limits: unknown settings \['max_outputs'\]"),
        ({"max_output_tokens": 0}, "limits.max_output_tokens must be a whole number"),
        ({"max_body_bytes": None}, "limits.max_body_bytes must be a whole number"),
    ],
)
def test_a_wrong_limit_is_named(limits: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ClusterConfig.from_mapping({"model": "m", "limits": limits})


@pytest.mark.parametrize(
    "origin",
    ["*", "http://localhost:3000", "https://chat.example.com", "http://[::1]:8080", "app://obsidian.md", "http://a:8"],
)
def test_origins_are_as_browsers_send_them(origin: str) -> None:
    assert ClusterConfig.from_mapping({"model": "m", "allowed_origins": [origin]}).allowed_origins == (origin,)
    assert ClusterConfig.from_mapping({"model": "m"}).allowed_origins == ()


@pytest.mark.parametrize(
    "origin",
    [
        "",
        "localhost:3000",
        "chat.example.com",
        "https://chat.example.com/",
        "https://chat.example.com/app",
        "https://Chat.example.com",
        "https://*.example.com",
        "https://chat.example.com:443",
        "http://chat.example.com:80",
        "https://chat.example.com:",
        "https://chat.example.com:0",
        "https://me@chat.example.com",
        "https://chat.example.com\n",
        "null",
        None,
        7,
    ],
)
def test_an_origin_that_no_browser_sends_is_refused(origin: object) -> None:
    with pytest.raises(ConfigError, match=r"allowed_origins\[1\] must be scheme://host\[:port\]"):
        ClusterConfig.from_mapping({"model": "m", "allowed_origins": ["*", origin]})


@pytest.mark.parametrize("raw", ["*", None, {"https://a": 1}])
def test_origins_are_a_list(raw: object) -> None:
    with pytest.raises(ConfigError, match="allowed_origins must be a list"):
        ClusterConfig.from_mapping({"model": "m", "allowed_origins": raw})
    with pytest.raises(ConfigError, match="unknown settings"):
        ClusterConfig.from_mapping({"model": "m", "allow_origins": ["*"]})


def test_files_are_named_by_path() -> None:
    config = ClusterConfig.from_mapping({"model": "m", "api_keys_file": "/keys", "usage_log": "/log"})
    assert (config.api_keys_file, config.usage_log) == ("/keys", "/log")
    with pytest.raises(ConfigError, match="usage_log must be a str"):
        ClusterConfig.from_mapping({"model": "m", "usage_log": 1})
