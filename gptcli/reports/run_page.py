"""The report of a run: one page, made of the files of its folder alone."""

from __future__ import annotations

import datetime
import json
import math
import shlex
from collections.abc import Iterable
from typing import Any

from gptcli.config.loading import dump_settings, dump_value, flat_values
from gptcli.config.schema import Settings
from gptcli.evaluation.score_formats import SCORE_FORMATS, score_name, score_value
from gptcli.reports.curves import run_panels
from gptcli.reports.pages import Table, render
from gptcli.training.run_record import RunFacts, RunRecord, number, trained_phrase

MAX_ROWS = 40
"""Of evaluations and of labels."""
MAX_SAMPLES = 20
"""Texts of a prompt."""
MAX_MATRIX = 30
"""Labels of a confusion matrix that is shown whole."""
MAX_LIST = 10
"""Items of a list in the ledger."""
SEED = 0
"""Of the draws behind intervals: the same page each time."""


def run_page(record: RunRecord) -> str:
    """Return the page as HTML."""
    facts = record.facts
    details = record.best_evaluation_line or {}
    return render(
        "run_page.html",
        run_panels(record),
        title=record.name,
        facts=facts,
        state=record.state,
        is_good=record.state in ("finished", "running"),
        reason=record.reason,
        updated=moment(facts.updated),
        way_on=_way_on(record),
        tiles=_tiles(record),
        evaluations=_evaluations(record),
        intervals=_intervals(details),
        tests=_tests(record),
        kinds=_kinds_of_questions(details),
        confusion=_confusion(details),
        labels=_labels(details),
        prompts=_prompts(record),
        skipped=_skipped(record),
        ledger=_ledger(record.ledger),
        label_counts=_label_counts(record.ledger),
        settings=_settings(record),
        all_settings=None if record.settings is None else dump_settings(record.settings),
        provenance=_provenance(record),
        command=shlex.join(["gptcli", *facts.command[1:]]),
        repeating_command=f"gptcli runs rerun {shlex.quote(str(record.path))}",
        damaged_lines=record.metrics.damaged,
    )


def moment(when: datetime.datetime) -> str:
    """Return a time for people, in UTC."""
    return f"{when.astimezone(datetime.UTC):%Y-%m-%d %H:%M} UTC"


def clock(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


def _way_on(record: RunRecord) -> str | None:
    """Return the command that continues the run; None if none would, or the reason says it."""
    if record.state not in ("interrupted", "killed", "failed"):
        return None
    return shlex.join([*record.repeating_command, "--resume"])


def _tiles(record: RunRecord) -> list[tuple[str, str, str]]:
    """Return (what, how much, beside it)."""
    facts = record.facts
    tiles = []
    if facts.main_score is not None and facts.best_evaluation is not None:
        name, value = facts.main_score
        tiles.append((f"best {score_name(name)}", score_value(name, value), _at_step(facts)))
    limit = None if record.settings is None else record.settings.training.max_steps
    tiles.append(("steps", f"{facts.step:,}", f"of {limit:,}" if limit and facts.step < limit else ""))
    train = record.ledger.get("train")
    tokens = number(train.get("tokens")) if isinstance(train, dict) else None
    epochs = f"{facts.tokens / tokens:.2f} times the training data" if tokens else ""
    tiles.append(("tokens trained on", f"{facts.tokens:,}", epochs))
    tiles.append(
        ("time", clock(facts.elapsed_seconds), f"{clock(facts.training_seconds)} in training steps")
    )
    if facts.training_seconds:
        speed = facts.tokens / facts.training_seconds
        tiles.append(("tokens a second", f"{speed:,.0f}", "mean over all steps"))
    trained = trained_phrase(facts.parameters, facts.trained_parameters)
    tiles.append(("parameters", f"{facts.parameters:,}", trained))
    return tiles


def _at_step(facts: RunFacts) -> str:
    assert facts.best_evaluation is not None
    return f"at step {facts.best_evaluation.get('step', 0):,.0f}"


def _spread(count: int, most: int, also: int | None = None) -> list[int]:
    """Return at most `most` of the numbers below `count`: first, last and evenly between; and `also`."""
    if count <= most:
        return list(range(count))
    kept = {round(n * (count - 1) / (most - 1)) for n in range(most)}
    return sorted(kept | ({also} if also is not None else set()))


def _evaluations(record: RunRecord) -> Table | None:
    lines = record.metrics.evaluations
    names = [name for name in SCORE_FORMATS if any(number(line.get(name)) is not None for line in lines)]
    if not names:
        return None
    best = (record.facts.best_evaluation or {}).get("step")
    best_row = next((n for n, line in enumerate(lines) if line["step"] == best), None)
    kept = _spread(len(lines), MAX_ROWS, best_row)
    rows = [[f"{lines[n]['step']:,}", *(_score(name, lines[n]) for name in names)] for n in kept]
    note = (
        f"{len(kept)} of {len(lines):,} evaluations; metrics.jsonl has all. "
        if len(kept) < len(lines)
        else ""
    )
    if best_row is not None:
        note += "The marked one is the best, and model/ is from it."
    return Table(
        ["step", *map(score_name, names)],
        rows,
        texts=frozenset(),
        marked=kept.index(best_row) if best_row is not None else None,
        note=note,
    )


def _score(name: str, scores: dict[str, Any]) -> str:
    value = number(scores.get(name))
    return "-" if value is None else score_value(name, value)


def _matrix(details: dict[str, Any]) -> tuple[list[str], list[list[int]]] | None:
    """Return labels and counts (true label a row), if an evaluation has them whole."""
    per_label, confusion = details.get("per_label"), details.get("confusion")
    if not isinstance(per_label, dict) or not isinstance(confusion, list):
        return None
    size = len(per_label)
    is_square = len(confusion) == size and all(
        isinstance(row, list) and len(row) == size and all(type(n) is int and n >= 0 for n in row)
        for row in confusion
    )
    return (list(per_label), confusion) if is_square and any(map(any, confusion)) else None


def _intervals(details: dict[str, Any]) -> Table | None:
    """Return the scores that follow from a confusion matrix with their intervals.

    The matrix tells of every example what it was taken for, which is all that these scores look at.
    """
    matrix = _matrix(details)
    if matrix is None:
        return None
    import numpy as np

    from gptcli.evaluation.bootstrap import scores_of
    from gptcli.evaluation.labelled_scores import measure_labels

    labels, counts = matrix
    true, predicted = np.divmod(np.repeat(np.arange(len(labels) ** 2), np.ravel(counts)), len(labels))
    certain = np.zeros((len(true), len(labels)), np.float32)
    certain[np.arange(len(true)), predicted] = 1
    found = {score.name: score for score in scores_of(measure_labels(certain, true, labels), seed=SEED)}
    scores = [found[name] for name in ("accuracy", "macro_f1") if name in found]
    rows = [
        [score_name(s.name), score_value(s.name, s.value), _interval(s.name, s.low, s.high)]
        for s in scores
    ]
    note = (
        f"Of {len(true):,} held-out examples, from 1,000 draws. That the best evaluation was chosen by "
        "them makes its scores a little too good."
    )
    return Table(["", "score", "95% interval"], rows, note=note)


def _interval(name: str, low: float | None, high: float | None) -> str:
    if low is None or high is None or not math.isfinite(low + high):
        return "-"
    return f"{score_value(name, low)} to {score_value(name, high)}"


def _tests(record: RunRecord) -> list[tuple[str, Table]]:
    """Return a title and the scores of each test that `gptcli eval --output` has left in the folder."""
    found = []
    for file in sorted(record.path.glob("eval*.json")):
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
            tests = [
                (
                    f"{test['test']}: {test['about']}",
                    [
                        [
                            str(name),
                            score_value(str(name), float(score["value"])),
                            _interval(str(name), number(score["low"]), number(score["high"])),
                            str(score["definition"]),
                        ]
                        for name, score in test["scores"].items()
                        if number(score["value"]) is not None
                    ],
                )
                for test in result["tests"]
            ]
        except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
            continue  # Something else of that name.
        note = f"From {file.name}; weights {str(result.get('model_sha256'))[:12]}…"
        for title, rows in tests:
            head = ["", "score", "95% interval", ""]
            found.append((title, Table(head, rows, texts=frozenset({0, 3}), note=note)))
    return found


def _kinds_of_questions(details: dict[str, Any]) -> Table | None:
    """Return the scores of answerable and unanswerable questions."""
    kinds = [(k, details[k]) for k in ("answerable", "unanswerable") if isinstance(details.get(k), dict)]
    if not kinds:
        return None
    names = [name for name in SCORE_FORMATS if any(name in scores for _, scores in kinds)]
    rows = [
        [kind, *(_score(name, scores) for name in names), f"{number(scores.get('questions')) or 0:,.0f}"]
        for kind, scores in kinds
    ]
    threshold = number(details.get("answer_threshold"))
    note = "" if threshold is None else f"No answer is given above {threshold:.3f} nats."
    return Table(["", *map(score_name, names), "questions"], rows, note=note)


def _confusion(details: dict[str, Any]) -> Table | None:
    """Return the confusion matrix; of many labels, the pairs that are confused most often."""
    matrix = _matrix(details)
    if matrix is None:
        return None
    labels, counts = matrix
    if len(labels) <= MAX_MATRIX:
        totals = [sum(row) or 1 for row in counts]
        return Table(
            ["true ↓  predicted →", *labels],
            [[label, *(f"{n:,}" for n in row)] for label, row in zip(labels, counts, strict=True)],
            shares=[[n / total for n in row] for row, total in zip(counts, totals, strict=True)],
            note="The shade of a cell is its share of the row.",
        )
    pairs = [
        (n, labels[true], labels[predicted])
        for true, row in enumerate(counts)
        for predicted, n in enumerate(row)
        if n and true != predicted
    ]
    pairs.sort(key=lambda pair: -pair[0])
    return Table(
        ["true label", "predicted", "examples"],
        [[true, predicted, f"{n:,}"] for n, true, predicted in pairs[:MAX_ROWS]],
        texts=frozenset({0, 1}),
        note=f"The most frequent confusions of {len(labels):,} labels; metrics.jsonl has the matrix.",
    )


def _labels(details: dict[str, Any]) -> Table | None:
    per_label = details.get("per_label")
    if not isinstance(per_label, dict):
        return None
    scores = [(str(label), s) for label, s in per_label.items() if isinstance(s, dict)]
    note = ""
    if len(scores) > MAX_ROWS:
        note = f"The {MAX_ROWS} worst of {len(scores):,} labels by F1; metrics.jsonl has all."
        scores = sorted(scores, key=lambda item: number(item[1].get("f1")) or 0)[:MAX_ROWS]
    rows = []
    for label, values in scores:
        shares = [number(values.get(name)) for name in ("precision", "recall", "f1")]
        support = number(values.get("support")) or 0
        rows.append([label, *("-" if s is None else f"{s:.4f}" for s in shares), f"{support:,.0f}"])
    return Table(["label", "precision", "recall", "F1", "examples"], rows, note=note) if rows else None


def _prompts(record: RunRecord) -> list[tuple[str, Table]]:
    """Return each prompt and what was written after it, the newest text first."""
    texts: dict[str, list[tuple[int, str]]] = {}
    for sample_set in record.metrics.samples:
        for prompt, text in sample_set.texts:
            texts.setdefault(prompt, []).append((sample_set.step, text))
    found = []
    for prompt, written in texts.items():
        kept = _spread(len(written), MAX_SAMPLES)
        left_out = len(kept) < len(written)
        note = f"{len(kept)} of {len(written):,} samples; metrics.jsonl has all." if left_out else ""
        rows = [
            [f"{step:,}", text if text.strip() else "(nothing but space)"]
            for step, text in (written[n] for n in reversed(kept))
        ]
        found.append((prompt, Table(["step", "text"], rows, texts=frozenset({0, 1}), note=note)))
    return found


def _skipped(record: RunRecord) -> Table | None:
    lines = record.metrics.skipped
    if not lines:
        return None
    kept = lines[:MAX_LIST]
    note = f"The first {len(kept)} of {len(lines):,}." if len(kept) < len(lines) else ""
    rows = [[f"{line['step']:,}", str(line["skipped"])] for line in kept]
    return Table(["step", "why"], rows, texts=frozenset({0, 1}), note=note)


def _ledger(ledger: dict[str, Any]) -> Table | None:
    rows = list(_ledger_rows({name: value for name, value in ledger.items() if name != "labels"}))
    return Table([], rows, texts=frozenset({0, 1})) if rows else None


def _ledger_rows(values: dict[str, Any], before: str = "") -> Iterable[list[str]]:
    for name, value in values.items():
        label = f"{before}{str(name).replace('_', ' ')}"
        if isinstance(value, dict):
            yield from _ledger_rows(value, f"{label}: ")
        else:
            yield [label, _shown(value)]


def _shown(value: object) -> str:
    if isinstance(value, list):
        lines = [_shown(item) for item in value[:MAX_LIST]]
        rest = [f"and {len(value) - MAX_LIST:,} more"] if len(value) > MAX_LIST else []
        return "\n".join([*lines, *rest]) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    return f"{value:,}" if isinstance(value, int) else str(value)


def _label_counts(ledger: dict[str, Any]) -> Table | None:
    labels = ledger.get("labels")
    if not isinstance(labels, dict):
        return None
    rows = [
        [str(label), *(f"{number(n) or 0:,.0f}" for n in counts)]
        for label, counts in labels.items()
        if isinstance(counts, list) and len(counts) == 2
    ]
    kept = sorted(rows, key=lambda row: -int(row[1].replace(",", "")))[:MAX_ROWS]
    note = (
        f"The {MAX_ROWS} most frequent of {len(rows):,}; data.json has all."
        if len(kept) < len(rows)
        else ""
    )
    return Table(["label", "training", "held out"], kept, note=note) if kept else None


def _settings(record: RunRecord) -> Table | None:
    """Return the settings that are not as the defaults are."""
    if record.settings is None:
        return None
    defaults = flat_values(Settings())
    rows = [
        [name, dump_value(value), dump_value(defaults[name])]
        for name, value in flat_values(record.settings).items()
        if value != defaults[name]
    ]
    return Table(["setting", "value", "default"], rows, texts=frozenset({0, 1, 2}))


def _provenance(record: RunRecord) -> Table:
    """Return hardware, versions and hashes."""
    facts, hardware = record.facts, record.facts.hardware
    rows = [
        ["started from", facts.start],
        ["device", _with_reason(hardware, "device")],
        ["precision", _with_reason(hardware, "precision")],
        ["torch.compile", facts.compiled],
        ["CPU", f"{hardware.get('cpu') or 'not known'}; {hardware.get('cpu_threads')} threads"],
        ["system", str(hardware.get("platform"))],
        ["sequences at once", f"{facts.micro_batch_size:,}"],
        *([name, version] for name, version in facts.versions.items()),
        ["last session", f"{moment(facts.started)} to {moment(facts.updated)}"],
        *([f"fingerprint: {name}", value] for name, value in facts.fingerprints.items()),
        *_hashes(record),
    ]
    return Table([], [row for row in rows if row[1]], texts=frozenset({0, 1}))


def _with_reason(hardware: dict[str, Any], name: str) -> str:
    reason = hardware.get(f"{name}_reason")
    return f"{hardware.get(name)}{f' ({reason})' if reason else ''}"


def _hashes(record: RunRecord) -> list[list[str]]:
    """Return what the newest checkpoint says its files' sha256 are."""
    manifests = sorted(record.folder.checkpoints.glob("step-*/manifest.json"))
    try:
        files = json.loads(manifests[-1].read_text(encoding="utf-8"))["files"]
        step = manifests[-1].parent.name
        return [[f"sha256: {step}/{name}", str(facts["sha256"])] for name, facts in files.items()]
    except (IndexError, OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return []
