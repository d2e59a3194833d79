from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel

from gptcli.config.schema import RuntimeSettings
from gptcli.data.batches import IGNORED, Batch, TrainingBatches
from gptcli.tasks.language_modelling import LanguageModelling
from gptcli.training.device import choose_compute
from gptcli.training.loop import accumulate_gradients
from tests.token_stores import END_OF_TEXT_ID, numbered_documents, write_store

# One less than the model's: Hugging Face's way of giving labels needs one more token.
CONTEXT_LENGTH = 31
BATCH_SIZE = 5
FP32 = choose_compute(RuntimeSettings(device="cpu", precision="fp32"), for_training=True)


def one_epoch_in_a_batch(folder: Path, lengths: list[int]) -> tuple[LanguageModelling, Batch]:
    batches = TrainingBatches(
        write_store(folder, numbered_documents(lengths)),
        context_length=CONTEXT_LENGTH,
        batch_size=BATCH_SIZE,
        seed=1,
    )
    assert batches.sequences_per_epoch == BATCH_SIZE
    task = LanguageModelling(batches, FP32)
    return task, task.batch(0)


def loss_and_gradients_of_hugging_face(
    model: GPT2LMHeadModel, batch: Batch
) -> tuple[float, dict[str, torch.Tensor]]:
    labels = torch.from_numpy(batch.targets)
    first = torch.from_numpy(batch.input_ids[:, :1])
    labels = torch.cat([first, labels], dim=1)
    input_ids = labels.masked_fill(labels == IGNORED, END_OF_TEXT_ID)
    model = copy.deepcopy(model)
    loss = model(input_ids=input_ids, labels=labels).loss
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters()}


# 155 tokens fill five sequences, end-of-text included; 140 leave the last one 16 of 31.
@pytest.mark.parametrize("lengths", [[50, 60, 42], [50, 60, 27]], ids=["full", "last padded"])
@pytest.mark.parametrize("micro_batch_size", [5, 1, 2])
def test_loss_and_gradients_equal_those_of_hugging_face(
    tmp_path: Path, model: GPT2LMHeadModel, lengths: list[int], micro_batch_size: int
) -> None:
    task, batch = one_epoch_in_a_batch(tmp_path, lengths)
    assert (batch.targets == IGNORED).sum() == 155 - sum(lengths) - 3
    expected_loss, expected = loss_and_gradients_of_hugging_face(model, batch)

    loss = accumulate_gradients(model, task, batch, micro_batch_size, FP32)

    assert loss == pytest.approx(expected_loss, abs=1e-5)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-5, msg=name)


def test_end_of_text_is_scored_and_padding_is_not(tmp_path: Path, model: GPT2LMHeadModel) -> None:
    task, batch = one_epoch_in_a_batch(tmp_path, [50, 60, 27])
    assert (batch.targets == END_OF_TEXT_ID).sum() == 3
    assert batch.token_count == 140

    summed = task.summed_loss(model, batch).item()
    row, column = (int(index[0]) for index in (batch.targets == END_OF_TEXT_ID).nonzero())
    log_probabilities = model(torch.from_numpy(batch.input_ids[row : row + 1])).logits.log_softmax(-1)
    of_end_of_text = -log_probabilities[0, column, END_OF_TEXT_ID].item()
    without = Batch(batch.input_ids, batch.lengths, batch.targets.copy())
    without.targets[row, column] = IGNORED
    assert summed - task.summed_loss(model, without).item() == pytest.approx(of_end_of_text, abs=1e-3)

    other_padding = Batch(batch.input_ids.copy(), batch.lengths, batch.targets)
    other_padding.input_ids[batch.targets == IGNORED] = 7
    assert task.summed_loss(model, other_padding).item() == summed
