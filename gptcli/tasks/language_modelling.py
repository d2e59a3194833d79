"""Language modelling: predict the next token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gptcli.data.batches import Batch, TrainingBatches
from gptcli.training.loss import summed_cross_entropy


class LanguageModelling:
    """The task of pretraining. Every token of the text is predicted from those before it."""

    def __init__(self, batches: TrainingBatches, device: torch.device) -> None:
        self._batches = batches
        self._device = device

    def batch(self, step: int) -> Batch:
        return self._batches.batch(step)

    def summed_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        input_ids = torch.from_numpy(batch.input_ids).to(self._device, non_blocking=True)
        targets = torch.from_numpy(batch.targets).to(self._device, non_blocking=True)
        # No attention mask: padding is on the right, where causal attention never looks, and a mask
        # would leave the fast attention path.
        logits = model(input_ids=input_ids, use_cache=False).logits
        return summed_cross_entropy(logits, targets)
