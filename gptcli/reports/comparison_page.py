"""Several runs on one page: their curves together, their scores and how they differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gptcli.config.loading import dump_value
from gptcli.evaluation.score_formats import score_name, score_value
from gptcli.reports.curves import comparison_panels
from gptcli.reports.pages import Table, render
from gptcli.reports.run_page import clock, moment
from gptcli.training.run_record import RunRecord

Rows = Sequence[tuple[str, Sequence[Any]]]
"""(what, one value a run)."""


def comparison_page(
    runs: Sequence[RunRecord],
    names: Sequence[str],
    *,
    scores: Rows,
    notes: Sequence[str],
    settings: Rows,
    provenance: Rows,
) -> str:
    """Return the page as HTML.

    names: of the runs. notes: on the scores. settings, provenance: where the runs differ.
    """
    return render(
        "comparison_page.html",
        comparison_panels(runs, names),
        title=" · ".join(names),
        runs=_table("", names, [(fact, [str(v) for v in values]) for fact, values in _facts(runs)]),
        scores=_table(
            "best evaluation",
            names,
            [(score_name(name), [_score(name, value) for value in values]) for name, values in scores],
        ),
        notes=notes,
        settings=_table("setting", names, [(n, [dump_value(v) for v in vs]) for n, vs in settings]),
        provenance=_table(
            "", names, [(n, ["-" if v is None else str(v) for v in vs]) for n, vs in provenance]
        ),
    )


def _facts(runs: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    all_facts = [run.facts for run in runs]
    return [
        ("task", [facts.task for facts in all_facts]),
        ("ended", [_ending(run) for run in runs]),
        ("when", [moment(facts.updated) for facts in all_facts]),
        ("parameters", [f"{facts.parameters:,}" for facts in all_facts]),
        ("steps", [f"{facts.step:,}" for facts in all_facts]),
        ("tokens", [f"{facts.tokens:,}" for facts in all_facts]),
        ("time", [clock(facts.elapsed_seconds) for facts in all_facts]),
    ]


def _ending(run: RunRecord) -> str:
    # Of a limit, the short name: columns are narrow on a phone.
    return f"{run.state}: {run.reason.removeprefix('training.')}" if run.reason else run.state


def _score(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if name == "step" else score_value(name, value)


def _table(corner: str, names: Sequence[str], rows: Sequence[tuple[str, list[str]]]) -> Table | None:
    if not rows:
        return None
    texts = frozenset(range(len(names) + 1))
    return Table([corner, *names], [[name, *values] for name, values in rows], texts=texts)
