"""`gptcli data inspect`: look at data before anything is trained on it."""

from __future__ import annotations

from gptcli import console
from gptcli.commands.options import Assignments
from gptcli.commands.training import AsJson, ConfigFile, ModelName, show_preparation


def inspect(
    config: ConfigFile,
    model: ModelName = None,
    assignments: Assignments = [],
    as_json: AsJson = False,
) -> None:
    """Show what a training would learn from: sizes, labels, lengths, repetitions, an example.

    Nothing is trained and no run is written. In the example, [[ ]] is around what is learnt.

    Examples:
      gptcli data inspect --config configs/finetune/classification-demo.yaml
      gptcli data inspect -c configs/pretrain/demo.yaml --set data.source=my-text/
    """
    from gptcli.config.loading import load_settings

    settings = load_settings(config, assignments, {"model": {"name": model}})
    with console.ProgressDisplay() as display:
        from gptcli.hub import quiet_libraries
        from gptcli.pipelines.inspect_data import inspect_data

        quiet_libraries()
        inspection = inspect_data(settings, lambda progress: show_preparation(display, progress))
    if as_json:
        console.write_json({"task": settings.task, **inspection.ledger})
        return
    for line in console.fact_lines(f"{settings.task}:", inspection.summary):
        console.write_result(line)
