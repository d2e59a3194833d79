"""What causal attention leaves out."""

from __future__ import annotations

import torch
from torch import Tensor


def later_keys(query: Tensor, count: int) -> Tensor:
    """Return (count, count): minus infinity where a column's token is later than the row's."""
    return query.new_full((count, count), -torch.inf).triu_(1)
