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
from glm_cluster.errors import ConfigError, InvalidRequest
from glm_cluster.model.pretrained import warn_of_trust

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


@pytest.fixture(autouse=True)
def trust_not_yet_noted() -> None:
    """The notice comes once in a process; each test is to see it."""
    warn_of_trust.cache_clear()


@pytest.fixture
def pair(demo_directory: Path) -> tuple[Any, Any]:
    """Our tokenizer of the demo and Transformers', which pads on the right where a checkpoint does not say."""
    ours = AutoTokenizer.from_pretrained(demo_directory, padding_side="left")
    return ours, transformers.AutoTokenizer.from_pretrained(demo_directory, padding_side="left")


def assert_same_encoding(mine: Any, reference: Any) -> None:
    assert {*mine} == {*reference}
    for key in mine:
        one, other = mine[key], reference[key]
        assert type(one) is type(other), key
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other, key


def test_trust_is_noted_once(checkpoint: Callable[..., Path]) -> None:
    """Where warnings are caught, and so forgotten, as much as elsewhere."""
    caught = []
    for _ in range(3):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            AutoConfig.from_pretrained(checkpoint(), trust_remote_code=True)
        caught += seen
    assert len(caught) == 1


def test_a_config_takes_changes(checkpoint: Callable[..., Path]) -> None:
    config = AutoConfig.from_pretrained(checkpoint(), num_labels=3, use_cache=False)
    assert (config.num_labels, config.use_cache) == (3, False)
    theirs = transformers.AutoConfig.from_pretrained(checkpoint(), num_labels=3, use_cache=False)
    assert config.id2label == theirs.id2label
    with pytest.raises(TypeError, match="num_label"):
        AutoConfig.from_pretrained(checkpoint(), num_label=3)


HUB = {"revision": "v1", "cache_dir": "/elsewhere", "token": "secret", "local_files_only": True}


@pytest.mark.parametrize("loader", [AutoConfig, AutoModel, AutoTokenizer])
def test_the_hub_s_options_reach_the_hub(demo_directory: Path, monkeypatch: pytest.MonkeyPatch, loader: Any) -> None:
    calls: list[dict[str, Any]] = []

    def snapshot(repo: str, **options: Any) -> Path:
        calls.append({"repo": repo, **options})
        return demo_directory

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    loader.from_pretrained("someone/glm", **HUB)
    assert [{key: call[key] for key in ("repo", *HUB)} for call in calls] == [{"repo": "someone/glm", **HUB}]


def test_options_that_ask_for_what_is_done_anyway(checkpoint: Callable[..., Path], demo_directory: Path) -> None:
    AutoModel.from_pretrained(checkpoint(), low_cpu_mem_usage=True, use_safetensors=True)
    AutoTokenizer.from_pretrained(demo_directory, use_fast=True)
    with pytest.raises(ConfigError, match="never read; leave it out"):
        AutoModel.from_pretrained(checkpoint(), use_safetensors=False)
    with pytest.raises(ConfigError, match="leave use_fast=False out"):
        AutoTokenizer.from_pretrained(demo_directory, use_fast=False)
    with pytest.raises(TypeError, match="use_quick"):
        AutoTokenizer.from_pretrained(demo_directory, use_quick=True)


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


HELLO = [{"role": "user", "content": "Hi"}]
LONGER = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tell me of the sea."}]
TEMPLATE = """{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}
{% endfor %}{% if documents %}{% for d in documents %}<{{ d.title }}: {{ d.text }}>{% endfor %}{% endif %}
{%- if tools is not none %}{{ tools | tojson }}{% endif %}{{ mood or 'calm' }}
{%- if add_generation_prompt %}>{% endif %}"""
CALLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "text": (HELLO, {"tokenize": False}),
    "texts": ([HELLO, LONGER], {"tokenize": False, "add_generation_prompt": True}),
    "batch": ([HELLO, LONGER], {}),
    "batch of one": ([HELLO], {}),
    "ids of a batch": ([HELLO, LONGER], {"return_dict": False}),
    "padded": ([HELLO, LONGER], {"padding": True, "return_tensors": "pt"}),
    "padded to a length": ([HELLO, LONGER], {"padding": "max_length", "max_length": 64, "return_tensors": "pt"}),
    "one, padded": (HELLO, {"padding": "max_length", "max_length": 64}),
    "cut": (LONGER, {"truncation": True, "max_length": 5}),
    "cut and padded": ([HELLO, LONGER], {"truncation": True, "max_length": 12, "padding": True}),
    "a length alone": (LONGER, {"max_length": 5}),
    "template": (HELLO, {"chat_template": TEMPLATE, "tokenize": False}),
    "template, all it may use": (
        [LONGER, HELLO],
        {
            "chat_template": TEMPLATE,
            "documents": [{"title": "Sea", "text": "deep"}],
            "tools": [{"type": "function", "function": {"name": "look"}}],
            "mood": "stormy",
            "add_generation_prompt": True,
            "padding": True,
        },
    ),
    "neutral": (HELLO, {"continue_final_message": False, "return_assistant_tokens_mask": False}),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_chat_template_is_applied_as_transformers_applies_it(pair: tuple[Any, Any], name: str) -> None:
    conversation, options = CALLS[name]
    mine, reference = (tokenizer.apply_chat_template(conversation, **options) for tokenizer in pair)
    if options.get("tokenize", True) and options.get("return_dict", True):
        assert_same_encoding(mine, reference)
    else:
        assert mine == reference


def test_a_chat_is_padded_on_the_side_asked_for(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    theirs.padding_side = "right"
    options: dict[str, Any] = {"padding": True, "return_tensors": "pt"}
    mine = ours.apply_chat_template([HELLO, LONGER], padding_side="right", **options)
    assert_same_encoding(mine, theirs.apply_chat_template([HELLO, LONGER], **options))
    assert ours.padding_side == "left"


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "continuing": (HELLO, {"continue_final_message": True}, "continue_final_message .* leave it out"),
    "mask": (HELLO, {"return_assistant_tokens_mask": True}, "return_assistant_tokens_mask .* leave it out"),
    "tokenizer_kwargs": (HELLO, {"tokenizer_kwargs": {"truncation": True}}, "tokenizer_kwargs .* leave it out"),
    "sanitize": (HELLO, {"sanitize_control_tokens": True}, "sanitize_control_tokens .* leave it out"),
    "empty": ([], {}, "empty conversation"),
    "broken template": (HELLO, {"chat_template": "{% if %}"}, "chat_template is broken at line 1.*; give a Jinja"),
    "documents": (HELLO, {"documents": ["deep"]}, "title and a text"),
    "padding": ([HELLO], {"padding": "shortest"}, "not 'shortest'"),
    "unequal": ([HELLO, LONGER], {"return_tensors": "pt"}, "padding=True"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_prompt_is_made_of(pair: tuple[Any, Any], name: str) -> None:
    conversation, options, sentence = REFUSED[name]
    with pytest.raises(InvalidRequest, match=sentence):
        pair[0].apply_chat_template(conversation, **options)


ROWS = [[5, 6, 7], [8], [9, 10]]
MASKS = [[1, 0, 1], [1], [0, 1]]
PADDED: dict[str, tuple[Any, dict[str, Any]]] = {
    "ids": ({"input_ids": ROWS}, {}),
    "ids and mask": ({"input_ids": ROWS, "attention_mask": MASKS}, {"return_tensors": "pt"}),
    "a list, as of a data loader": (
        [{"input_ids": row, "attention_mask": mask, "labels": 1} for row, mask in zip(ROWS, MASKS, strict=True)],
        {"return_tensors": "pt", "pad_to_multiple_of": 4},
    ),
    "right": ({"input_ids": ROWS, "attention_mask": MASKS}, {"padding_side": "right"}),
    "length": ({"input_ids": ROWS}, {"padding": "max_length", "max_length": 6}),
    "no padding": ({"input_ids": ROWS}, {"padding": False}),
    "no mask": ({"input_ids": ROWS}, {"return_attention_mask": False}),
    "one": ({"input_ids": [5, 6]}, {"padding": "max_length", "max_length": 4, "return_tensors": "pt"}),
    "tensors": ({"input_ids": torch.tensor([[5, 6]])}, {"padding": "max_length", "max_length": 4}),
    "a list of tensors": ([{"input_ids": torch.tensor(row)} for row in ROWS], {}),
}


@pytest.mark.parametrize("name", PADDED)
def test_encodings_are_padded_as_transformers_pads(pair: tuple[Any, Any], name: str) -> None:
    inputs, options = PADDED[name]
    mine, reference = (
        tokenizer.pad({**inputs} if isinstance(inputs, dict) else [*inputs], **options) for tokenizer in pair
    )
    assert_same_encoding(mine, reference)


def test_our_own_encodings_are_padded_and_given_to_a_model(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    texts = ["One.", "Two, and a longer one."]
    assert_same_encoding(
        ours.pad([ours(text) for text in texts], return_tensors="pt"),
        theirs(texts, padding=True, return_tensors="pt"),
    )
    assert ours.pad(ours(texts)).attention_mask == theirs(texts, padding=True)["attention_mask"]


def test_lists_without_a_name_are_padded_as_ever(pair: tuple[Any, Any]) -> None:
    ours, _ = pair
    pad = ours.pad_token_id
    assert ours.pad([[1], [2, 3]], "right") == ([[1, pad], [2, 3]], [[1, 0], [1, 1]])
    assert ours.pad([[1], [2, 3]]) == ([[pad, 1], [2, 3]], [[0, 1], [1, 1]])
    assert ours.pad([]) == ([], [])


def test_the_longest_decides_whatever_the_length(pair: tuple[Any, Any]) -> None:
    with pytest.warns(UserWarning, match="`max_length` is ignored"):
        reference = pair[1].pad({"input_ids": ROWS}, max_length=9)
    assert_same_encoding(pair[0].pad({"input_ids": ROWS}, max_length=9), reference)


def test_an_encoding_without_ids_is_not_padded(pair: tuple[Any, Any]) -> None:
    with pytest.raises(InvalidRequest, match="input_ids"):
        pair[0].pad({"labels": [1]})
    with pytest.raises(InvalidRequest, match="not 'right'"):
        pair[0].pad({"input_ids": ROWS}, "right")


def test_nothing_is_padded_to_a_length_without_end(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    ours.model_max_length = theirs.model_max_length = int(1e30)
    assert_same_encoding(
        ours(["One.", "A two."], padding="max_length"), theirs(["One.", "A two."], padding="max_length")
    )
