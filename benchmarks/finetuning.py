"""Fine-tune for a public data set, and print its score beside that of TF-IDF and logistic regression.

    python benchmarks/finetuning.py pretrain      # The model that the rows start from: runs/english.
    python benchmarks/finetuning.py sms-spam      # A row; without a name, all of them.

The data sets are looked for at ../shared/data. Both sides learn from the same examples and are scored on
the same held-out ones, once, at the end: nothing is chosen by the score.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent
DATA = REPOSITORY.parent / "shared" / "data"
CONFIGS = REPOSITORY / "configs"
BASE = REPOSITORY / "runs" / "english"

Labelled = list[tuple[str, str]]


@dataclass(frozen=True)
class DataSet:
    """Examples to learn from; a file of test examples, or a share of the others held out by the seed."""

    read: Callable[[Path], tuple[Labelled, Labelled | None]]
    """Returns (text, label) to learn from, and to test on."""
    wanted: str
    held_out: float = 0.1
    settings: list[str] = field(default_factory=list)
    """What differs from configs/finetune/classification.yaml."""
    is_read_first: bool = False
    """Whether the model learns to write the texts that it learns the labels of, before their labels:
    task-adaptive pretraining, of Gururangan et al. 2020 (https://arxiv.org/abs/2004.10964)."""


def read_sms(data: Path) -> tuple[Labelled, None]:
    lines = (data / "sms-spam" / "sms-spam.tsv").read_text(encoding="utf-8").split("\n")
    pairs = [line.split("\t", 1) for line in lines if line]
    return [(text, label) for label, text in pairs], None


def read_trec(data: Path) -> tuple[Labelled, Labelled]:
    def read(name: str) -> Labelled:
        lines = (data / "trec6" / name).read_text(encoding="latin-1").split("\n")
        found = [re.match(r"(\w+):\w+ (.*)", line) for line in lines]
        return [(match[2], match[1]) for match in found if match]

    return read("train.txt"), read("test.txt")


def read_banking(data: Path) -> tuple[Labelled, Labelled]:
    def read(name: str) -> Labelled:
        with (data / "banking77" / name).open(encoding="utf-8", newline="") as file:
            return [(row["text"], row["category"]) for row in csv.DictReader(file)]

    return read("train.csv"), read("test.csv")


def read_movies(data: Path) -> tuple[Labelled, None]:
    def read(label: str) -> Labelled:
        file = data / "movie-reviews" / f"rt-polarity.{label}.utf8"
        return [(line.strip(), label) for line in file.read_text(encoding="utf-8").split("\n") if line]

    return read("pos") + read("neg"), None


DATA_SETS = {
    "sms-spam": DataSet(read_sms, "accuracy 98.5%, F1 of spam 0.94", held_out=0.2),
    "trec6": DataSet(read_trec, "accuracy 85%"),
    "banking77": DataSet(read_banking, "accuracy 80%"),
    # Few examples for what they ask. The settings were chosen on a fifth of the training examples.
    "movie-reviews": DataSet(
        read_movies,
        "accuracy 75%",
        settings=[
            *("training.epochs=3", "training.learning_rate=5e-4", "training.label_smoothing=0.1"),
            *("training.token_dropout=0.15", "training.prefix_loss=0.5"),
        ],
        is_read_first=True,
    ),
}


def write_csv(file: Path, rows: Labelled) -> None:
    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["text", "label"])
        writer.writerows(rows)


READING = [
    "training.epochs=6",
    *("data.text_unit=line", "model.dropout=0.1", "model.context_length=128"),
    *("training.optimizer=muon", "training.learning_rate=1e-3", "training.warmup_steps=80"),
    *("training.batch_size=8", "data.validation_fraction=0.02", "evaluation.eval_steps=400"),
]


def gptcli_finetune(config: str, model: str, run: Path, settings: list[str]) -> float:
    """Fine-tune with a config of configs/finetune, and return the seconds that it took."""
    arguments = [sys.executable, "-m", "gptcli", "finetune", "--model", model]
    arguments += ["--config", str(CONFIGS / "finetune" / config), "--output-dir", str(run)]
    for setting in settings:
        arguments += ["--set", setting]
    started = time.perf_counter()
    subprocess.run(arguments, check=True)
    return time.perf_counter() - started


def settings_of(folder: Path, data_set: DataSet, extra: list[str]) -> list[str]:
    settings = [f"data.source={folder}/train.csv", f"data.validation_fraction={data_set.held_out}"]
    if (folder / "test.csv").is_file():
        settings.append(f"data.validation_source={folder}/test.csv")
    # Scored at the end alone, so that the model is the last one and not the best on the test examples.
    return [*settings, "evaluation.eval_steps=1000000", *data_set.settings, *extra]


def finetune(folder: Path, model: str, settings: list[str], *, is_read_first: bool) -> dict[str, Any]:
    """Return the scores of gptcli, and how long it took."""
    started = time.perf_counter()
    if is_read_first:
        # The held-out texts are not read: nobody has those of tomorrow.
        texts = folder / "texts.txt"
        texts.write_text("\n".join(text for text, _ in split(settings)[0]), encoding="utf-8")
        reading = [f"data.source={texts}", *READING]
        gptcli_finetune("language-modelling.yaml", model, folder / "adapted", reading)
        model = str(folder / "adapted")
    gptcli_finetune("classification.yaml", model, folder / "run", settings)
    seconds = time.perf_counter() - started
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    scores: dict[str, Any] = json.loads(lines[-1])
    return {**scores, "seconds": seconds}


def split(assignments: list[str]) -> tuple[Labelled, Labelled]:
    """Return the examples as gptcli splits them."""
    from gptcli.config.loading import load_settings
    from gptcli.data.items import read_items
    from gptcli.data.labelled_texts import LabelledText, LabelledTexts

    settings = load_settings(CONFIGS / "finetune" / "classification.yaml", assignments)

    def stratum(item: LabelledText) -> tuple[str, ...]:
        return item.labels

    items = read_items(settings, LabelledTexts("auto").parse, lambda progress: None, stratum=stratum)
    train = [(item.text, item.labels[0]) for item in items.train]
    return train, [(item.text, item.labels[0]) for item in items.validation]


def linear(train: Labelled, test: Labelled) -> dict[str, Any]:
    """Return the scores of logistic regression on TF-IDF of words and pairs of words."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, classification_report
    from sklearn.pipeline import make_pipeline

    started = time.perf_counter()
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        LogisticRegression(C=10, max_iter=2000),
    )
    model.fit(*zip(*train, strict=True))
    texts, labels = zip(*test, strict=True)
    predicted = model.predict(texts)
    report = classification_report(labels, predicted, output_dict=True, zero_division=0)
    return {
        "accuracy": accuracy_score(labels, predicted),
        "macro_f1": report["macro avg"]["f1-score"],
        "per_label": {label: {"f1": report[label]["f1-score"]} for label in sorted(set(labels))},
        "seconds": time.perf_counter() - started,
    }


def run_row(name: str, model: str, data: Path, extra: list[str]) -> None:
    data_set = DATA_SETS[name]
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        train, test = data_set.read(data / "classification")
        write_csv(folder / "train.csv", train)
        if test is not None:
            write_csv(folder / "test.csv", test)
        settings = settings_of(folder, data_set, extra)
        sides = {"gptcli": finetune(folder, model, settings, is_read_first=data_set.is_read_first)}
        train, test = split(settings)
        sides["TF-IDF + logistic regression"] = linear(train, test)
    print(f"{name}: {len(train):,} to learn from, {len(test):,} held out; wanted: {data_set.wanted}")
    for side, scores in sides.items():
        per_label = scores["per_label"]
        spam = f", F1 of spam {per_label['spam']['f1']:.4f}" if "spam" in per_label else ""
        print(
            f"  {side:30} accuracy {scores['accuracy']:.2%}, macro-F1 {scores['macro_f1']:.4f}{spam}, "
            f"{scores['seconds']:.0f} s",
            flush=True,
        )


def pretrain(data: Path) -> None:
    texts = data / "language-modelling"
    command = [sys.executable, "-m", "gptcli", "pretrain", "--output-dir", str(BASE)]
    command += ["--config", str(CONFIGS / "pretrain" / "english.yaml")]
    command += ["--set", f"data.source=[{texts}/novels, {texts}/wikitext2-train.txt]"]
    subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", help=f"pretrain, {', '.join(DATA_SETS)}; all if none")
    parser.add_argument("--model", default=str(BASE), help="what to start from")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    options = parser.parse_args()
    if not options.data.is_dir():
        sys.exit(f"The data sets are not at {options.data}; give --data. Nothing was measured.")
    if "pretrain" in options.rows:
        pretrain(options.data)
    for name in options.rows or DATA_SETS:
        if name != "pretrain":
            run_row(name, options.model, options.data, options.set)


if __name__ == "__main__":
    main()
