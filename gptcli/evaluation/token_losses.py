"""The loss of given targets, example by example."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from gptcli.data.batches import IGNORED
from gptcli.data.examples import Examples, evaluation_batches
from gptcli.data.token_budget import TokenBudget
from gptcli.evaluation.bootstrap import Measured
from gptcli.evaluation.next_token import NextTokenHead
from gptcli.evaluation.sliding_window import BYTES, CHARACTERS, METRICS, NATS, TOKENS
from gptcli.models.loading import LoadedModel
from gptcli.models.scoring_forward import ScoringForward
from gptcli.training.device import Compute


@torch.inference_mode()
def measure_targets(
    loaded: LoadedModel,
    compute: Compute,
    examples: Examples,
    progress: Callable[[int], None] = lambda done: None,
) -> Measured:
    """Return what was measured of each example's targets; bytes are those of the text they stand for."""
    forward = ScoringForward(loaded.model, is_int8=compute.is_int8)
    head = NextTokenHead(loaded.model, is_int8=compute.is_int8)
    device = compute.device
    budget = TokenBudget.of_device(device.type, examples.longest)
    sums = np.zeros((len(examples), 4))
    done = 0
    for numbers, batch in evaluation_batches(examples, budget.tokens):
        is_target = batch.targets != IGNORED
        targets = batch.targets[is_target]
        hidden = forward.hidden_states(
            torch.from_numpy(batch.input_ids).to(device),
            torch.from_numpy(np.flatnonzero(is_target)).to(device),
        )
        log_probabilities, _ = head.log_probabilities(
            hidden,
            torch.arange(len(targets), device=device),
            torch.from_numpy(targets).to(device),
        )
        ends = is_target.sum(1).cumsum()[:-1]
        nats_of = np.split(log_probabilities.double().cpu().numpy(), ends)
        for number, nats, ids in zip(numbers, nats_of, np.split(targets, ends), strict=True):
            text = str(
                loaded.tokenizer.decode(
                    ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False
                )
            )
            sums[number, NATS] = -nats.sum()
            sums[number, TOKENS] = len(ids)
            sums[number, BYTES] = len(text.encode())
            sums[number, CHARACTERS] = len(text)
        done += len(numbers)
        progress(done)
    return Measured(sums, METRICS, "conversations")
