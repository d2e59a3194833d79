"""Products of large matrices in bfloat16 by compiled code (native/product.cpp).

It is for processors that multiply small matrices (AMX), whose caches' speed torch's own products leave
unused, above all where a matrix is read across its rows, as for the gradients of weights.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int64, c_void_p

import torch
from torch import Tensor

from gptcli.native.kernels import load_kernels
from gptcli.native.processor import multiplies_tiles

# What rows and lengths are padded to where matrices are laid out.
_MULTIPLE = 32
_DTYPES = (torch.bfloat16, torch.float32)


class _Matrix(ctypes.Structure):
    _fields_ = (
        ("numbers", c_void_p),
        ("rows", c_int64),
        ("row_stride", c_int64),
        ("stride", c_int64),
        ("is_float", c_int64),
        ("slabs", c_void_p),
    )


class _Product(ctypes.Structure):
    _fields_ = (
        ("left", _Matrix),
        ("right", _Matrix),
        ("length", c_int64),
        ("outputs", c_void_p),
        ("output_stride", c_int64),
        ("is_float", c_int64),
        ("adds", c_int64),
        ("bias", c_void_p),
        ("right_totals", c_void_p),
    )


# Compilers of torch take the answer as it is, and do not look into how it is found.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_faster() -> bool:
    """Return whether there is compiled code, and this processor is one that it is for."""
    return multiplies_tiles() and load_kernels("product") is not None


def multiply(
    left: Tensor,
    right: Tensor,
    outputs: Tensor,
    *,
    bias: Tensor | None = None,
    adds: bool = False,
    right_totals: Tensor | None = None,
) -> None:
    """Put the product, plus the bias, into `outputs`; adds: to what is there.

    left: (n, length). right: (length, m). outputs: (n, m). All in bfloat16 or float32, which is rounded
    to bfloat16 before it is multiplied; sums are in float32. bias: (m), in float32. right_totals: (m),
    in float32, is given the sums along the length of the right matrix, rounded as it is multiplied. How
    many threads there are changes nothing.
    """
    kernels = load_kernels("product")
    assert kernels is not None
    (n, length), m = left.shape, right.shape[1]
    assert len(right) == length and outputs.shape == (n, m) and outputs.stride(1) == 1
    assert all(matrix.dtype in _DTYPES for matrix in (left, right, outputs))
    assert all(
        numbers is None or (numbers.shape == (m,) and numbers.dtype == torch.float32)
        for numbers in (bias, right_totals)
    )
    if not outputs.numel():
        return
    left, right = _lying_together(left), _lying_together(right)
    bias = None if bias is None else bias.contiguous()
    padded_length = _padded(length)
    slabs = left.new_empty((_padded(n) + _padded(m)) * padded_length, dtype=torch.bfloat16)
    right_slabs = slabs[_padded(n) * padded_length :]
    product = _Product(
        _matrix(left, slabs),
        _matrix(right.T, right_slabs),
        length,
        outputs.data_ptr(),
        outputs.stride(0),
        outputs.dtype == torch.float32,
        adds,
        None if bias is None else bias.data_ptr(),
        None if right_totals is None else right_totals.data_ptr(),
    )
    kernels.gptcli_product(ctypes.byref(product), torch.get_num_threads())


def _padded(count: int) -> int:
    return -(-count // _MULTIPLE) * _MULTIPLE


def _lying_together(matrix: Tensor) -> Tensor:
    return matrix if 1 in matrix.stride() else matrix.contiguous()


def _matrix(matrix: Tensor, slabs: Tensor) -> _Matrix:
    """matrix: (rows, length)."""
    return _Matrix(
        matrix.data_ptr(), len(matrix), *matrix.stride(), matrix.dtype == torch.float32, slabs.data_ptr()
    )
