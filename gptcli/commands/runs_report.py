"""`gptcli runs report`: the page of a run, made again."""

from __future__ import annotations

from pathlib import Path

import typer

from gptcli import console
from gptcli.commands.options import RunName
from gptcli.commands.training import AsJson


def report_run(
    run_name: RunName,
    output: Path | None = typer.Option(
        None, "--output", metavar="FILE", help="Where to write it; RUN/report.html if not given."
    ),
    as_json: AsJson = False,
) -> None:
    """Write the report of a run: one page with its curves, scores, samples, data, settings and machine.

    It is made of the files in the run folder: also while the run goes on, or after it was stopped.

    Examples:
      gptcli runs report runs/mine
      gptcli runs report runs/mine --output mine.html
    """
    from gptcli.pipelines.runs import write_report
    from gptcli.training.run_record import find_run

    page = write_report(find_run(run_name), output)
    if as_json:
        console.write_json({"report": str(page)})
    else:
        console.write_result(str(page))
