"""`gptcli runs compare`: how runs differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from gptcli import console
from gptcli.commands.training import AsJson

if TYPE_CHECKING:
    from gptcli.pipelines.runs import Difference

# A longer value is cut, on a narrow terminal down to the least.
MAX_VALUE, MIN_VALUE = 40, 12
NAME_WIDTH = 28
"""Of the longest names of settings, and the space before them."""


def compare_runs(
    names: list[str] = typer.Argument(metavar="RUN...", help="Run folders, or their names in runs/."),
    output: Path | None = typer.Option(
        None, "--output", metavar="FILE", help="Also write a page with the curves together."
    ),
    as_json: AsJson = False,
) -> None:
    """Compare runs: settings, data and machines that differ, and the best scores side by side.

    Examples:
      gptcli runs compare runs/mine runs/demo
      gptcli runs compare runs/mine runs/demo --output comparison.html
    """
    from gptcli.config.loading import dump_value
    from gptcli.evaluation.score_formats import score_name, score_value
    from gptcli.pipelines import runs

    comparison = runs.compare_runs(names)
    page = None if output is None else runs.write_comparison(comparison, output)
    for config in comparison.unreadable:
        console.warn(f"{config} cannot be read; settings are not compared.")
    if as_json:
        console.write_json(
            {
                "runs": [runs.describe_run(run) for run in comparison.runs],
                "scores": _by_run(comparison.names, comparison.scores),
                "settings": _by_run(comparison.names, comparison.settings),
                "provenance": _by_run(comparison.names, comparison.provenance),
                "notes": comparison.notes,
                "page": None if page is None else str(page),
            }
        )
        return

    def show(title: str, rows: list[list[str]]) -> None:
        if len(rows) > 1:
            console.write_result(title)
            for line in console.table_lines(rows):
                console.write_result(f"  {line}")

    def score(name: str, value: float | None) -> str:
        if value is None:
            return "-"
        return f"{value:,.0f}" if name == "step" else score_value(name, value)

    def cut(value: str) -> str:
        return value if len(value) <= most else f"{value[: most - 3]}..."

    most = MAX_VALUE
    if (width := console.result_width()) is not None:
        for_each = (width - NAME_WIDTH) // len(comparison.names) - 2
        most = max(MIN_VALUE, min(most, for_each))
    head = ["", *comparison.names]
    scores = [[score_name(s.name), *(score(s.name, v) for v in s.values)] for s in comparison.scores]
    show("Best evaluation:", [head, *scores])
    for note in comparison.notes:
        console.write_hanging(f"  Note: {note}", 4)
    settings = [[s.name, *(cut(dump_value(v)) for v in s.values)] for s in comparison.settings]
    show("Settings that differ:", [head, *settings])
    rest = [[p.name, *(cut(str(v)) for v in p.values)] for p in comparison.provenance]
    show("Data, versions and hardware that differ:", [head, *rest])
    if not comparison.settings and not comparison.unreadable:
        console.write_result("The settings are the same.")
    if page is not None:
        console.say(f"The curves are in {page}.")


def _by_run(names: Sequence[str], differences: Sequence[Difference]) -> dict[str, dict[str, Any]]:
    return {one.name: dict(zip(names, one.values, strict=True)) for one in differences}
