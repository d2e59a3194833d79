"""A saved model is a whole Hugging Face folder, at any time."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from gptcli.models.saving import save_model


def test_the_folder_holds_what_transformers_reads_and_no_pickle(model_folder: Path) -> None:
    assert {file.name for file in model_folder.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    # Nothing is left of the making beside it.
    assert list(model_folder.parent.iterdir()) == [model_folder]


def test_the_saved_weights_are_those_of_the_model(model: GPT2LMHeadModel, model_folder: Path) -> None:
    saved = load_file(model_folder / "model.safetensors")
    expected = model.state_dict()
    # The head shares its weights with the embedding.
    assert set(expected) - set(saved) == {"lm_head.weight"}
    for name, weights in saved.items():
        assert torch.equal(weights, expected[name])


def test_the_tokenizer_knows_the_context_of_the_model(model_folder: Path) -> None:
    facts = json.loads((model_folder / "tokenizer_config.json").read_text())
    assert facts["model_max_length"] == 32


def test_saving_again_replaces_the_weights_and_keeps_other_files(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder = tmp_path / "new" / "model"
    save_model(model, tokenizer, folder)
    (folder / "notes.txt").write_text("mine")
    with torch.no_grad():
        model.transformer.ln_f.bias.fill_(7)
    save_model(model, tokenizer, folder)
    assert load_file(folder / "model.safetensors")["transformer.ln_f.bias"].tolist() == [7] * 32
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_save_that_fails_leaves_the_model_before_it(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    save_model(model, tokenizer, folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    model.config.note = object()  # Cannot be written as JSON.
    with pytest.raises(TypeError):
        save_model(model, tokenizer, folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.skipif(os.name != "posix", reason="file modes are those of POSIX")
def test_others_may_read_the_model_when_the_umask_lets_them(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    before = os.umask(0o022)
    try:
        save_model(model, tokenizer, tmp_path / "model")
    finally:
        os.umask(before)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "model").iterdir()}
    assert modes == dict.fromkeys(modes, 0o644)
