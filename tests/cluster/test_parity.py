"""Parity through the serving path: greedy ids over HTTP and gRPC equal HF `generate`, sharded and not, fp32."""

import gzip
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import pytest
import torch
from support.checkpoints import oracle, oracle_greedy, write_checkpoint
from support.served import Served, serve_command

from glm_cluster.api.proto import glm_pb2, glm_pb2_grpc

NUM_TOKENS = 64
PADDING_ROWS = range(151343, 151552)  # of GLM-4's vocabulary; above the demo model's
Check: TypeAlias = Callable[[Any, tuple[int, ...], tuple[int, ...]], None]

TIE = 1e-3  # HF's own gap between its two likeliest tokens, below which either is right
QUESTIONS = [
    "What is the capital of France?",
    "请用一句话介绍清华大学。",
    "Count from 1 to 20.",
    "Write a haiku about the sea 🌊.",
    "def fibonacci(n):",
    "Translate 'good morning' into German, Japanese and Arabic.",
    "为什么天空是蓝色的?",
    "   leading and trailing spaces   ",
    "1234567890 plus 9876543210 is",
    "List three uses of a paper clip.",
    "Wie spät ist es in Peking, wenn es in Berlin 12 Uhr ist?",
    "Explain RoPE in one sentence.",
    "a" * 300,
    "x = [i ** 2 for i in range(10)]\nprint(x)",
    "Tell me a story. " * 12,
    "?",
    "Name a prime above 100.",
    "Что такое нейронная сеть?",
    'She said "hello" and left — didn\'t she?',
    "What is 2 + 2?",
]


@pytest.fixture(scope="module")
def glm4_shaped(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in GLM-4's shape, with its real vocabulary, tokenizer and template."""
    directory = write_checkpoint(
        tmp_path_factory.mktemp("glm4"),
        vocab_size=151552,
        hidden_size=128,
        intermediate_size=256,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=128,
        partial_rotary_factor=0.5,
        attention_bias=True,
        max_position_embeddings=4096,
        pad_token_id=151329,
        eos_token_id=[151329, 151336, 151338],
    )
    with gzip.open(shared_data / "tokenizer" / "tokenizer.GLM-4-0414.json.gz") as packed:
        (directory / "tokenizer.json").write_bytes(packed.read())
    template = (shared_data / "templates" / "glm-4-9b-chat.jinja").read_text()
    config = {"chat_template": template, "tokenizer_class": "PreTrainedTokenizerFast"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def test_glm4_shaped_at_tp_4(glm4_shaped: Path, tmp_path: Path) -> None:
    """Two KV heads on four ranks."""
    arguments = ["--model", str(glm4_shaped), "--tp", "4", "--dtype", "float32"]
    with serve_command(tmp_path / "log", *arguments) as served:
        compare_with_hf(served, glm4_shaped, glm4_shaped.name, assert_equals_generate)


@pytest.mark.demo
@pytest.mark.parametrize("tp", [1, 3])
def test_demo_model(demo_directory: Path, tmp_path: Path, tp: int) -> None:
    with serve_command(tmp_path / "log", "--tp", f"{tp}", "--dtype", "float32") as served:
        compare_with_hf(served, demo_directory, "demo", assert_greedy)


def compare_with_hf(served: Served, directory: Path, model: str, check: Check) -> None:
    """Ask every question over both wires at once; same prompts as HF's, same ids on both wires, and HF's ids."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    turns = [[{"role": "user", "content": question}] for question in QUESTIONS]
    wanted = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True)
    prompts = [tuple(ids) for ids in (wanted["input_ids"] if hasattr(wanted, "keys") else wanted)]
    with ThreadPoolExecutor(len(turns)) as pool:
        over_http = list(pool.map(lambda turn: chat_http(served, model, turn), turns))
        with grpc_stub(served) as stub:
            over_grpc = list(pool.map(lambda prompt: generate_grpc(stub, model, prompt), prompts))
    assert [prompt for prompt, _ in over_http] == prompts
    assert [ids for _, ids in over_http] == over_grpc
    hf = oracle(directory)
    for prompt, ids in zip(prompts, over_grpc, strict=True):
        check(hf, prompt, ids)


def chat_http(served: Served, model: str, turn: list[dict[str, str]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids of the prompt and of the answer to a chat."""
    body = {"model": model, "messages": turn, "temperature": 0, "max_tokens": NUM_TOKENS, "return_token_ids": True}
    answer = served.post("/v1/chat/completions", body)
    return tuple(answer["prompt_token_ids"]), tuple(answer["choices"][0]["token_ids"])


@contextmanager
def grpc_stub(served: Served) -> Iterator[glm_pb2_grpc.GlmStub]:
    with grpc.insecure_channel(served.grpc) as channel:
        yield glm_pb2_grpc.GlmStub(channel)


def generate_grpc(stub: glm_pb2_grpc.GlmStub, model: str, prompt: tuple[int, ...]) -> tuple[int, ...]:
    """Ids of the continuation of a prompt given by ids."""
    request = glm_pb2.GenerateRequest(
        model=model,
        token_ids=glm_pb2.TokenIds(ids=prompt),
        sampling=glm_pb2.Sampling(temperature=0),
        max_tokens=NUM_TOKENS,
        return_token_ids=True,
    )
    return tuple(i for chunk in stub.Generate(request, timeout=300) for i in chunk.token_ids)


def assert_equals_generate(hf: Any, prompt: tuple[int, ...], ids: tuple[int, ...]) -> None:
    """Equal to HF `generate`, or the first difference stands at a tie of HF's own.

    HF is kept from the rows that pad the vocabulary and name no token; random weights would choose one now and then.
    """
    wanted = oracle_greedy(hf, prompt, NUM_TOKENS, suppress_tokens=list(PADDING_ROWS))
    if ids != wanted:
        first = next(i for i, pair in enumerate(zip(ids, wanted, strict=False)) if pair[0] != pair[1])
        assert_greedy(hf, prompt, ids[: first + 1])


@torch.inference_mode()
def assert_greedy(hf: Any, prompt: tuple[int, ...], ids: tuple[int, ...]) -> None:
    """Each id is HF's likeliest after those before it, so `generate` would choose it too; ties of HF's own aside.

    One forward pass instead of one for each token: what makes 64 tokens of a real model affordable here.
    """
    logits = hf(torch.tensor([(*prompt, *ids)])).logits[0, len(prompt) - 1 : -1]
    logits[:, PADDING_ROWS.start : PADDING_ROWS.stop] = float("-inf")
    for index, (row, token) in enumerate(zip(logits, ids, strict=True)):
        if row.argmax() != token:
            gap = (row.max() - row[token]).item()
            assert gap < TIE, f"token {index}: {token} instead of {row.argmax()}, {gap:.4f} apart"
            return  # from a tie on, either continuation is right
