"""`gptcli data inspect`: look at data before anything is trained on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from gptcli import console
from gptcli.commands.options import Assignments
from gptcli.commands.training import AsJson, ConfigFile, ModelName, show_preparation
from gptcli.errors import BelowThreshold, ConfigError

if TYPE_CHECKING:
    from gptcli.inspection.findings import Level
    from gptcli.pipelines.inspect_data import Inspection

MAX_CHARACTERS = 400
"""Shown of each part of an example."""


def inspect(
    config: ConfigFile,
    model: ModelName = None,
    assignments: Assignments = [],
    fail_on: str | None = typer.Option(
        None,
        "--fail-on",
        metavar="<warning|problem>",
        help="End with exit code 7 if there is a finding of this level or worse.",
    ),
    examples: int = typer.Option(
        2, "--examples", min=0, help="Show so many training examples, each from another batch."
    ),
    as_json: AsJson = False,
) -> None:
    """Show what a training would learn from, and what is wrong with it.

    Sizes, lengths, scripts and labels; then findings, the worst first: encoding, repetitions, what is
    both trained on and held out, labels, what is cut, padding. Nothing is trained and no run is written.
    In the examples, what is learnt is in colour, or in [[ ]].

    Examples:
      gptcli data inspect --config configs/finetune/classification-demo.yaml
      gptcli data inspect -c configs/pretrain/demo.yaml --set data.source=my-text/
    """
    from gptcli.config.loading import load_settings

    level = None if fail_on is None else _level(fail_on)
    settings = load_settings(config, assignments, {"model": {"name": model}})
    with console.ProgressDisplay() as display:
        from gptcli.hub import quiet_libraries
        from gptcli.pipelines.inspect_data import inspect_data

        quiet_libraries()
        inspection = inspect_data(
            settings, examples, lambda progress: show_preparation(display, progress)
        )
    if as_json:
        console.write_json(inspection.as_dict())
    else:
        _print(inspection)
    if level is not None:
        _fail_on(level, inspection)


def _print(inspection: Inspection) -> None:
    value_at = max((len(name) for name, _ in inspection.summary), default=0) + 4
    for line in console.fact_lines(f"{inspection.task}:", inspection.summary):
        console.write_hanging(line, value_at)
    heads = console.table_lines([[finding.level, finding.subject] for finding in inspection.findings])
    indent = max(map(len, heads), default=0) + 4
    console.write_result("findings:")
    for head, finding in zip(heads, inspection.findings, strict=True):
        console.write_hanging(f"  {head}".ljust(indent) + finding.line, indent)
    for number, example in enumerate(inspection.examples, 1):
        console.write_result(f"example {number}:")
        parts = example.shortened(MAX_CHARACTERS)
        console.write_learnt(((part.text, part.is_learnt) for part in parts), indent="  ")


def _level(name: str) -> Level:
    """Return the level of that name. Raises ConfigError if there is none that is worse than ok."""
    from gptcli.inspection.findings import LEVELS

    for level in LEVELS[1:]:
        if level == name:
            return level
    raise ConfigError(f"--fail-on is {name!r}; it must be {' or '.join(LEVELS[1:])}.")


def _fail_on(level: Level, inspection: Inspection) -> None:
    """Raise BelowThreshold if there is a finding of that level or a worse one."""
    from gptcli.inspection.findings import LEVELS

    limit = LEVELS.index(level)
    found = [finding for finding in inspection.findings if LEVELS.index(finding.level) >= limit]
    if found:
        worst = found[0]
        raise BelowThreshold(
            f"--fail-on {level}: {len(found)} of {len(inspection.findings)} findings; the worst: "
            f"{worst.subject}: {worst.message}."
        )
