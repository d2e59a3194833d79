from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2TokenizerFast

from gptcli.config.schema import RuntimeSettings
from gptcli.data.documents import Piece
from gptcli.errors import DataError, ModelError
from gptcli.evaluation import sliding_window
from gptcli.evaluation.sliding_window import MeasuredText, TextScorer, WindowRules
from gptcli.models.loading import LoadedModel, load_model
from gptcli.training.device import choose_compute
from tests.conftest import SENTENCES

COMPUTE = choose_compute(RuntimeSettings(device="cpu", precision="fp32"), for_training=False)
DOCUMENTS = [
    Piece("".join(SENTENCES[:9]), True),
    Piece("Größe: 3 µm, 猫.", True),
    Piece(SENTENCES[5], True),
]


@pytest.fixture
def loaded(model_folder: Path) -> LoadedModel:
    loaded = load_model(str(model_folder), COMPUTE.device, torch.float32)
    with torch.no_grad():
        loaded.model.lm_head.weight.mul_(20)  # So that tokens differ by nats, as in a trained model.
    return loaded


def measure(
    loaded: LoadedModel,
    context_length: int = 32,
    stride: int = 10,
    separator: str | None = None,
    pieces: list[Piece] = DOCUMENTS,
) -> MeasuredText:
    rules = WindowRules(context_length, stride, separator)
    return TextScorer(loaded, COMPUTE, rules).measure(pieces)


def token_by_token(
    loaded: LoadedModel, stream: list[int], context_length: int, stride: int
) -> np.ndarray:
    """Return the nats of each token behind the first, a forward pass for each of them.

    Windows begin at 0, stride, 2 * stride, ...; a token is scored in the first one that has it.
    """
    nats = []
    for place in range(1, len(stream)):
        begin = 0
        while begin + context_length < place:
            begin += stride
        with torch.no_grad():
            logits = loaded.model(torch.tensor([stream[begin:place]])).logits[0, -1]
        nats.append(-logits.double().log_softmax(0)[stream[place]].item())
    return np.array(nats)


def stream_of(loaded: LoadedModel, documents: list[Piece]) -> list[int]:
    """Return end-of-text and the documents' tokens, end-of-text behind each."""
    end = loaded.tokenizer.eos_token_id
    return [end] + [t for piece in documents for t in [*loaded.tokenizer.encode(piece.text), end]]


@pytest.mark.parametrize(("context_length", "stride"), [(32, 10), (32, 32), (32, 1), (7, 3), (2, 1)])
def test_perplexity_is_that_of_an_independent_computation_token_by_token(
    loaded: LoadedModel, context_length: int, stride: int
) -> None:
    result = measure(loaded, context_length, stride)
    expected = token_by_token(loaded, stream_of(loaded, DOCUMENTS), context_length, stride)
    assert result.tokens == len(expected)
    nats, tokens, _, _ = result.measured.items.sum(0)
    assert tokens == len(expected)
    assert math.exp(nats / tokens) == pytest.approx(math.exp(expected.mean()), rel=1e-4)


@pytest.mark.parametrize("windows_at_once", [1, 7, 32])
def test_the_score_does_not_depend_on_the_batch(
    loaded: LoadedModel, windows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = measure(loaded).measured.items
    monkeypatch.setitem(sliding_window.BATCH_TOKENS, "cpu", 32 * windows_at_once)
    np.testing.assert_allclose(measure(loaded).measured.items, expected, rtol=1e-6)


def test_a_document_in_pieces_is_scored_as_one(loaded: LoadedModel) -> None:
    pieces = [Piece(text, text == SENTENCES[8]) for text in SENTENCES[:9]]
    whole = measure(loaded, pieces=DOCUMENTS[:1])
    parts = measure(loaded, pieces=pieces)
    np.testing.assert_allclose(parts.measured.items, whole.measured.items, rtol=1e-6)


def test_bytes_and_characters_are_those_of_the_text(loaded: LoadedModel) -> None:
    result = measure(loaded)
    texts = [piece.text for piece in DOCUMENTS]
    assert result.bytes == sum(len(text.encode()) for text in texts)
    assert result.characters == sum(map(len, texts))
    assert result.documents == 3
    # A unit a document: 9 sentences are less than 4,096 bytes.
    assert result.measured.items[:, sliding_window.BYTES].tolist() == [len(t.encode()) for t in texts]


def test_a_long_document_is_measured_in_units_of_bytes(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sliding_window, "UNIT_BYTES", 100)
    result = measure(loaded, pieces=DOCUMENTS[:1])
    length = len(DOCUMENTS[0].text)
    sizes = result.measured.items[:, sliding_window.BYTES]
    assert sizes.tolist() == [100.0] * (length // 100) + [length % 100]
    # Units of another tokenizer begin at the same bytes; together they are the whole.
    assert result.measured.items[:, sliding_window.TOKENS].sum() == result.tokens


def test_bits_per_byte_follows_from_the_loss_tokens_and_bytes(loaded: LoadedModel) -> None:
    result = measure(loaded)
    scores = {
        metric.name: metric.of_sums(result.measured.items.sum(0, keepdims=True))[0]
        for metric in result.measured.metrics
    }
    bits = scores["loss"] * result.tokens / math.log(2)
    assert scores["bits_per_byte"] == pytest.approx(bits / result.bytes)
    assert scores["bits_per_character"] == pytest.approx(bits / result.characters)
    assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]))


def test_with_a_separator_documents_are_one_text_without_end_of_text(loaded: LoadedModel) -> None:
    joined = measure(loaded, separator="\n\n")
    text = "\n\n".join(piece.text for piece in DOCUMENTS)
    expected = token_by_token(
        loaded, [loaded.tokenizer.eos_token_id, *loaded.tokenizer.encode(text)], 32, 10
    )
    nats, tokens, size, _ = joined.measured.items.sum(0)
    assert (tokens, size) == (len(expected), len(text.encode()))
    assert nats == pytest.approx(expected.sum(), rel=1e-5)


def test_no_text_is_refused(loaded: LoadedModel) -> None:
    with pytest.raises(DataError, match="no text"):
        measure(loaded, pieces=[])


def test_a_model_whose_scores_are_not_finite_is_refused(loaded: LoadedModel) -> None:
    with torch.no_grad():
        loaded.model.transformer.ln_f.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        measure(loaded)


def test_units_of_two_tokenizers_hold_the_same_bytes(
    loaded: LoadedModel, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shared_data / "gpt2-tokenizer"
    tokenizer = GPT2TokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
    monkeypatch.setattr(sliding_window, "UNIT_BYTES", 64)
    other = LoadedModel(loaded.model, tokenizer, "other")
    monkeypatch.setattr(LoadedModel, "check_token", lambda *_: None)
    units = []
    for one in (loaded, other):
        scorer = TextScorer(one, COMPUTE, WindowRules(32, 32))
        found = sliding_window._Units()
        list(scorer._stream(DOCUMENTS, found))
        units.append(found._sums[: found.current + 1, sliding_window.BYTES].tolist())
    assert units[0] == units[1]
