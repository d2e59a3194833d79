"""A data module for `litgpt pretrain`: the tokens that the other sides read, in blocks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from litgpt.data import DataModule  # type: ignore[import-not-found]
from torch.utils.data import DataLoader


@dataclass
class TokenFile(DataModule):  # type: ignore[misc]
    """uint16 tokens of a file; its first blocks are also the validation data that litgpt wants."""

    path: Path
    batch_size: int = field(default=1, init=False, repr=False)
    length: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__init__()

    def connect(self, tokenizer: Any = None, batch_size: int = 1, max_seq_length: int = -1) -> None:
        self.batch_size = batch_size
        self.length = max_seq_length + 1  # The targets are one token further.

    def train_dataloader(self) -> Any:
        return DataLoader(self._blocks(), batch_size=self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self._blocks()[: 2 * self.batch_size], batch_size=self.batch_size)

    def _blocks(self) -> Any:
        ids = np.fromfile(self.path, dtype="<u2").astype(np.int32)
        return torch.from_numpy(ids[: len(ids) // self.length * self.length].reshape(-1, self.length))
