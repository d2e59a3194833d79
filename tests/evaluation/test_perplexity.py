from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import GPT2LMHeadModel

from gptcli.config.schema import RuntimeSettings
from gptcli.data.batches import TrainingBatches, evaluation_batches
from gptcli.data.token_store import TokenStore
from gptcli.evaluation.perplexity import TextScore, score_text
from gptcli.tasks.language_modelling import LanguageModelling
from gptcli.training.device import choose_compute
from tests.token_stores import END_OF_TEXT_ID, numbered_documents, write_store

CONTEXT_LENGTH = 31
COMPUTE = choose_compute(RuntimeSettings(device="cpu", precision="fp32"), for_training=True)
LENGTHS = [50, 3, 84]


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    """140 tokens in three documents: four sequences of 31 and one of 16."""
    return write_store(tmp_path, numbered_documents(LENGTHS))


def score(
    model: GPT2LMHeadModel, store: TokenStore, *, batch_size: int = 2, max_tokens: int | None = None
) -> TextScore:
    task = LanguageModelling(
        TrainingBatches(store, context_length=CONTEXT_LENGTH, batch_size=1, seed=0), COMPUTE
    )
    batches = evaluation_batches(
        store, context_length=CONTEXT_LENGTH, batch_size=batch_size, max_tokens=max_tokens
    )
    return score_text(model, task, batches, store.count.bytes, COMPUTE)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("max_tokens", [None, 70, 1])
def test_the_loss_equals_that_of_hugging_face_on_the_same_tokens(
    model: GPT2LMHeadModel, store: TokenStore, batch_size: int, max_tokens: int | None
) -> None:
    stream = [END_OF_TEXT_ID]
    for document in numbered_documents(LENGTHS):
        stream += [*document, END_OF_TEXT_ID]
    scored = max_tokens or 140
    total = 0.0
    with torch.no_grad():
        for begin in range(0, scored, CONTEXT_LENGTH):
            window = torch.tensor([stream[begin : min(begin + CONTEXT_LENGTH, scored) + 1]])
            total += model.eval()(window, labels=window).loss.item() * (window.shape[1] - 1)

    result = score(model, store, batch_size=batch_size, max_tokens=max_tokens)
    assert result.tokens == scored
    assert result.loss == pytest.approx(total / scored, abs=1e-5)


def test_a_model_that_knows_nothing_needs_log2_of_the_vocabulary_in_bits_a_token(
    model: GPT2LMHeadModel, store: TokenStore
) -> None:
    with torch.no_grad():
        model.get_input_embeddings().weight.zero_()  # It is the head's weight too: all logits are 0.
    result = score(model, store)
    bits_per_token = math.log2(model.config.vocab_size)
    assert result.loss / math.log(2) == pytest.approx(bits_per_token, rel=1e-6)
    assert result.perplexity == pytest.approx(model.config.vocab_size, rel=1e-5)
    # 140 tokens stand for 137 bytes: end-of-text has none.
    assert result.bits_per_byte == pytest.approx(bits_per_token * 140 / 137, rel=1e-6)


def test_perplexity_and_bits_per_byte_follow_from_the_loss() -> None:
    # Three bits a token, four tokens, six bytes.
    result = TextScore(loss=3 * math.log(2), tokens=4, bytes=6)
    assert result.perplexity == pytest.approx(8)
    assert result.bits_per_byte == pytest.approx(2)


def test_a_perplexity_beyond_a_float_is_infinite() -> None:
    assert TextScore(loss=1e4, tokens=1, bytes=1).perplexity == math.inf


def test_dropout_is_off_while_scoring(model: GPT2LMHeadModel, store: TokenStore) -> None:
    expected = score(model, store).loss
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    model.train()
    assert score(model, store).loss == expected
