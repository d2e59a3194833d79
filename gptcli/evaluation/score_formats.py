"""How the scores of evaluations during training are written for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class ScoreFormat(NamedTuple):
    """What a score is called, and how its value is written."""

    name: str
    value: str
    """A format of the value alone, as in a table."""
    phrase: str
    """The same with the name, as in a sentence."""


SCORE_FORMATS = {
    "loss": ScoreFormat("loss", "{:.4f}", "loss {:.4f}"),
    "perplexity": ScoreFormat("perplexity", "{:,.2f}", "perplexity {:,.2f}"),
    "bits_per_byte": ScoreFormat("bits per byte", "{:.4f}", "{:.4f} bits per byte"),
    "accuracy": ScoreFormat("accuracy", "{:.2%}", "accuracy {:.2%}"),
    "macro_f1": ScoreFormat("macro-F1", "{:.4f}", "macro-F1 {:.4f}"),
    "micro_f1": ScoreFormat("micro-F1", "{:.4f}", "micro-F1 {:.4f}"),
    "exact_match": ScoreFormat("exact match", "{:.2%}", "exact match {:.2%}"),
    "f1": ScoreFormat("F1", "{:.2%}", "F1 {:.2%}"),
    "mean_squared_error": ScoreFormat("mean squared error", "{:.4g}", "mean squared error {:.4g}"),
    "mean_absolute_error": ScoreFormat("mean absolute error", "{:.4g}", "mean absolute error {:.4g}"),
    "pearson": ScoreFormat("Pearson's r", "{:.4f}", "Pearson's r {:.4f}"),
    "spearman": ScoreFormat("Spearman's rho", "{:.4f}", "Spearman's rho {:.4f}"),
    "r2": ScoreFormat("R2", "{:.4f}", "R2 {:.4f}"),
}
"""In the order in which they are shown."""


def score_phrases(scores: Mapping[str, float]) -> str:
    """Return the scores on one line: "loss 2.1000, accuracy 90.00%". What is no score is left out."""
    return ", ".join(
        known.phrase.format(scores[key]) for key, known in SCORE_FORMATS.items() if key in scores
    )


def score_value(key: str, value: float) -> str:
    """Return a score's value alone."""
    return SCORE_FORMATS[key].value.format(value) if key in SCORE_FORMATS else f"{value:.4g}"


def score_name(key: str) -> str:
    """Return what a score is called."""
    return SCORE_FORMATS[key].name if key in SCORE_FORMATS else key.replace("_", " ")
