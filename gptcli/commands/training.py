"""What `gptcli pretrain` and `gptcli finetune` share: options, the display of a run, the way it ends."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptcli import console
from gptcli.errors import InterruptedRun
from gptcli.evaluation.score_formats import score_phrases
from gptcli.training.stopping import StopSignals

if TYPE_CHECKING:
    from gptcli.config.schema import Settings
    from gptcli.data.progress import PreparationProgress
    from gptcli.pipelines.train import Event, TrainingResult
    from gptcli.training.run_record import RunRecord

ConfigFile = Annotated[Path, typer.Option("--config", "-c", help="YAML file with the settings.")]
ModelName = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Start from this run, model folder, checkpoint or hub name."),
]
OutputDir = Annotated[
    Path | None,
    typer.Option(
        "--output-dir", "-o", help="Run folder; runs/NAME for configs/.../NAME.yaml if not given."
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in the run folder.")]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Check settings and data, show what would be done, and stop."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]

# More labels than this are not shown one by one at each evaluation; metrics.jsonl has them.
MAX_LABELS_SHOWN = 12


def train_and_show(
    settings: Settings,
    config: Path,
    output_dir: Path | None,
    *,
    resume: bool,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    repeats: RunRecord | None = None,
) -> None:
    """Run the training that `settings` ask for, and show how it goes and ends.

    repeats: the run whose config it is, and that this one is to be like.
    """
    # Before the imports that take seconds: a signal in them, too, ends with the exit code it should.
    with console.ProgressDisplay() as display, StopSignals(console.say_at_once) as signals:
        display.start("Loading", None)
        from gptcli.hub import quiet_libraries
        from gptcli.pipelines.train import run_training

        quiet_libraries()
        folder = output_dir or _default_output_dir(config)
        try:
            result = run_training(
                settings,
                folder,
                resume=resume,
                overwrite=overwrite,
                dry_run=dry_run,
                repeats=repeats,
                notify=_Renderer(display).show,
                signals=signals,
            )
        except InterruptedRun as stop:
            if not stop.is_saved:
                raise
            command = _resuming_command(None if repeats is None else folder)
            message = f"{stop} Continue with: {command}"
            raise InterruptedRun(message, stop.exit_code, is_saved=True) from stop
    _show_result(result, settings)
    if as_json:
        console.write_json(asdict(result))


def _default_output_dir(config: Path) -> Path:
    """Return runs/NAME for NAME.yaml; for the config.yaml of a run folder, that folder."""
    if config.name == "config.yaml" and (config.parent / "run.json").is_file():
        return config.parent
    return Path("runs") / config.stem


def _resuming_command(repetition: Path | None) -> str:
    """Return the command that continues the run of this one.

    repetition: the folder of the run, if it repeats another.
    """
    if repetition is not None:
        from gptcli.training.run_record import RunRecord

        return shlex.join([*RunRecord(repetition).repeating_command, "--resume"])
    options = [option for option in sys.argv[1:] if option not in ("--resume", "--overwrite")]
    return shlex.join(["gptcli", *options, "--resume"])


class _Renderer:
    """Shows the events of a run."""

    def __init__(self, display: console.ProgressDisplay) -> None:
        self._display = display
        self._tokens_per_second = 0.0
        self._max_steps = 0

    def show(self, event: Event) -> None:
        from gptcli.data.items import shortened
        from gptcli.data.progress import PreparationProgress
        from gptcli.pipelines.train import DataReport
        from gptcli.training.loop import MicroBatchHalved, StepDone, StepSkipped
        from gptcli.training.run import Evaluated, Note, Sampled, Saved, Started, Working

        display = self._display
        if not isinstance(event, Working | Note):
            display.end_part()
        match event:
            case Note(text, is_warning):
                display.say(f"Warning: {text}" if is_warning else text)
            case PreparationProgress():
                show_preparation(display, event)
            case DataReport(facts):
                display.say_facts("Model and data:", facts)
            case Started():
                is_all = event.trained_parameters == event.parameters
                display.say(
                    f"Training {event.trained_parameters:,} parameters "
                    f"{'' if is_all else f'(the model has {event.parameters:,}) '}"
                    f"up to step {event.max_steps:,} "
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
            case Working(what, done, total):
                of = f"{done:,} of {total:,}" if total else ""
                display.show_part(what.capitalize(), done, total, of)
            case StepSkipped(_, problem):
                display.say(f"Warning: {problem}")
            case MicroBatchHalved(size):
                display.say(
                    f"Memory ran out: going on with training.micro_batch_size {size}. The mathematics "
                    "stays the same."
                )
            case Evaluated(step, scores, details, is_best):
                display.say(
                    f"Step {step}: validation {score_phrases(scores)}{' (best)' if is_best else ''}."
                )
                for line in _tables(details):
                    display.say(line)
            case Sampled(_, samples):
                for sample in samples:
                    display.say(f"  {shortened(sample.prompt, 60)} | {shortened(sample.text, 120)}")
            case Saved(path):
                display.say(f"Saved {path}.")


def show_preparation(display: console.ProgressDisplay, progress: PreparationProgress) -> None:
    """Show how far the reading of the data is."""
    title = progress.stage.capitalize()
    if title != display.title:
        display.start(title, progress.total)
    done = progress.done
    display.update(done, amount(done, progress.total, progress.unit) if done else "")


def amount(done: int, total: int | None, unit: str) -> str:
    """Return how much of how much, for people; bytes as megabytes."""
    if unit != "bytes":
        return f"{done:,}{f' of {total:,}' if total else ''} {unit}"
    return f"{done / 1e6:,.1f}{f' of {total / 1e6:,.1f}' if total else ''} MB"


def _show_result(result: TrainingResult, settings: Settings) -> None:
    from gptcli.training.run_record import trained_phrase

    trained = trained_phrase(result.parameters, result.trained_parameters)
    facts = [
        ("parameters", f"{result.parameters:,}; {trained}"),
        ("training data", f"{_size(result.train)}, {result.epochs:.1f} times"),
        ("held-out data", _size(result.validation)),
    ]
    if result.model is None:
        _show_plan(result, facts)
        return
    facts.append(("trained", f"{result.step:,} steps in {console.duration(result.training_seconds)}"))
    if result.evaluation:
        best = result.evaluation
        facts.append(("best evaluation", f"{score_phrases(best)} (step {best['step']})"))
    if result.steps_skipped:
        facts.append(("skipped", f"{result.steps_skipped:,} steps; metrics.jsonl says which"))
    state, _, limit = result.ended.partition(": ")
    facts.append(("ended by", f"{limit} {result.limit:,}"))
    report = Path(result.run) / "report.html"
    if report.is_file():
        facts.append(("report", str(report)))
    console.show_facts(f"The model is in {result.model}", facts)
    if state == "already finished":
        console.say(f"This run has already finished ({limit}); a higher limit would continue it.")
        return
    console.say("Try next:")
    for command in _NEXT[settings.task]:
        console.say(f"  gptcli {command.replace('MODEL', shlex.quote(result.model))}")


def _show_plan(result: TrainingResult, facts: list[tuple[str, str]]) -> None:
    """Show what a dry run has found."""
    from gptcli.planning.findings import Limits, find, in_bytes

    plan = result.plan
    assert plan is not None
    if plan.flops is not None:
        facts.append(("compute", f"{plan.flops:.2g} operations; `gptcli plan --measure` times some"))
    facts += [
        ("memory", f"about {in_bytes(plan.memory.peak)}"),
        ("disk", f"{in_bytes(plan.checkpoint_bytes)} a checkpoint, up to {in_bytes(plan.run_bytes)}"),
    ]
    console.show_facts("Settings and data are fine; this run would have:", facts)
    for finding in find(plan, Limits()):
        console.say(f"- {finding}")


_NEXT = {
    "language-modelling": [
        'generate "Once upon a time" --model MODEL --temperature 0.8',
        'generate "Once upon a time" --model MODEL --temperature 0.8 --num-return-sequences 3 --json',
    ],
    "classification": [
        'classify "A text of yours" --model MODEL',
        "classify --input texts.csv --output labels.csv --model MODEL",
    ],
    "question-answering": ['answer --question "Who?" --context "A text." --model MODEL'],
    "instruction": ["chat --model MODEL"],
}


def _size(size: Any) -> str:
    examples = "" if size.examples is None else f"{size.examples:,} examples, "
    return f"{examples}{size.tokens:,} tokens"


def _tables(details: dict[str, Any]) -> list[str]:
    """Return the scores of each label, and beside them what was taken for what; or those of answerable
    and unanswerable questions."""
    if "answer_threshold" in details:
        lines = [f"  no answer above {details['answer_threshold']:.3f} nats"]
        for kind in ("answerable", "unanswerable"):
            if kind in details:
                lines.append(
                    f"  {kind}: {score_phrases(details[kind])}, {details[kind]['questions']:,} questions"
                )
        return lines
    per_label: dict[str, dict[str, float]] = details.get("per_label", {})
    if not per_label or len(per_label) > MAX_LABELS_SHOWN:
        return []
    confusion: list[list[int]] = details.get("confusion", [])
    names = [console.visible(name)[:20] for name in per_label]
    width = max(len("label"), *map(len, names))
    columns = [f"as {name}" for name in names] if confusion else []
    head = ["precision", "recall", "F1", "examples", *columns]
    lines = [f"  {'label':<{width}}  {'  '.join(f'{name:>9}' for name in head)}"]
    for row, (name, score) in enumerate(zip(names, per_label.values(), strict=True)):
        numbers = [f"{score[key]:>9.4f}" for key in ("precision", "recall", "f1")]
        numbers.append(f"{score['support']:>9,}")
        counts = confusion[row] if confusion else []
        numbers += [f"{n:>{max(9, len(c))},}" for n, c in zip(counts, columns, strict=False)]
        lines.append(f"  {name:<{width}}  {'  '.join(numbers)}")
    return lines
