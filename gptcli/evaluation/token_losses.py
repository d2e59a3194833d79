"""The loss of given targets, example by example."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch

from gptcli.data.batches import IGNORED, Batch
from gptcli.data.examples import Examples
from gptcli.evaluation.bootstrap import Measured
from gptcli.evaluation.next_token import NextTokenHead
from gptcli.evaluation.sliding_window import BYTES, CHARACTERS, METRICS, NATS, TOKENS
from gptcli.models.loading import LoadedModel
from gptcli.training.device import Compute


@torch.inference_mode()
def measure_targets(
    loaded: LoadedModel,
    compute: Compute,
    examples: Examples,
    batches: Iterable[tuple[np.ndarray, Batch]],
    progress: Callable[[int], None] = lambda done: None,
) -> Measured:
    """Return what was measured of each example's targets; bytes are those of the text they stand for.

    batches: of `evaluation_batches`, with the numbers of their examples.
    """
    head = NextTokenHead(loaded.model)
    sums = np.zeros((len(examples), 4))
    done = 0
    for numbers, batch in batches:
        hidden = loaded.model.transformer(
            input_ids=torch.from_numpy(batch.input_ids).to(compute.device), use_cache=False
        ).last_hidden_state
        for row, number in enumerate(numbers):
            places = np.flatnonzero(batch.targets[row] != IGNORED)
            targets = batch.targets[row][places]
            log_probabilities, _ = head.log_probabilities(
                hidden[row][torch.from_numpy(places).to(compute.device)],
                torch.arange(len(places), device=compute.device),
                torch.from_numpy(targets).to(compute.device),
            )
            text = str(
                loaded.tokenizer.decode(
                    targets.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False
                )
            )
            sums[number, NATS] = -log_probabilities.double().sum().item()
            sums[number, TOKENS] = len(places)
            sums[number, BYTES] = len(text.encode())
            sums[number, CHARACTERS] = len(text)
        done += len(numbers)
        progress(done)
    return Measured(sums, METRICS, "conversations")
