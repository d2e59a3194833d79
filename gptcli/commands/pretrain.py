"""`gptcli pretrain`: train a GPT-2 from scratch on your text."""

from __future__ import annotations

from gptcli.commands.options import Assignments
from gptcli.commands.training import (
    AsJson,
    ConfigFile,
    DryRun,
    OutputDir,
    Overwrite,
    Resume,
    train_and_show,
)
from gptcli.errors import ConfigError


def pretrain(
    config: ConfigFile,
    assignments: Assignments = [],
    output_dir: OutputDir = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Train a GPT-2 from scratch on your text.

    The model is in RUN/model at the end: the best by evaluation, else the last.

    Examples:
      gptcli pretrain --config configs/pretrain/demo.yaml
      gptcli pretrain -c configs/pretrain/demo.yaml --set data.source=my-text/ -o runs/mine
    """
    from gptcli.config.loading import load_settings

    settings = load_settings(config, assignments)
    for name, value, default in (
        ("task", settings.task, "language-modelling"),
        ("model.name", settings.model.name, None),
    ):
        if value != default:
            raise ConfigError(
                f"{name} is {value}, but pretraining starts from nothing and models language. "
                "Use gptcli finetune."
            )
    train_and_show(
        settings,
        config,
        output_dir,
        resume=resume,
        overwrite=overwrite,
        dry_run=dry_run,
        as_json=as_json,
    )
