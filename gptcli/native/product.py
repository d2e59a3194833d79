"""Products of large matrices in bfloat16 by compiled code (native/product.cpp).

It is for processors that multiply small matrices (AMX), whose caches' speed torch's own products leave
unused, above all where a matrix is read across its rows, as for the gradients of weights.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int64, c_void_p

import torch
from torch import Tensor

from gptcli.native.kernels import check_memory, load_kernels
from gptcli.native.processor import multiplies_tiles

# Below, what a call takes is more than what it saves.
LEAST_WEIGHTS = 2**17
# What rows and lengths are padded to where matrices are laid out.
_MULTIPLE = 32
# Of numbers, as native/product.cpp counts them; 2 is what is given to GPT-2's activation function.
_FORMATS = {torch.bfloat16: 0, torch.float32: 1}
_ACTIVATED = 2


class _Matrix(ctypes.Structure):
    _fields_ = (
        ("numbers", c_void_p),
        ("rows", c_int64),
        ("row_stride", c_int64),
        ("stride", c_int64),
        ("format", c_int64),
        ("slabs", c_void_p),
    )


class _Product(ctypes.Structure):
    _fields_ = (
        ("left", _Matrix),
        ("right", _Matrix),
        ("length", c_int64),
        ("outputs", c_void_p),
        ("output_stride", c_int64),
        ("format", c_int64),
        ("adds", c_int64),
        ("bias", c_void_p),
        ("right_totals", c_void_p),
        ("slopes_at", c_void_p),
        ("added", c_void_p),
        ("residual", c_void_p),
        ("activated", c_void_p),
        ("scale", c_float),
        ("added_scale", c_float),
        ("is_symmetric", c_int64),
        ("outputs_stay", c_int64),
    )


def is_faster(weights: int) -> bool:
    """Return whether compiled code is there, and faster on this processor with a matrix of so many."""
    return weights >= LEAST_WEIGHTS and multiplies_tiles() and load_kernels("product") is not None


def multiply(
    left: Tensor,
    right: Tensor,
    outputs: Tensor,
    *,
    bias: Tensor | None = None,
    adds: bool = False,
    right_totals: Tensor | None = None,
    is_left_activated: bool = False,
    slopes_at: Tensor | None = None,
    scale: float = 1.0,
    added: Tensor | None = None,
    added_scale: float = 1.0,
    residual: Tensor | None = None,
    activated: Tensor | None = None,
    is_symmetric: bool = False,
) -> None:
    """Put the product, plus the bias, into `outputs`; adds: to what is there, also in right_totals.

    left: (n, length). right: (length, m). outputs: (n, m). All in bfloat16 or float32, which is rounded
    to bfloat16 before it is multiplied; sums are in float32. bias: (m), in float32. right_totals: (m),
    in float32, is given the sums along the length of the right matrix, rounded as it is multiplied. How
    many threads there are changes nothing.

    is_left_activated: what GPT-2's activation function (GELU by tanh) makes of the left matrix, in
    bfloat16, is multiplied. slopes_at: as outputs, all in bfloat16: outputs are multiplied with the
    function's slope there, before they are added.

    The product is multiplied by `scale`, and added_scale * added, (n, m) in bfloat16, is added to it. So
    is `residual`, (n, m) in float32. activated: as outputs, all in bfloat16, is given what the
    activation function makes of these.
    is_symmetric: that the outputs are, of which half is computed then.
    """
    kernels = load_kernels("product")
    assert kernels is not None
    (n, length), m = left.shape, right.shape[1]
    assert len(right) == length and outputs.shape == (n, m) and outputs.stride(1) == 1
    assert all(matrix.dtype in _FORMATS for matrix in (left, right, outputs))
    assert all(
        numbers is None or (numbers.shape == (m,) and numbers.dtype == torch.float32)
        for numbers in (bias, right_totals)
    )
    assert not is_left_activated or left.dtype == torch.bfloat16
    in_low, in_full = (slopes_at, added, activated), (residual,)
    for dtype, parts in ((torch.bfloat16, in_low), (torch.float32, in_full)):
        assert all(
            (part.shape, part.stride(), part.dtype) == (outputs.shape, outputs.stride(), dtype)
            for part in parts
            if part is not None
        )
    assert activated is None or outputs.dtype == torch.bfloat16
    assert not is_symmetric or n == m
    if not outputs.numel():
        assert right_totals is None
        return
    left, right = _lying_together(left), _lying_together(right)
    bias = None if bias is None else bias.contiguous()
    padded_length = _padded(length)
    slabs = left.new_empty((_padded(n) + _padded(m)) * padded_length, dtype=torch.bfloat16)
    right_slabs = slabs[_padded(n) * padded_length :]
    product = _Product(
        _matrix(left, slabs, _ACTIVATED if is_left_activated else _FORMATS[left.dtype]),
        _matrix(right.T, right_slabs, _FORMATS[right.dtype]),
        length,
        outputs.data_ptr(),
        outputs.stride(0),
        _FORMATS[outputs.dtype],
        adds,
        *(
            None if part is None else part.data_ptr()
            for part in (bias, right_totals, slopes_at, added, residual, activated)
        ),
        scale,
        added_scale,
        is_symmetric,
    )
    check_memory(kernels.gptcli_product(ctypes.byref(product), torch.get_num_threads()))


def row_stride(columns: int) -> int:
    """Return how far apart rows of bfloat16 lie best: at 2 KiB they share places of the first cache."""
    return columns if columns % 1024 else columns + _MULTIPLE


def _padded(count: int) -> int:
    return -(-count // _MULTIPLE) * _MULTIPLE


def _lying_together(matrix: Tensor) -> Tensor:
    return matrix if 1 in matrix.stride() else matrix.contiguous()


def _matrix(matrix: Tensor, slabs: Tensor, number_format: int) -> _Matrix:
    """matrix: (rows, length)."""
    return _Matrix(matrix.data_ptr(), len(matrix), *matrix.stride(), number_format, slabs.data_ptr())
