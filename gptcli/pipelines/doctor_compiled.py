"""Whether compiled code (gptcli/native) computes what torch does, but for rounding."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gptcli.errors import EnvironmentProblem
from gptcli.models.architecture import gpt2_config, new_model
from gptcli.models.attention import plain_attention
from gptcli.models.decoding_forward import DecodingForward
from gptcli.models.layer import has_native_layers, use_fast_layers
from gptcli.native.adamw import NativeAdamW, gradient_norm
from gptcli.native.kernels import NoKernelError, build_kernels, kernel_folder
from gptcli.native.loss import NativeLoss
from gptcli.native.muon import NativeMuon
from gptcli.native.processor import multiplies_tiles
from gptcli.native.product import multiply

# The largest error, next to what torch finds in float64. bfloat16 rounds by up to 2^-8 of a number, and
# errors that do not depend on each other add up by their squares: sixteen of them, more than follow each
# other here, to four times as much. In float32, errors are those of sums.
TOLERANCES = {torch.bfloat16: 4 * 2**-8, torch.float32: 1e-5}


def check_compiled_code() -> str:
    """Return what there is to say of compiled code. Raises EnvironmentProblem for wrong results."""
    try:
        for name in _COMPARISONS:
            build_kernels(name)
    except NoKernelError as error:
        return f"none; training and new tokens in bf16 and int8 take longer without: {error}"
    wrong = [name for name, is_right in _COMPARISONS.items() if not is_right()]
    if wrong:
        raise EnvironmentProblem(
            f"{' and '.join(wrong)}: other results than those of torch's operators. Remove "
            f"{kernel_folder()} and try another compiler, such as CXX=clang++."
        )
    return "for training and new tokens on the CPU; agrees with torch's operators"


def _attention_is_right() -> bool:
    numbers = torch.Generator().manual_seed(0)
    # Of more than one block of tokens.
    *parts, gradient = torch.randn(4, 1, 2, 100, 32, generator=numbers).bfloat16().unbind()
    given = [part.requires_grad_() for part in parts]
    exact = [part.detach().double().requires_grad_() for part in parts]
    found = plain_attention(None, given[0], given[1], given[2], None)[0].transpose(1, 2)
    expected = F.scaled_dot_product_attention(exact[0], exact[1], exact[2], is_causal=True)
    return _are_near(
        [found, *torch.autograd.grad(found, given, gradient)],
        [expected, *torch.autograd.grad(expected, exact, gradient.double())],
        TOLERANCES[torch.bfloat16],
    )


def _next_tokens_are_right() -> bool:
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 64, "n_positions": 32, "vocab_size": 100}
    model = new_model(gpt2_config(dropout=0, end_of_text_id=0, **sizes), seed=0).eval()
    numbers = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        # Numbers of bfloat16, far from 0.
        weight.data = (torch.randn(weight.shape, generator=numbers) / 4).bfloat16().float()
    forward = DecodingForward(model, torch.bfloat16)
    earlier = forward.new_keys_and_values(1, 30)
    *prompt, last = ids = [*range(1, 31)]
    hidden = [
        forward.hidden_states(some, starts, earlier)
        for some, starts in (([prompt], [0]), ([[last]], [len(prompt)]))
    ]
    found = forward.logits(torch.cat(hidden))
    with torch.no_grad():
        expected = model.double()(torch.tensor([ids])).logits[0]
    # What all logits of a token have in common makes no difference.
    return _are_near(
        [found - found.mean(-1, keepdim=True)],
        [expected - expected.mean(-1, keepdim=True)],
        TOLERANCES[torch.bfloat16],
    )


def _layers_are_right() -> bool:
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 64, "n_positions": 100, "vocab_size": 100}
    model = new_model(gpt2_config(dropout=0, end_of_text_id=0, **sizes), seed=0)
    if not has_native_layers(model):  # Then they are torch's.
        return True
    numbers = torch.Generator().manual_seed(0)
    block = model.transformer.h[0]
    for weight in block.parameters():
        weight.data = torch.randn(weight.shape, generator=numbers) / 4
    exact = copy.deepcopy(block).double()
    use_fast_layers(model, "bf16", is_compiled=False)
    inputs, gradient = torch.randn(2, 1, 100, 64, generator=numbers).unbind()
    found, expected = (
        _outputs_and_gradients(layer, inputs.to(dtype), gradient.to(dtype))
        for layer, dtype in ((block, torch.float32), (exact, torch.float64))
    )
    return _are_near(found, expected, TOLERANCES[torch.bfloat16])


def _outputs_and_gradients(layer: Any, inputs: Tensor, gradient: Tensor) -> list[Tensor]:
    inputs.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inputs.dtype == torch.float32):
        outputs = layer(inputs)
    return [outputs, *torch.autograd.grad(outputs, [inputs, *layer.parameters()], gradient)]


def _loss_is_right() -> bool:
    return all(map(_loss_of_type_is_right, TOLERANCES))


def _loss_of_type_is_right(dtype: torch.dtype) -> bool:
    numbers = torch.Generator().manual_seed(0)
    scores = torch.randn(30, 100, generator=numbers).to(dtype)
    targets = torch.randint(100, (30,), generator=numbers)
    exact = scores.double().requires_grad_()
    expected = F.cross_entropy(exact, targets, reduction="sum")
    native = NativeLoss.of("cpu", dtype)
    assert native is not None
    sums = torch.ones(30, 100)
    native.add(scores, sums)
    found = native.summed([scores], targets, 0.0, is_learning=True)  # The scores become gradients.
    return _are_near([found, sums], [expected, exact + 1], TOLERANCES[torch.float32]) and _are_near(
        [scores], torch.autograd.grad(expected, exact), TOLERANCES[dtype]
    )


def _products_are_right() -> bool:
    if not multiplies_tiles():  # Then they are torch's.
        return True
    numbers = torch.Generator().manual_seed(0)
    inputs, weight, gradient = (
        torch.randn(shape, generator=numbers).bfloat16() for shape in ((100, 96), (96, 130), (100, 130))
    )
    bias = torch.randn(130, generator=numbers)
    activated = torch.empty(100, 130)
    multiply(inputs, weight, activated, is_left_activated=True)
    outputs, of_weight, of_bias = gradient.clone(), torch.ones(96, 130), bias.clone()
    multiply(inputs, weight, outputs, bias=bias)
    multiply(inputs.T, gradient, of_weight, adds=True, right_totals=of_bias)
    inputs, weight, gradient = (matrix.double() for matrix in (inputs, weight, gradient))
    return _are_near(
        [outputs, activated],
        [inputs @ weight + bias, F.gelu(inputs, approximate="tanh") @ weight],
        TOLERANCES[torch.bfloat16],
    ) and _are_near(
        [of_weight, of_bias],
        [1 + inputs.T @ gradient, bias + gradient.sum(0)],
        TOLERANCES[torch.float32],
    )


def _adamw_is_right() -> bool:
    gradient = torch.randn(70, 500, generator=torch.Generator().manual_seed(0))
    norm = torch.tensor(gradient_norm([gradient]), dtype=torch.float64)
    found, expected = (
        _stepped(lambda weights, kind=kind: kind(weights, lr=0.1))  # type: ignore[misc]
        for kind in (NativeAdamW, torch.optim.AdamW)
    )
    return _are_near([norm, *found], [gradient.double().norm(), *expected], TOLERANCES[torch.float32])


def _muon_is_right() -> bool:
    if not multiplies_tiles():  # Then it is torch's.
        return True
    found, expected = (
        _stepped(lambda weights, kind=kind: kind(weights, adjust_lr_fn="match_rms_adamw"))  # type: ignore[misc]
        for kind in (NativeMuon, torch.optim.Muon)
    )
    return _are_near(found, expected, 2 * TOLERANCES[torch.bfloat16])  # Both are rounded.


def _stepped(new: Callable[[list[Tensor]], torch.optim.Optimizer]) -> list[Tensor]:
    """Return weights that were 0, after two steps of a new optimizer."""
    numbers = torch.Generator().manual_seed(0)
    weights = [torch.zeros(shape, requires_grad=True) for shape in ((64, 100), (100, 64))]
    optimizer = new(weights)
    for _ in range(2):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=numbers)
        optimizer.step()
    return [weight.detach() for weight in weights]


def _are_near(found: Iterable[Tensor], expected: Iterable[Tensor], tolerance: float) -> bool:
    """Return whether the error of each is at most `tolerance` of what is expected."""
    return all(
        bool((one - other).norm() <= tolerance * other.norm())
        for one, other in zip(found, expected, strict=True)
    )


_COMPARISONS: dict[str, Callable[[], bool]] = {
    "adamw": _adamw_is_right,
    "attention": _attention_is_right,
    "forward": _next_tokens_are_right,
    "layer": _layers_are_right,
    "loss": _loss_is_right,
    "muon": _muon_is_right,
    "product": _products_are_right,
}
"""By the names of what there is to compile."""
