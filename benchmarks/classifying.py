"""Texts a second of `gptcli classify`, beside transformers' text-classification pipeline.

    python benchmarks/classifying.py              # 2,000 movie reviews, as SST-2 was made of
    python benchmarks/classifying.py --texts 500

Both classify the same sentences with the same GPT-2 of 124M parameters (random weights: the time does
not depend on them) in the same process, and in turn; the pipeline with batches of 32 in bfloat16, which
is faster than its defaults. Both read a file and write JSON lines; loading the model does not count. The
data are looked for at ../shared/data.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2TokenizerFast,
    pipeline,
)

from gptcli.config.schema import DataSettings, RuntimeSettings
from gptcli.data.input_rows import find_input, read_texts
from gptcli.data.ledger import Reading
from gptcli.data.output_rows import OutputFile, RowWriter
from gptcli.pipelines.classify import Classifier, Columns

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
BATCH_SIZE = 32
ROUNDS = 3


def write_texts(data: Path, file: Path, count: int) -> None:
    """Write sentences of movie reviews, in random order, as CSV with one column."""
    folder = data / "classification" / "movie-reviews"
    texts = [
        line.strip()
        for name in ("pos", "neg")
        for line in (folder / f"rt-polarity.{name}.utf8").read_text(encoding="utf-8").split("\n")
        if line.strip()
    ]
    random.Random(0).shuffle(texts)
    writer = RowWriter("csv")
    file.write_text(
        "".join(writer.lines({"text": text, "id": n}, "") for n, text in enumerate(texts[:count]))
    )


def save_model(data: Path, folder: Path) -> None:
    vocabulary = data / "gpt2-tokenizer"
    tokenizer = GPT2TokenizerFast(
        vocab=str(vocabulary / "vocab.json"), merges=str(vocabulary / "merges.txt")
    )
    tokenizer.pad_token = tokenizer.eos_token
    torch.manual_seed(0)
    config = GPT2Config(num_labels=2, pad_token_id=tokenizer.eos_token_id)
    GPT2ForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class Pipeline:
    """transformers' pipeline, as its documentation says to use it for many texts."""

    def __init__(self, model: Path) -> None:
        self._pipeline = pipeline(
            "text-classification", model=str(model), dtype=torch.bfloat16, device="cpu", top_k=None
        )

    def classify(self, file: Path, output: Path) -> list[str]:
        rows = [
            row.values
            for row in read_texts(find_input(str(file), DataSettings(), None), DataSettings(), Reading())
        ]
        found = self._pipeline((row["text"] for row in rows), batch_size=BATCH_SIZE, truncation=True)
        labels = []
        with output.open("w", encoding="utf-8") as out:
            for row, scores in zip(rows, found, strict=True):
                probabilities = {item["label"]: item["score"] for item in scores}
                labels.append(max(probabilities, key=probabilities.__getitem__))
                out.write(json.dumps({**row, "probabilities": probabilities}) + "\n")
        return labels


class Gptcli:
    """What `gptcli classify --input --output` does once the model is loaded."""

    def __init__(self, model: Path) -> None:
        self._classifier = Classifier(str(model), RuntimeSettings(device="cpu", precision="bf16"))

    def classify(self, file: Path, output: Path) -> list[str]:
        texts = read_texts(find_input(str(file), DataSettings(), None), DataSettings(), Reading())
        columns, writer = Columns(self._classifier, None, ","), RowWriter("jsonl")
        labels = []
        with OutputFile(output) as out:
            for items in self._classifier.predict(texts):
                labels += [item.labels[0] for item in items]
                out.write("".join(writer.lines(columns.nested(item), item.row.where) for item in items))
        return labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args()
    if not options.data.is_dir():
        sys.exit(f"The data sets are not at {options.data}; give --data. Nothing was measured.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_texts(options.data, folder / "texts.csv", options.texts)
        save_model(options.data, folder / "model")
        sides: dict[str, Pipeline | Gptcli] = {
            "transformers": Pipeline(folder / "model"),
            "gptcli": Gptcli(folder / "model"),
        }
        speeds: dict[str, list[float]] = {side: [] for side in sides}
        labels: dict[str, list[str]] = {}
        for _ in range(ROUNDS):
            for side, classifier in sides.items():
                started = time.perf_counter()
                labels[side] = classifier.classify(folder / "texts.csv", folder / f"{side}.jsonl")
                speeds[side].append(len(labels[side]) / (time.perf_counter() - started))
    for side, values in speeds.items():
        rounds = ", ".join(f"{value:.1f}" for value in values)
        print(f"{side:12}  {statistics.median(values):6.1f} texts/s ({rounds})")
    ratio = statistics.median(b / a for a, b in zip(*speeds.values(), strict=True))
    agreed = sum(a == b for a, b in zip(*labels.values(), strict=True)) / options.texts
    print(f"gptcli is {ratio:.2f} times as fast; {agreed:.1%} of the labels are the same")


if __name__ == "__main__":
    main()
