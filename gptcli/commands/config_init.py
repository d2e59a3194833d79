"""`gptcli config init`: a config to start from."""

from __future__ import annotations

import shlex
from pathlib import Path

import typer

from gptcli import console
from gptcli.errors import ConfigError

STANDARD_OUTPUT = "-"


def init(
    task: str = typer.Argument(
        ...,
        metavar="TASK",
        help="language-modelling, classification, question-answering or instruction.",
    ),
    output: str = typer.Option(
        STANDARD_OUTPUT,
        "--output",
        "-o",
        metavar="FILE|-",
        help="Write it to this file, and the schema for editors beside it.",
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace the file if there is one."),
    as_json: bool = typer.Option(False, "--json", help="Print the result as one JSON object."),
) -> None:
    """Write a commented config for a task, with the device and precision of this machine.

    It runs as it is, on text that every Python carries, or for the tasks that have none there, on the
    file that it names.

    Examples:
      gptcli config init language-modelling --output my.yaml
      gptcli config init classification > my-classes.yaml
    """
    from gptcli.config.json_schema import SCHEMA_FILE, schema_text
    from gptcli.config.starter import STARTERS, starter_config
    from gptcli.data.output_rows import check_output
    from gptcli.files import write_text

    if task not in STARTERS:
        hint = " Pretraining is of task language-modelling." if task.startswith("pretrain") else ""
        raise ConfigError(f"{task!r} is no task; there are {', '.join(STARTERS)}.{hint}")
    file = None if output == STANDARD_OUTPUT else Path(output)
    if file is not None:
        check_output(file, None)
        if file.exists() and not overwrite:
            raise ConfigError(f"{file} already exists. Use --overwrite to replace it.")

    with console.working("Looking at this machine"):
        from gptcli.config.schema import RuntimeSettings
        from gptcli.training.device import choose_compute

        compute = choose_compute(RuntimeSettings(), for_training=True)
    machine = {
        "device": (str(compute.device), compute.device_reason),
        "precision": (compute.precision, compute.precision_reason),
    }
    name = shlex.quote(f"{task}.yaml" if file is None else str(file))
    text = starter_config(task, name, machine)
    if file is not None:
        write_text(file, text)
        write_text(file.with_name(SCHEMA_FILE), schema_text())
        console.say(f"{file} is for {compute.describe()}.")
        console.say(f"{file.with_name(SCHEMA_FILE)} is for editors, which complete and check by it.")
        console.say("Try next:")
        for command in ("validate", "show"):
            console.say(f"  gptcli config {command} {name}")
    if as_json:
        console.write_json(
            {
                "task": task,
                "output": None if file is None else str(file),
                **{key: value for key, (value, _) in machine.items()},
                "config": text,
            }
        )
    elif file is None:
        console.write_result(text, end="")
