"""Texts a second of `gptcli classify`, beside transformers' text-classification pipeline.

    python benchmarks/classifying.py              # 2,000 texts of three data sets, in three minutes
    python benchmarks/classifying.py --texts 500 --rounds 1

Text messages, sentences of movie reviews and questions of a bank's customers, mixed at random, go
through the same GPT-2 of 124M parameters and two labels in the same process, side after side, in rounds.
Its weights are random (the time does not depend on them), but for the bias of the last layer norm, which
is set so that about half of the texts get either label. Every side reads a file and writes JSON lines;
loading the model does not count.

as it comes         pipeline(texts): float32, one text at a time
batches of 32       bfloat16, batches as the file has them
..., sorted         the texts sorted by length before, and put back after
gptcli              `gptcli classify --input --output` without further options; then in float32, and int8

The slow sides classify a part of the texts, drawn at random.

The data are looked for at ../shared/data.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from results import RESULTS, matrix_rate, write_section
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
from gptcli.training.device import multiplies_int8

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
BATCH_SIZE = 32
CENTRED_BY = 64  # texts
PLAIN, OURS = "pipeline, as it comes", "gptcli, as it comes"
EXACT, INT8 = "gptcli, fp32", "gptcli, int8"
BATCHED = f"pipeline, bf16, batches of {BATCH_SIZE}"
SORTED = f"{BATCHED}, sorted"
PARTS = {PLAIN: 0.1, BATCHED: 0.2, EXACT: 0.1}
"""Shares of the texts; the others classify all."""
AS_IT_COMES, AT_ITS_BEST = 6.0, 2.0  # times as fast are wanted

Classify = Callable[[Path, Path], list[str]]
"""Reads a file, writes another, and returns the labels."""


def read_data(data: Path) -> dict[str, list[str]]:
    """Return {name of a data set: its texts}."""
    folder = data / "classification"
    with (folder / "banking77" / "train.csv").open(encoding="utf-8", newline="") as file:
        questions = [row["text"] for row in csv.DictReader(file)]
    messages = (folder / "sms-spam" / "sms-spam.tsv").read_text(encoding="utf-8").split("\n")
    reviews = [
        line
        for name in ("pos", "neg")
        for line in (folder / "movie-reviews" / f"rt-polarity.{name}.utf8")
        .read_text(encoding="utf-8")
        .split("\n")
    ]
    found = {
        "banking77": questions,
        "sms-spam": [message.partition("\t")[2] for message in messages],
        "movie-reviews": reviews,
    }
    return {
        name: [" ".join(text.split()) for text in texts if text.strip()] for name, texts in found.items()
    }


def choose_texts(data: Path, count: int) -> list[str]:
    """Return texts of all data sets, of each as many, in random order."""
    generator = random.Random(0)
    sets = list(read_data(data).values())
    chosen = [
        text
        for number, texts in enumerate(sets)
        for text in generator.sample(texts, count // len(sets) + (number < count % len(sets)))
    ]
    generator.shuffle(chosen)
    return chosen


def write_texts(file: Path, texts: Iterable[str]) -> None:
    writer = RowWriter("csv")
    file.write_text(
        "".join(writer.lines({"text": text, "id": n}, "") for n, text in enumerate(texts)),
        encoding="utf-8",
    )


def save_model(data: Path, folder: Path, texts: list[str]) -> list[int]:
    """Save the model, and return how many tokens each text has."""
    vocabulary = data / "gpt2-tokenizer"
    tokenizer = GPT2TokenizerFast(
        vocab=str(vocabulary / "vocab.json"), merges=str(vocabulary / "merges.txt")
    )
    tokenizer.pad_token = tokenizer.eos_token
    torch.manual_seed(0)
    config = GPT2Config(num_labels=2, pad_token_id=tokenizer.eos_token_id)
    model: Any = GPT2ForSequenceClassification(config).eval()
    all_ids = tokenizer(texts).input_ids
    with torch.inference_mode():
        last = [
            model.transformer(torch.tensor([ids])).last_hidden_state[0, -1]
            for ids in all_ids[:CENTRED_BY]
        ]
        model.transformer.ln_f.bias -= torch.stack(last).mean(0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return [len(ids) for ids in all_ids]


def pipeline_side(model: Path, *, is_sorted: bool = False, **options: Any) -> Classify:
    """Return transformers' pipeline, as its documentation says to use it for many texts."""
    batch_size = options.pop("batch_size", None)
    found = pipeline("text-classification", model=str(model), device="cpu", top_k=None, **options)
    batching = {} if batch_size is None else {"batch_size": batch_size}

    def classify(file: Path, output: Path) -> list[str]:
        with file.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
        texts = [row["text"] for row in rows]
        order = list(range(len(texts)))
        if is_sorted:
            order.sort(key=lambda number: -len(texts[number]))
        all_scores = found([texts[number] for number in order], truncation=True, **batching)
        of_text = dict(zip(order, all_scores, strict=True))
        labels = []
        with output.open("w", encoding="utf-8") as out:
            for number, row in enumerate(rows):
                probabilities = {item["label"]: item["score"] for item in of_text[number]}
                labels.append(max(probabilities, key=probabilities.__getitem__))
                out.write(json.dumps({**row, "probabilities": probabilities}) + "\n")
        return labels

    return classify


def gptcli_side(model: Path, precision: Any = "auto") -> Classify:
    """Return what `gptcli classify --input --output` does once the model is loaded."""
    classifier = Classifier(str(model), RuntimeSettings(device="cpu", precision=precision))

    def classify(file: Path, output: Path) -> list[str]:
        texts = read_texts(find_input(str(file), DataSettings(), None), DataSettings(), Reading())
        columns, writer = Columns(classifier, None, ","), RowWriter("jsonl")
        labels = []
        with OutputFile(output) as out:
            for items in classifier.predict(texts):
                labels += [item.labels[0] for item in items]
                out.write("".join(writer.lines(columns.nested(item), item.row.where) for item in items))
        return labels

    return classify


def operations(lengths: list[int], config: GPT2Config) -> float:
    """Return the operations of the matrix products that the texts cannot do without.

    Of the last layer, only a text's last token has to leave the attention. A multiplication and an
    addition are two.
    """
    width, layers, tokens = int(config.n_embd), int(config.n_layer), sum(lengths)
    inputs, rest = 3 * width**2, 9 * width**2  # Of a layer: queries, keys and values; all behind them.
    matrices = layers * inputs * tokens + rest * ((layers - 1) * tokens + len(lengths))
    attention = layers * width * sum(length * (length + 1) for length in lengths)
    return 2.0 * (matrices + attention)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if not options.data.is_dir():
        sys.exit(f"The data sets are not at {options.data}; give --data. Nothing was measured.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "model"
        texts = choose_texts(options.data, options.texts)
        lengths = save_model(options.data, model, texts)
        half: dict[str, Any] = {"dtype": torch.bfloat16, "batch_size": BATCH_SIZE}
        sides = {
            PLAIN: pipeline_side(model),
            BATCHED: pipeline_side(model, **half),
            SORTED: pipeline_side(model, is_sorted=True, **half),
            OURS: gptcli_side(model),
            EXACT: gptcli_side(model, "fp32"),
        }
        if multiplies_int8():
            sides[INT8] = gptcli_side(model, "int8")
        order = random.Random(1).sample(range(len(texts)), len(texts))
        parts = {side: sorted(order[: round(len(texts) * PARTS.get(side, 1))]) for side in sides}
        for number, part in enumerate(parts.values()):
            write_texts(folder / f"{number}.csv", [texts[n] for n in part])
        speeds: dict[str, list[float]] = {side: [] for side in sides}
        labels: dict[str, dict[int, str]] = {}
        for _ in range(options.rounds):
            for number, (side, classify) in enumerate(sides.items()):
                started = time.perf_counter()
                found = classify(folder / f"{number}.csv", folder / "out.jsonl")
                speeds[side].append(len(found) / (time.perf_counter() - started))
                labels[side] = dict(zip(parts[side], found, strict=True))
                print(f"{side}: {speeds[side][-1]:.1f} texts/s", flush=True)
        rate = matrix_rate(torch.bfloat16)
    lines = report(lengths, speeds, labels, rate)
    print("\n".join(lines))
    write_section("Classifying, cpu", lines, file=options.results)


def report(
    lengths: list[int],
    speeds: dict[str, list[float]],
    labels: dict[str, dict[int, str]],
    rate: float,
) -> list[str]:
    """Return the table and what follows from it.

    lengths: tokens of each text. labels: {side: {number of a text: its label}}. rate: operations a
    second of a bfloat16 product.
    """
    exact = labels[PLAIN]
    first = sum(label == "LABEL_0" for label in exact.values()) / len(exact)
    median, most = (sorted(lengths)[len(lengths) * at // 100] for at in (50, 90))
    lines = [
        f"{len(lengths):,} texts (a third each of banking77, SMS spam and movie reviews), "
        f"{sum(lengths):,} tokens: median {median}, 90% up to {most}, longest {max(lengths)}. GPT-2 of "
        f"124M parameters and two labels; {first:.0%} get the first. Slow sides classify a part of the "
        "texts, drawn at random.",
        "",
        "| | texts | texts/s, median (all rounds) | gptcli is | labels as float32 has them |",
        "|---|---|---|---|---|",
    ]
    ratios = {}
    for side, values in speeds.items():
        ratios[side] = statistics.median(a / b for a, b in zip(speeds[OURS], values, strict=True))
        times = "" if side == OURS else f"{ratios[side]:.2f} times as fast"
        same = sum(labels[side][number] == label for number, label in exact.items()) / len(exact)
        rounds = ", ".join(f"{value:.1f}" for value in values)
        lines.append(
            f"| {side} | {len(labels[side]):,} | {statistics.median(values):.1f} ({rounds}) | {times} | "
            f"{same:.1%} of {len(exact)} |"
        )
    best = min(BATCHED, SORTED, key=lambda side: ratios[side])
    cost = operations(lengths, GPT2Config()) / len(lengths)
    possible = rate / cost
    share = statistics.median(speeds[OURS]) / possible
    lines += [
        "",
        f"- Wanted: {AS_IT_COMES:.0f} times the pipeline as it comes; it is {ratios[PLAIN]:.2f}.",
        f'- Wanted: {AT_ITS_BEST:.0f} times the pipeline at its best, which is "{best}"; it is '
        f"{ratios[best]:.2f}.",
        f"- The matrix products of a text are {cost / 1e9:.2f} billion operations on average; padding, "
        "layer norms, softmax and activations come on top. At "
        f"{rate / 1e9:,.0f} GFLOP/s, the fastest bfloat16 product seen, that would be {possible:,.0f} "
        f"texts/s; gptcli is at {share:.0%} of it.",
    ]
    return lines


if __name__ == "__main__":
    main()
