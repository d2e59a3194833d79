"""nanoGPT's checkpoints become the very model; what is none is refused, and runs no code."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from gptcli.errors import ModelError
from gptcli.models.nanogpt import read_nanogpt
from tests.nanogpt_checkpoints import nanogpt_logits, nanogpt_weights, write_checkpoint

IDS = [5, 250, 17, 17, 3, 0, 99]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
@pytest.mark.parametrize("padding", [0, 20])
def test_the_model_computes_what_nanogpt_does(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, bias: bool, prefix: str, padding: int
) -> None:
    tokens = len(tokenizer)
    weights = nanogpt_weights(tokens + padding, bias=bias)
    file = write_checkpoint(tmp_path / "ckpt.pt", weights, prefix=prefix)
    model = read_nanogpt(file, tokenizer)
    with torch.inference_mode():
        found = model(torch.tensor([IDS])).logits[0]
    # The rows behind the tokenizer's are cut off; the scores of the others stay as they are.
    torch.testing.assert_close(found, nanogpt_logits(weights, IDS)[:, :tokens], rtol=1e-4, atol=1e-4)
    config = model.config
    assert (config.vocab_size, config.n_positions, config.activation_function) == (tokens, 32, "gelu")
    assert config.eos_token_id == config.bos_token_id == tokenizer.eos_token_id


def test_masks_of_old_versions_are_no_weights(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    weights = nanogpt_weights(len(tokenizer), bias=True)
    masks = {f"transformer.h.{n}.attn.bias": torch.ones(1, 1, 32, 32).tril() for n in range(2)}
    model = read_nanogpt(write_checkpoint(tmp_path / "ckpt.pt", weights | masks), tokenizer)
    assert model.transformer.h[0].attn.c_attn.bias.shape == (96,)


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (str(self.canary),)


def test_code_in_a_checkpoint_is_refused_and_not_run(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    weights: dict[str, Any] = nanogpt_weights(len(tokenizer), bias=True)
    canary = tmp_path / "canary"
    file = write_checkpoint(tmp_path / "ckpt.pt", weights, more=Payload(canary))
    with pytest.raises(ModelError) as error:
        read_nanogpt(file, tokenizer)
    assert str(error.value) == (
        f"{file} is not read: it holds more than weights ({os.mkdir.__module__}.mkdir), or is damaged."
    )
    assert not canary.exists()
    torch.load(file, weights_only=False)
    assert canary.exists()  # The payload works.


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"n_layer": 3}, "its model_args say n_layer 3, but it has weights of 2."),
        ({"n_layer": 10**9}, "its model_args say n_layer 1000000000, but it has weights of 2."),
        ({"n_head": 0}, "its model_args say n_head 0; it must be 1 or more."),
        ({"n_head": "2"}, "its model_args say n_head '2'; it must be 1 or more."),
        ({"n_head": 5}, "its model_args say n_embd 32, which n_head 5 does not divide."),
        (
            {"block_size": 10**9},
            "wpe.weight is 32 x 32, and its model_args say 1000000000 x 32.",
        ),
        ({"vocab_size": 10}, "knows 10 tokens and the tokenizer has 300: they do not belong together."),
    ],
)
def test_sizes_that_are_not_those_of_the_weights_are_refused(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, sizes: dict[str, Any], message: str
) -> None:
    weights = nanogpt_weights(len(tokenizer), bias=True)
    file = write_checkpoint(tmp_path / "ckpt.pt", weights, **sizes)
    with pytest.raises(ModelError) as error:
        read_nanogpt(file, tokenizer)
    assert str(error.value).startswith(str(file))
    assert str(error.value).endswith(message)


def test_weights_that_are_not_those_of_a_gpt_2_are_refused(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    weights = nanogpt_weights(len(tokenizer), bias=True)
    without = {name: weight for name, weight in weights.items() if "1.mlp.c_fc.weight" not in name}
    untied = weights | {"lm_head.weight": weights["lm_head.weight"] + 1}
    cases = {
        "transformer.h.1.mlp.c_fc.weight is missing": without,
        "holds transformer.h.1.mlp.c_gate.weight": weights
        | {"transformer.h.1.mlp.c_gate.weight": torch.zeros(2)},
        "its lm_head is not tied": untied,
        "transformer.ln_f.weight is no weight": weights | {"transformer.ln_f.weight": torch.arange(32)},
    }
    for message, changed in cases.items():
        file = write_checkpoint(tmp_path / "ckpt.pt", changed)
        with pytest.raises(ModelError, match=message):
            read_nanogpt(file, tokenizer)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 no zip", b"\x80\x02."])
def test_a_file_that_is_no_checkpoint_is_refused(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "ckpt.pt"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=r"ckpt\.pt"):
        read_nanogpt(file, tokenizer)
    torch.save({"step": 1}, file)
    with pytest.raises(ModelError, match="has no model_args and model"):
        read_nanogpt(file, tokenizer)
