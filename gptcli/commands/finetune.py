"""`gptcli finetune`: make a GPT-2 good at one thing."""

from __future__ import annotations

from gptcli.commands.options import Assignments
from gptcli.commands.training import (
    AsJson,
    ConfigFile,
    DryRun,
    ModelName,
    OutputDir,
    Overwrite,
    Resume,
    train_and_show,
)


def finetune(
    config: ConfigFile,
    model: ModelName = None,
    assignments: Assignments = [],
    output_dir: OutputDir = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Train a GPT-2 for a task: language-modelling, classification, question-answering or instruction.

    It starts from --model, or model.name in the config; without either, from a new GPT-2. The model is
    in RUN/model at the end: the best by evaluation, else the last.

    Examples:
      gptcli finetune --config configs/finetune/classification-demo.yaml
      gptcli finetune --config configs/finetune/instruction.yaml --model runs/english
    """
    from gptcli.config.loading import load_settings

    train_and_show(
        load_settings(config, assignments, {"model": {"name": model}}),
        config,
        output_dir,
        resume=resume,
        overwrite=overwrite,
        dry_run=dry_run,
        as_json=as_json,
    )
