"""GPT-2's layers and head for a few new tokens, in one call of compiled code (native/forward.cpp).

torch's operators are for many rows. For one token, a layer is some twenty calls that have little to do,
between which weights push their code and numbers out of the caches. Compiled code for all layers reads
the weights once, in order; sums, norms and attention are in float32.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_float, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor, nn

from gptcli.models.int8_matrix import to_bytes
from gptcli.native.kernels import check_memory

# Outputs of a tile, as in native/forward.cpp.
_TILE = 64


class _Matrix(ctypes.Structure):
    _fields_ = (
        ("tiles", c_void_p),
        ("bias", c_void_p),
        ("scales", c_void_p),
        ("sums", c_void_p),
        ("outputs", c_int64),
        ("inputs", c_int64),
    )


class _Norm(ctypes.Structure):
    _fields_ = (("weight", c_void_p), ("bias", c_void_p))


class _Layer(ctypes.Structure):
    _fields_ = (
        ("ln_1", _Norm),
        ("attention_input", _Matrix),
        ("attention_output", _Matrix),
        ("ln_2", _Norm),
        ("mlp_input", _Matrix),
        ("mlp_output", _Matrix),
        ("scale", c_float),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        ("layers", POINTER(_Layer)),
        ("ln_f", _Norm),
        ("layer_count", c_int64),
        ("width", c_int64),
        ("inner", c_int64),
        ("heads", c_int64),
        ("has_tanh", c_int64),
        ("epsilon", c_float),
    )


class _Tokens(ctypes.Structure):
    _fields_ = (
        ("count", c_int64),
        ("rows", c_void_p),
        ("positions", c_void_p),
        ("keys_and_values", c_void_p),
        ("layer_stride", c_int64),
        ("value_stride", c_int64),
        ("row_stride", c_int64),
        ("head_stride", c_int64),
    )


class NativeForward:
    """A GPT2LMHeadModel laid out for compiled code."""

    dtype, kept_dtype = torch.float32, torch.bfloat16
    """Of what goes in and comes out; of keys and values."""

    def __init__(self, kernel: ctypes.CDLL, model: Any, head: Tensor, *, is_int8: bool) -> None:
        """head: (vocabulary, width). is_int8: weights as bytes; else as bfloat16."""
        self._kernel, self._is_int8 = kernel, is_int8
        # What addresses point to, which nothing else keeps.
        self._kept: list[Any] = []
        # First: what is freed after it, the largest matrix by far, is enough to make the others in.
        self._head = self._matrix(head, None)
        transformer = model.transformer
        blocks = transformer.h
        layers = (_Layer * len(blocks))(*map(self._layer, blocks))
        self._kept.append(layers)
        self._model = _Model(
            layers=layers,
            ln_f=self._norm(transformer.ln_f),
            layer_count=len(blocks),
            width=model.config.n_embd,
            inner=blocks[0].mlp.c_fc.weight.shape[1],
            heads=model.config.n_head,
            has_tanh=blocks[0].mlp.act.approximate == "tanh",
            epsilon=transformer.ln_f.eps,
        )

    @staticmethod
    def suits(model: Any) -> bool:
        """Return whether the compiled code is for this GPT2LMHeadModel."""
        mlp, width = model.transformer.h[0].mlp, model.config.n_embd
        inner = mlp.c_fc.weight.shape[1]
        is_whole = width % _TILE == inner % _TILE == 0 == width // model.config.n_head % (_TILE // 2)
        return is_whole and isinstance(mlp.act, nn.GELU)

    def hidden_states(
        self, embedded: Tensor, lengths: Sequence[int], starts: Sequence[int], parts: Tensor
    ) -> Tensor:
        """Return (n, width), behind the last layer norm, of the new tokens of the first rows.

        embedded: the same, of type `dtype`. lengths: how many tokens each row has. starts: the place of
        each row's first one. parts: keys and values (layers, 2, rows, heads, capacity, size), of type
        `kept_dtype`, to which those of the new tokens are added.
        """
        assert (embedded.dtype, parts.dtype) == (self.dtype, self.kept_dtype) and parts.is_contiguous()
        rows: list[int] = []
        positions: list[int] = []
        for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            assert row < parts.shape[2] and start + length <= parts.shape[4]
            rows += [row] * length
            positions += range(start, start + length)
        hidden = embedded.contiguous()
        numbers = (c_int64 * (2 * len(rows)))(*rows, *positions)
        of_rows = ctypes.addressof(numbers)
        of_tokens = _Tokens(
            len(rows),
            of_rows,
            of_rows + ctypes.sizeof(numbers) // 2,
            parts.data_ptr(),
            *parts.stride()[:4],
        )
        check_memory(
            self._kernel.gptcli_forward(
                ctypes.byref(self._model),
                ctypes.byref(of_tokens),
                c_void_p(hidden.data_ptr()),
                torch.get_num_threads(),
            )
        )
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Return (n, vocabulary) of (n, width), both of type `dtype`."""
        assert hidden.dtype == self.dtype
        hidden = hidden.contiguous()
        outputs = hidden.new_empty(len(hidden), self._head.outputs)
        check_memory(
            self._kernel.gptcli_multiply(
                ctypes.byref(self._head),
                c_void_p(hidden.data_ptr()),
                c_int64(len(hidden)),
                c_void_p(outputs.data_ptr()),
                torch.get_num_threads(),
            )
        )
        return outputs

    def _layer(self, block: Any) -> _Layer:
        def matrix(module: Any) -> _Matrix:
            # GPT-2's weights are (inputs, outputs).
            return self._matrix(module.weight.detach().t(), module.bias)

        return _Layer(
            ln_1=self._norm(block.ln_1),
            attention_input=matrix(block.attn.c_attn),
            attention_output=matrix(block.attn.c_proj),
            ln_2=self._norm(block.ln_2),
            mlp_input=matrix(block.mlp.c_fc),
            mlp_output=matrix(block.mlp.c_proj),
            scale=block.attn.scaling,
        )

    def _norm(self, module: nn.LayerNorm) -> _Norm:
        weight, bias = (part.detach().float().contiguous() for part in (module.weight, module.bias))
        return _Norm(self._keep(weight), self._keep(bias))

    def _matrix(self, weight: Tensor, bias: Tensor | None) -> _Matrix:
        scales = sums = None
        if self._is_int8:
            weight, scales = to_bytes(weight)
            sums = weight.sum(1, dtype=torch.int32)
        outputs, inputs = weight.shape
        return _Matrix(
            tiles=self._keep(_in_tiles(weight if self._is_int8 else weight.to(torch.bfloat16))),
            bias=None if bias is None else self._keep(_padded(bias.detach().float())),
            scales=None if scales is None else self._keep(_padded(scales)),
            sums=None if sums is None else self._keep(_padded(sums)),
            outputs=outputs,
            inputs=inputs,
        )

    def _keep(self, tensor: Tensor) -> int:
        self._kept.append(tensor)
        return tensor.data_ptr()


def _in_tiles(weight: Tensor) -> Tensor:
    """Return (tiles, inputs / 2 or 4, 64 outputs) words of a matrix (outputs, inputs)."""
    words = _padded(weight).view(torch.int32)
    words = words.view(-1, 4, 16, words.shape[1] // 16, 16)
    return words.permute(0, 3, 1, 4, 2).contiguous()


def _padded(outputs: Tensor) -> Tensor:
    """Return the same with zeros behind, up to the end of a tile."""
    padded = outputs.new_zeros(-(-len(outputs) // _TILE) * _TILE, *outputs.shape[1:])
    padded[: len(outputs)] = outputs
    return padded
