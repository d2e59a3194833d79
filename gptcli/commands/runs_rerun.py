"""`gptcli runs rerun`: a run once more."""

from __future__ import annotations

from gptcli.commands.options import RunName
from gptcli.commands.training import AsJson, DryRun, OutputDir, Overwrite, train_and_show


def rerun(
    run_name: RunName,
    output_dir: OutputDir = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Run the config of a run again, into a folder of its own: RUN-2 if none is given.

    If data, tokenizer or versions are not what they were, it says so.

    Examples:
      gptcli runs rerun runs/mine
      gptcli runs rerun runs/mine --output-dir runs/again
    """
    from gptcli.pipelines.runs import folder_for_rerun, settings_to_rerun
    from gptcli.training.run_record import find_run

    run = find_run(run_name)
    train_and_show(
        settings_to_rerun(run),
        run.folder.config,
        output_dir or folder_for_rerun(run),
        resume=False,
        overwrite=overwrite,
        dry_run=dry_run,
        as_json=as_json,
        repeats=run,
    )
