"""The loss, the logits and the scores of classification."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2ForSequenceClassification, PreTrainedTokenizerFast

from gptcli.config.schema import ModelSettings, RuntimeSettings
from gptcli.data.batches import Batch
from gptcli.data.examples import Example, ExampleBatches, Examples
from gptcli.models.architecture import model_config, new_model
from gptcli.models.loading import set_labels
from gptcli.tasks.classification import (
    Classification,
    Targets,
    ThinnedBatches,
    class_logits,
    prefix_weights,
    text_ids,
    without_tokens,
)
from gptcli.training.device import choose_compute
from gptcli.training.loop import accumulate_gradients

FP32 = choose_compute(RuntimeSettings(device="cpu", precision="fp32"), for_training=True)
LABELS = ["bad", "fair", "good"]
LENGTHS = [3, 9, 5, 1, 7]
NewClassifier = Callable[[int], Any]


@pytest.fixture
def new_classifier(tokenizer: PreTrainedTokenizerFast, model_settings: ModelSettings) -> NewClassifier:
    def make(labels: int) -> Any:
        config = model_config(model_settings, tokenizer)
        set_labels(config, [f"label {n}" for n in range(labels)])
        return new_model(config, 0, GPT2ForSequenceClassification).eval()

    return make


def examples_with(targets: list[Any]) -> Examples:
    random = np.random.default_rng(0)
    return Examples(
        Example(random.integers(1, 299, size=length).tolist(), target, "")
        for length, target in zip(LENGTHS, targets, strict=True)
    )


def task_of(examples: Examples, targets: Targets, smoothing: float = 0.0) -> Classification:
    batches = ExampleBatches(examples, batch_size=len(examples), seed=0)
    return Classification(batches, examples, targets, FP32, smoothing)


def logits_one_by_one(model: Any, batch: Batch) -> torch.Tensor:
    """Return the logits of each sequence alone: without padding, there is nothing to get wrong."""
    rows = []
    for ids, length in zip(batch.input_ids, batch.lengths, strict=True):
        hidden = model.transformer(torch.from_numpy(ids[None, :length])).last_hidden_state
        rows.append(model.score(hidden[0, -1]))
    return torch.stack(rows)


def test_logits_of_a_batch_are_those_of_each_text_alone(new_classifier: NewClassifier) -> None:
    model = new_classifier(3)
    batch = examples_with([0, 1, 2, 0, 1]).batch(range(5))
    logits = class_logits(model, torch.from_numpy(batch.input_ids), torch.from_numpy(batch.lengths))
    torch.testing.assert_close(logits, logits_one_by_one(model, batch), rtol=0, atol=1e-5)


def test_logits_equal_those_of_hugging_face(new_classifier: NewClassifier) -> None:
    model = new_classifier(3)
    ids = examples_with([0, 1, 2, 0, 1]).batch(range(5))
    pad = model.config.pad_token_id
    assert pad not in [
        int(n) for row, k in zip(ids.input_ids, ids.lengths, strict=True) for n in row[:k]
    ]
    padded = torch.from_numpy(ids.input_ids.copy())
    for row, length in enumerate(ids.lengths):
        padded[row, length:] = pad
    expected = model(padded).logits
    logits = class_logits(model, torch.from_numpy(ids.input_ids), torch.from_numpy(ids.lengths))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_a_text_may_end_in_the_token_that_others_are_padded_with(
    new_classifier: NewClassifier,
) -> None:
    model = new_classifier(3)
    pad = model.config.pad_token_id
    examples = Examples([Example([5, pad, 7, pad], 0, ""), Example([5, pad, 7, pad, 9, 8], 0, "")])
    batch = examples.batch([0, 1])
    logits = class_logits(model, torch.from_numpy(batch.input_ids), torch.from_numpy(batch.lengths))
    torch.testing.assert_close(logits, logits_one_by_one(model, batch), rtol=0, atol=1e-5)
    # Its last token counts: without it, the logits are others.
    shorter = Examples([Example([5, pad, 7], 0, "")]).batch([0])
    assert not torch.allclose(logits[0], logits_one_by_one(model, shorter)[0], atol=1e-4)


WEIGHTS = np.array([0.5, 1.0, 3.0])
CLASSES = [0, 1, 2, 2, 1]
SETS = [np.array(row) for row in ([1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [1, 0, 0])]
NUMBERS = [0.5, -1.0, 2.0, 0.0, 3.5]


def expected_loss(kind: str, logits: torch.Tensor) -> torch.Tensor:
    """Return the mean loss as torch computes it for the whole batch."""
    classes = torch.tensor(CLASSES)
    sets = torch.tensor(np.array(SETS)).float()
    match kind:
        case "weighted":
            return F.cross_entropy(logits, classes, torch.tensor(WEIGHTS).float())
        case "smoothed":
            return F.cross_entropy(logits, classes, torch.tensor(WEIGHTS).float(), label_smoothing=0.1)
        case "multi-label":
            return F.binary_cross_entropy_with_logits(logits, sets)
        case "regression":
            return F.mse_loss(logits[:, 0], torch.tensor(NUMBERS))
    return F.cross_entropy(logits, classes)


KINDS: dict[str, tuple[Targets, list[Any], float]] = {
    "plain": (Targets("single-label", LABELS), CLASSES, 0.0),
    "weighted": (Targets("single-label", LABELS, WEIGHTS), CLASSES, 0.0),
    "smoothed": (Targets("single-label", LABELS, WEIGHTS), CLASSES, 0.1),
    "multi-label": (Targets("multi-label", LABELS), [row.astype(bool) for row in SETS], 0.0),
    "regression": (Targets("regression", ["stars"]), NUMBERS, 0.0),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("micro_batch_size", [5, 2, 1])
def test_loss_and_gradients_are_those_of_the_whole_batch_for_any_micro_batch(
    new_classifier: NewClassifier, kind: str, micro_batch_size: int
) -> None:
    targets, learnt, smoothing = KINDS[kind]
    model = new_classifier(len(targets.labels))
    task = task_of(examples_with(learnt), targets, smoothing)
    batch = examples_with(learnt).batch(range(5))
    reference = copy.deepcopy(model)
    expected = expected_loss(kind, logits_one_by_one(reference, batch))
    torch.autograd.backward(expected)

    loss = accumulate_gradients(model, task, batch, micro_batch_size, FP32)

    assert loss == pytest.approx(expected.item(), abs=1e-5)
    for (name, weight), other in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, other.grad, rtol=0, atol=1e-5, msg=name)


def test_the_beginnings_of_a_text_share_what_the_whole_text_leaves_them() -> None:
    weights = prefix_weights(torch.tensor([4, 1]), 5, 0.4)
    expected = torch.tensor([[0.1, 0.1, 0.1, 0.7, 0], [1, 0, 0, 0, 0]])
    torch.testing.assert_close(weights, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("micro_batch_size", [5, 2])
def test_prefix_loss_is_the_mean_loss_of_a_text_cut_after_each_of_its_tokens(
    new_classifier: NewClassifier, kind: str, micro_batch_size: int
) -> None:
    targets, learnt, smoothing = KINDS[kind]
    model = new_classifier(len(targets.labels))
    examples = examples_with(learnt)
    batch = examples.batch(range(5))
    plain = task_of(examples, targets, smoothing)
    reference = copy.deepcopy(model)

    def loss_of_beginnings(number: int) -> torch.Tensor:
        """Return the mean plain loss of the beginnings of one text."""
        losses = [
            plain.summed_loss(reference, Examples([Example(ids, learnt[number], "")]).batch([0]))
            for ids in (batch.input_ids[number, :end].tolist() for end in range(1, LENGTHS[number] + 1))
        ]
        return torch.stack(losses).mean()

    beginnings = torch.stack([loss_of_beginnings(number) for number in range(5)]).sum()
    expected = (0.3 * beginnings + 0.7 * plain.summed_loss(reference, batch)) / plain.target_weight(
        batch
    )
    torch.autograd.backward(expected)

    task = Classification(
        ExampleBatches(examples, batch_size=5, seed=0), examples, targets, FP32, smoothing, 0.3
    )
    loss = accumulate_gradients(model, task, batch, micro_batch_size, FP32)

    assert loss == pytest.approx(expected.item(), abs=1e-5)
    for (name, weight), other in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, other.grad, rtol=0, atol=1e-5, msg=name)


def test_an_evaluation_gives_the_plain_loss_and_scores(new_classifier: NewClassifier) -> None:
    model = new_classifier(3)
    examples = examples_with(CLASSES)
    evaluation = task_of(examples, Targets("single-label", LABELS, WEIGHTS), 0.1).evaluate(
        model, 2, lambda: None
    )
    assert evaluation is not None
    logits = logits_one_by_one(model, examples.batch(range(5)))
    predicted = logits.argmax(1).tolist()
    assert evaluation.scores["loss"] == pytest.approx(expected_loss("plain", logits).item(), abs=1e-5)
    right = sum(a == b for a, b in zip(predicted, CLASSES, strict=True))
    assert evaluation.scores["accuracy"] == pytest.approx(right / 5)
    confusion = [[0] * 3 for _ in range(3)]
    for true, guess in zip(CLASSES, predicted, strict=True):
        confusion[true][guess] += 1
    assert evaluation.details["confusion"] == confusion
    assert list(evaluation.details["per_label"]) == LABELS


def test_a_pair_has_end_of_text_between_and_an_empty_text_is_one_token(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    cat, dog = (tokenizer.encode(text) for text in ("The cat", "The dog"))
    end = tokenizer.eos_token_id
    assert text_ids(tokenizer, [("The cat", "The dog"), ("The cat", None), ("", None)]) == [
        [*cat, end, *dog],
        cat,
        [end],
    ]


def test_without_tokens_the_others_keep_their_order_and_a_text_its_first() -> None:
    batch = Batch(
        np.array([[5, 6, 7, 8], [9, 4, 0, 0], [3, 2, 1, 0]]),
        np.array([4, 2, 3]),
        np.array([0, 1, 2]),
        is_token_by_token=False,
    )
    left_out = np.array([[0, 1, 0, 1], [1, 1, 0, 0], [1, 0, 0, 0]], dtype=bool)
    thinned = without_tokens(batch, left_out)
    texts = [
        row[:length].tolist() for row, length in zip(thinned.input_ids, thinned.lengths, strict=True)
    ]
    assert texts == [[5, 7], [9], [2, 1]]
    assert thinned.input_ids.shape == (3, 2)
    assert thinned.targets.tolist() == [0, 1, 2]


END = 0


def batches_without(share: float, seed: int = 1) -> tuple[ExampleBatches, ThinnedBatches]:
    """Return batches of 8 texts of 100 tokens, an end-of-text in the middle, and the same thinned."""
    random = np.random.default_rng(0)
    texts = random.integers(1, 299, size=(8, 100))
    texts[:, 50] = END
    examples = Examples(Example(ids.tolist(), 0, "") for ids in texts)
    whole = ExampleBatches(examples, batch_size=8, seed=0)
    return whole, ThinnedBatches(whole, share, end_of_text_id=END, seed=seed)


def test_token_dropout_leaves_out_its_share_and_never_what_stands_between_a_pair() -> None:
    whole, thinned = batches_without(0.3)
    kept = 0
    for step in range(20):
        batch = thinned.batch(step)
        kept += batch.token_count - 8
        for before, after, length in zip(
            whole.batch(step).input_ids, batch.input_ids, batch.lengths, strict=True
        ):
            remaining = iter(before.tolist())
            assert all(token in remaining for token in after[:length].tolist()), "the order has changed"
            assert (after[:length] == END).sum() == 1
    # 15,840 tokens, each left out with probability 0.3: a standard error of 0.0036.
    assert 1 - kept / (20 * 8 * 99) == pytest.approx(0.3, abs=0.015)


def test_token_dropout_is_decided_by_seed_and_step_alone() -> None:
    _, thinned = batches_without(0.3)
    _, again = batches_without(0.3)
    _, other = batches_without(0.3, seed=2)
    later = again.batch(5)
    np.testing.assert_array_equal(thinned.batch(4).input_ids, again.batch(4).input_ids)
    np.testing.assert_array_equal(thinned.batch(5).input_ids, later.input_ids)
    # The same texts, in an order of their own in every epoch, without other tokens.
    rows = {tuple(row[:n]) for row, n in zip(later.input_ids.tolist(), later.lengths, strict=True)}
    for different in (thinned.batch(4), other.batch(5)):
        assert rows.isdisjoint(
            tuple(row[:n])
            for row, n in zip(different.input_ids.tolist(), different.lengths, strict=True)
        )
