"""`gptcli pretrain`: train a GPT-2 from scratch on your text."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from gptcli import console
from gptcli.errors import InterruptedRun
from gptcli.training.stopping import StopSignals

if TYPE_CHECKING:
    from gptcli.config.schema import Settings
    from gptcli.pipelines.pretrain import Event, PretrainResult


def pretrain(
    config: Path = typer.Option(..., "--config", "-c", help="YAML file with the settings."),
    assignments: list[str] = typer.Option(
        [], "--set", metavar="SECTION.KEY=VALUE", help="Change a setting; may be repeated."
    ),
    output_dir: Path | None = typer.Option(
        None, "--output-dir", "-o", help="Run folder; runs/NAME for configs/.../NAME.yaml if not given."
    ),
    resume: bool = typer.Option(False, "--resume", help="Continue from the newest checkpoint."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace the run in the run folder."),
    dry_run: bool = typer.Option(
        False, "--dry-run", help="Check settings and data, show what would be done, and stop."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the result as one JSON object."),
) -> None:
    """Train a GPT-2 from scratch on your text.

    The model is in RUN/model at the end: the best by evaluation, else the last.
    """
    from gptcli.config.loading import load_settings

    settings = load_settings(config, assignments)
    if output_dir is None:
        output_dir = _default_output_dir(config)

    # Before the imports that take seconds: a signal in them, too, ends with the exit code it should.
    with console.ProgressDisplay() as display, StopSignals(console.say_at_once) as signals:
        from gptcli.hub import quiet_libraries
        from gptcli.pipelines.pretrain import run_pretraining

        quiet_libraries()
        try:
            result = run_pretraining(
                settings,
                output_dir,
                resume=resume,
                overwrite=overwrite,
                dry_run=dry_run,
                notify=_Renderer(display).show,
                signals=signals,
            )
        except InterruptedRun as stop:
            if not stop.is_saved:
                raise
            message = f"{stop} Continue with: {_resuming_command()}"
            raise InterruptedRun(message, stop.exit_code, is_saved=True) from stop
    _show_result(result, settings)
    if as_json:
        console.write_json(asdict(result))


def _default_output_dir(config: Path) -> Path:
    """Return runs/NAME for NAME.yaml; for the config.yaml of a run folder, that folder."""
    if config.name == "config.yaml" and (config.parent / "run.json").is_file():
        return config.parent
    return Path("runs") / config.stem


def _resuming_command() -> str:
    """Return the command that continues the run of this one."""
    options = [option for option in sys.argv[1:] if option not in ("--resume", "--overwrite")]
    return shlex.join(["gptcli", *options, "--resume"])


class _Renderer:
    """Shows the events of a run."""

    def __init__(self, display: console.ProgressDisplay) -> None:
        self._display = display
        self._stage = ""
        self._tokens_per_second = 0.0
        self._max_steps = 0

    def show(self, event: Event) -> None:
        from gptcli.data.preparation import PreparationProgress
        from gptcli.training.loop import MicroBatchHalved, StepDone, StepSkipped
        from gptcli.training.run import Evaluated, Note, Saved, Started

        display = self._display
        match event:
            case Note(text, is_warning):
                display.say(f"Warning: {text}" if is_warning else text)
            case PreparationProgress(stage, bytes_done, bytes_total):
                if stage != self._stage:
                    self._stage = stage
                    display.start(stage.capitalize(), bytes_total)
                of_total = f" of {bytes_total / 1e6:,.1f}" if bytes_total else ""
                display.update(bytes_done, f"{bytes_done / 1e6:,.1f}{of_total} MB" if bytes_done else "")
            case Started():
                display.say(
                    f"Training {event.parameters:,} parameters up to step {event.max_steps:,} "
                    f"({event.steps_per_epoch:,.1f} steps an epoch)."
                )
                self._max_steps = event.max_steps
                display.start("Training", event.max_steps, event.step)
            case StepDone():
                speed = event.tokens / event.seconds
                # An average over about the last ten steps: single steps are noisy.
                before = self._tokens_per_second or speed
                self._tokens_per_second = 0.9 * before + 0.1 * speed
                display.update(
                    event.step,
                    f"step {event.step:,}/{self._max_steps:,}  loss {event.loss:.3f}  "
                    f"{self._tokens_per_second:,.0f} tokens/s",
                )
            case StepSkipped(_, problem):
                display.say(f"Warning: {problem}")
            case MicroBatchHalved(size):
                display.say(
                    f"Memory ran out: going on with training.micro_batch_size {size}. The mathematics "
                    "stays the same."
                )
            case Evaluated(step, scores, is_best):
                display.say(f"Step {step}: validation {_scores(scores)}{' (best)' if is_best else ''}.")
            case Saved(path):
                display.say(f"Saved {path}.")


def _show_result(result: PretrainResult, settings: Settings) -> None:
    facts = [
        ("parameters", f"{result.parameters:,}"),
        ("training text", f"{result.train_tokens:,} tokens, {result.epochs:.1f} times"),
        ("held-out text", f"{result.validation_tokens:,} tokens"),
    ]
    if result.model is None:
        console.show_facts("Settings and data are fine; this run would have:", facts)
        return
    facts.append(("trained", f"{result.step:,} steps in {console.duration(result.training_seconds)}"))
    if result.evaluation:
        best = result.evaluation
        facts.append(
            (
                "best evaluation",
                f"{_scores(best)} (step {best['step']})",
            )
        )
    if result.steps_skipped:
        facts.append(("skipped", f"{result.steps_skipped:,} steps; metrics.jsonl says which"))
    state, _, limit = result.ended.partition(": ")
    value = getattr(settings.training, limit.removeprefix("training."))
    facts.append(("ended by", f"{limit} {value:,}"))
    console.show_facts(f"The model is in {result.model}", facts)
    if state == "already finished":
        console.say(f"This run has already finished ({limit}); a higher limit would continue it.")
        return
    console.say("Try next:")
    again = f'gptcli generate "Once upon a time" --model {result.model} --temperature 0.8'
    console.say(f"  {again}")
    console.say(f"  {again} --num-return-sequences 3 --json")


def _scores(scores: dict[str, float]) -> str:
    return (
        f"loss {scores['loss']:.4f}, perplexity {scores['perplexity']:,.2f}, "
        f"{scores['bits_per_byte']:.4f} bits per byte"
    )
