"""`gptcli eval` as a person types it."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics
from transformers import (
    GPT2ForQuestionAnswering,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
)

from gptcli.config.loading import load_settings
from gptcli.config.schema import ModelSettings
from gptcli.models.architecture import model_config, new_model
from gptcli.models.loading import set_labels
from gptcli.models.saving import save_model
from gptcli.pipelines.train import run_training
from tests.commands.conftest import Result, Run, refused
from tests.conftest import SENTENCES, TEXT

USAGE, DATA, MODEL, ENVIRONMENT, BELOW_THRESHOLD = 2, 3, 4, 5, 7
LABELS = ["cat", "dog", "owl"]

SETTINGS = """\
task: {task}
model: {{n_layer: 2, n_head: 2, n_embd: 32, context_length: {context_length}}}
tokenizer: {{train: {{vocab_size: 300}}}}
data: {{source: {source}, validation_fraction: 0.2, text_unit: line}}
training: {{max_steps: {steps}, batch_size: 8, learning_rate: 1e-2, warmup_steps: 2, save_steps: 40}}
evaluation: {{eval_steps: 40}}
runtime: {{device: cpu, precision: fp32}}
"""


def animal(sentence: str) -> str:
    return sentence.split()[2]


def write_csv(file: Path, rows: Sequence[Sequence[object]]) -> None:
    with file.open("w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows(rows)


def write_jsonl(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.write_text("".join(lines), encoding="utf-8")


# Models


def train(folder: Path, task: str, source: Path, *, steps: int = 40, context_length: int = 32) -> Path:
    """Return a run of a second or two."""
    config = folder / f"{task}.yaml"
    config.write_text(
        SETTINGS.format(task=task, source=source, steps=steps, context_length=context_length)
    )
    run = folder / f"{task}-run"
    run_training(
        load_settings(config),
        run,
        resume=False,
        overwrite=False,
        dry_run=False,
        notify=lambda event: None,
    )
    return run


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learnt some of TEXT, a line a document."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text(TEXT)
    return train(folder, "language-modelling", folder / "text.txt")


@pytest.fixture(scope="module")
def label_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a classifier that tells which animal a sentence is about."""
    folder = tmp_path_factory.mktemp("labels")
    rows = [[sentence, animal(sentence)] for sentence in SENTENCES]
    write_csv(folder / "texts.csv", [["text", "label"], *rows])
    return train(folder, "classification", folder / "texts.csv")


@pytest.fixture(scope="module")
def conversation_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conversations")
    write_jsonl(folder / "talk.jsonl", [conversation(sentence) for sentence in SENTENCES])
    return train(folder, "instruction", folder / "talk.jsonl", steps=8, context_length=64)


def conversation(sentence: str) -> dict[str, str]:
    return {"prompt": sentence.strip(), "completion": animal(sentence)}


@pytest.fixture(scope="module")
def save_classifier(
    tokenizer: PreTrainedTokenizerFast,
    model_settings: ModelSettings,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[Sequence[str], str], Path]:
    """Save a classifier of random weights."""

    def save(labels: Sequence[str], problem_type: str) -> Path:
        config = model_config(model_settings, tokenizer)
        set_labels(config, list(labels))
        config.problem_type = problem_type
        model = new_model(config, 1, GPT2ForSequenceClassification)
        with torch.no_grad():
            model.score.weight.mul_(40)  # Else all labels are about as likely.
        folder = tmp_path_factory.mktemp("classifiers") / "model"
        save_model(model, tokenizer, folder)
        return folder

    return save


@pytest.fixture(scope="module")
def classifier(save_classifier: Callable[[Sequence[str], str], Path]) -> Path:
    return save_classifier(LABELS, "single_label_classification")


@pytest.fixture(scope="module")
def qa_folder(
    tokenizer: PreTrainedTokenizerFast,
    model_settings: ModelSettings,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A model that answers questions, with random weights and a context of 32."""
    folder = tmp_path_factory.mktemp("qa") / "model"
    config = model_config(model_settings, tokenizer)
    save_model(new_model(config, 0, GPT2ForQuestionAnswering), tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def damaged(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without its tokenizer: what is refused otherwise was refused before it was loaded."""
    folder = tmp_path_factory.mktemp("damaged") / "model"
    shutil.copytree(model_folder, folder, ignore=shutil.ignore_patterns("tokenizer*"))
    return folder


@pytest.fixture
def run(run: Run) -> Run:
    """Run `gptcli eval` in a folder of its own."""

    def evaluate(*arguments: str | Path) -> Result:
        return run("eval", *arguments)

    return evaluate


def result_of(result: Result) -> dict[str, Any]:
    """Return the one JSON object that was printed."""
    assert result.code == 0, result.stderr
    (row,) = result.rows
    return row


def only_test(result: Result) -> dict[str, Any]:
    """Return the one test of the one model."""
    (test,) = result_of(result)["tests"]
    return dict(test)


def values(test: dict[str, Any]) -> dict[str, float]:
    return {name: score["value"] for name, score in test["scores"].items()}


def evaluations(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row.get("split") == "validation"]


def failed(result: Result, code: int) -> str:
    """Return the one line of a failure that came after notes of progress."""
    assert result.code == code, result.stderr
    *notes, last = result.notes
    assert last.startswith("Error: ")
    assert not [note for note in notes if note.startswith(("Error", "Traceback"))]
    return last.removeprefix("Error: ")


# Text


def test_the_loss_of_what_a_run_held_out_is_that_of_its_last_evaluation(
    run: Run, text_run: Path
) -> None:
    # Each window begins where the last one has ended, as in training.
    test = only_test(run("--model", text_run, "--set", "evaluation.stride=32", "--json"))
    (evaluation,) = evaluations(text_run)
    assert evaluation["step"] == 40
    expected = {name: evaluation[name] for name in ("loss", "perplexity", "bits_per_byte")}
    found = values(test)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert (test["context_length"], test["stride"]) == (32, 32)
    assert test["data"] == f"what {text_run} held out"
    for score in test["scores"].values():
        assert score["low"] < score["value"] < score["high"]
    overlapping = only_test(run("--model", text_run, "--json"))
    assert (overlapping["stride"], overlapping["tokens_scored"]) == (16, test["tokens_scored"])
    assert values(overlapping)["loss"] != found["loss"]


def test_a_file_is_counted_and_scored(run: Run, text_run: Path, tmp_path: Path) -> None:
    (tmp_path / "new.txt").write_text("The small cat sat.\nThe old dögs sat.\n", encoding="utf-8")
    test = only_test(run("--model", text_run, "--data", "new.txt", "--json"))
    assert (test["test"], test["data"], test["documents"]) == ("text", "new.txt", 2)
    # Without the line feeds, which part documents; ö has two bytes.
    assert (test["characters"], test["bytes"]) == (35, 36)
    found = values(test)
    bits = found["loss"] * test["tokens_scored"] / np.log(2)
    assert found["bits_per_byte"] == pytest.approx(bits / 36)
    assert found["bits_per_character"] == pytest.approx(bits / 35)
    assert found["perplexity"] == pytest.approx(np.exp(found["loss"]))
    first = only_test(run("--model", text_run, "--data", "new.txt", "--limit", "1", "--json"))
    assert (first["documents"], first["characters"]) == (1, 18)


def test_people_see_the_scores_that_json_has(run: Run, text_run: Path, tmp_path: Path) -> None:
    (tmp_path / "new.txt").write_text("".join(SENTENCES[:5]))
    shown = run("--model", text_run, "--data", "new.txt")
    assert shown.code == 0
    lines = [line.split() for line in shown.stdout.splitlines()]
    test = only_test(run("--model", text_run, "--data", "new.txt", "--json"))
    for name, score in test["scores"].items():
        (line,) = (line for line in lines if line[:1] == [name])
        assert float(line[1]) == pytest.approx(score["value"], abs=1e-4)
        assert [float(line[2]), float(line[4])] == pytest.approx([score["low"], score["high"]], abs=1e-4)


def test_wikitext_is_scored_as_it_was_written(run: Run, text_run: Path, tmp_path: Path) -> None:
    (tmp_path / "wiki.txt").write_text(" The cat 's mat , a half @-@ old one . \n")
    (tmp_path / "plain.txt").write_text(" The cat's mat, a half-old one. \n")
    option = ("--set", "evaluation.detokenizer=wikitext", "--json")
    wiki = only_test(run("--model", text_run, "--data", "wiki.txt", *option))
    plain = only_test(run("--model", text_run, "--data", "plain.txt", "--json"))
    assert values(wiki) == values(plain)
    assert (wiki["detokenizer"], wiki["characters"]) == ("wikitext", plain["characters"])


# What comes with the scores


def test_the_json_says_what_the_scores_depend_on(run: Run, text_run: Path, tmp_path: Path) -> None:
    (tmp_path / "new.txt").write_text("The small cat sat.\n")
    given = ("--model", text_run, "--data", "new.txt", "--json", "--output", "result.json")
    result = result_of(run(*given))
    assert (
        result["command"] == f"gptcli eval --model {text_run} --data new.txt --json --output result.json"
    )
    assert (result["model"], result["kind"]) == (str(text_run), "language-modelling")
    assert (result["device"], result["precision"], result["seed"]) == ("cpu", "fp32", 42)
    assert result["versions"]["torch"] == torch.__version__
    assert json.loads((tmp_path / "result.json").read_text()) == result
    shutil.copytree(text_run / "model", tmp_path / "copy")
    copy = result_of(
        run("--model", "copy", "--data", "new.txt", "--set", "data.text_unit=line", "--json")
    )
    assert copy["model_sha256"] == result["model_sha256"]
    assert copy["tests"] == result["tests"]


def test_every_item_is_logged_as_one_json_object(run: Run, text_run: Path, tmp_path: Path) -> None:
    rows = [pair(sentence) for sentence in SENTENCES[:5]]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    result = run(
        "--model", text_run, *OWN, "--data", "pairs.jsonl", "--log-samples", "log.jsonl", "--json"
    )
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["where"] for row in log] == [f"pairs.jsonl:{n}" for n in range(1, 6)]
    assert [row["choices"] for row in log] == [row["choices"] for row in rows]
    accuracy = np.mean([row["predicted"] == row["gold"] for row in log])
    assert values(only_test(result))["acc"] == pytest.approx(accuracy)


# Benchmarks

OWN = ("--benchmark", "multiple_choice")


def pair(sentence: str) -> dict[str, Any]:
    """Return a sentence that goes on as all do, or with its words turned round."""
    begun, _, end = sentence.strip().partition(" sat on ")
    wrong = " ".join(reversed(end.split()))
    return {"query": f"{begun} sat on", "choices": [end, wrong], "gold": 0}


def test_a_trained_model_finds_what_its_text_goes_on_with(
    run: Run, text_run: Path, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "pairs.jsonl", [pair(sentence) for sentence in SENTENCES])
    test = only_test(run("--model", text_run, *OWN, "--data", "pairs.jsonl", "--json"))
    assert values(test) == {"acc": 1.0, "acc_norm": 1.0}
    assert (test["items"], test["few_shot_examples"], test["items_cut"]) == (81, 0, 0)
    some = only_test(run("--model", text_run, *OWN, "--data", "pairs.jsonl", "--limit", "7", "--json"))
    assert some["items"] == 7
    assert some["items_fingerprint"] != test["items_fingerprint"]


def test_several_benchmarks_are_read_from_one_folder(run: Run, text_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tests"
    (folder / "blimp").mkdir(parents=True)
    for number, name in enumerate(["agreement", "binding"], 1):
        sentences = [
            {"sentence_good": good.strip(), "sentence_bad": good[::-1].strip(), "UID": name}
            for good in SENTENCES[: 4 * number]
        ]
        write_jsonl(folder / "blimp" / f"{name}.jsonl", sentences)
    write_jsonl(folder / "lambada.jsonl", [{"text": "The cat sat on the mat"}] * 3)
    result = run("--model", text_run, "--benchmark", "all", "--data", "tests", "--limit", "3", "--json")
    lambada, blimp = result_of(result)["tests"]
    assert [lambada["test"], blimp["test"]] == ["lambada", "blimp"]
    # Of each phenomenon, three.
    assert blimp["items_of_groups"] == {"agreement": 3, "binding": 3}
    assert set(values(blimp)) == {"acc", "acc/agreement", "acc/binding"}
    assert set(values(lambada)) == {"acc", "perplexity"}
    assert any(note.startswith("Skipped, for want of a file in tests: hell") for note in result.notes)


def test_what_a_score_does_not_show_stands_beside_it(run: Run, text_run: Path, tmp_path: Path) -> None:
    rows = [{"sent_more": "The old cat sat.", "sent_less": "The cat sat.", "bias_type": "age"}]
    write_jsonl(tmp_path / "crows_pairs.jsonl", rows)
    given = ("--model", text_run, "--benchmark", "crows_pairs", "--data", "crows_pairs.jsonl")
    assert "Note: 0.5 is no preference." in run(*given).stdout
    write_jsonl(tmp_path / "lambada.jsonl", [{"text": "1" * 60 + " mat"}])
    cut = only_test(
        run("--model", text_run, "--benchmark", "lambada", "--data", "lambada.jsonl", "--json")
    )
    assert cut["items_cut"] == 1
    assert cut["notes"] == [
        "1 items are longer than the model's context of 32 tokens: their beginnings were cut off"
    ]


# Labels


def test_what_a_classifier_held_out_scores_as_in_its_last_evaluation(run: Run, label_run: Path) -> None:
    test = only_test(run("--model", label_run, "--json"))
    best = max(evaluations(label_run), key=lambda row: (row["macro_f1"], -row["loss"]))
    found = values(test)
    assert {name: found[name] for name in ("accuracy", "macro_f1")} == pytest.approx(
        {name: best[name] for name in ("accuracy", "macro_f1")}
    )
    assert found["log_loss"] == pytest.approx(best["loss"], abs=1e-4)
    # Of 27 sentences about each animal, a fifth is held out, rounded down.
    assert {label: row["support"] for label, row in test["per_label"].items()} == dict.fromkeys(
        LABELS, 5
    )


def test_figures_of_labels_are_those_of_scikit_learn(run: Run, classifier: Path, tmp_path: Path) -> None:
    rows = [[number, animal(text), text.strip()] for number, text in enumerate(SENTENCES)]
    write_csv(tmp_path / "texts.csv", [["id", "about", "sentence"], *rows])
    columns = ("--set", "data.columns.text=sentence", "--set", "data.columns.label=about")
    given = ("--model", classifier, "--data", "texts.csv", *columns, "--log-samples", "log.jsonl")
    test = only_test(run(*given, "--json"))
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["where"] for row in log] == [f"texts.csv:{n}" for n in range(2, 83)]
    true, predicted = [row["label"] for row in log], [row["predicted"] for row in log]
    assert true == [animal(sentence) for sentence in SENTENCES]
    assert len(set(predicted)) > 1  # Else the figures would not tell labels apart.
    probabilities = np.array([[row["probabilities"][label] for label in LABELS] for row in log])
    found = values(test)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(true, predicted))
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(true, predicted, average="macro"))
    assert found["weighted_f1"] == pytest.approx(metrics.f1_score(true, predicted, average="weighted"))
    log_loss = metrics.log_loss(true, probabilities / probabilities.sum(1, keepdims=True), labels=LABELS)
    assert found["log_loss"] == pytest.approx(log_loss, abs=1e-4)
    confusion = metrics.confusion_matrix(true, predicted, labels=LABELS)
    assert np.array_equal(test["confusion"], confusion)
    report = metrics.classification_report(true, predicted, output_dict=True, zero_division=0)
    for label in LABELS:
        expected = {name: report[label][f"{name}-score" if name == "f1" else name] for name in NAMES}
        assert {name: test["per_label"][label][name] for name in NAMES} == pytest.approx(expected)


NAMES = ("precision", "recall", "f1", "support")


def test_a_model_of_text_chooses_among_labels_that_are_given(
    run: Run, model_folder: Path, tmp_path: Path
) -> None:
    rows = [[sentence.strip(), animal(sentence)] for sentence in SENTENCES[:20]]
    write_csv(tmp_path / "texts.csv", [["text", "label"], *rows])
    given = ("--model", model_folder, "--data", "texts.csv", "--log-samples", "log.jsonl")
    test = only_test(run(*given, "--labels", "owl, cat, dog", "--json"))
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert test["labels"] == ["owl", "cat", "dog"]
    assert [row["label"] for row in log] == [label for _, label in rows]
    right = [row["label"] == max(row["probabilities"], key=row["probabilities"].get) for row in log]
    assert values(test)["accuracy"] == pytest.approx(np.mean(right))
    error = failed(run(*given, "--labels", "cat,dog"), DATA)
    assert error.endswith("the label 'owl' is not one of the model's (cat, dog).")


def test_of_two_labels_the_second_has_figures_of_its_own(
    run: Run, save_classifier: Callable[[Sequence[str], str], Path], tmp_path: Path
) -> None:
    folder = save_classifier(["calm", "sad"], "single_label_classification")
    rows = [[sentence, "sad" if "sad" in sentence else "calm"] for sentence in SENTENCES]
    write_csv(tmp_path / "texts.csv", [["text", "label"], *rows])
    given = ("--model", folder, "--data", "texts.csv", "--log-samples", "log.jsonl", "--json")
    test = only_test(run(*given))
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    true = np.array([row["label"] == "sad" for row in log])
    predicted = np.array([row["predicted"] == "sad" for row in log])
    probability = np.array([row["probabilities"]["sad"] for row in log])
    found = values(test)
    assert found["precision_sad"] == pytest.approx(
        metrics.precision_score(true, predicted, zero_division=0)
    )
    assert found["recall_sad"] == pytest.approx(metrics.recall_score(true, predicted))
    second = test["second_label"]
    assert second["label"] == "sad"
    assert second["roc_auc"] == pytest.approx(metrics.roc_auc_score(true, probability), abs=1e-3)
    assert second["average_precision"] == pytest.approx(
        metrics.average_precision_score(true, probability), abs=1e-3
    )


def test_several_labels_a_text_are_compared_as_sets(
    run: Run, save_classifier: Callable[[Sequence[str], str], Path], tmp_path: Path
) -> None:
    folder = save_classifier(LABELS, "multi_label_classification")
    rows = [{"text": text, "label": sorted({animal(text), "cat"})} for text in SENTENCES]
    write_jsonl(tmp_path / "texts.jsonl", rows)
    test = only_test(
        run("--model", folder, "--data", "texts.jsonl", "--log-samples", "log.jsonl", "--json")
    )
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["label"] for row in log] == [row["label"] for row in rows]
    true = np.array([[label in row["label"] for label in LABELS] for row in log])
    predicted = np.array([[label in row["predicted"] for label in LABELS] for row in log])
    found = values(test)
    assert found["exact_match"] == pytest.approx(metrics.accuracy_score(true, predicted))
    micro = metrics.f1_score(true, predicted, average="micro", zero_division=0)
    assert found["micro_f1"] == pytest.approx(micro)


def test_numbers_are_compared_by_distance(
    run: Run, save_classifier: Callable[[Sequence[str], str], Path], tmp_path: Path
) -> None:
    folder = save_classifier(["stars"], "regression")
    rows = [[text, number % 5 + 0.5] for number, text in enumerate(SENTENCES)]
    write_csv(tmp_path / "texts.csv", [["text", "label"], *rows])
    test = only_test(
        run("--model", folder, "--data", "texts.csv", "--log-samples", "log.jsonl", "--json")
    )
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    true, predicted = [row["label"] for row in log], [row["predicted"] for row in log]
    assert true == [number for _, number in rows]
    found = values(test)
    assert found["mean_squared_error"] == pytest.approx(
        metrics.mean_squared_error(true, predicted), rel=1e-4
    )
    assert found["r2"] == pytest.approx(metrics.r2_score(true, predicted), rel=1e-4)
    assert found["pearson"] == pytest.approx(np.corrcoef(true, predicted)[0, 1], abs=1e-4)


# Questions and conversations


def test_answers_are_counted_as_squad_counts_them(run: Run, qa_folder: Path, tmp_path: Path) -> None:
    context = "The cat sat on the mat, and the owl was asleep."
    row = {"question": "Who?", "context": context, "answers": ["cat"]}
    write_jsonl(tmp_path / "first.jsonl", [row])
    given = ("--model", qa_folder, "--log-samples", "log.jsonl", "--json", "--data")
    assert result_of(run(*given, "first.jsonl"))["tests"][0]["items"] == 1
    answer = json.loads((tmp_path / "log.jsonl").read_text())["answer"]
    # Right word for word, but for the article; and wrong: no word in common.
    wrong = next(word for word in ("owl", "cat", "mat", "asleep") if word not in answer)
    rows = [{**row, "answers": [wrong, answer]}, {**row, "answers": [wrong]}]
    write_jsonl(tmp_path / "both.jsonl", rows)
    test = only_test(run(*given, "both.jsonl"))
    assert (test["test"], test["items"], test["unanswerable"]) == ("questions", 2, 0)
    assert values(test)["exact_match"] == 50.0
    assert values(test)["f1"] == 50.0
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["accepted"] for row in log] == [[wrong, answer], [wrong]]
    assert [row["answer"] for row in log] == [answer, answer]


def test_of_conversations_the_assistants_words_are_scored(
    run: Run, conversation_run: Path, tmp_path: Path
) -> None:
    held_out = only_test(run("--model", conversation_run, "--json"))
    (evaluation,) = evaluations(conversation_run)
    assert held_out["test"] == "conversations"
    assert values(held_out)["loss"] == pytest.approx(evaluation["loss"], rel=1e-4)
    write_jsonl(tmp_path / "talk.jsonl", [conversation(sentence) for sentence in SENTENCES[:4]])
    test = only_test(run("--model", conversation_run, "--data", "talk.jsonl", "--limit", "3", "--json"))
    assert test["items"] == 3
    found = values(test)
    # The three replies are " cat", " cat", " cat" as text.
    assert found["bits_per_byte"] == pytest.approx(found["bits_per_character"])


# Two models


def test_a_model_does_not_differ_from_itself(run: Run, text_run: Path, tmp_path: Path) -> None:
    (tmp_path / "new.txt").write_text("".join(SENTENCES[:20]))
    given = ("--compare", text_run, text_run, "--data", "new.txt")
    result = result_of(run(*given, "--json"))
    assert [model["model"] for model in result["models"]] == [str(text_run)] * 2
    (comparison,) = result["comparisons"]
    for row in comparison["differences"].values():
        assert (row["first"], row["p_value"], row["is_real"]) == (row["second"], 1.0, False)
        assert row["low"] == row["high"] == 0
    lines = run(*given).stdout.splitlines()
    assert sum("no real difference" in line for line in lines) == len(comparison["differences"])


def test_a_trained_model_is_better_than_a_random_one(
    run: Run, text_run: Path, model_folder: Path, tmp_path: Path
) -> None:
    # Of another tokenizer: bits a byte can be compared nonetheless.
    (tmp_path / "new.txt").write_text("".join(SENTENCES[:20]))
    options = ("--data", "new.txt", "--set", "data.text_unit=line")
    given = ("--compare", model_folder, text_run, *options)
    (comparison,) = result_of(run(*given, "--json"))["comparisons"]
    row = comparison["differences"]["bits_per_byte"]
    assert row["second"] < row["first"]
    assert row["high"] < 0
    assert row["is_real"]
    assert row["p_value"] < 0.01
    # The last of three: each model by itself comes first.
    lines = [line for line in run(*given).stdout.splitlines() if line.startswith("  bits_per_byte ")]
    assert len(lines) == 3
    assert lines[-1].endswith(f"  {text_run} is better")


def test_samples_of_two_models_are_told_apart(
    run: Run, text_run: Path, model_folder: Path, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "pairs.jsonl", [pair(sentence) for sentence in SENTENCES[:2]])
    given = ("--compare", text_run, model_folder, *OWN, "--data", "pairs.jsonl")
    assert run(*given, "--log-samples", "log.jsonl").code == 0
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["model"] for row in log] == [str(text_run)] * 2 + [str(model_folder)] * 2


def test_models_that_held_out_different_text_are_not_compared(
    run: Run, text_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "other.txt").write_text("".join(SENTENCES[::-1]).replace("cat", "cow"))
    other = train(tmp_path, "language-modelling", tmp_path / "other.txt", steps=2)
    error = failed(run("--compare", text_run, other), DATA)
    assert error == "text: the two models were tested on different items. Give the same --data."


def test_labels_may_have_another_order_in_the_other_model(
    run: Run,
    classifier: Path,
    save_classifier: Callable[[Sequence[str], str], Path],
    tmp_path: Path,
) -> None:
    # The same weights for the same number of a label, so that cats are now taken for owls.
    turned = save_classifier(LABELS[::-1], "single_label_classification")
    rows = [[sentence.strip(), animal(sentence)] for sentence in SENTENCES]
    write_csv(tmp_path / "texts.csv", [["text", "label"], *rows])
    alone = [
        values(only_test(run("--model", model, "--data", "texts.csv", "--json")))
        for model in (classifier, turned)
    ]
    given = ("--data", "texts.csv", "--json")
    (there,) = result_of(run("--compare", classifier, turned, *given))["comparisons"]
    (back,) = result_of(run("--compare", turned, classifier, *given))["comparisons"]
    for name in ("accuracy", "macro_f1", "log_loss"):
        one, other = there["differences"][name], back["differences"][name]
        assert [one["first"], one["second"]] == pytest.approx([scores[name] for scores in alone])
        assert [other["second"], other["first"]] == pytest.approx([scores[name] for scores in alone])
        assert one["p_value"] == pytest.approx(other["p_value"], abs=0.03)
    others = save_classifier(["cat", "cow"], "single_label_classification")
    error = failed(run("--compare", classifier, others, "--data", "texts.csv"), MODEL)
    assert error == (
        f"{others} has the labels cat, cow; the model that it is compared with has cat, dog, owl."
    )


def test_models_for_different_things_are_not_compared(
    run: Run,
    damaged: Path,
    classifier: Path,
    conversation_run: Path,
    model_folder: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "texts.csv").write_text("text,label\nThe cat,cat\n")
    error = refused(run("--compare", damaged, classifier, "--data", "texts.csv"), USAGE)
    assert error == (
        f"--compare is for models of one kind; {damaged} is for language-modelling, {classifier} "
        "for classification."
    )
    # One has the settings of its run, which say that it was trained on conversations.
    write_jsonl(tmp_path / "talk.jsonl", [conversation(SENTENCES[0]) | {"text": SENTENCES[0]}])
    result = run("--compare", conversation_run, model_folder, "--data", "talk.jsonl")
    error = failed(result, USAGE)
    assert error.startswith("--compare: the first model is tested on conversations, the second on text;")


# Thresholds


def test_a_score_that_is_good_enough_ends_with_0(run: Run, text_run: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "pairs.jsonl", [pair(sentence) for sentence in SENTENCES[:5]])
    given = ("--model", text_run, *OWN, "--data", "pairs.jsonl")
    assert run(*given, "--fail-under", "acc=1", "--fail-under", "multiple_choice.acc_norm=0.9").code == 0


def test_a_score_that_is_worse_ends_with_7_after_the_result(
    run: Run, text_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "new.txt").write_text("The small cat sat.\n")
    given = ("--model", text_run, "--data", "new.txt", "--json")
    perplexity = values(only_test(run(*given)))["perplexity"]
    # The lower the better.
    assert run(*given, "--fail-under", f"perplexity={perplexity + 0.1}").code == 0
    result = run(*given, "--fail-under", f"perplexity={perplexity - 0.1}")
    assert failed(result, BELOW_THRESHOLD) == (
        f"text.perplexity is {perplexity:.6g}, above --fail-under {perplexity - 0.1:g}."
    )
    assert values(result.rows[0]["tests"][0])["perplexity"] == perplexity
    write_jsonl(tmp_path / "pairs.jsonl", [pair(SENTENCES[0]) | {"gold": 1}])
    result = run("--model", text_run, *OWN, "--data", "pairs.jsonl", "--fail-under", "acc=0.5")
    assert failed(result, BELOW_THRESHOLD) == "multiple_choice.acc is 0, below --fail-under 0.5."


def test_a_score_that_there_is_not_is_refused(
    run: Run, damaged: Path, classifier: Path, tmp_path: Path
) -> None:
    (tmp_path / "new.txt").write_text("The small cat sat.\n")
    error = refused(run("--model", damaged, "--data", "new.txt", "--fail-under", "accuracy=0.5"), USAGE)
    assert error.startswith("--fail-under accuracy: there is no such score. This test has loss, perp")
    error = refused(run("--model", damaged, "--data", "new.txt", "--fail-under", "labels.loss=1"), USAGE)
    assert error.startswith("--fail-under labels.loss: there is no such score. ")
    # Those of labels depend on what they are called.
    (tmp_path / "texts.csv").write_text("text,label\nThe cat,cat\n")
    result = run("--model", classifier, "--data", "texts.csv", "--fail-under", "f1_cow=0.5")
    assert failed(result, USAGE).startswith("--fail-under f1_cow: there is no such score. There are ")


# What the test and the training text share


def test_items_that_stand_in_the_training_text_are_found(
    run: Run, text_run: Path, tmp_path: Path
) -> None:
    new = "An elephant walks through a wide river in the morning while nobody looks at it."
    (tmp_path / "new.txt").write_text(SENTENCES[0] + new + "\nShort.\n")
    (tmp_path / "train.txt").write_text("".join(SENTENCES))
    given = ("--model", text_run, "--data", "new.txt", "--leaks")
    leaks = result_of(run(*given, "--train-data", "train.txt", "--json"))["leaks"]
    assert (leaks["items"], leaks["too_short"]) == (3, 1)
    assert (leaks["touched"], leaks["near_duplicates"]) == (1, 1)
    assert leaks["worst"] == [{"overlap": 1.0, "text": SENTENCES[0].strip()}]
    assert f"    100%: {SENTENCES[0].strip()}" in run(*given, "--train-data", "train.txt").stdout
    # What the run itself was trained on: four of five of these sentences.
    (tmp_path / "all.txt").write_text("".join(SENTENCES))
    own = result_of(run("--model", text_run, "--data", "all.txt", "--leaks", "--json"))["leaks"]
    held_out = only_test(run("--model", text_run, "--json"))["documents"]
    assert (own["items"], own["near_duplicates"]) == (81, 81 - held_out)


def test_the_longest_spans_that_are_copied_are_listed(run: Run, text_run: Path, tmp_path: Path) -> None:
    given = ("--model", text_run, "--copied", "2")
    copied = result_of(run(*given, "--json"))["copied"]
    assert (copied["texts"], len(copied["longest_spans"])) == (2, 2)
    assert copied["characters_generated"] > 0
    for span in copied["longest_spans"]:
        assert span["text"] in TEXT
        assert span["characters"] == len(span["text"])
    (tmp_path / "other.txt").write_text("Nothing of the kind is in here at all.\n")
    none = result_of(run(*given, "--train-data", "other.txt", "--json"))["copied"]
    assert [span["characters"] for span in none["longest_spans"]] == [0, 0]


# What is refused


def test_a_model_that_cannot_be_loaded_is_refused(run: Run, damaged: Path, tmp_path: Path) -> None:
    # What the tests below rely on.
    (tmp_path / "new.txt").write_text("The small cat sat.\n")
    assert "tokenizer" in refused(run("--model", damaged, "--data", "new.txt"), MODEL)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give --model MODEL, or --compare MODEL MODEL."),
        (["-m", "a", "--compare", "b", "c"], "Give --model MODEL, or --compare MODEL MODEL."),
        (["--compare", "b", "c", "--leaks"], "--compare goes without --tasks, --leaks and --copied."),
        (["-m", "a", "--tasks-folder", "b"], "--tasks-folder goes with --tasks."),
        (["-m", "a", "--train-data", "b"], "--train-data goes with --leaks or --copied."),
        (["-m", "a", "--labels", "b,c"], "--labels goes with --data, and without --benchmark, --leaks"),
        (["-m", "a", "--labels", "b", "--data", "c"], "--labels is 'b'; it must be two or more differ"),
        (["-m", "a", "--tasks", "b", "--fail-under", "c=1"], "--tasks goes without --fail-under and --"),
        (["-m", "a", "--output", "b", "--log-samples", "b"], "--log-samples and --output are both b;"),
        (["-m", "a", "--tasks", "b", "--data", "c"], "--tasks brings its own data; leave the other"),
        (["-m", "a", "--fail-under", "acc"], "--fail-under acc: write it as SCORE=VALUE, such as"),
        (["-m", "a", "--fail-under", "acc=high"], "--fail-under acc=high: write it as SCORE=VALUE"),
        (["-m", "a", "--fail-under", "acc=nan"], "--fail-under acc=nan: write it as SCORE=VALUE"),
        (["-m", "a", "--fail-under", "=1"], "--fail-under =1: write it as SCORE=VALUE"),
        (["-m", "a", "--benchmark", "glue"], "--benchmark is 'glue'; it must be one of lambada,"),
        (["-m", "a", *OWN], "--benchmark multiple_choice needs your file as --data."),
        (
            ["-m", "a", *OWN, "--data", "b", "--set", "evaluation.prompt='{a'"],
            "evaluation.prompt is '{a'",
        ),
        (
            ["-m", "a", "--output", "no/such.json"],
            "--output no/such.json: the folder no does not exist.",
        ),
        (["-m", "a", "--set", "evaluation.strid=3"], "evaluation.strid is not a setting. Did you mean"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    run: Run, arguments: list[str], message: str
) -> None:
    assert message in refused(run(*arguments), USAGE)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], USAGE, " is a model and no run, so it is not known what was held out. Give --data SOURCE"),
        (["--data", "no.txt"], DATA, "no.txt: no such file or folder (--data, seen from "),
        (["--data", "empty.txt"], DATA, "empty.txt is empty (0 bytes)."),
        (
            ["--data", "new.txt", "--set", "evaluation.context_length=64"],
            USAGE,
            "evaluation.context_length is 64; that of MODEL is 32 tokens.",
        ),
        (
            ["--data", "new.txt", "--set", "evaluation.stride=33"],
            USAGE,
            "evaluation.stride is 33, more than the window of 32 tokens: those between would be left",
        ),
        (
            [
                *("--data", "new.txt", "--set", "evaluation.context_length=8"),
                *("--set", "evaluation.stride=9"),
            ],
            USAGE,
            "evaluation.stride is 9, more than the window of 8 tokens",
        ),
        (["-b", "copa", "--data", "none"], DATA, "none has no file for copa: none is named *copa*."),
        (["-b", "copa", "--data", "no.jsonl"], DATA, "no.jsonl: no such file or folder (--data"),
        (["-b", "copa", "--data", "new.txt"], DATA, "new.txt: question is None; it must be cause or"),
        ([*OWN, "--data", "rows.jsonl"], DATA, "rows.jsonl:1 has no column 'query' (evaluation.prompt)"),
        ([*OWN, "--data", "header.csv"], DATA, "header.csv: there is no item for multiple_choice."),
        (["-b", "winobias", "--data", "new.txt"], DATA, "winobias: no file whose name begins with pro_"),
        (
            ["--leaks", "--data", "new.txt"],
            USAGE,
            " is no run, which knows its training text. Give --tr",
        ),
        (
            ["--leaks", "--data", "new.txt", "--train-data", "no.txt"],
            DATA,
            "no.txt: no such file or folder (--train-data",
        ),
        (["--config", "no.yaml", "--data", "new.txt"], USAGE, "no.yaml"),
    ],
)
def test_what_cannot_be_tested_is_refused_before_the_model_is_loaded(
    run: Run, damaged: Path, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    (tmp_path / "new.txt").write_text("The small cat sat.\n")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "none").mkdir()
    (tmp_path / "header.csv").write_text("query,choices,gold\n")
    write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "The cat", "choices": ["a", "b"], "gold": 0}])
    error = refused(run("--model", damaged, *arguments), code)
    assert message.replace("MODEL", str(damaged)) in error


def test_rows_of_the_hub_that_cannot_be_had_are_an_environment_problem(run: Run, damaged: Path) -> None:
    error = refused(run("--model", damaged, "--benchmark", "piqa"), ENVIRONMENT)
    assert "baber/piqa" in error


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="lm-evaluation-harness is installed")
def test_tasks_need_the_harness(run: Run, damaged: Path) -> None:
    error = refused(run("--model", damaged, "--tasks", "piqa"), ENVIRONMENT)
    assert error == 'lm-evaluation-harness is not installed: pip install "gptcli[lm-eval]"'


def test_a_benchmark_needs_a_model_that_predicts_text(
    run: Run, classifier: Path, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "pairs.jsonl", [pair(SENTENCES[0])])
    error = refused(run("--model", classifier, *OWN, "--data", "pairs.jsonl"), MODEL)
    assert "is for classification; benchmarks need a model that predicts text." in error


def test_text_has_no_samples_to_log(run: Run, damaged: Path, tmp_path: Path) -> None:
    (tmp_path / "new.txt").write_text("The small cat sat.\n")
    given = ("--model", damaged, "--data", "new.txt", "--log-samples", "log.jsonl")
    assert refused(run(*given), USAGE).startswith("--log-samples is for labelled texts, questions and")
    assert not (tmp_path / "log.jsonl").exists()


def test_a_run_that_held_nothing_out_says_so(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "all.yaml"
    (tmp_path / "text.txt").write_text(TEXT)
    settings = SETTINGS.format(
        task="language-modelling", source=tmp_path / "text.txt", steps=1, context_length=32
    )
    config.write_text(settings.replace("validation_fraction: 0.2", "validation_fraction: 0"))
    run_training(
        load_settings(config),
        tmp_path / "run",
        resume=False,
        overwrite=False,
        dry_run=False,
        notify=lambda event: None,
    )
    error = failed(run("--model", "run"), DATA)
    assert error == "run held nothing out (data.validation_fraction 0). Give --data."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\nThe cat,cat\nThe cow,cow\n", "texts.csv:3: the label 'cow' is not one of the mod"),
        ("text,label\nThe cat,\n", "texts.csv:2: the label is blank."),
        ("sentence,label\nThe cat,cat\n", "texts.csv has no column 'text'; its columns are: sentence, "),
    ],
)
def test_labelled_texts_that_cannot_be_scored_are_refused(
    run: Run, classifier: Path, tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "texts.csv").write_text(content)
    assert message in failed(run("--model", classifier, "--data", "texts.csv"), DATA)


@pytest.mark.parametrize("content", ["text,label\n", "text,label\n ,cat\n,dog\n"])
def test_a_table_without_a_text_is_refused(
    run: Run, classifier: Path, tmp_path: Path, content: str
) -> None:
    (tmp_path / "texts.csv").write_text(content)
    error = refused(run("--model", classifier, "--data", "texts.csv"), DATA)
    assert error == "texts.csv: there is nothing to test on."


def test_text_without_a_word_is_refused(run: Run, text_run: Path, tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_text("\n \n")
    error = refused(run("--model", text_run, "--data", "blank.txt"), DATA)
    assert error == "blank.txt: there is nothing to test on."


def test_questions_that_cannot_be_scored_are_refused(run: Run, qa_folder: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"question": "Who?", "context": "The cat."}])
    assert "has no column 'answers'" in failed(run("--model", qa_folder, "--data", "a.jsonl"), DATA)
    write_jsonl(tmp_path / "b.jsonl", [{"question": "", "context": "The cat.", "answers": ["cat"]}])
    error = failed(run("--model", qa_folder, "--data", "b.jsonl"), DATA)
    assert error == "b.jsonl: there is nothing to test on."


def test_a_failure_leaves_no_result_behind(run: Run, classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text("text,label\nThe cow,cow\n")
    given = ("--model", classifier, "--data", "texts.csv", "--log-samples", "log.jsonl")
    assert run(*given, "--output", "out.json").code == DATA
    assert [file.name for file in tmp_path.iterdir()] == ["texts.csv"]
