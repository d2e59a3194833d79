"""Causal attention in bfloat16 and its gradients by compiled code (native/attention.cpp)."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int64, c_void_p

import torch
from torch import Tensor

from gptcli.native.kernels import check_memory, load_kernels

# Of a head's size.
_MULTIPLE = 32


class _Part(ctypes.Structure):
    _fields_ = (
        ("start", c_void_p),
        ("sequence_stride", c_int64),
        ("head_stride", c_int64),
        ("token_stride", c_int64),
    )


class _Attention(ctypes.Structure):
    _fields_ = (
        ("query", _Part),
        ("key", _Part),
        ("value", _Part),
        ("attended", _Part),
        ("of_attended", _Part),
        ("of_query", _Part),
        ("of_key", _Part),
        ("of_value", _Part),
        ("logarithms", c_void_p),
        ("sequences", c_int64),
        ("heads", c_int64),
        ("tokens", c_int64),
        ("size", c_int64),
        ("scale", c_float),
    )


def suits(query: Tensor, dropout: float) -> bool:
    """Return whether there is compiled code for queries (batch, heads, tokens, width) like these."""
    is_for_these = query.dtype == torch.bfloat16 and query.shape[-1] % _MULTIPLE == 0
    return is_for_these and not dropout and _has_kernel()


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return (batch, tokens, heads, width) attended values, and what the gradients are made with.

    query, key, value: (batch, heads, tokens, width). The second is (batch, heads, tokens) in float32:
    to the base 2, the logarithm of the sum of the powers of e of a query's scores.
    """
    batch, heads, tokens, width = query.shape
    attended = query.new_empty(batch, tokens, heads, width)
    logarithms = query.new_empty(batch, heads, tokens, dtype=torch.float32)
    query, key, value = map(_with_whole_rows, (query, key, value))
    arguments = _arguments(
        logarithms, scale, query=query, key=key, value=value, attended=attended.transpose(1, 2)
    )
    check_memory(_kernel().gptcli_attend(ctypes.byref(arguments), torch.get_num_threads()))
    return attended, logarithms


def attend_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attended: Tensor,
    logarithms: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value.

    gradient: of attended, (batch, tokens, heads, width) both. The others as in `attend`.
    """
    query, key, value, gradient, attended = map(
        _with_whole_rows, (query, key, value, gradient.transpose(1, 2), attended.transpose(1, 2))
    )
    of_query, of_key, of_value = (
        torch.empty_like(part, memory_format=torch.contiguous_format) for part in (query, key, value)
    )
    arguments = _arguments(
        logarithms,
        scale,
        query=query,
        key=key,
        value=value,
        attended=attended,
        of_attended=gradient,
        of_query=of_query,
        of_key=of_key,
        of_value=of_value,
    )
    check_memory(_kernel().gptcli_attend_backward(ctypes.byref(arguments), torch.get_num_threads()))
    return of_query, of_key, of_value


# Compilers of torch take the answer as it is, and do not look into how it is found.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _has_kernel() -> bool:
    return load_kernels("attention") is not None


def _kernel() -> ctypes.CDLL:
    kernel = load_kernels("attention")
    assert kernel is not None
    return kernel


def _with_whole_rows(part: Tensor) -> Tensor:
    return part if part.stride(-1) == 1 else part.contiguous()


def _arguments(logarithms: Tensor, scale: float, **parts: Tensor) -> _Attention:
    """Return what compiled code is given, of tensors that the caller keeps.

    parts: (batch, heads, tokens, width) each, by their names there.
    """
    sequences, heads, tokens, size = parts["query"].shape
    return _Attention(
        **{name: _Part(part.data_ptr(), *part.stride()[:3]) for name, part in parts.items()},
        logarithms=logarithms.data_ptr(),
        sequences=sequences,
        heads=heads,
        tokens=tokens,
        size=size,
        scale=scale,
    )
