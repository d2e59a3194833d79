"""A model folder opens as saved; whatever is no whole GPT-2 is refused in one line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

from gptcli.errors import ModelError
from gptcli.models.loading import LoadedModel, load_model
from tests.models.conftest import change_config

IDS = torch.tensor([[5, 9, 17, 0, 3]])


def load(name: str | Path) -> LoadedModel:
    return load_model(str(name), torch.device("cpu"), torch.float32)


def refusal(name: str | Path) -> str:
    """Return the one line that loading `name` is refused with."""
    with pytest.raises(ModelError) as caught:
        load(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@torch.no_grad()
def test_transformers_opens_the_folder_and_gives_the_same_logits(
    model: GPT2LMHeadModel, model_folder: Path
) -> None:
    expected = model.eval()(IDS).logits
    theirs = AutoModelForCausalLM.from_pretrained(model_folder)
    assert isinstance(theirs, GPT2LMHeadModel)
    assert torch.equal(theirs.eval()(IDS).logits, expected)
    assert torch.equal(load(model_folder).model(IDS).logits, expected)


def test_transformers_opens_the_tokenizer_and_encodes_the_same(model_folder: Path) -> None:
    text = "The small cat sat on the 屋根 🦉.<|endoftext|> "
    theirs, ours = AutoTokenizer.from_pretrained(model_folder), load(model_folder).tokenizer
    assert theirs.encode(text) == ours.encode(text)
    assert theirs.decode(theirs.encode(text)) == text
    assert theirs.eos_token_id == theirs.bos_token_id == theirs.pad_token_id == 0


def test_a_loaded_model_is_in_evaluation_mode_and_of_the_type_asked_for(model_folder: Path) -> None:
    loaded = load_model(str(model_folder), torch.device("cpu"), torch.bfloat16)
    assert not loaded.model.training
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}


def test_a_run_folder_stands_for_its_model(folder: Path) -> None:
    (folder.parent / "run.json").write_text("{}")
    assert load(folder.parent).name == str(folder)


def test_a_folder_below_the_home_folder_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load("~/model").name == str(folder)


def test_weights_in_several_files_are_read(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    halves = {name: f"part-{index % 2}.safetensors" for index, name in enumerate(weights)}
    for file in set(halves.values()):
        part = {name: weights[name] for name in weights if halves[name] == file}
        save_file(part, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": halves}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    state = load(folder).model.state_dict()
    assert all(torch.equal(state[name], weights[name]) for name in weights)


@pytest.mark.parametrize("name", ["./nothing", "a/b/nothing", "nothing/", "~nobody-of-this-name/model"])
def test_a_path_that_leads_nowhere_is_no_hub_name(name: str) -> None:
    assert refusal(name) == (
        f"{name}: no such folder. --model takes a folder or a hub name such as gpt2."
    )


@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_name_is_refused(name: str) -> None:
    assert "--model is empty" in refusal(name)


def test_a_file_is_no_model_folder(folder: Path) -> None:
    assert "is a file; --model takes" in refusal(folder / "model.safetensors")


def test_a_run_that_has_not_ended_has_no_model(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    assert "has no model yet" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("config.json", "config.json is missing"),
        ("model.safetensors", "has no weights: model.safetensors is missing."),
        ("tokenizer.json", "holds no tokenizer"),
    ],
)
def test_a_folder_that_lacks_a_file_is_refused_by_its_name(folder: Path, file: str, what: str) -> None:
    (folder / file).unlink()
    assert what in refusal(folder)
    assert str(folder) in refusal(folder)


@pytest.mark.parametrize(
    ("content", "what"),
    [("{", "cannot be read"), ("[]", "must hold a JSON object"), ("{}", "is a None model")],
)
def test_a_config_that_says_nothing_is_refused(folder: Path, content: str, what: str) -> None:
    (folder / "config.json").write_text(content)
    assert what in refusal(folder)


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt_neox"])
def test_another_architecture_is_refused(folder: Path, kind: str) -> None:
    change_config(folder, model_type=kind)
    assert refusal(folder) == f"{folder} is a {kind} model; gptcli works with GPT-2 models."


def test_a_folder_that_brings_code_is_refused_and_the_code_is_not_run(folder: Path) -> None:
    (folder / "evil.py").write_text(f"open({str(folder / 'was_run')!r}, 'w')\n")
    change_config(folder, auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    assert "names code to run (auto_map)" in refusal(folder)
    assert not (folder / "was_run").exists()


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("is_indexed", [False, True])
def test_pickled_weights_are_refused_and_not_opened(folder: Path, is_indexed: bool) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Payload(f"touch {folder / 'was_run'}")}, folder / "pytorch_model.bin")
    if is_indexed:
        index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "pytorch_model.bin")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "pytorch_model.bin" in refusal(folder)
    assert not (folder / "was_run").exists()


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_weights_that_were_cut_off_are_refused(folder: Path, length: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    assert refusal(folder).startswith(f"{folder}: its model cannot be loaded: ")


def test_a_pointer_of_git_lfs_is_no_weights(folder: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0a1b\nsize 146984\n"
    (folder / "model.safetensors").write_text(pointer)
    assert "its model cannot be loaded" in refusal(folder)


def test_missing_weights_are_not_made_up(folder: Path) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, file, {"format": "pt"})
    assert "weights are missing, transformer.h.1.mlp.c_fc.weight for one" in refusal(folder)


def test_a_head_that_is_missing_and_not_tied_is_not_made_up(folder: Path) -> None:
    change_config(folder, tie_word_embeddings=False)
    assert "weights are missing, lm_head.weight" in refusal(folder)


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    change_config(folder, n_positions=64)
    assert "weights are of another shape, transformer.wpe.weight for one" in refusal(folder)


def test_layers_that_are_only_said_to_be_there_take_no_memory(folder: Path) -> None:
    change_config(folder, n_layer=10**11)  # As numbers alone they would take some 6 terabytes.
    assert "says n_layer 100000000000, but its weights are of 2 layers" in refusal(folder)


def test_a_setting_of_the_wrong_type_is_named(folder: Path) -> None:
    change_config(folder, n_embd="wide")
    assert "n_embd" in refusal(folder)


def test_a_broken_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    assert "its tokenizer cannot be loaded" in refusal(folder)
