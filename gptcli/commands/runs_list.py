"""`gptcli runs list`: which runs there are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from gptcli import console
from gptcli.commands.training import AsJson

if TYPE_CHECKING:
    from gptcli.training.run_record import RunRecord


def list_runs(
    folder: Path = typer.Argument(Path("runs"), metavar="FOLDER", help="Where the runs are."),
    as_json: AsJson = False,
) -> None:
    """List the runs in a folder, the newest first: best score, time, and how they ended.

    A run that is killed, without having ended, is called so.

    Examples:
      gptcli runs list
      gptcli runs list runs/ --json
    """
    from gptcli.pipelines import runs

    found = runs.list_runs(folder)
    if as_json:
        damaged = [{"path": str(path), "problem": problem} for path, problem in found.damaged]
        console.write_json({"runs": [runs.describe_run(run) for run in found.runs], "damaged": damaged})
        return
    for _, problem in found.damaged:
        console.warn(problem)
    if not found.runs:
        console.say(f"{folder} holds no run.")
        return
    head = ["run", "task", "parameters", "steps", "best", "time", "ended", "when (UTC)"]
    rows = [head, *map(_row, found.runs)]
    console.write_table(rows, right={2, 3, 5}, spare=[7, 2, 1])


def _row(run: RunRecord) -> list[str]:
    from gptcli.evaluation.score_formats import score_phrases

    facts = run.facts
    score = facts.main_score
    # Of a run that has ended at a limit, which one; the others are explained by `show`.
    limit = f": {run.reason.rpartition('.')[2]}" if run.state == "finished" else ""
    return [
        run.name,
        facts.task,
        _short(facts.parameters),
        f"{facts.step:,}",
        "-" if score is None else score_phrases(dict([score])),
        console.duration(facts.elapsed_seconds),
        f"{run.state}{limit}",
        f"{facts.updated:%Y-%m-%d %H:%M}",
    ]


def _short(count: int) -> str:
    """Return a number for people: 950, 12K, 5.3M, 1.5B."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)
