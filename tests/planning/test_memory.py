"""Memory by hand for a shape small enough, and agreement with the code that it speaks of."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from gptcli.config.schema import Settings
from gptcli.models import attention
from gptcli.models.architecture import gpt2_config, new_model
from gptcli.models.layer import use_fast_layers
from gptcli.native import layer as native_layer
from gptcli.native import product as native_product
from gptcli.planning import memory
from gptcli.planning.memory import (
    automatic_micro_batch_size,
    checkpoint_bytes,
    layer_activations,
    optimizer_bytes,
    training_memory,
)
from gptcli.planning.shape import Shape
from gptcli.tasks import assembly
from gptcli.training import checkpoint, device, loss
from gptcli.training.optimizers import Optimizers
from tests.conftest import skip_without_native_products

SHAPE = Shape.of(2, 2, 8, 16, 10)
# 10 x 8 and 16 x 8 embedded; 872 a layer with 768 in matrices; 16 in the last layer norm.
PARAMETERS = 80 + 128 + 2 * 872 + 16


def settings_of(**training: Any) -> Settings:
    model = {"n_layer": 2, "n_head": 2, "n_embd": 8, "context_length": 16}
    return Settings.model_validate(
        {"model": model, "training": {"batch_size": 4, "optimizer": "adamw", **training}}
    )


def test_weights_gradients_and_optimizer_are_those_by_hand() -> None:
    assert SHAPE.parameters == PARAMETERS
    adamw = training_memory(SHAPE, settings_of(), 16, 4, "cpu", "bf16")
    assert (adamw.weights, adamw.gradients) == (4 * PARAMETERS, 4 * PARAMETERS)
    assert adamw.optimizer == 8 * PARAMETERS
    assert adamw.copies == 2 * 2 * 768
    muon = training_memory(SHAPE, settings_of(optimizer="muon"), 16, 4, "cpu", "fp32")
    assert muon.optimizer == 8 * PARAMETERS - 4 * 2 * 768
    assert muon.copies == 0


def test_a_layer_keeps_what_is_listed_by_hand() -> None:
    # 8 wide, 32 within, 2 heads over 16 tokens. Numbers a token in the type of products: 8 into c_attn,
    # 24 of queries, keys and values, 8 into c_proj, 8 into c_fc, 32 and 32 around the activation
    # function, 32 attention weights. In float32: twice 8 of the residual stream, 4 of the layer norms.
    in_bf16 = sum(kept.bytes for kept in layer_activations(SHAPE, 16, "bf16", "cpu", False))
    assert in_bf16 == 2 * (8 + 24 + 8 + 8 + 32 + 32 + 32) + 4 * (8 + 8 + 4)
    in_fp32 = sum(kept.bytes for kept in layer_activations(SHAPE, 16, "fp32", "cpu", False))
    assert in_fp32 == 4 * (8 + 24 + 8 + 8 + 32 + 32 + 32) + 4 * (8 + 8 + 4)


@pytest.mark.parametrize(("is_native", "is_whole_native"), [(False, False), (True, False), (True, True)])
def test_what_a_layer_keeps_is_what_autograd_saves(
    is_native: bool, is_whole_native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table is the code's: counted here in a real forward pass, weights left out."""
    if is_native:
        skip_without_native_products()
        monkeypatch.setattr(native_product, "LEAST_WEIGHTS", 0)
        monkeypatch.setattr(memory, "NATIVE_WEIGHTS", 0)
    from gptcli.pipelines.plan import new_shape
    from gptcli.training.device import choose_compute

    heads = 2 if is_native else 4  # Of 32 numbers, for which there is compiled code, or 16.
    shape = Shape.of(1, heads, 64, 64, 50)
    deeper = Shape.of(2, heads, 64, 64, 50)
    runtime = {"device": "cpu", "precision": "bf16", "compile": not is_whole_native}
    settings = Settings.model_validate({"runtime": runtime})
    compute = choose_compute(settings.runtime, for_training=True)

    def saved(shape: Shape) -> int:
        model = new_shape(shape, settings, compute)
        weights = {parameter.data_ptr() for parameter in model.parameters()}
        found: dict[int, torch.Tensor] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                found[storage.data_ptr()] = tensor
            return tensor

        ids = torch.zeros((4, 64), dtype=torch.long)
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            compute.autocast(),
        ):
            model.transformer(input_ids=ids, use_cache=False)
        return sum(tensor.untyped_storage().nbytes() for tensor in found.values())

    activations = layer_activations(shape, 64, "bf16", "cpu", False, is_native, is_whole_native)
    kept = sum(kept.bytes for kept in activations) * 4 * 64
    copies = 0 if is_native else 2 * shape.layer_matrix_weights
    assert saved(deeper) - saved(shape) == pytest.approx(kept + copies, rel=0.02)


def test_the_space_of_native_layers_is_what_they_take() -> None:
    skip_without_native_products()
    inputs = torch.zeros(4, 128, 128, requires_grad=True)
    model = new_model(
        gpt2_config(0, 0, n_layer=1, n_head=2, n_embd=128, n_positions=128, vocab_size=9), 0
    )
    use_fast_layers(model, "bf16", is_compiled=False)

    def taken() -> int:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.autograd.backward(model.transformer.h[0](inputs).sum())
        return len(native_layer._kept.space)

    with ThreadPoolExecutor(1) as executor:  # A thread has its own.
        found = executor.submit(taken).result()
    assert found == pytest.approx(memory._space_of_layers(Shape.of(1, 2, 128, 128, 9), 512), rel=0.03)


@pytest.mark.parametrize("training", [{}, {"optimizer": "muon"}])
def test_a_checkpoint_is_as_large_as_the_training_says(model: Any, training: dict[str, Any]) -> None:
    settings = settings_of(**training)
    config = model.config
    shape = Shape.of(config.n_layer, config.n_head, config.n_embd, config.n_positions, config.vocab_size)
    optimizers = Optimizers(model, settings.training)
    assert optimizer_bytes(shape, settings) == optimizers.state_bytes()
    assert checkpoint_bytes(shape, settings) == checkpoint.checkpoint_bytes(model, optimizers)


def test_it_knows_the_numbers_that_the_training_goes_by() -> None:
    assert memory.PLAIN_ATTENTION_TOKENS == attention.MAX_TOKENS
    assert memory.KEPT_WEIGHTS_TOKENS == attention.QUERIES_AT_ONCE
    assert memory.HEAD_ROWS["cpu"] == loss.ROWS["cpu"]
    assert memory.HEAD_ROWS["cuda"] == loss.ROWS_GPU
    assert memory.SCORES_AT_ONCE == loss.NUMBERS_AT_ONCE
    assert memory.WORDS_AT_ONCE == loss.WORDS_AT_ONCE
    assert memory.NATIVE_WEIGHTS == native_product.LEAST_WEIGHTS


def test_compiled_code_takes_no_copies_of_large_matrices() -> None:
    # 256 wide: of the layers' matrices, only the one behind attention, of 65,536 weights, is small.
    shape = Shape.of(2, 4, 256, 128, 1000)
    for_torch = Settings.model_validate({"runtime": {"compile": True}})
    by_torch, native, whole = (
        training_memory(shape, settings, 128, 4, "cpu", "bf16", is_native)
        for settings, is_native in ((for_torch, False), (for_torch, True), (settings_of(), True))
    )
    assert (by_torch.copies, native.copies) == (2 * 2 * 12 * 65_536, 2 * 2 * 65_536)
    # For 512 tokens and two layers: in two bytes 1,024 numbers of the activation function and attention
    # weights of 4 heads for 128 tokens, for which there is one number in four bytes.
    assert by_torch.activations - native.activations == 2 * 512 * (2 * (1024 + 4 * 128) - 4 * 4)
    assert by_torch.logits - native.logits == 2 * 1000 * 256
    assert native.peak < by_torch.peak
    # The outputs of both layer norms, and four numbers of each.
    assert whole.copies == 0
    kept = whole.activations - memory._space_of_layers(shape, 512)
    assert native.activations - kept == 2 * 512 * (2 * 2 * 256 + 4 * 4)


@pytest.mark.parametrize(
    ("heads", "values"),
    [
        (4, {}),  # Of 48 numbers each.
        (3, {"model": {"dropout": 0.1}}),
        (3, {"training": {"lora": {}}}),
        (3, {"runtime": {"compile": True}}),
    ],
)
def test_layers_that_are_not_native_keep_what_those_of_torch_do(
    heads: int, values: dict[str, Any]
) -> None:
    shape, settings = Shape.of(2, heads, 192, 512, 1000), Settings.model_validate(values)
    planned = training_memory(shape, settings, 512, 4, "cpu", "bf16", is_native=True)
    kept = layer_activations(shape, 512, "bf16", "cpu", settings.model.dropout > 0, is_native=True)
    outside = 192 * (4 + 4 + 4 + 2)
    assert planned.activations == 4 * 512 * (2 * sum(one.bytes for one in kept) + outside)


@pytest.mark.parametrize("length", [16, 512, 4096])
@pytest.mark.parametrize("batch_size", [1, 8, 4096])
def test_an_automatic_micro_batch_is_the_training_s(model: Any, length: int, batch_size: int) -> None:
    settings = settings_of(batch_size=batch_size)
    runtime = Settings.model_validate({"runtime": {"device": "cpu", "precision": "fp32"}}).runtime
    compute = device.choose_compute(runtime, for_training=True)
    config = model.config
    shape = Shape.of(config.n_layer, config.n_head, config.n_embd, config.n_positions, config.vocab_size)
    expected = assembly._micro_batch_size(settings, compute, model, length)
    assert automatic_micro_batch_size(shape, batch_size, length, "cpu") == expected


def test_gradient_checkpointing_and_smaller_micro_batches_take_less() -> None:
    shape = Shape.of(12, 12, 768, 1024, 50_257)
    whole = training_memory(shape, settings_of(), 1024, 4, "cpu", "bf16")
    parts = training_memory(shape, settings_of(), 1024, 1, "cpu", "bf16")
    again = training_memory(shape, settings_of(gradient_checkpointing=True), 1024, 4, "cpu", "bf16")
    assert parts.activations * 4 == whole.activations
    assert again.activations < whole.activations / 4
    assert max(parts.peak, again.peak) < whole.peak


@pytest.mark.parametrize(
    ("layers", "width", "length", "batch_size", "expected"),
    [
        (12, 768, 1024, 32, 4),  # 4,096 tokens.
        (12, 768, 1024, 6, 3),  # Twice 3 and not 4 and 2.
        (12, 768, 8192, 32, 1),
        (1, 64, 1024, 200, 100),  # 2**27 / (16 * 64 * 1,024) = 128 at most, so two of 100.
        (1, 64, 1024, 100, 100),
    ],
)
def test_an_automatic_micro_batch_is_worth_what_each_one_costs(
    layers: int, width: int, length: int, batch_size: int, expected: int
) -> None:
    shape = Shape.of(layers, width // 64, width, length, 50_257)
    assert automatic_micro_batch_size(shape, batch_size, length, "cpu") == expected
