"""`gptcli eval`: how good a model is, and whether another is better."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from gptcli import console
from gptcli.commands.options import Assignments, Device, Precision, label_names
from gptcli.commands.training import amount
from gptcli.errors import BelowThreshold, ConfigError

if TYPE_CHECKING:
    from gptcli.evaluation.bootstrap import Score
    from gptcli.pipelines.evaluate import Comparison, Evaluator, Report
    from gptcli.pipelines.evaluate_overlap import Overlap

MAX_ROWS_SHOWN = 12
MAX_TEXT_SHOWN = 80


def evaluate(
    model: str | None = typer.Option(
        None, "--model", "-m", help="Run, model folder, checkpoint or hub name."
    ),
    data: str | None = typer.Option(
        None,
        "--data",
        metavar="SOURCE",
        help="What to test on: text, labelled texts or questions, as the model's task is; with "
        "--benchmark, its file or a folder [default: what the run held out; of a benchmark, the hub].",
    ),
    benchmarks: list[str] = typer.Option(
        [], "--benchmark", "-b", metavar="NAME", help="Benchmark by name, or all; may be repeated."
    ),
    labels: str | None = typer.Option(
        None,
        "--labels",
        metavar="A,B,...",
        help="Test a model that was not trained to classify on labelled texts: the likeliest label.",
    ),
    compared: tuple[str, str] | None = typer.Option(
        None,
        "--compare",
        metavar="MODEL MODEL",
        help="In place of --model: test two on the same items, and say whether they differ.",
    ),
    limit: int | None = typer.Option(
        None,
        "--limit",
        min=1,
        metavar="N",
        help="Only the first N documents or items; of BLiMP and of bias, the first N of each kind.",
    ),
    fail_under: list[str] = typer.Option(
        [],
        "--fail-under",
        metavar="SCORE=VALUE",
        help="End with exit code 7 if a score (of several tests: TEST.SCORE) is worse; may be repeated. "
        "With --compare, that of the second model.",
    ),
    leaks: bool = typer.Option(
        False, "--leaks", help="Look for the test's items in the training text of the run."
    ),
    copied: int | None = typer.Option(
        None,
        "--copied",
        min=1,
        metavar="N",
        help="Generate N texts and look for the longest span that each copies from the training text.",
    ),
    train_data: str | None = typer.Option(
        None,
        "--train-data",
        metavar="SOURCE",
        help="For --leaks and --copied: the training text [default: that of the run].",
    ),
    tasks: str | None = typer.Option(
        None,
        "--tasks",
        metavar="NAME,...",
        help='Tasks of EleutherAI\'s lm-evaluation-harness; needs pip install "gptcli[lm-eval]".',
    ),
    tasks_folder: Path | None = typer.Option(
        None, "--tasks-folder", metavar="DIR", help="With --tasks: a folder with tasks of your own."
    ),
    log_samples: Path | None = typer.Option(
        None,
        "--log-samples",
        metavar="FILE",
        help="Write every labelled text, question or benchmark item with the model's answer (.jsonl).",
    ),
    output_file: Path | None = typer.Option(
        None, "--output", metavar="FILE", help="Write the result to this file, as JSON."
    ),
    device: Device = None,
    precision: Precision = None,
    config: Path | None = typer.Option(
        None,
        "--config",
        "-c",
        help="YAML file; its data, evaluation and runtime sections are used [default: the run's].",
    ),
    assignments: Assignments = [],
    as_json: bool = typer.Option(False, "--json", help="Print the result as one JSON object."),
) -> None:
    """Say how good a model is, with 95% intervals: on held-out data, a file, or benchmarks.

    What is measured follows from the model: perplexity and bits per byte of text; accuracy, F1 and
    calibration of labels; exact match and F1 of answers. Benchmarks: lambada, hellaswag, arc_easy,
    arc_challenge, piqa, copa, winogrande, blimp, crows_pairs, winobias, multiple_choice (your own), all.

    Examples:
      gptcli eval --model runs/mine
      gptcli eval --compare runs/mine runs/english --data article.txt
    """
    thresholds = [_threshold(text) for text in fail_under]
    choices = label_names(labels)
    if (model is None) == (compared is None):
        raise ConfigError("Give --model MODEL, or --compare MODEL MODEL.")
    if compared is not None and (tasks or leaks or copied):
        raise ConfigError("--compare goes without --tasks, --leaks and --copied.")
    if tasks is None and tasks_folder is not None:
        raise ConfigError("--tasks-folder goes with --tasks.")
    if train_data is not None and not (leaks or copied):
        raise ConfigError("--train-data goes with --leaks or --copied.")
    if labels is not None and (data is None or benchmarks or leaks or copied):
        raise ConfigError("--labels goes with --data, and without --benchmark, --leaks and --copied.")
    if tasks is not None and (data or benchmarks or labels or leaks or copied):
        raise ConfigError("--tasks brings its own data; leave the other tests out.")
    if tasks is not None and (fail_under or log_samples):
        raise ConfigError("--tasks goes without --fail-under and --log-samples.")
    if log_samples is not None and output_file is not None and log_samples == output_file:
        raise ConfigError(f"--log-samples and --output are both {output_file}; give two files.")
    names = [model] if compared is None else list(compared)
    runtime = {"device": device, "precision": precision}
    for option, file in (("--log-samples", log_samples), ("--output", output_file)):
        if file is not None:
            from gptcli.data.output_rows import check_output

            check_output(file, data, option, "--data")

    from gptcli.config.loading import load_settings
    from gptcli.evaluation.benchmarks.table import choose_benchmarks
    from gptcli.training.run_folder import config_of_run

    settings = [
        load_settings(config or config_of_run(str(name)), assignments, {"runtime": runtime})
        for name in names
    ]
    # Before the imports that take seconds.
    choose_benchmarks(benchmarks, data, settings[0].evaluation)
    for source, option in ((data, "--data"), (train_data, "--train-data")):
        if source is not None and not benchmarks:
            from gptcli.data.ledger import Reading
            from gptcli.data.sources import find_sources

            find_sources(source, settings[0].data, Reading(), name=option)

    with ExitStack() as stack:
        display = stack.enter_context(console.ProgressDisplay())
        display.start("Loading", None)
        show = _Progress(display).show
        from gptcli.hub import quiet_libraries
        from gptcli.pipelines.evaluate import Evaluator, Request, compare

        quiet_libraries()
        request = Request(data, tuple(benchmarks), limit, choices)
        if tasks is not None:
            from gptcli.pipelines.evaluate_harness import run_harness_tasks

            result = run_harness_tasks(
                str(model), settings[0].runtime, tasks.split(","), tasks_folder, limit, show
            )
            display.close()
            _give(_with_command(result), output_file, as_json, _harness_lines(result))
            return
        write = _sample_writer(log_samples, stack)
        evaluators: list[Evaluator] = []
        for name, of_name in zip(names, settings, strict=True):
            on_sample = write(str(name), len(names) > 1)
            first = evaluators[0] if evaluators else None
            evaluators.append(Evaluator(str(name), of_name, request, show, on_sample, first))
        is_causal = evaluators[0].found.kind == "language-modelling"
        is_of_text = is_causal and not benchmarks and labels is None
        if log_samples is not None and is_of_text:
            raise ConfigError(
                "--log-samples is for labelled texts, questions and benchmarks; running text and "
                "conversations are scored as a whole."
            )
        if evaluators[0].skipped:
            display.say(f"Skipped, for want of a file in {data}: {', '.join(evaluators[0].skipped)}.")
        _check_thresholds(thresholds, evaluators[0])
        if leaks or copied:
            from gptcli.pipelines.evaluate_overlap import check_overlap

            check_overlap(evaluators[0], train_data, samples=copied)
        reports = [list(evaluator.run()) for evaluator in evaluators]
        overlap: Overlap | None = None
        if leaks or copied:
            from gptcli.pipelines.evaluate_overlap import look_for_overlap

            overlap = look_for_overlap(
                evaluators[0], train_data, leaks=leaks, samples=copied, progress=show
            )
        comparisons: list[Comparison] = []
        if len(names) == 2:
            comparisons = compare(*reports, seed=settings[0].runtime.seed, progress=show)
        result = _with_command(_result(evaluators, reports, comparisons, overlap))
    lines: list[str] = []
    for evaluator, of_model in zip(evaluators, reports, strict=True):
        lines += [f"{evaluator.model} ({evaluator.compute.precision}, {evaluator.compute.device})", ""]
        for report in of_model:
            lines += [*_report_lines(report), ""]
    for comparison in comparisons:
        lines += [*_comparison_lines(comparison, [str(name) for name in names]), ""]
    if overlap is not None:
        lines += _overlap_lines(overlap)
    _give(result, output_file, as_json, lines[:-1])
    _fail_under(thresholds, reports[-1])


@dataclass(frozen=True)
class _Threshold:
    score: str
    """SCORE or TEST.SCORE."""
    value: float


def _threshold(text: str) -> _Threshold:
    name, equals, number = text.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        value = float("nan")
    if not equals or not name or value != value:
        raise ConfigError(f"--fail-under {text}: write it as SCORE=VALUE, such as accuracy=0.9.")
    return _Threshold(name, value)


def _check_thresholds(thresholds: list[_Threshold], evaluator: Evaluator) -> None:
    """Raise ConfigError, before any work, for a score that this test is known not to have."""
    known = evaluator.score_names()
    for threshold in thresholds:
        # The scores of groups (acc/causative) are known when their items are.
        if known is not None and threshold.score.partition("/")[0] not in known:
            raise ConfigError(
                f"--fail-under {threshold.score}: there is no such score. This test has "
                f"{', '.join(known)}."
            )


def _fail_under(thresholds: list[_Threshold], reports: list[Report]) -> None:
    """Raise BelowThreshold for scores that are worse than asked for, ConfigError for unknown ones."""
    failures = []
    for threshold in thresholds:
        found: list[tuple[str, Score]] = [
            (report.test, score)
            for report in reports
            for score in report.scores
            if threshold.score in (score.name, f"{report.test}.{score.name}")
        ]
        if not found:
            names = dict.fromkeys(score.name for report in reports for score in report.scores)
            raise ConfigError(
                f"--fail-under {threshold.score}: there is no such score. There are {', '.join(names)}."
            )
        for test, score in found:
            if score.is_better_higher is None:
                raise ConfigError(
                    f"--fail-under {threshold.score}: of this score, neither more nor less is better."
                )
            sign = 1 if score.is_better_higher else -1
            if sign * score.value < sign * threshold.value:
                side = "below" if score.is_better_higher else "above"
                failures.append(
                    f"{test}.{score.name} is {score.value:.6g}, {side} --fail-under {threshold.value:g}."
                )
    if failures:
        raise BelowThreshold(*failures)


def _sample_writer(
    path: Path | None, stack: ExitStack
) -> Callable[[str, bool], Callable[[dict[str, Any]], None]]:
    """Return what makes the writer of a model's samples."""
    if path is None:
        return lambda model, is_named: lambda sample: None
    from gptcli.data.output_rows import OutputFile, json_line

    output = stack.enter_context(OutputFile(path))

    def of_model(model: str, is_named: bool) -> Callable[[dict[str, Any]], None]:
        beside = {"model": model} if is_named else {}
        return lambda sample: output.write(json_line({**beside, **sample}) + "\n")

    return of_model


class _Progress:
    """Shows how far a test is."""

    def __init__(self, display: console.ProgressDisplay) -> None:
        self._display = display
        self._done = 0

    def show(self, what: str, done: int, total: int | None, unit: str) -> None:
        title = what.capitalize()
        if self._display.title != title or done < self._done:  # The second of two models.
            self._display.start(title, total)
        self._done = done
        if total is None and not done:  # There is nothing to count.
            return
        self._display.update(done, amount(done, total, unit))


def _result(
    evaluators: list[Evaluator],
    reports: list[list[Report]],
    comparisons: list[Comparison],
    overlap: Overlap | None,
) -> dict[str, Any]:
    models = [
        {**evaluator.provenance(), "tests": [report.as_dict() for report in of_model]}
        for evaluator, of_model in zip(evaluators, reports, strict=True)
    ]
    skipped = {"skipped": evaluators[0].skipped} if evaluators[0].skipped else {}
    if len(models) > 1:
        return {"models": models, "comparisons": [item.as_dict() for item in comparisons], **skipped}
    return models[0] | skipped | ({} if overlap is None else overlap.as_dict())


def _with_command(result: dict[str, Any]) -> dict[str, Any]:
    return {"command": shlex.join(["gptcli", *sys.argv[1:]]), **result}


def _give(result: dict[str, Any], output_file: Path | None, as_json: bool, lines: list[str]) -> None:
    """Write the result to the file, and print it."""
    finite = _finite(result)
    if output_file is not None:
        from gptcli.data.output_rows import OutputFile

        with OutputFile(output_file) as file:
            file.write(json.dumps(finite, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    if as_json:
        console.write_json(finite)
        return
    for line in lines:
        console.write_result(line)


def _finite(value: Any) -> Any:
    """Return the value with null for what is no number, which JSON cannot hold."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float):
        return value if value - value == 0 else None
    return value


def _table(rows: list[list[str]]) -> list[str]:
    """Return rows as lines: the first column to the left, numbers to the right, the last one open."""
    return [f"  {line}" for line in console.table_lines(rows, right=range(1, len(rows[0]) - 1))]


def _report_lines(report: Report) -> list[str]:
    lines = [f"{report.test}: {report.about}"]
    lines += console.fact_lines(
        "", [(name.replace("_", " "), _shown(value)) for name, value in _plain(report)]
    )[1:]
    rows = [["", "score", "95% interval", ""]]
    for score in report.scores:
        # A score of a group (acc/causative) is defined as that of all.
        is_new = score.definition not in (row[-1] for row in rows)
        definition = score.definition if is_new else ""
        rows.append([score.name, _number(score.value), _interval(score.low, score.high), definition])
    lines += _table(rows)
    lines += _label_lines(report.details)
    return lines + [f"  Note: {note}" for note in report.notes]


def _plain(report: Report) -> list[tuple[str, Any]]:
    return [
        (name, value)
        for name, value in report.conditions.items()
        if not isinstance(value, dict) and value not in (0, "none")
    ]


def _label_lines(details: dict[str, Any]) -> list[str]:
    """Return what is known of each label, of confidence and of mistakes."""
    lines: list[str] = []
    per_label: dict[str, dict[str, float]] = details.get("per_label", {})
    if per_label:
        # Those that it is worst at come first where there are too many to show.
        worst = sorted(
            per_label, key=lambda label: (not per_label[label]["support"], per_label[label]["f1"])
        )
        shown = list(per_label) if len(per_label) <= MAX_ROWS_SHOWN else worst[:MAX_ROWS_SHOWN]
        rows = [["label", "precision", "recall", "f1", "examples", ""]]
        for label in shown:
            of_label = per_label[label]
            numbers = [_number(of_label[name]) for name in ("precision", "recall", "f1")]
            rows.append([label, *numbers, f"{of_label['support']:,}", ""])
        lines += ["", *_table(rows)]
        if len(shown) < len(per_label):
            lines.append(f"  The {len(shown)} worst of {len(per_label)}; --json has all.")
    if "reliability" in details:
        rows = [["confidence", "examples", "mean confidence", "accuracy", ""]]
        for row in details["reliability"]:
            between = f"{row['low']:.1f} to {row['high']:.1f}"
            shares = [_number(row[name]) for name in ("mean_confidence", "accuracy")]
            rows.append([between, f"{row['examples']:,}", *shares, ""])
        lines += ["", *_table(rows)]
    for name, title, instead in (
        ("confident_mistakes", "Most confident mistakes", "predicted"),
        ("probable_label_errors", "Labels that are probably wrong", "rather"),
    ):
        if details.get(name):
            lines += ["", f"  {title}:"]
            for item in details[name][:5]:
                text = item["text"][:MAX_TEXT_SHOWN]
                lines.append(
                    f"    {item['where']}: labelled {item['label']}, {instead} {item['predicted']} "
                    f"({item['probability']:.3f}): {text}"
                )
    second = details.get("second_label")
    if second and second["best_threshold"]:
        best = second["best_threshold"]
        lines += [
            "",
            f"  {second['label']}: ROC AUC {_number(second['roc_auc'])}, average precision "
            f"{_number(second['average_precision'])}; best F1 {_number(best['f1'])} from probability "
            f"{best['threshold']:.3f} on, {_number(best['f1_at_half'])} from 0.5 on "
            "(chosen on these items: expect less on others)",
        ]
    return lines


def _comparison_lines(comparison: Comparison, names: list[str]) -> list[str]:
    from gptcli.evaluation.bootstrap import MIN_COMPARED

    lines = [f"{comparison.test}: {names[1]} (second) minus {names[0]} (first), on the same items"]
    rows = [["", "first", "second", "difference", "95% interval", "p", ""]]
    for row in comparison.differences:
        verdict = "no real difference" if row.better is None else f"{names[row.better]} is better"
        if comparison.items < MIN_COMPARED:
            verdict = "too few items to tell"
        elif row.is_real and row.better is None:
            verdict = "they differ"
        rows.append(
            [
                row.name,
                _number(row.first),
                _number(row.second),
                ("+" if row.second >= row.first else "") + _number(row.second - row.first),
                _interval(row.low, row.high),
                f"{row.p_value:.3g}",
                verdict,
            ]
        )
    return lines + _table(rows)


def _overlap_lines(overlap: Overlap) -> list[str]:
    lines: list[str] = []
    leaks, copied = overlap.leaks, overlap.copied
    if leaks is not None:
        lines += [
            f"leaks: which of the {leaks.items:,} items stand in the training text",
            *_table(
                [
                    ["at least in part", f"{leaks.touched:,}", "any run of 13 words"],
                    ["mostly", f"{leaks.near_duplicates:,}", "half of those runs, or more"],
                    ["too short to tell", f"{leaks.too_short:,}", "less than 5 words"],
                ]
            ),
        ]
        lines += [f"    {share:.0%}: {text[:MAX_TEXT_SHOWN]}" for share, text in overlap.leaked[:5]]
        lines.append("")
    if copied is not None:
        lines += [f"copied: the longest spans of {len(copied):,} generated texts in the training text"]
        for span in copied[:5]:
            if span.text:
                text = " ".join(span.text.split())[:MAX_TEXT_SHOWN]
                lines.append(f"    {span.characters:,} characters, {span.words:,} words: {text}")
        if not copied[0].text:
            lines.append("    none of 24 bytes or more")
        lines.append("")
    return lines


def _harness_lines(result: dict[str, Any]) -> list[str]:
    rows = [["", "score", "standard error", ""]]
    for task, scores in result["tasks"].items():
        for name, value in scores.items():
            if isinstance(value, float) and "_stderr" not in name:
                error = scores.get(name.replace(",", "_stderr,"))
                shown = _number(error) if isinstance(error, float) else ""
                rows.append([f"{task}  {name.removesuffix(',none')}", _number(value), shown, ""])
    return [f"{result['model']} ({result['precision']}), lm-evaluation-harness", "", *_table(rows)]


def _interval(low: float, high: float) -> str:
    return f"{_number(low)} to {_number(high)}" if low == low else "-"


def _number(value: float | None) -> str:
    if value is None or value != value:
        return "-"
    if abs(value) < 100:
        return f"{value:.4f}"
    if abs(value) < 10_000:
        return f"{value:,.1f}"
    return f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.3g}"


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
