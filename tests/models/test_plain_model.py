"""A plain GPT-2 decodes as transformers' model does; any other is left to it, errors included."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from gptcli.config.schema import TrainingSettings
from gptcli.data.plain_tokenizer import PlainTokenizer
from gptcli.errors import ModelError
from gptcli.models.decoding_forward import DecodingForward
from gptcli.models.loading import load_model
from gptcli.models.plain_model import load_for_decoding, plain_model
from gptcli.training.checkpoint import save_checkpoint
from gptcli.training.loop import Progress
from gptcli.training.optimizers import Optimizers
from tests.models.conftest import change_config
from tests.training.test_checkpoint import ORIGIN

CPU = torch.device("cpu")
IDS = torch.tensor([[5, 9, 17, 0, 3]])


def change_weights(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})


def logits(model: Any, dtype: torch.dtype) -> torch.Tensor:
    forward = DecodingForward(model, dtype)
    earlier = forward.new_keys_and_values(1, IDS.shape[1])
    return forward.logits(forward.hidden_states(IDS.tolist(), [0], earlier))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"activation_function": "gelu"},
        {"activation_function": "gelu_new", "n_inner": 24},
        {"layer_norm_epsilon": 0.1},
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
    ],
)
def test_it_gives_the_logits_of_transformers_model(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, sizes: dict[str, Any], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    # Weights of some size, so that it shows what becomes of them.
    shape = {"vocab_size": len(tokenizer), "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 8}
    theirs = GPT2LMHeadModel(GPT2Config(**shape, **sizes, initializer_range=0.5)).eval()
    theirs.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_for_decoding(str(tmp_path), CPU, dtype)
    assert isinstance(loaded.tokenizer, PlainTokenizer)
    found = logits(loaded.model, dtype)
    assert torch.equal(found, logits(load_model(str(tmp_path), CPU, torch.float32).model, dtype))
    if dtype == torch.float32:
        with torch.no_grad():
            torch.testing.assert_close(found, theirs(IDS).logits[0], rtol=1e-4, atol=1e-4)


def test_weights_without_a_prefix_are_those_of_the_same_model(folder: Path) -> None:
    expected = logits(plain_model(folder, CPU, torch.float32), torch.float32)
    change_weights(
        folder,
        lambda weights: {name.removeprefix("transformer."): weight for name, weight in weights.items()},
    )
    assert torch.equal(logits(plain_model(folder, CPU, torch.float32), torch.float32), expected)


def test_a_run_folder_stands_for_its_model(folder: Path) -> None:
    (folder.parent / "run.json").write_text("{}")
    loaded = load_for_decoding(str(folder.parent), CPU, torch.float32)
    assert loaded.name == str(folder)
    assert isinstance(loaded.tokenizer, PlainTokenizer)


@pytest.fixture
def checkpoint(folder: Path, model: GPT2LMHeadModel) -> Path:
    """Of the run whose model the folder is; its weights are those of `model`, not of the folder."""
    for weight in model.parameters():
        weight.data += torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) / 4
    optimizers = Optimizers(model, TrainingSettings(optimizer="adamw"))
    return save_checkpoint(folder.parent / "checkpoints", model, optimizers, Progress(step=3), ORIGIN)


def test_a_checkpoint_has_weights_of_its_own_and_all_else_of_the_model_of_its_run(
    folder: Path, checkpoint: Path, model: GPT2LMHeadModel
) -> None:
    loaded = load_for_decoding(str(checkpoint), CPU, torch.float32)
    assert not isinstance(loaded.model, GPT2LMHeadModel)
    assert isinstance(loaded.tokenizer, PlainTokenizer)
    assert loaded.name == str(folder)
    expected = logits(model, torch.float32)
    assert torch.equal(logits(loaded.model, torch.float32), expected)
    change_config(folder, num_hidden_layers=2)
    by_transformers = load_for_decoding(str(checkpoint), CPU, torch.float32).model
    assert isinstance(by_transformers, GPT2LMHeadModel)
    assert torch.equal(logits(by_transformers, torch.float32), expected)


CHECKPOINT_DAMAGES: dict[str, Callable[[Path], object]] = {
    "is no whole checkpoint: manifest.json is damaged.": lambda checkpoint: (
        checkpoint / "manifest.json"
    ).write_text("{"),
    "is no whole checkpoint: optimizer.safetensors is missing.": lambda checkpoint: (
        checkpoint / "optimizer.safetensors"
    ).unlink(),
    "is no whole checkpoint: model.safetensors is not what was saved.": lambda checkpoint: (
        change_weights(checkpoint, with_a_weight("another"))
    ),
    "has weights alone; what they are the weights of is in": lambda checkpoint: (
        checkpoint.parent.parent / "model" / "config.json"
    ).unlink(),
}


@pytest.mark.parametrize("problem", CHECKPOINT_DAMAGES)
def test_a_damaged_checkpoint_is_refused(checkpoint: Path, problem: str) -> None:
    CHECKPOINT_DAMAGES[problem](checkpoint)
    with pytest.raises(ModelError, match=re.escape(f"{checkpoint} {problem}")):
        load_for_decoding(str(checkpoint), CPU, torch.float32)


def test_an_unusual_tokenizer_is_loaded_by_transformers(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"add_prefix_space": True}))
    loaded = load_for_decoding(str(folder), CPU, torch.float32)
    assert isinstance(loaded.tokenizer, PreTrainedTokenizerFast)
    assert loaded.tokenizer.add_prefix_space


def test_for_chat_the_tokenizer_has_its_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    loaded = load_for_decoding(str(folder), CPU, torch.float32, is_for_chat=True)
    messages = [{"role": "user", "content": "Hi"}]
    assert loaded.tokenizer.apply_chat_template(messages, tokenize=False) == "Hi!"


@pytest.mark.parametrize("values", [{"activation_function": "relu"}, {"num_hidden_layers": 2}])
def test_an_unusual_model_is_loaded_by_transformers(folder: Path, values: dict[str, Any]) -> None:
    change_config(folder, **values)
    assert isinstance(load_for_decoding(str(folder), CPU, torch.float32).model, GPT2LMHeadModel)


def without(name: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda weights: {key: weight for key, weight in weights.items() if key != name}


def with_a_weight(name: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda weights: weights | {name: torch.zeros(2, 32)}


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no config": lambda folder: (folder / "config.json").unlink(),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "no tokenizer": lambda folder: (folder / "tokenizer.json").unlink(),
    "cut-off weights": lambda folder: (folder / "model.safetensors").write_bytes(
        (folder / "model.safetensors").read_bytes()[:-1]
    ),
    "a config that is a list": lambda folder: (folder / "config.json").write_text("[]"),
    "an adapter": lambda folder: (folder / "adapter_config.json").write_text("{}"),
    "another kind": lambda folder: change_config(folder, model_type="bert"),
    "code": lambda folder: change_config(folder, auto_map={"AutoConfig": "evil.Config"}),
    "a width that is text": lambda folder: change_config(folder, n_embd="wide"),
    "a dropout that is text": lambda folder: change_config(folder, resid_pdrop="much"),
    "no heads": lambda folder: change_config(folder, n_head=0),
    "heads that do not divide the width": lambda folder: change_config(folder, n_head=5),
    "an epsilon of 1": lambda folder: change_config(folder, layer_norm_epsilon=1),
    "too many layers": lambda folder: change_config(folder, n_layer=10**11),
    "too few layers": lambda folder: change_config(folder, n_layer=1),
    "another context": lambda folder: change_config(folder, n_positions=64),
    "a head of its own": lambda folder: change_config(folder, tie_word_embeddings=False),
    "a missing weight": lambda folder: change_weights(folder, without("transformer.h.1.ln_1.bias")),
    "a classifier": lambda folder: change_weights(folder, with_a_weight("score.weight")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_wrong_is_said_as_for_any_model(folder: Path, damage: str) -> None:
    DAMAGES[damage](folder)
    with pytest.raises(ModelError) as expected:
        load_model(str(folder), CPU, torch.float32)
    with pytest.raises(ModelError) as found:
        load_for_decoding(str(folder), CPU, torch.float32)
    assert str(found.value) == str(expected.value)
