"""Curves of runs: what is drawn of metrics.jsonl, thinned to what a screen can show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gptcli.evaluation.score_formats import SCORE_FORMATS, score_name
from gptcli.training.run_record import RunRecord, number

PARTS = 500
"""A longer curve is cut into as many parts, and the least and the most of each are drawn."""

# What evaluations measure is in a panel with others of its kind; what is not here, in one of its own.
_SHARES = ("accuracy", "exact_match", "micro_f1", "macro_f1", "f1", "pearson", "spearman", "r2")
_LEFT_OUT = ("loss", "perplexity")  # Beside the training loss; exp(loss), which looks alike.
_MEASURES = {
    "lr": "Learning rate",
    "grad_norm": "Gradient norm",
    "tokens_per_second": "Tokens per second",
}


@dataclass(frozen=True)
class Curve:
    """One measure over a run."""

    label: str
    steps: list[int]
    tokens: list[float | None]
    """Trained on by then."""
    values: list[float]
    has_points: bool = False
    """Whether each value is marked: there are few of them."""
    run: int = 0
    """Which of the runs on a page it is of."""

    @property
    def is_thinned(self) -> bool:
        return len(self.values) > 2 * PARTS

    def as_dict(self) -> dict[str, Any]:
        """Return what the page draws, in few digits."""
        kept = thinned(self.values)
        return {
            "label": self.label,
            "run": self.run,
            "points": self.has_points,
            "steps": [self.steps[n] for n in kept],
            "tokens": [self.tokens[n] for n in kept],
            "values": [float(f"{self.values[n]:.5g}") for n in kept],
        }


@dataclass(frozen=True)
class Panel:
    """Curves that share their axes."""

    title: str
    curves: list[Curve]

    def as_dict(self) -> dict[str, Any]:
        return {"title": self.title, "curves": [curve.as_dict() for curve in self.curves]}


def thinned(values: Sequence[float], parts: int = PARTS) -> list[int]:
    """Return which values to draw: all, or of each of `parts` parts the least and the most, in order.

    The first and the last value are always among them.
    """
    count = len(values)
    if count <= 2 * parts:
        return list(range(count))
    kept = {0, count - 1}
    for part in range(parts):
        places = range(part * count // parts, (part + 1) * count // parts)
        kept |= {min(places, key=values.__getitem__), max(places, key=values.__getitem__)}
    return sorted(kept)


def run_panels(record: RunRecord) -> list[Panel]:
    """Return the panels of one run; those without any value are left out."""
    metrics = record.metrics
    scores = _scores_in([record])
    shares = [name for name in scores if name in _SHARES]
    others = [name for name in scores if name not in (*_SHARES, *_LEFT_OUT)]
    panels = [
        Panel(
            "Loss",
            [
                _curve("training", "loss", metrics.steps),
                _curve("held-out", "loss", metrics.evaluations, has_points=True),
            ],
        ),
        *(
            Panel(
                _capitalized(score_name(name)),
                [_curve("held-out", name, metrics.evaluations, has_points=True)],
            )
            for name in others
        ),
        Panel(
            "Scores, held-out",
            [_curve(score_name(name), name, metrics.evaluations, has_points=True) for name in shares],
        ),
        *(
            Panel(title, [_curve(title.lower(), name, metrics.steps)])
            for name, title in _MEASURES.items()
        ),
    ]
    return _filled(panels)


def comparison_panels(records: Sequence[RunRecord], names: Sequence[str]) -> list[Panel]:
    """Return a panel a measure, with a curve of each run that has it. names: of the runs."""
    panels = [
        Panel("Training loss", _of_each(records, names, "loss")),
        Panel("Held-out loss", _of_each(records, names, "loss", held_out=True)),
    ]
    for name in _scores_in(records):
        if name not in _LEFT_OUT:
            title = f"{_capitalized(score_name(name))}, held-out"
            panels.append(Panel(title, _of_each(records, names, name, held_out=True)))
    for name, title in _MEASURES.items():
        panels.append(Panel(title, _of_each(records, names, name)))
    return _filled(panels)


def _of_each(
    records: Sequence[RunRecord], names: Sequence[str], key: str, *, held_out: bool = False
) -> list[Curve]:
    return [
        _curve(
            label,
            key,
            record.metrics.evaluations if held_out else record.metrics.steps,
            has_points=held_out,
            run=run,
        )
        for run, (record, label) in enumerate(zip(records, names, strict=True))
    ]


def _scores_in(records: Iterable[RunRecord]) -> list[str]:
    """Return the names of all scores of the evaluations, in the order in which they are shown."""
    found = {name for record in records for line in record.metrics.evaluations for name in line}
    return [name for name in SCORE_FORMATS if name in found]


def _curve(
    label: str,
    key: str,
    lines: Iterable[dict[str, Any]],
    *,
    has_points: bool = False,
    run: int = 0,
) -> Curve:
    points = [
        (line["step"], number(line.get("tokens")), value)
        for line in lines
        if (value := number(line.get(key))) is not None
    ]
    return Curve(
        label,
        [step for step, _, _ in points],
        [tokens for _, tokens, _ in points],
        [value for _, _, value in points],
        has_points,
        run,
    )


def _filled(panels: Iterable[Panel]) -> list[Panel]:
    filled = []
    for panel in panels:
        curves = [curve for curve in panel.curves if curve.values]
        if curves:
            filled.append(Panel(panel.title, curves))
    return filled


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]
