"""How likely a model finds given next tokens: the head of GPT-2, where it is asked for and nowhere else.

The scores of the whole vocabulary are made for some rows at a time and thrown away at once: of each row
only its normalizer and the scores of the tokens asked about are kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gptcli.models.decoding_forward import head_weight
from gptcli.models.packed_linear import PackedLinear

# Rows whose scores over the whole vocabulary are in memory at once.
HEAD_ROWS = 128


class NextTokenHead:
    """log p(token | hidden state) in float32, whatever the model is in."""

    def __init__(self, model: Any, *, is_int8: bool = False) -> None:
        """model: a GPT2LMHeadModel. is_int8: scores by a matrix of bytes, of a model in float32."""
        self._weight = head_weight(model, model.lm_head.weight.dtype, is_int8=is_int8)
        self._logits = PackedLinear(self._weight, is_int8=is_int8)

    def log_probabilities(self, hidden: Tensor, rows: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-probability, in nats, of each token, and whether no other is likelier.

        hidden: (n, width), of the last layer norm. rows: (k,) in ascending order, the hidden state that
        each token is predicted from. tokens: (k,). Returns (k,) float32 and (k,) bool.
        """
        scores = torch.empty(len(tokens), device=hidden.device)
        is_likeliest = torch.empty(len(tokens), dtype=torch.bool, device=hidden.device)
        ends = torch.searchsorted(
            rows, torch.arange(HEAD_ROWS, len(hidden) + HEAD_ROWS, HEAD_ROWS).to(rows)
        )
        begin = 0
        for part, end in enumerate(ends.tolist()):
            first = part * HEAD_ROWS
            asked = slice(begin, end)
            scores[asked], is_likeliest[asked] = self._of_rows(
                hidden[first : first + HEAD_ROWS], rows[asked] - first, tokens[asked]
            )
            begin = end
        return scores, is_likeliest

    def _of_rows(self, hidden: Tensor, rows: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        logits = self._logits(hidden)
        chosen = logits[rows, tokens]
        top = logits.amax(1, keepdim=True)
        is_likeliest = chosen == top[rows, 0]
        if logits.dtype == torch.float32:
            return logits.log_softmax(1)[rows, tokens], is_likeliest
        # Sums in float32; what is rounded are the terms, up and down alike.
        normalizer = top.float()[:, 0] + logits.sub_(top).exp_().sum(1, dtype=torch.float32).log()
        # The token's own score again, not rounded.
        exact = (hidden[rows].float() * self._weight[tokens].float()).sum(1)
        return exact - normalizer[rows], is_likeliest
