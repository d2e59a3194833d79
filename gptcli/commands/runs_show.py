"""`gptcli runs show`: what a run is."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from gptcli import console
from gptcli.commands.options import RunName
from gptcli.commands.training import AsJson

if TYPE_CHECKING:
    from gptcli.training.run_record import RunFacts


def show_run(run_name: RunName, as_json: AsJson = False) -> None:
    """Show the facts of one run: its scores, data, machine, and the command that made it.

    Examples:
      gptcli runs show runs/mine
      gptcli runs show runs/mine --json
    """
    from gptcli.evaluation.score_formats import score_phrases
    from gptcli.pipelines.runs import describe_run
    from gptcli.training.run_record import find_run, trained_phrase

    run = find_run(run_name)
    if as_json:
        console.write_json(describe_run(run))
        return
    facts = run.facts
    best = facts.best_evaluation
    trained = trained_phrase(facts.parameters, facts.trained_parameters)
    rows = [
        ("task", facts.task),
        ("started from", facts.start),
        ("parameters", f"{facts.parameters:,}; {trained}"),
        ("steps", f"{facts.step:,}; {facts.tokens:,} tokens"),
        ("time", f"{console.duration(facts.elapsed_seconds)}; {_speed(facts)}"),
        ("ended", f"{run.state}: {run.reason}" if run.reason else run.state),
        ("when", f"{facts.updated:%Y-%m-%d %H:%M} UTC"),
    ]
    if best:
        rows.append(("best evaluation", f"{score_phrases(best)} (step {best.get('step', 0):,.0f})"))
    if facts.steps_skipped:
        rows.append(("skipped", f"{facts.steps_skipped:,} steps"))
    hardware = facts.hardware
    rows += [
        ("device", f"{hardware.get('device')}, {hardware.get('precision')}; {hardware.get('cpu')}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in facts.versions.items())),
        *((f"{name} fingerprint", value) for name, value in facts.fingerprints.items()),
        ("command", shlex.join(["gptcli", *facts.command[1:]])),
        ("model", str(run.folder.model) if run.folder.model.is_dir() else "none yet"),
        ("report", str(run.folder.report) if run.folder.report.is_file() else "none yet"),
    ]
    for line in console.fact_lines(str(run.path), [row for row in rows if row[1]]):
        console.write_result(line)


def _speed(facts: RunFacts) -> str:
    if not facts.training_seconds:
        return "no step done"
    return f"{facts.tokens / facts.training_seconds:,.0f} tokens/s in steps"
