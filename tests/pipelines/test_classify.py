"""Probabilities of labels, against transformers one text at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
)

from gptcli.config.schema import ModelSettings, RuntimeSettings
from gptcli.data import token_budget
from gptcli.data.input_rows import InputText
from gptcli.errors import ConfigError, ModelError
from gptcli.evaluation.label_likelihood import LabelLikelihood
from gptcli.models.architecture import model_config, new_model
from gptcli.models.loading import set_labels
from gptcli.models.saving import save_model
from gptcli.pipelines.classify import Classifier, Columns, Prediction

FP32 = RuntimeSettings(device="cpu", precision="fp32")
END = "<|endoftext|>"  # Also what others are padded with.
TEXTS = [
    "The cat",
    f"The cat{END}",
    "The small dog sat on the roof, and it was happy.",
    f"{END}a{END}{END}",
    "深圳",
    "x",
    "The old owl sat on the wall",
    "The large cat",
]
NewClassifier = Callable[..., Path]


@pytest.fixture
def new_classifier(
    tokenizer: PreTrainedTokenizerFast, model_settings: ModelSettings, tmp_path: Path
) -> NewClassifier:
    """Save a classifier with random weights that tell texts apart."""

    def make(labels: Sequence[str], problem_type: str | None = None, **changes: Any) -> Path:
        config = model_config(model_settings, tokenizer)
        for name, value in changes.items():
            setattr(config, name, value)
        set_labels(config, list(labels))
        config.problem_type = problem_type
        model = new_model(config, 1, GPT2ForSequenceClassification)
        with torch.no_grad():
            model.score.weight.mul_(40)
        save_model(model, tokenizer, tmp_path / "classifier")
        return tmp_path / "classifier"

    return make


def rows_of(texts: Sequence[str | tuple[str, str]]) -> list[InputText]:
    pairs = [(text, None) if isinstance(text, str) else text for text in texts]
    return [
        InputText(f"row {number}", {"text": text}, text, pair)
        for number, (text, pair) in enumerate(pairs, 1)
    ]


def predictions_of(classifier: Classifier, rows: Sequence[InputText]) -> list[Prediction]:
    return [item for items in classifier.predict(rows) for item in items]


def logits_of(folder: Path, text: str) -> torch.Tensor:
    """Return what transformers makes of one text without padding."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.config.pad_token_id = None  # Else an end-of-text at the end would be taken for padding.
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        logits: torch.Tensor = model(tokenizer(text, return_tensors="pt").input_ids).logits[0]
    return logits


@pytest.mark.parametrize("activation", ["gelu_pytorch_tanh", "gelu_new"])
def test_probabilities_are_those_of_hugging_face_one_by_one(
    new_classifier: NewClassifier, activation: str
) -> None:
    labels = ["bad", "fair", "good"]
    folder = new_classifier(labels, "single_label_classification", activation_function=activation)
    items = predictions_of(Classifier(str(folder), FP32), rows_of(TEXTS))
    assert [item.row.text for item in items] == TEXTS
    for item in items:
        expected = logits_of(folder, item.row.text).softmax(0)
        assert item.probabilities is not None
        found = torch.tensor([item.probabilities[label] for label in labels])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        assert item.labels == [labels[int(expected.argmax())]]
        assert list(item.probabilities.values()) == sorted(found.tolist(), reverse=True)
    assert len({item.labels[0] for item in items}) > 1  # Else the order would not show.


def test_a_text_gets_the_same_alone_and_among_others(
    new_classifier: NewClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(new_classifier(["a", "b", "c"]))
    rows = rows_of(TEXTS * 6)
    together = predictions_of(Classifier(folder, FP32), rows)
    monkeypatch.setitem(token_budget.BATCH_TOKENS, "cpu", 1)
    alone = predictions_of(Classifier(folder, FP32), rows)
    assert [item.row for item in together] == [item.row for item in alone] == rows
    for one, other in zip(together, alone, strict=True):
        assert one.labels == other.labels
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)


def test_several_labels_are_those_that_reach_the_threshold(new_classifier: NewClassifier) -> None:
    labels = ["toxic", "spam", "rude"]
    folder = new_classifier(labels, "multi_label_classification")
    for threshold in (None, 0.2, 0.9):
        classifier = Classifier(str(folder), FP32, threshold=threshold)
        for item in predictions_of(classifier, rows_of(TEXTS)):
            expected = logits_of(folder, item.row.text).sigmoid()
            assert item.probabilities == pytest.approx(
                dict(zip(labels, expected.tolist(), strict=True)), abs=1e-5
            )
            at_least = 0.5 if threshold is None else threshold
            assert item.labels == [
                label for label, p in zip(labels, expected, strict=True) if p >= at_least
            ]


@pytest.mark.parametrize("problem_type", ["regression", None])
def test_a_model_of_one_label_predicts_a_number(
    new_classifier: NewClassifier, problem_type: str | None
) -> None:
    folder = new_classifier(["stars"], problem_type)
    classifier = Classifier(str(folder), FP32)
    for item in predictions_of(classifier, rows_of(TEXTS)):
        assert item.number == pytest.approx(logits_of(folder, item.row.text).item(), abs=1e-4)
        assert (item.labels, item.probabilities) == ([], None)
    assert not classifier.counts.labels


def test_a_pair_has_end_of_text_between(new_classifier: NewClassifier) -> None:
    folder = new_classifier(["no", "yes"])
    (item,) = predictions_of(Classifier(str(folder), FP32), rows_of([("The cat", "The dog")]))
    expected = logits_of(folder, f"The cat{END}The dog").softmax(0)
    assert item.probabilities == pytest.approx(
        {"no": expected[0].item(), "yes": expected[1].item()}, abs=1e-5
    )


def test_of_a_text_that_is_too_long_the_front_counts(new_classifier: NewClassifier) -> None:
    folder = str(new_classifier(["a", "b"]))
    classifier = Classifier(folder, FP32)  # Its context is 32 tokens; a digit is one.
    fits, long = predictions_of(classifier, rows_of(["1" * 32, "1" * 32 + "2" * 40]))
    assert fits.probabilities == pytest.approx(long.probabilities, abs=1e-6)
    assert (classifier.counts.cut, classifier.counts.rows) == (1, 2)


def test_blank_rows_keep_their_place_and_have_no_label(new_classifier: NewClassifier) -> None:
    classifier = Classifier(str(new_classifier(["a", "b"])), FP32)
    items = predictions_of(classifier, rows_of(["", "The cat", "", ("The cat", ""), "x"]))
    assert [bool(item.labels) for item in items] == [False, True, False, False, True]
    assert [item.probabilities is None for item in items] == [True, False, True, True, False]
    assert (classifier.counts.rows, classifier.counts.blank) == (5, 3)
    assert classifier.counts.labels.total() == 2


def test_rows_are_read_no_further_than_the_next_pool(
    new_classifier: NewClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(token_budget.BATCH_TOKENS, "cpu", 64)
    classifier = Classifier(str(new_classifier(["a", "b"])), FP32)
    taken = []

    def rows() -> Any:
        for row in rows_of(["9" * 16] * 3000):  # A digit is a token.
            taken.append(row)
            yield row

    # 32 batches of 4 texts, in parts of 32; one pool in work, and one ahead.
    written = 0
    for items in classifier.predict(rows()):
        assert len(taken) - written <= 2 * 128
        written += len(items)
    assert written == 3000


def test_in_bfloat16_labels_are_those_of_float32_where_these_are_clear(
    new_classifier: NewClassifier,
) -> None:
    folder = str(new_classifier(["a", "b", "c"]))
    exact, rounded = (
        predictions_of(Classifier(folder, RuntimeSettings(device="cpu", precision=p)), rows_of(TEXTS))
        for p in ("fp32", "bf16")
    )
    for one, other in zip(exact, rounded, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=0.1)
        assert one.probabilities is not None
        first, second, *_ = one.probabilities.values()
        if first - second > 0.2:
            assert one.labels == other.labels


def test_two_labels_of_one_name_are_refused(new_classifier: NewClassifier) -> None:
    with pytest.raises(ModelError, match="two of its labels are called 'a'"):
        Classifier(str(new_classifier(["a", "a"])), FP32)


def test_weights_that_are_not_finite_are_named(new_classifier: NewClassifier) -> None:
    classifier = Classifier(str(new_classifier(["a", "b"])), FP32)
    with torch.no_grad():
        classifier._loaded.model.transformer.ln_f.bias.fill_(torch.inf)
    with pytest.raises(ModelError, match="not finite"):
        predictions_of(classifier, rows_of(["x"]))


def test_a_threshold_is_for_several_labels(new_classifier: NewClassifier) -> None:
    folder = str(new_classifier(["a", "b"]))
    with pytest.raises(ConfigError, match="--threshold is for several labels a text"):
        Classifier(folder, FP32, threshold=0.3)


# The columns of a result


@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification"])
@pytest.mark.parametrize("top_k", [None, 1, 2, 9])
def test_columns_of_csv_are_the_same_for_every_row(
    new_classifier: NewClassifier, problem_type: str, top_k: int | None
) -> None:
    classifier = Classifier(str(new_classifier(["a", "b", "c"], problem_type)), FP32)
    columns = Columns(classifier, top_k, ",")
    items = predictions_of(classifier, rows_of(["", *TEXTS[:2]]))
    blank, one, other = (columns.flat(item) for item in items)
    assert list(blank) == list(one) == list(other)
    several = problem_type == "multi_label_classification"
    answer = ["predicted_labels"] if several else ["predicted_label", "probability"]
    if top_k is None:
        expected = [*answer, *(f"probability_{label}" for label in "abc")]
    else:
        ranks = range(1 if several else 2, min(top_k, 3) + 1)
        names = ("predicted_label", "probability")
        expected = [*answer, *(f"{name}_{rank}" for rank in ranks for name in names)]
    assert list(one) == ["text", *expected]
    assert not any(value for name, value in blank.items() if name != "text")


def test_probabilities_are_shown_in_the_digits_that_float32_has(new_classifier: NewClassifier) -> None:
    classifier = Classifier(str(new_classifier(["a", "b", "c"])), FP32)
    (item,) = predictions_of(classifier, rows_of(["The cat"]))
    assert item.probabilities is not None
    row = Columns(classifier, 2, ",").nested(item)
    assert list(row["probabilities"]) == list(item.probabilities)[:2]
    for label, p in row["probabilities"].items():
        assert p == pytest.approx(item.probabilities[label], rel=1e-5)
        assert len(f"{p}".replace(".", "").lstrip("0")) <= 6


# Labels without training

LABELS = ["happy", "on the roof", "sad", "asleep, and old"]
TEMPLATE = "{text}\n\nLabel: {label}"


def naive_scores(folder: Path, text: str, labels: list[str], template: str, domain: str) -> torch.Tensor:
    """Return the scores by one plain forward pass for each label, with and without the text."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def log_likelihood(before: str, label: str) -> float:
        # The space goes with the label, as in GPT-2's tokens.
        space = before[len(before.rstrip()) :]
        first = tokenizer(before.rstrip()).input_ids or [tokenizer.eos_token_id]
        ids = first + tokenizer(space + label).input_ids
        with torch.inference_mode():
            log_p = F.log_softmax(model(torch.tensor([ids])).logits[0], dim=1)
        return sum(log_p[at - 1, ids[at]].item() for at in range(len(first), len(ids)))

    before = template.removesuffix("{label}").replace("{text}", text)
    scores = [log_likelihood(before, label) - log_likelihood(domain, label) for label in labels]
    return torch.tensor(scores)


@pytest.mark.parametrize(
    ("template", "domain"),
    [
        (TEMPLATE, "Label: "),
        ("Of the cat: {text}. It was {label}", ". It was "),
        ("{text} {label}", " "),
    ],
)
@pytest.mark.parametrize("labels", [LABELS, ["happy", "sad"]])
def test_labels_are_scored_as_a_plain_loop_scores_them(
    model_folder: Path, template: str, domain: str, labels: list[str]
) -> None:
    texts = ["The cat", "深圳", "The small dog", "x"]
    classifier = Classifier(str(model_folder), FP32, labels=labels, template=template)
    assert classifier.counts.cut == 0
    items = predictions_of(classifier, rows_of(texts))
    for item in items:
        expected = naive_scores(model_folder, item.row.text, labels, template, domain).softmax(0)
        assert item.probabilities == pytest.approx(
            dict(zip(labels, expected.tolist(), strict=True)), abs=1e-5
        )


def test_labels_get_the_same_alone_and_among_other_texts(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(TEXTS * 3)
    together = predictions_of(Classifier(str(model_folder), FP32, labels=LABELS), rows)
    monkeypatch.setitem(token_budget.BATCH_TOKENS, "cpu", 1)
    alone = predictions_of(Classifier(str(model_folder), FP32, labels=LABELS), rows)
    for one, other in zip(together, alone, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)


def test_a_label_is_scored_the_same_whatever_the_other_labels_are(model_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)

    def scores(labels: list[str]) -> list[float]:
        scorer = LabelLikelihood(model, tokenizer, labels, TEMPLATE)
        ((ids, _),) = scorer.encode(["The cat"])
        found: list[float] = scorer.logits(torch.tensor([ids]), torch.tensor([len(ids)]))[0].tolist()
        return found

    together = scores(LABELS)
    for number, label in enumerate(LABELS):
        assert scores([label]) == pytest.approx([together[number]], abs=1e-5)


def test_what_follows_a_long_text_in_the_template_is_kept(model_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    scorer = LabelLikelihood(model, tokenizer, ["happy", "on the roof"], "It: {text} was {label}")
    (ids, is_cut), (_, is_other_cut) = scorer.encode(["9" * 50, "9"])
    assert (is_cut, is_other_cut) == (True, False)
    text = tokenizer.decode(ids)
    assert text == "It: " + "9" * text.count("9") + " was"
    # With the longest label but its last token, which is only predicted, the context is full.
    longest = max(len(tokenizer.encode(f" {label}")) for label in ("happy", "on the roof"))
    assert len(ids) + longest - 1 == 32


def test_a_template_that_leaves_no_room_is_refused(model_folder: Path) -> None:
    with pytest.raises(ConfigError, match="leave no room for a text"):
        Classifier(str(model_folder), FP32, labels=["a", "b"], template="{text}" + "9" * 40 + " {label}")


@pytest.mark.parametrize("template", ["", "{label}", "{text}", "{label} {text}", "{text}{text}{label}"])
def test_a_template_must_end_in_the_label(model_folder: Path, template: str) -> None:
    with pytest.raises(ConfigError, match=r"must hold .text. once and end in .label."):
        Classifier(str(model_folder), FP32, labels=["a", "b"], template=template)
