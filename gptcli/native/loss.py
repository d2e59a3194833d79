"""The loss of the head's scores on a CPU by compiled code (native/loss.cpp).

It reads and writes them once; torch's operators go over them, and over their logarithms in float32, a
dozen times.
"""

from __future__ import annotations

import ctypes
from ctypes import c_double, c_float, c_int64, c_void_p

import torch
from torch import Tensor

from gptcli.native.kernels import load_kernels

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


class _Slice(ctypes.Structure):
    _fields_ = (("scores", c_void_p), ("width", c_int64), ("stride", c_int64))


class NativeLoss:
    """Compiled code for scores of one type."""

    def __init__(self, kernels: ctypes.CDLL, dtype: torch.dtype) -> None:
        self._kernels, self._dtype = kernels, dtype

    @classmethod
    def of(cls, device: str, dtype: torch.dtype) -> NativeLoss | None:
        """Return it for scores of that type, or None where it is not for them or cannot be compiled."""
        kernels = load_kernels("loss") if device == "cpu" and dtype in _DTYPES else None
        return None if kernels is None else cls(kernels, dtype)

    def summed(
        self,
        slices: list[Tensor],
        chosen: Tensor,
        smoothing: float,
        *,
        is_learning: bool,
        factor: float = 1.0,
    ) -> Tensor:
        """Return the summed loss in nats, in float64.

        slices: (rows, some of the vocabulary) each, the scores, those of a row beside each other.
        chosen: (rows), the targets. is_learning: put the loss's gradient, times `factor`, in the place
        of the scores. The number of threads makes no difference. Raises IndexError for a target beyond
        the vocabulary.
        """
        rows, vocabulary = len(chosen), sum(scores.shape[1] for scores in slices)
        assert chosen.dtype == torch.int64
        assert all(
            (len(scores), scores.stride(1), scores.dtype) == (rows, 1, self._dtype) for scores in slices
        )
        if rows and not 0 <= int(chosen.min()) <= int(chosen.max()) < vocabulary:
            raise IndexError(f"a target is not in 0..{vocabulary - 1}")
        chosen = chosen.contiguous()
        losses = torch.empty(rows, dtype=torch.float64)
        threads = torch.get_num_threads()
        powers = torch.empty(threads, vocabulary) if is_learning else None
        function = getattr(self._kernels, f"gptcli_loss_{_DTYPES[self._dtype]}")
        function(
            (_Slice * len(slices))(
                *(_Slice(scores.data_ptr(), scores.shape[1], scores.stride(0)) for scores in slices)
            ),
            c_int64(len(slices)),
            c_void_p(chosen.data_ptr()),
            c_int64(rows),
            c_double(smoothing),
            c_void_p(None if powers is None else powers.data_ptr()),
            c_float(factor),
            c_void_p(losses.data_ptr()),
            threads,
        )
        return losses.sum()

    def add(self, numbers: Tensor, sums: Tensor) -> None:
        """Add numbers of the scores' type to sums of the same shape."""
        if (numbers.dtype, sums.dtype) == (torch.bfloat16, torch.float32) and (
            numbers.is_contiguous() and sums.is_contiguous()
        ):
            assert numbers.shape == sums.shape
            self._kernels.gptcli_add(
                c_void_p(numbers.data_ptr()),
                c_int64(numbers.numel()),
                c_void_p(sums.data_ptr()),
                torch.get_num_threads(),
            )
        else:
            sums.add_(numbers)
