"""THUDM's checkpoints, read as they are: three ways to the same hidden states, and which layouts are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from support.chatglm import TINY, chatglm_oracle, hf_names, thudm_forward, write_chatglm
from support.checkpoints import oracle_greedy
from support.engines import drain, mixed_requests
from support.groups import join_threads, on_every_rank, open_group

from glm_cluster.config import EngineConfig
from glm_cluster.engine.engine import open_engine
from glm_cluster.errors import CheckpointError, ConfigError
from glm_cluster.model.chatglm_keys import hf_keys
from glm_cluster.model.checkpoints.chatglm import ChatglmLayout
from glm_cluster.model.checkpoints.checkpoint import Checkpoint
from glm_cluster.model.config import GlmConfig
from glm_cluster.model.glm import GlmForCausalLM, GlmModel
from glm_cluster.model.loading import load_model
from glm_cluster.model.ranks import Ranks
from glm_cluster.model.sharding import Sharding

Make: TypeAlias = Callable[..., Path]
GRID: list[dict[str, Any]] = [
    {},
    {"multi_query_attention": False},
    {"add_qkv_bias": False, "rope_ratio": 1},
    {"tie_word_embeddings": True, "multi_query_group_num": 1},
    {"num_files": 3},
    {"multi_query_attention": False, "add_qkv_bias": False, "num_files": 2},
]
IDS = torch.randint(2, 301, (33,), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    made: dict[str, Path] = {}

    def write(**changes: Any) -> Path:
        key = repr(sorted(changes.items()))
        if key not in made:
            made[key] = write_chatglm(tmp_path_factory.mktemp("chatglm"), **changes)
        return made[key]

    return write


@pytest.mark.parametrize("changes", GRID, ids=str)
@torch.inference_mode()
def test_three_ways_to_the_same_hidden_states(make: Make, changes: dict) -> None:
    """HF on mapped weights to the bit, and THUDM's maths written anew within fp32's rounding."""
    directory = make(**changes)
    theirs = chatglm_oracle(directory)(IDS[None], output_hidden_states=True)
    ours = load_model(directory, ranks=Ranks.single())(IDS[None], output_hidden_states=True)
    assert torch.equal(ours.logits, theirs.logits)
    assert all(torch.equal(a, b) for a, b in zip(ours.hidden_states, theirs.hidden_states, strict=True))
    hidden_TH, logits_TV = thudm_forward(directory, IDS)
    _assert_within(ours.hidden_states[-1][0], hidden_TH, 1e-5)
    _assert_within(ours.logits[0], logits_TV, 1e-5)


@pytest.mark.parametrize("changes", [{}, {"multi_query_attention": False}], ids=str)
@torch.inference_mode()
def test_bf16_gives_hfs_bits(make: Make, changes: dict) -> None:
    directory = make(torch_dtype="bfloat16", **changes)
    ours = load_model(directory, ranks=Ranks.single())(IDS[None]).logits
    theirs = chatglm_oracle(directory, "bfloat16")(IDS[None]).logits
    assert ours.dtype == theirs.dtype == torch.bfloat16
    assert torch.equal(ours, theirs)


@torch.inference_mode()
def test_from_pretrained_reads_it_like_any_other(make: Make) -> None:
    directory = make(num_files=3)
    model = GlmForCausalLM.from_pretrained(directory)
    assert model.generation_config.top_p == 0.8
    prompt = tuple(IDS.tolist())
    ids = model.generate(IDS[None], max_new_tokens=16, do_sample=False)
    assert tuple(ids[0, len(prompt) :].tolist()) == oracle_greedy(chatglm_oracle(directory), prompt, 16)
    bare = GlmModel.from_pretrained(directory)
    assert torch.equal(bare(IDS[None]).last_hidden_state, model.model(IDS[None]).last_hidden_state)


@torch.inference_mode()
def test_what_it_saves_is_hfs_layout(make: Make, tmp_path: Path) -> None:
    from transformers import GlmForCausalLM as HfGlmForCausalLM

    directory = make()
    GlmForCausalLM.from_pretrained(directory).save_pretrained(tmp_path)
    theirs = HfGlmForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(theirs(IDS[None]).logits, chatglm_oracle(directory)(IDS[None]).logits)
    assert theirs.config.rope_parameters["rope_theta"] == 5e6


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("changes", GRID[:4], ids=str)
def test_ranks_read_their_rows_of_the_fused_tensors(make: Make, changes: dict, size: int) -> None:
    """Each rank's q, k, v are the rows HF's names would give it, cut from the file and not from a whole tensor."""
    if changes.get("multi_query_attention") is False:
        changes = {**changes, "num_files": 2}
    directory = make(**changes)
    config = GlmConfig.from_directory(directory)
    whole = hf_names(directory)
    if config.tie_word_embeddings:
        whole.pop("lm_head.weight", None)
    for rank in range(size):
        wanted = Sharding(config, rank, size).tensors()
        parts = dict(Checkpoint.open(directory, config).read(wanted))
        assert parts.keys() == wanted.keys() == whole.keys()
        for name, shard in wanted.items():
            rows = torch.cat([whole[name].narrow(shard.dim, a, b - a) for a, b in shard.ranges], dim=shard.dim)
            assert torch.equal(parts[name][: rows.shape[0]], rows), name
            assert not parts[name][rows.shape[0] :].any(), name  # padding of the vocabulary


@pytest.mark.parallel
@pytest.mark.parametrize(("changes", "size"), [({}, 4), ({"multi_query_attention": False}, 2)], ids=str)
def test_a_group_gives_the_ids_of_one_rank(make: Make, changes: dict, size: int) -> None:
    config = EngineConfig(model=str(make(**changes)), dtype="float32", device="cpu")
    requests = mixed_requests(4, vocab_size=301, max_tokens=12)
    group, _ = open_group(config, size)
    assert drain(group, requests) == drain(open_engine(config), requests)


@pytest.mark.parallel
@torch.inference_mode()
def test_a_groups_hidden_states_are_the_unsharded_ones(make: Make) -> None:
    directory = make()
    ranks = join_threads(4)

    def run(rank: int) -> torch.Tensor:
        with torch.inference_mode():
            return load_model(directory, ranks=ranks[rank], task="embed")(IDS[None]).last_hidden_state

    whole = load_model(directory, ranks=Ranks.single(), task="embed")(IDS[None]).last_hidden_state
    for part in on_every_rank(4, run):
        _assert_within(part, whole, 1e-5)


def test_shared_groups_lie_behind_each_other() -> None:
    """Literal rows: 2 query heads of width 4, one KV head: q 0..7, k 8..11, v 12..15."""
    config = _config(num_attention_heads=2, num_key_value_heads=1)
    assert _located(config, by_head=False, rank=0, size=1) == {
        "q": [*range(8)],
        "k": [8, 9, 10, 11],
        "v": [12, 13, 14, 15],
    }
    assert _located(config, by_head=False, rank=1, size=2) == {
        "q": [4, 5, 6, 7],
        "k": [8, 9, 10, 11],  # the one KV head is on both ranks
        "v": [12, 13, 14, 15],
    }


def test_unshared_heads_carry_their_own_keys_and_values() -> None:
    """Literal rows: of each head q, k, v together: 0..3 q0, 4..7 k0, 8..11 v0, 12..15 q1, ..."""
    config = _config(num_attention_heads=2, num_key_value_heads=2)
    assert _located(config, by_head=True, rank=0, size=1) == {
        "q": [0, 1, 2, 3, 12, 13, 14, 15],
        "k": [4, 5, 6, 7, 16, 17, 18, 19],
        "v": [8, 9, 10, 11, 20, 21, 22, 23],
    }
    assert _located(config, by_head=True, rank=1, size=2) == {
        "q": [12, 13, 14, 15],
        "k": [16, 17, 18, 19],
        "v": [20, 21, 22, 23],
    }


def test_every_tensor_has_its_name_in_the_file() -> None:
    layout = ChatglmLayout(_config(num_attention_heads=2, num_key_value_heads=1), fused_by_head=False)
    names = Sharding(layout.config, 0, 1).tensors()
    assert {layout.locate(name, shard)[0] for name, shard in names.items()} == {
        "transformer.embedding.word_embeddings.weight",
        "transformer.encoder.final_layernorm.weight",
        "transformer.output_layer.weight",
        "transformer.encoder.layers.0.input_layernorm.weight",
        "transformer.encoder.layers.0.post_attention_layernorm.weight",
        "transformer.encoder.layers.0.self_attention.query_key_value.weight",
        "transformer.encoder.layers.0.self_attention.query_key_value.bias",
        "transformer.encoder.layers.0.self_attention.dense.weight",
        "transformer.encoder.layers.0.mlp.dense_h_to_4h.weight",
        "transformer.encoder.layers.0.mlp.dense_4h_to_h.weight",
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rmsnorm", False),
        ("add_bias_linear", True),
        ("post_layer_norm", False),
        ("apply_residual_connection_post_layernorm", True),
        ("original_rope", False),
        ("fp32_residual_connection", True),
        ("pre_seq_len", 128),
        ("quantization_bit", 4),
        ("rope_ratio", "500"),
        ("rope_ratio", 0),
    ],
)
def test_other_layouts_are_refused_by_name(key: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=key):
        hf_keys({**TINY, key: value})
    (tmp_path / "config.json").write_text(json.dumps({**TINY, key: value}))
    with pytest.raises(CheckpointError, match=rf"config\.json.*{key}"):
        GlmConfig.from_directory(tmp_path)


def test_glm_4_9b_chat_becomes_hfs_glm(shared_data: Path) -> None:
    """But for theta: the published -hf file says 10000, because its converter lost rope_ratio."""
    published = json.loads((shared_data / "configs" / "checkpoints.json").read_text())
    ours = GlmConfig.from_mapping(published["glm-4-9b-chat"]["config"])
    theirs = GlmConfig.from_mapping(published["glm-4-9b-chat-hf"]["config"])
    assert ours.rope_theta == 5e6
    as_published = ours.replace(rope_theta=1e4, hidden_dropout=None, **theirs.extra).to_dict()
    kept = ours.extra.keys() - theirs.extra.keys()  # THUDM's keys that have no meaning here
    assert {name: value for name, value in as_published.items() if name not in kept} == theirs.to_dict()
    million = GlmConfig.from_mapping(published["glm-4-9b-chat-1m"]["config"])
    assert (million.rope_theta, million.num_key_value_heads, million.context_limit) == (1e8, 4, 1048576)


def test_absent_keys_have_thudms_defaults() -> None:
    """Not those of HF's GlmConfig, which are glm-4-9b-chat's."""
    config = GlmConfig.from_mapping({"model_type": "chatglm"})
    assert (config.num_hidden_layers, config.vocab_size, config.max_position_embeddings) == (28, 65024, 2048)
    assert (config.rms_norm_eps, config.attention_bias, config.rope_theta) == (1e-5, False, 1e4)
    assert config.num_key_value_heads == config.num_attention_heads == 32


def test_other_keys_are_passed_on() -> None:
    """As in `glm`: unknown ones are kept, and a RoPE scaling acts. Names of THUDM's code go."""
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
    raw = {"auto_map": {"AutoModel": "x.y"}, "architectures": ["ChatGLMModel"], "interleaved_qkv": False, "zeta": [1]}
    config = GlmConfig.from_mapping(
        {**raw, "model_type": "chatglm", "rope_ratio": 500, "rope_theta": 3.0, "rope_scaling": yarn, "rmsnorm": True}
    )
    assert config.extra == {"interleaved_qkv": False, "zeta": [1]}
    assert (config.rope_parameters["rope_type"], config.rope_theta, config.context_limit) == ("yarn", 5e6, 8192)
    assert config.rope_parameters == GlmConfig(rope_theta=5e6, rope_scaling=yarn).rope_parameters


@pytest.mark.parametrize("kept", ["q", "all"])
def test_a_fused_tensor_of_the_wrong_shape_is_named(make: Make, kept: str, tmp_path: Path) -> None:
    """A config that says unshared heads over a file of shared ones, and the reverse."""
    directory = make() if kept == "q" else make(multi_query_attention=False)
    config = json.loads((directory / "config.json").read_text())
    config["multi_query_attention"] = not config["multi_query_attention"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(directory / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"query_key_value\.(weight|bias)' has shape"):
        load_model(tmp_path, ranks=Ranks.single())


def _config(**heads: int) -> GlmConfig:
    return GlmConfig(
        hidden_size=8, head_dim=4, intermediate_size=16, num_hidden_layers=1, vocab_size=9, pad_token_id=0, **heads
    )


def _located(config: GlmConfig, *, by_head: bool, rank: int, size: int) -> dict[str, list[int]]:
    """The rows of q, k and v, read off a fused matrix whose rows hold their own numbers."""
    layout = ChatglmLayout(config, fused_by_head=by_head)
    shards = Sharding(config, rank, size).decoder()
    out = {}
    for part in "qkv":
        _, shard = layout.locate(f"model.layers.0.self_attn.{part}_proj.weight", _shard(shards, part))
        fused = torch.arange(shard.full[0])
        out[part] = torch.cat([fused[start:stop] for start, stop in shard.ranges]).tolist()
        assert shard.length == len(out[part])
    return out


def _shard(shards: dict, part: str) -> Any:
    return shards[f"model.layers.0.self_attn.{part}_proj.weight"]


def _assert_within(ours: torch.Tensor, theirs: torch.Tensor, bound: float) -> None:
    assert (ours - theirs).abs().max() <= bound * theirs.abs().max()
