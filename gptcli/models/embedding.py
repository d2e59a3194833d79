"""The embedding of tokens in training on a CPU."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class AddingEmbedding(nn.Embedding):
    """An embedding whose backward pass adds its gradient to the weights' own, row by row.

    torch makes one for all words, most of it zeros, and adds it as a whole. GPT-2's head has the same
    weights and has given all of them a gradient by then.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return (..., width) of (...) tokens."""
        if not (torch.is_grad_enabled() and self.weight.requires_grad):
            return super().forward(input)
        # The weights are no input of it: autograd would wait for a gradient of theirs, to add it itself.
        anchor = torch.zeros((), requires_grad=True)
        embed: Any = _Embed.apply
        return cast(Tensor, embed(anchor, self, input))


class _Embed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, embedding: AddingEmbedding, tokens: Tensor) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.embedding = embedding
        return F.embedding(tokens, embedding.weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:
        (tokens,) = ctx.saved_tensors
        weight = ctx.embedding.weight
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        weight.grad.index_add_(0, tokens.flatten(), gradient.flatten(0, -2).to(weight.dtype))
        return None, None, None


def use_adding_embedding(model: Any) -> None:
    """Let a GPT-2 on a CPU learn its tokens' embedding in this way; the gradient stays the same."""
    embedding = model.transformer.wte
    if type(embedding) is nn.Embedding:
        embedding.__class__ = AddingEmbedding
