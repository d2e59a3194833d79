"""`gptcli classify`: labels for texts."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from gptcli import console
from gptcli.commands.options import Assignments, Device, Precision, label_names
from gptcli.errors import ConfigError, DataError

if TYPE_CHECKING:
    from gptcli.config.schema import DataSettings
    from gptcli.data.input_rows import InputText
    from gptcli.data.ledger import Reading
    from gptcli.data.output_rows import RowWriter
    from gptcli.pipelines.classify import Classifier, Columns, Counts, Prediction

MAX_SHOWN = 10


def classify(
    text: str | None = typer.Argument(None, help="Text to classify; - reads standard input."),
    model: str = typer.Option(..., "--model", "-m", help="Model folder, run folder or hub name."),
    input_file: str | None = typer.Option(
        None,
        "--input",
        "-i",
        metavar="FILE|-",
        help="Texts: .csv, .tsv, .jsonl, .json, .parquet, .txt (one a line), or - (stdin).",
    ),
    output_file: Path | None = typer.Option(
        None, "--output", metavar="FILE", help="Write .jsonl, .csv or .tsv instead of to stdout."
    ),
    top_k: int | None = typer.Option(
        None, "--top-k", min=1, help="Show the k likeliest labels only [default: all]."
    ),
    threshold: float | None = typer.Option(
        None,
        "--threshold",
        min=0,
        max=1,
        help="With several labels a text: the probability that gives one [default: 0.5].",
    ),
    labels: str | None = typer.Option(
        None,
        "--labels",
        metavar="A,B,...",
        help="Labels for a model that was not trained to classify: the likeliest behind the text.",
    ),
    template: str | None = typer.Option(
        None,
        "--template",
        help=r'With --labels: what the model reads [default: "{text}\n\nLabel: {label}"].',
    ),
    text_pair: str | None = typer.Option(None, "--text-pair", help="A second text, after TEXT."),
    text_column: str | None = typer.Option(
        None, "--text-column", metavar="NAME", help="Column with the texts [default: text]."
    ),
    text_pair_column: str | None = typer.Option(
        None, "--text-pair-column", metavar="NAME", help="Column with the second text of pairs."
    ),
    input_format: str | None = typer.Option(
        None, "--input-format", help="txt, csv, tsv, jsonl or json, if FILE's name does not say it."
    ),
    output_format: str | None = typer.Option(
        None, "--output-format", help="jsonl, csv or tsv [default: as FILE's name says, else jsonl]."
    ),
    device: Device = None,
    precision: Precision = None,
    config: Path | None = typer.Option(
        None, "--config", "-c", help="YAML file; its runtime and data (columns, encoding) are used."
    ),
    assignments: Assignments = [],
    as_json: bool = typer.Option(
        False, "--json", help="Print JSON, one object a text; with --output, one about the file."
    ),
) -> None:
    """Label a text, or every row of a file, with a model that was fine-tuned to classify.

    With --labels, any GPT-2 chooses among labels that it was not trained on.

    Examples:
      gptcli classify "Return a list of lines." --model runs/classification-demo
      gptcli classify -i texts.csv --output labels.csv -m runs/classification-demo
    """
    from gptcli.config.loading import load_settings
    from gptcli.data.input_rows import STANDARD_INPUT
    from gptcli.data.ledger import Reading
    from gptcli.data.output_rows import RowWriter, check_output
    from gptcli.data.output_rows import output_format as format_of

    runtime = {"device": device, "precision": precision}
    settings = load_settings(config, assignments, {"runtime": runtime})
    data = _with_columns(settings.data, text_column, text_pair_column)
    choice = _choice(labels, template)
    if text == STANDARD_INPUT and input_file is None:
        text, input_file = None, STANDARD_INPUT
    if text is None and input_file is None:
        if sys.stdin is None or sys.stdin.isatty():
            raise ConfigError('Give a text, such as "I liked it", or --input FILE.')
        input_file = STANDARD_INPUT
    if input_file is not None and (text is not None or text_pair is not None):
        raise ConfigError("Give a text or --input, not both; the pairs of a file are in its columns.")
    if choice and (text_pair is not None or data.columns.text_pair is not None):
        raise ConfigError("--labels is for single texts, not for pairs.")
    kind = format_of(output_file, output_format)
    if as_json and output_file is None and kind != "jsonl":
        raise ConfigError(f"--json prints JSON lines; for {kind}, leave one of the two out.")
    if output_file is not None:
        check_output(output_file, input_file)
    reading = Reading()
    if input_file is None:
        rows = _Rows(iter([_one_text(str(text), text_pair)]), 1)
    else:
        rows = _read(input_file, input_format, data, reading, check_all=output_file is not None)

    def load() -> tuple[Classifier, Columns]:
        from gptcli.hub import quiet_libraries
        from gptcli.pipelines.classify import Classifier, Columns

        quiet_libraries()
        classifier = Classifier(model, settings.runtime, threshold=threshold, **choice)
        return classifier, Columns(classifier, top_k, data.label_separator)

    if output_file is not None:
        _write_file(output_file, RowWriter(kind), rows, load, reading, as_json)
        return
    with console.working("Loading"):
        classifier, columns = load()
    if input_file is None and output_format is None and not as_json:
        ((item,),) = classifier.predict(rows.texts)
        _print_table(item, columns, top_k)
    else:
        writer = RowWriter(kind)
        with console.ProgressDisplay() as display:
            has_bar = display.can_draw(is_live=rows.is_live)
            if has_bar:
                display.start("Classifying", rows.total)
            for items in classifier.predict(rows.texts, is_live=rows.is_live):
                display.write_result(_lines(items, writer, columns))
                if has_bar:
                    display.update(classifier.counts.rows, f"{classifier.counts.rows:,} rows")
    for _, note in _notes(classifier, reading):
        console.warn(f"{note}.")


@dataclass(frozen=True)
class _Rows:
    """What is to be classified."""

    texts: Iterator[InputText]
    total: int | None = None
    """How many there are, if that is known."""
    is_live: bool = False
    """Whether the next one may not be there yet."""


def _with_columns(data: DataSettings, text: str | None, text_pair: str | None) -> DataSettings:
    given = {"text": text, "text_pair": text_pair}
    update = {setting: name for setting, name in given.items() if name is not None}
    return data.model_copy(update={"columns": data.columns.model_copy(update=update)})


def _choice(labels: str | None, template: str | None) -> dict[str, Any]:
    """Return what `Classifier` is to be told of --labels and --template; nothing without them."""
    if labels is None:
        if template is not None:
            raise ConfigError("--template goes with --labels.")
        return {}
    names = label_names(labels)
    if template is None:
        return {"labels": names}
    return {"labels": names, "template": template.replace("\\n", "\n")}


def _one_text(text: str, text_pair: str | None) -> InputText:
    from gptcli.data.input_rows import InputText, as_trained, check_unicode

    values = {"text": text} if text_pair is None else {"text": text, "text_pair": text_pair}
    for name, value in values.items():
        check_unicode(value, ConfigError, f"The {name.replace('_', ' ')}")
    item = InputText("The text", values, *(as_trained(value) for value in values.values()))
    if item.is_blank:
        raise ConfigError("The text is blank: there is nothing to classify.")
    return item


def _read(
    name: str, read_as: str | None, data: DataSettings, reading: Reading, *, check_all: bool
) -> _Rows:
    """Return the rows of a file, the first of which can be read; check_all: each of them can."""
    from gptcli.data.input_rows import find_input, read_texts
    from gptcli.data.ledger import Reading

    source = find_input(name, data, read_as)
    total = None
    if check_all and source.can_be_read_twice:
        # It takes no time beside the model's, and a bad row is better known before than after that.
        with console.working("Reading"):
            total = sum(1 for _ in read_texts(source, data, Reading()))
    texts = read_texts(source, data, reading)
    first = next(texts, None)
    if first is None:
        raise DataError(f"{source} holds no row to classify.")
    return _Rows(chain([first], texts), total, is_live=not source.can_be_read_twice)


def _lines(items: list[Prediction], writer: RowWriter, columns: Columns) -> str:
    shown = columns.nested if writer.is_nested else columns.flat
    return "".join(writer.lines(shown(item), item.row.where) for item in items)


def _write_file(
    path: Path,
    writer: RowWriter,
    rows: _Rows,
    load: Callable[[], tuple[Classifier, Columns]],
    reading: Reading,
    as_json: bool,
) -> None:
    from gptcli.data.output_rows import OutputFile

    output = OutputFile(path)
    done = 0
    try:
        # Opened first: if it cannot be written, that is said before any work.
        with output, console.ProgressDisplay() as display:
            display.start("Loading", None)
            classifier, columns = load()
            started = time.monotonic()
            display.start("Classifying", rows.total)
            for items in classifier.predict(rows.texts, is_live=rows.is_live):
                output.write(_lines(items, writer, columns))
                done += len(items)
                of = "" if rows.total is None else f"/{rows.total:,}"
                display.update(done, f"{done:,}{of} rows")
    finally:
        if done and not output.is_whole:
            console.say(f"{output.partial} holds the results of the first {done:,} rows.")
    seconds = time.monotonic() - started
    if as_json:
        facts = {"output": str(path), **classifier.counts.as_dict(), "seconds": round(seconds, 2)}
        console.write_json(facts)
    else:
        shown = [("rows", f"{done:,} in {console.duration(seconds)}")]
        if classifier.counts.labels:
            shown.append(("labels", _shares(classifier.counts)))
        console.show_facts(f"The results are in {path}", [*shown, *_notes(classifier, reading)])


def _shares(counts: Counts) -> str:
    texts = counts.rows - counts.blank
    shown = [f"{name} {n:,} ({n / texts:.1%})" for name, n in counts.labels.most_common(MAX_SHOWN)]
    more = len(counts.labels) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _notes(classifier: Classifier, reading: Reading) -> Iterator[tuple[str, str]]:
    """Yield what a person should know of the rows, with a name for each."""
    counts = classifier.counts
    if counts.blank:
        are = "row has no text and an" if counts.blank == 1 else "rows have no text and an"
        yield "blank", f"{counts.blank:,} {are} empty result"
    if counts.cut:
        are = "text is" if counts.cut == 1 else "texts are"
        yield (
            "cut",
            (
                f"{counts.cut:,} {are} longer than the model's context of {classifier.context_length:,} "
                "tokens: only the front was read"
            ),
        )
    if replaced := reading.undecodable_bytes_replaced + reading.lone_surrogates_replaced:
        yield "replaced", f"{replaced:,} bytes or characters that could not be read"


def _print_table(item: Prediction, columns: Columns, top_k: int | None) -> None:
    """Print the labels with their probabilities, the likeliest first; of regression, the number."""
    if item.probabilities is None:
        console.write_result(f"{item.number:.6g}")
        return
    shown = list(item.probabilities.items())[: top_k or MAX_SHOWN]
    width = max(len(label) for label, _ in shown)
    for label, p in shown:
        chosen = "  *" if columns.is_multi_label and label in item.labels else ""
        console.write_result(f"{label:<{width}}  {p:.4f}{chosen}")
    hidden = len(item.probabilities) - len(shown)
    if hidden and top_k is None:
        console.say(
            f"{hidden} more labels are less likely; --top-k {len(item.probabilities)} shows all."
        )
