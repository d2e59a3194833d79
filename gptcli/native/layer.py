"""A GPT-2's layer in training, and its gradients, by compiled code (native/layer.cpp)."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from ctypes import c_float, c_int64, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

from gptcli.native.kernels import check_memory, load_kernels
from gptcli.native.processor import multiplies_tiles
from gptcli.native.product import row_stride

# The sizes of a head and of the MLP are multiples of this.
_MULTIPLE = 32
# A thread's space for what passes make in between. Taken and freed by each, it would leave memory in
# pieces that are too small for what comes next: a quarter of the peak of a 124M model.
_kept = threading.local()


class _Norm(ctypes.Structure):
    _fields_ = tuple((name, c_void_p) for name in ("weight", "bias", "of_weight", "of_bias"))


class _Linear(ctypes.Structure):
    _fields_ = (*_Norm._fields_, ("inputs", c_int64), ("outputs", c_int64))


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, c_int64) for name in ("sequences", "tokens", "heads", "width", "inner")),
        ("epsilon", c_float),
        ("scale", c_float),
        ("ln_1", _Norm),
        ("attention_input", _Linear),
        ("attention_output", _Linear),
        ("ln_2", _Norm),
        ("mlp_input", _Linear),
        ("mlp_output", _Linear),
        *(
            (name, c_void_p)
            for name in (
                "inputs",
                "parts",
                "attended",
                "logarithms",
                "middle",
                "given",
                "outputs",
                "of_outputs",
                "of_inputs",
            )
        ),
        ("adds", c_int64),
    )


@dataclass(frozen=True)
class Sizes:
    """What a layer's weights do not say of it."""

    heads: int
    epsilon: float
    """Of both layer norms."""
    scale: float
    """Of the attention's scores."""


def is_there(heads: int, width: int, inner: int) -> bool:
    """Return whether there is compiled code for such layers, and it is faster on this processor."""
    suits = width % (_MULTIPLE * heads) == 0 and inner % _MULTIPLE == 0
    return suits and multiplies_tiles() and load_kernels("layer") is not None


def forward(inputs: Tensor, weights: Sequence[Tensor], sizes: Sizes) -> tuple[Tensor, Sequence[Tensor]]:
    """Return (sequences, tokens, width) outputs, and what the gradients are made with.

    inputs: as outputs, in float32. weights: the weight and the bias of the first layer norm, the
    attention's two matrices, the second layer norm and the MLP's two matrices, (inputs, outputs) each,
    all in float32. Products are made in bfloat16, all else in float32.
    """
    layer, kept = _described(inputs, weights, sizes)
    outputs = torch.empty_like(inputs)
    layer.outputs = outputs.data_ptr()
    _run("gptcli_layer_forward", layer)
    return outputs, kept


def backward(
    gradient: Tensor,
    inputs: Tensor,
    weights: Sequence[Tensor],
    sizes: Sizes,
    kept: Sequence[Tensor],
    of_weights: Sequence[Tensor],
    *,
    adds: bool,
) -> Tensor:
    """Return the gradient of inputs, and put those of weights into `of_weights`; adds: to what is there.

    All are in float32. gradient: of outputs. kept: what `forward` returned.
    """
    gradient = gradient.contiguous()
    of_inputs = torch.empty_like(inputs)
    layer, _ = _described(inputs, weights, sizes, of_weights, kept)
    layer.of_outputs, layer.of_inputs, layer.adds = gradient.data_ptr(), of_inputs.data_ptr(), adds
    _run("gptcli_layer_backward", layer)
    return of_inputs


def _described(
    inputs: Tensor,
    weights: Sequence[Tensor],
    sizes: Sizes,
    of_weights: Sequence[Tensor] = (),
    kept: Sequence[Tensor] = (),
) -> tuple[_Layer, Sequence[Tensor]]:
    """Return what compiled code is given, and tensors for what is kept for the backward pass."""
    exact = (inputs, *weights, *of_weights)
    assert all(part.dtype == torch.float32 and part.is_contiguous() for part in exact)
    sequences, tokens, width = inputs.shape
    rows, inner = sequences * tokens, weights[8].shape[1]
    norm = (width,)
    shapes = [norm, (width, 3 * width), (width, width), norm, (width, inner), (inner, width)]
    assert [weight.shape for weight in weights] == [
        size for shape in shapes for size in (shape, shape[-1:])
    ]
    if not kept:
        kept = [
            inputs.new_empty(rows, row_stride(3 * width), dtype=torch.bfloat16),
            inputs.new_empty(rows, row_stride(width), dtype=torch.bfloat16),
            inputs.new_empty(sequences, sizes.heads, tokens),
            torch.empty_like(inputs),
            inputs.new_empty(rows, row_stride(inner), dtype=torch.bfloat16),
        ]
    parts = []
    for i in range(0, len(weights), 2):
        both = [*weights[i : i + 2], *of_weights[i : i + 2]]
        addresses = [tensor.data_ptr() for tensor in both] + [None] * (4 - len(both))
        parts.append(
            _Norm(*addresses) if weights[i].ndim == 1 else _Linear(*addresses, *weights[i].shape)
        )
    layer = _Layer(
        sequences,
        tokens,
        sizes.heads,
        width,
        inner,
        sizes.epsilon,
        sizes.scale,
        *parts,
        inputs.data_ptr(),
        *(tensor.data_ptr() for tensor in kept),
    )
    return layer, kept


def _run(name: str, layer: _Layer) -> None:
    kernels = load_kernels("layer")
    assert kernels is not None
    function = getattr(kernels, name)
    function.restype = c_int64
    size = function(ctypes.byref(layer), None, 0)
    space = _space_of(size)
    check_memory(function(ctypes.byref(layer), c_void_p(space.data_ptr()), torch.get_num_threads()))


def _space_of(size: int) -> Tensor:
    space: Tensor | None = getattr(_kept, "space", None)
    if space is None or len(space) < size:
        _kept.space = space = None  # Before a larger one is taken.
        _kept.space = space = torch.empty(size, dtype=torch.uint8)
    return space
