"""The Transformers page's example, run as written but for the import line, and the facade's own promises."""

import gzip
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.checkpoints import oracle

from glm_cluster.auto import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)
from glm_cluster.errors import InvalidRequest

EXAMPLE = """
from transformers import AutoModelForCausalLM, AutoTokenizer
device = "cuda" # the device to load the model onto

model = AutoModelForCausalLM.from_pretrained("THUDM/glm-4-9b-chat", device_map="auto", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("THUDM/glm-4-9b-chat", trust_remote_code=True)

prompt = "Give me a short introduction to large language model."

messages = [{"role": "user", "content": prompt}]

text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

model_inputs = tokenizer([text], return_tensors="pt").to(device)

generated_ids = model.generate(model_inputs.input_ids, max_new_tokens=512, do_sample=True)

generated_ids = [output_ids[len(input_ids):] for input_ids, output_ids in zip(model_inputs.input_ids, generated_ids)]

response = tokenizer.batch_decode(generated_ids, skip_special_tokens=True)[0]
"""
GLM4 = {"vocab_size": 151552, "num_hidden_layers": 1, "pad_token_id": 151329, "eos_token_id": [151329, 151336, 151338]}


@pytest.fixture(scope="module")
def glm4_chat(checkpoint: Callable[..., Path], shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model under GLM-4's own tokenizer and template."""
    directory = Path(shutil.copytree(checkpoint(**GLM4), tmp_path_factory.mktemp("hub") / "glm-4-9b-chat"))
    packed = (shared_data / "tokenizer" / "tokenizer.GLM-4-0414.json.gz").read_bytes()
    (directory / "tokenizer.json").write_bytes(gzip.decompress(packed))
    shutil.copy(shared_data / "templates" / "glm-4-9b-chat.jinja", directory / "chat_template.jinja")
    return directory


def test_the_page_s_example_runs(glm4_chat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same names give the same ids as Transformers on the same weights and seed."""
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo, **_: glm4_chat)
    source = EXAMPLE.replace("from transformers import", "from glm_cluster.auto import")
    if not torch.cuda.is_available():
        source = source.replace('"cuda"', '"cpu"')
    ours: dict[str, Any] = {}
    torch.manual_seed(7)
    with pytest.warns(UserWarning, match="no code of a checkpoint is ever run"):
        exec(compile(source, "page", "exec"), ours)
    hf = oracle(glm4_chat).to(ours["model"].device)
    torch.manual_seed(7)
    ids = ours["model_inputs"].input_ids
    theirs = hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=512, do_sample=True)
    assert len(ours["generated_ids"][0]) > 100
    assert torch.equal(theirs[0, ids.shape[1] :], ours["generated_ids"][0])
    reference = transformers.AutoTokenizer.from_pretrained(glm4_chat)
    assert ours["response"] == reference.batch_decode(ours["generated_ids"], skip_special_tokens=True)[0]
    assert ours["text"] == reference.apply_chat_template(ours["messages"], tokenize=False, add_generation_prompt=True)


def test_trust_is_noted_once(checkpoint: Callable[..., Path]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            AutoConfig.from_pretrained(checkpoint(), trust_remote_code=True)
    assert len(caught) == 1


def test_every_auto_class_loads_its_own(checkpoint: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    directory = checkpoint()
    loaded = {
        "GlmModel": AutoModel.from_pretrained(directory),
        "GlmForCausalLM": AutoModelForCausalLM.from_pretrained(directory, dtype="bfloat16"),
        "GlmForSequenceClassification": AutoModelForSequenceClassification.from_pretrained(directory, num_labels=3),
        "GlmForTokenClassification": AutoModelForTokenClassification.from_pretrained(directory),
    }
    assert {name: type(model).__name__ for name, model in loaded.items()} == {name: name for name in loaded}
    assert loaded["GlmForCausalLM"].dtype == torch.bfloat16
    assert loaded["GlmForSequenceClassification"].num_labels == 3
    assert "score.weight: it is newly initialised" in caplog.text


def test_batches_are_padded_as_transformers_pads(demo_directory: Path) -> None:
    ours, theirs = (
        AutoTokenizer.from_pretrained(demo_directory, padding_side="left"),
        transformers.AutoTokenizer.from_pretrained(demo_directory, padding_side="left"),
    )
    texts = ["One.", "Two, and a longer one."]
    for options in (
        {"padding": True, "return_tensors": "pt"},
        {"padding": "max_length", "max_length": 16, "return_tensors": "pt"},
        {"truncation": True, "max_length": 3, "padding": True, "return_tensors": "pt"},
        {},
    ):
        mine, reference = ours(texts, **options), theirs(texts, **options)
        for key in ("input_ids", "attention_mask"):
            one, other = mine[key], reference[key]
            assert torch.equal(one, other) if options else one == other, (options, key)
    assert ours("One.").input_ids == theirs("One.").input_ids
    with pytest.raises(InvalidRequest, match="padding=True"):
        ours(texts, return_tensors="pt")


def test_a_rendered_chat_is_an_encoding(demo_directory: Path) -> None:
    ours, theirs = (
        AutoTokenizer.from_pretrained(demo_directory),
        transformers.AutoTokenizer.from_pretrained(demo_directory),
    )
    messages = [{"role": "user", "content": "Hi"}]
    mine = ours.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    reference = theirs.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    assert torch.equal(mine.input_ids, reference["input_ids"])
    assert {**mine}.keys() == {"input_ids", "attention_mask"}
    assert ours.apply_chat_template(messages, return_dict=False) == theirs.apply_chat_template(
        messages, return_dict=False
    )
