"""Score benchmarks with lm-evaluation-harness, as the reference for `gptcli eval --benchmark`.

    python -m venv harness
    harness/bin/pip install -c constraints.txt "lm-eval[hf]==0.4.13"
    python benchmarks/harness_model.py model
    harness/bin/python benchmarks/harness_reference.py --model model --out scores.json

Runs in an environment of its own: lm-eval is no dependency of gptcli. Each task is lm-eval's, from the
file that describes it to its metrics; only its rows come from ../shared/data, brought into the shape of
the rows on the hub, from which lm-eval makes its prompts. Where they hold less than the hub's rows:

- hellaswag's are one text, in which the second part of the context does not begin with a capital, as it
  would with lm-eval.
- copa's join premise and connector with a comma ("..., therefore"), which stays.

--rows names a file of other rows in the hub's shape, {task: [row, ...]}, and these are scored instead.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

# Read when datasets and huggingface_hub are imported.
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

import datasets
import lm_eval
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
BLIMP = [
    "anaphor_number_agreement",
    "causative",
    "determiner_noun_agreement_1",
    "irregular_past_participle_verbs",
    "regular_plural_subject_verb_agreement_1",
]
FILES = {
    "lambada_openai": "lambada-first-100.jsonl",
    "hellaswag": "hellaswag-first-100.jsonl",
    "arc_easy": "arc_easy.jsonl",
    "copa": "copa.jsonl",
    **{f"blimp_{phenomenon}": f"blimp/{phenomenon}.jsonl" for phenomenon in BLIMP},
}

Row = dict[str, Any]


class CountingModel(HFLM):  # type: ignore[misc]
    """lm-eval's own model; counts what goes through it."""

    tokens = 0
    """Of all contexts and continuations, each without its last token."""
    computed_tokens = 0
    """That the model read: with padding, without requests that share a forward pass."""

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **options: Any
    ) -> list[tuple[float, bool]]:
        self.tokens += sum(len(context) + len(continuation) - 1 for _, context, continuation in requests)
        scores: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, **options)
        return scores

    def _model_call(self, inps: torch.Tensor, **options: Any) -> torch.Tensor:
        self.computed_tokens += inps.numel()
        logits: torch.Tensor = super()._model_call(inps, **options)
        return logits


def hub_row(task: str, row: Row) -> Row:
    """Return a row of ../shared/data as the hub has it."""
    if task == "hellaswag":
        activity, context = row["ctx"].split(": ", 1)
        return {
            "activity_label": activity,
            "ctx_a": context,
            "ctx_b": "",
            "endings": row["endings"],
            "label": str(row["label"]),
        }
    if task == "arc_easy":
        labels = [str(number) for number in range(len(row["choices"]))]
        return {
            "question": row["query"].removeprefix("Question: "),
            "choices": {"text": row["choices"], "label": labels},
            "answerKey": labels[row["gold"]],
        }
    if task == "copa":
        premise, connector = row["query"].rsplit(" ", 1)
        choice1, choice2 = row["choices"]
        return {
            # lm-eval drops the last character, which is a full stop on the hub.
            "premise": f"{premise}.",
            "question": {"because": "cause", "therefore": "effect"}[connector],
            "choice1": choice1,
            "choice2": choice2,
            "label": row["gold"],
        }
    return row


def read_rows(task: str, data: Path) -> list[Row]:
    lines = (data / "benchmarks" / FILES[task]).read_text(encoding="utf-8").splitlines()
    return [hub_row(task, json.loads(line)) for line in lines]


def load_tasks(rows: dict[str, list[Row]]) -> dict[str, Any]:
    """Return lm-eval's tasks of these names, with these rows."""

    def of_task(task: str) -> dict[str, Any]:
        def load(**_: Any) -> dict[str, Any]:
            split = datasets.Dataset.from_list(rows[task])
            # Whichever of them the task evaluates, and takes no examples from.
            return {"train": split, "validation": split, "test": split}

        return {"task": task, "custom_dataset": load}

    # In a group, settings of a known task are replaced one by one.
    group = {"group": "local", "task": [of_task(task) for task in rows]}
    tasks: dict[str, Any] = TaskManager().load([group])["tasks"]
    return tasks


def score(model: CountingModel, task: str, definition: Any, limit: int | None) -> dict[str, Any]:
    """Return lm-eval's metrics of a task, what it says of each row, and how long it took."""
    before = model.tokens, model.computed_tokens
    started = time.perf_counter()
    # No resampling: the time would be that of the standard error of the perplexity.
    results = lm_eval.evaluate(
        model, {"tasks": {task: definition}}, limit=limit, bootstrap_iters=0, log_samples=True
    )
    seconds = time.perf_counter() - started
    metrics = {
        name.removesuffix(",none"): value
        for name, value in results["results"][task].items()
        if name.endswith(",none") and "_stderr" not in name
    }
    items = [
        {
            "row": sample["doc_id"],
            "log_likelihoods": [logs for logs, _ in sample["filtered_resps"]],
            "is_greedy": [greedy for _, greedy in sample["filtered_resps"]],
            # That of one row is its log-likelihood.
            **{name: sample[name] for name in sample["metrics"] if name != "perplexity"},
        }
        for sample in results["samples"][task]
    ]
    return {
        "metrics": metrics,
        "seconds": seconds,
        "tokens": model.tokens - before[0],
        "computed_tokens": model.computed_tokens - before[1],
        "items": items,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a folder of harness_model.py, or any other")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", help=f"of {', '.join(FILES)}, or of --rows; default: all")
    parser.add_argument("--limit", type=int, help="rows of each task")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--rows", type=Path, help="a file of rows to score instead")
    options = parser.parse_args()
    rows: dict[str, list[Row]]
    if options.rows:
        rows = json.loads(options.rows.read_text(encoding="utf-8"))
        rows = {task: rows[task] for task in options.tasks or rows}
    else:
        rows = {task: read_rows(task, options.data) for task in options.tasks or FILES}
    tasks = load_tasks(rows)
    model = CountingModel(
        pretrained=options.model,
        dtype=options.dtype,
        batch_size=options.batch_size,
        device=options.device,
    )
    scores = {}
    for task, definition in tasks.items():
        scores[task] = score(model, task, definition, options.limit)
        found, metrics = scores[task], scores[task]["metrics"]
        print(
            f"{task}: {len(found['items'])} rows, {found['seconds']:.2f} s, {found['tokens']} tokens, "
            f"{found['computed_tokens']} computed; "
            + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()),
            flush=True,
        )
    seconds, tokens = (sum(found[name] for found in scores.values()) for name in ("seconds", "tokens"))
    print(f"lm-eval {lm_eval.__version__}, {options.dtype}: {seconds:.2f} s, {tokens} tokens")
    options.out.write_text(json.dumps({"dtype": options.dtype, "tasks": scores}), encoding="utf-8")


if __name__ == "__main__":
    main()
