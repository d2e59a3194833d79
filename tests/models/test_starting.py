"""What training starts from, and which weights it changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from gptcli.config.schema import Settings
from gptcli.errors import ConfigError
from gptcli.models.loading import label_names, load_model
from gptcli.models.saving import save_model
from gptcli.models.starting import StartingModel

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 32, "context_length": 32}
IDS = torch.tensor([[5, 9, 200, 31, 7, 120]])


def starting(model: dict[str, Any], seed: int = 0, **training: Any) -> StartingModel:
    sections = {"model": model, "training": training, "runtime": {"seed": seed}}
    return StartingModel(Settings.model_validate(sections))


def test_a_named_model_is_continued_with_its_weights_tokenizer_and_context(
    model_folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    start = starting({"name": str(model_folder)})
    found = start.tokenizer()
    assert found is not None
    assert found.get_vocab() == tokenizer.get_vocab()
    assert start.context_length == 32
    trainable = start.load("language-modelling", found)
    model = trainable.model
    assert not trainable.is_new
    assert trainable.origin == str(model_folder)
    expected = load_model(str(model_folder), torch.device("cpu"), torch.float32).model
    torch.testing.assert_close(model.eval()(IDS).logits, expected(IDS).logits, rtol=0, atol=0)
    assert all(weight.requires_grad for weight in model.parameters())


def test_the_dropout_is_that_of_the_settings(
    model_folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    start = starting({"name": str(model_folder), "dropout": 0.25})
    model = start.load("language-modelling", tokenizer).model
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.25}


def test_a_shorter_context_may_be_asked_for_and_a_longer_one_is_refused(model_folder: Path) -> None:
    assert starting({"name": str(model_folder), "context_length": 16}).context_length == 16
    with pytest.raises(ConfigError, match=r"model\.context_length is 64; that of .* is 32\."):
        starting({"name": str(model_folder), "context_length": 64})


def test_a_new_head_is_decided_by_the_seed_and_the_rest_is_kept(
    model_folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    models = []
    for seed in (1, 1, 2):
        start = starting({"name": str(model_folder)}, seed)
        trainable = start.load("classification", tokenizer, ["bad", "good"])
        assert trainable.is_new
        assert trainable.origin == f"{model_folder}, with a new head"
        models.append(trainable.model)
    same, other = (models[0].score.weight - models[n].score.weight for n in (1, 2))
    assert not same.any()
    assert other.any()
    assert torch.equal(models[0].transformer.wte.weight, models[2].transformer.wte.weight)


def test_a_classifier_keeps_its_head_for_the_same_labels_in_the_same_order_alone(
    model_folder: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    start = starting({"name": str(model_folder)})
    first = start.load("classification", tokenizer, ["bad", "good"]).model
    save_model(first, tokenizer, tmp_path / "classifier")
    name = {"name": str(tmp_path / "classifier")}
    again = starting(name, 5).load("classification", tokenizer, ["bad", "good"])
    assert not again.is_new
    assert torch.equal(again.model.score.weight, first.score.weight)
    for labels in (["good", "bad"], ["a", "b", "c"]):
        trainable = starting(name, 5).load("classification", tokenizer, labels)
        assert trainable.is_new
        model = trainable.model
        assert label_names(model.config) == labels
        assert model.score.weight.shape == (len(labels), 32)
        assert not torch.equal(model.score.weight[:2], first.score.weight)


def frozen(model: Any) -> set[str]:
    return {name for name, weight in model.named_parameters() if not weight.requires_grad}


def test_frozen_layers_are_the_first_ones_and_the_embeddings(tokenizer: PreTrainedTokenizerFast) -> None:
    model = starting(SHAPE, freeze_layers=1).load("classification", tokenizer, ["a", "b"]).model
    assert {name.split(".h.0.")[0] for name in frozen(model)} == {
        "transformer",
        "transformer.wte.weight",
        "transformer.wpe.weight",
    }
    assert len(frozen(model)) == 2 + 12


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"freeze_layers": 3}, "training.freeze_layers is 3; the model has 2 layers."),
        ({"freeze_layers": 1, "lora": {}}, "training.lora and training.freeze_layers exclude each"),
    ],
)
def test_what_cannot_be_frozen_is_refused(
    tokenizer: PreTrainedTokenizerFast, training: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        starting(SHAPE, **training).load("language-modelling", tokenizer)
    assert message in str(raised.value)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("training", [{}, {"freeze_layers": 1}, {"lora": {"rank": 4}}])
def test_gradient_checkpointing_gives_the_same_gradients(
    tokenizer: PreTrainedTokenizerFast, training: dict[str, Any], dropout: float
) -> None:
    gradients = []
    for checkpointing in (False, True):
        start = starting({**SHAPE, "dropout": dropout}, gradient_checkpointing=checkpointing, **training)
        model = start.load("language-modelling", tokenizer).model
        assert model.is_activation_checkpointing is checkpointing
        model.train()
        torch.manual_seed(3)
        torch.autograd.backward(model(IDS, labels=IDS, use_cache=False).loss)
        gradients.append({n: w.grad for n, w in model.named_parameters() if w.grad is not None})
    plain, checkpointed = gradients
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=0, atol=1e-7)
