"""`gptcli classify` as a person types it."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoTokenizer, GPT2ForSequenceClassification, PreTrainedTokenizerFast

from gptcli.cli import main
from gptcli.config.schema import ModelSettings
from gptcli.models.architecture import model_config, new_model
from gptcli.models.loading import set_labels
from gptcli.models.saving import save_model
from tests.commands.conftest import Result, Run, refused
from tests.conftest import REPOSITORY, SENTENCES, Start
from tests.test_console import shown_on_a_terminal

LABELS = ["bad", "fair", "good"]


@pytest.fixture(scope="module")
def save_classifier(
    tokenizer: PreTrainedTokenizerFast,
    model_settings: ModelSettings,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[Sequence[str], str], Path]:
    def save(labels: Sequence[str], problem_type: str) -> Path:
        config = model_config(model_settings, tokenizer)
        set_labels(config, list(labels))
        config.problem_type = problem_type
        model = new_model(config, 1, GPT2ForSequenceClassification)
        with torch.no_grad():
            model.score.weight.mul_(40)  # Else all labels are about as likely.
        folder = tmp_path_factory.mktemp("classifiers") / "model"
        save_model(model, tokenizer, folder)
        return folder

    return save


@pytest.fixture(scope="module")
def classifier(save_classifier: Callable[[Sequence[str], str], Path]) -> Path:
    """A saved classifier of three labels; its context is 32 tokens."""
    return save_classifier(LABELS, "single_label_classification")


@pytest.fixture
def run(run: Run) -> Run:
    """Run `gptcli classify`."""

    def classify(*arguments: str | Path, stdin: bytes = b"") -> Result:
        return run("classify", *arguments, stdin=stdin)

    return classify


@pytest.fixture
def classify(run: Run, classifier: Path) -> Run:
    def classify(*arguments: str | Path, stdin: bytes = b"") -> Result:
        return run("--model", classifier, *arguments, stdin=stdin)

    return classify


def csv_rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


# One text


def test_a_text_gets_its_labels_with_their_probabilities(classify: Run) -> None:
    result = classify("The cat")
    assert (result.stderr, result.code) == ("", 0)
    shown = [line.split() for line in result.stdout.splitlines()]
    (row,) = classify("The cat", "--json").rows
    assert list(row) == ["text", "predicted_label", "probability", "probabilities"]
    assert shown == [[label, f"{p:.4f}"] for label, p in row["probabilities"].items()]
    assert sorted(row["probabilities"]) == LABELS
    assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert row["probabilities"][row["predicted_label"]] == row["probability"]
    assert row["probability"] == max(row["probabilities"].values())


def test_the_likeliest_labels_are_shown_alone_if_asked_for(classify: Run) -> None:
    full = classify("The cat")
    assert classify("The cat", "--top-k", "2").stdout.splitlines() == full.stdout.splitlines()[:2]
    (row,) = classify("The cat", "--top-k", "2", "--json").rows
    assert len(row["probabilities"]) == 2


def test_a_pair_is_classified_as_a_pair(classify: Run) -> None:
    (pair,) = classify("The cat", "--text-pair", "The dog", "--json").rows
    assert (pair["text"], pair["text_pair"]) == ("The cat", "The dog")
    (joined,) = classify("The cat<|endoftext|>The dog", "--json").rows
    assert pair["probabilities"] == pytest.approx(joined["probabilities"])


def test_several_labels_are_starred_and_listed(
    run: Run, save_classifier: Callable[[Sequence[str], str], Path]
) -> None:
    folder = save_classifier(LABELS, "multi_label_classification")
    (row,) = run("The cat", "--model", folder, "--json", "--threshold", "0.3").rows
    assert list(row) == ["text", "predicted_labels", "probabilities"]
    expected = [label for label in LABELS if row["probabilities"][label] >= 0.3]
    assert row["predicted_labels"] == expected
    lines = run("The cat", "--model", folder, "--threshold", "0.3").stdout.splitlines()
    assert [line.split()[0] for line in lines if line.endswith("*")] == [
        label for label in row["probabilities"] if label in expected
    ]
    (flat,) = csv_rows(run("The cat", "--model", folder, "--output-format", "csv").stdout)
    assert flat["predicted_labels"].split(",") == [
        label for label in LABELS if row["probabilities"][label] >= 0.5
    ]


def test_regression_gives_a_number(
    run: Run, save_classifier: Callable[[Sequence[str], str], Path]
) -> None:
    folder = save_classifier(["stars"], "regression")
    (row,) = run("The cat", "--model", folder, "--json").rows
    assert list(row) == ["text", "predicted_number"]
    assert float(run("The cat", "--model", folder).stdout) == row["predicted_number"]
    (flat,) = csv_rows(run("The cat", "--model", folder, "--output-format", "csv").stdout)
    assert float(flat["predicted_number"]) == row["predicted_number"]
    assert "--top-k is for labels" in refused(run("x", "--model", folder, "--top-k", "1"), 2)


def test_labels_of_ones_own_need_no_training(run: Run, model_folder: Path) -> None:
    (row,) = run("The cat", "--model", model_folder, "--labels", "happy, on the roof", "--json").rows
    assert sorted(row["probabilities"]) == ["happy", "on the roof"]
    # \n stands for a line feed, as it does not in a shell's quotes.
    given = r"{text}\n\nLabel: {label}"
    options = ("--labels", "happy,on the roof", "--template", given)
    assert run("The cat", "--model", model_folder, *options, "--json").rows == [row]
    other = ("--labels", "happy,on the roof", "--template", "{text} It was {label}")
    assert run("The cat", "--model", model_folder, *other, "--json").rows != [row]


# Many


INPUTS = {
    "a.csv": 'text,label,note\n"The ""cat"",\r\nand more",x,1\n,y,2\n深圳,z,\n',
    "a.jsonl": '{"text": "The \\"cat\\",\\r\\nand more", "label": "x", "note": "1"}\n\n'
    '{"text": "", "label": "y", "note": "2"}\n{"text": "深圳", "label": "z", "note": ""}\n',
    "a.json": '[{"text": "The \\"cat\\",\\r\\nand more", "label": "x", "note": "1"},'
    '{"text": "", "label": "y", "note": "2"}, {"text": "深圳", "label": "z", "note": ""}]',
}


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("is_piped", [False, True])
def test_rows_keep_their_columns_and_their_order(
    classify: Run, tmp_path: Path, name: str, is_piped: bool
) -> None:
    (tmp_path / name).write_bytes(INPUTS[name].encode())
    source = ["-", "--input-format", name.partition(".")[2]] if is_piped else [name]
    result = classify("--input", *source, stdin=INPUTS[name].encode())
    assert result.stderr == "Warning: 1 row has no text and an empty result.\n"
    assert [{key: row[key] for key in ("text", "label", "note")} for row in result.rows] == [
        {"text": 'The "cat",\r\nand more', "label": "x", "note": "1"},
        {"text": "", "label": "y", "note": "2"},
        {"text": "深圳", "label": "z", "note": ""},
    ]
    first, blank, last = result.rows
    assert blank["predicted_label"] is blank["probability"] is blank["probabilities"] is None
    assert first["probabilities"] == classify(first["text"], "--json").rows[0]["probabilities"]
    assert last["probabilities"] == classify("深圳", "--json").rows[0]["probabilities"]


def test_lines_of_text_are_rows_blank_ones_too(classify: Run) -> None:
    result = classify("-", stdin="\ufeffThe cat\r\n\n  深圳 \n".encode())
    assert [row["text"] for row in result.rows] == ["The cat", "", "  深圳 "]
    assert [row["predicted_label"] is None for row in result.rows] == [False, True, False]
    # White space around a text does not count, as in training.
    assert result.rows[2]["probabilities"] == classify("深圳", "--json").rows[0]["probabilities"]


def test_a_csv_file_comes_out_as_it_went_in_with_new_columns(classify: Run, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(INPUTS["a.csv"].encode())
    result = classify("--input", "a.csv", "--output", "b.csv")
    assert (result.stdout, result.code) == ("", 0)
    written = (tmp_path / "b.csv").read_bytes().decode()
    assert written.startswith(
        "text,label,note,predicted_label,probability,probability_bad,probability_fair,probability_good\n"
        '"The ""cat"",\r\nand more",x,1,'
    )
    rows = csv_rows(written)
    (expected,) = classify("深圳", "--json").rows
    assert rows[2]["predicted_label"] == expected["predicted_label"]
    for label in LABELS:
        assert float(rows[2][f"probability_{label}"]) == pytest.approx(expected["probabilities"][label])
    assert set(rows[1].values()) == {"", "y", "2"}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.csv", "b.csv"]


def test_formats_are_turned_into_each_other(classify: Run, tmp_path: Path) -> None:
    table = pa.table({"id": [1, 2], "tags": [["a", "b"], None], "text": ["The cat", "深圳"]})
    pq.write_table(table, tmp_path / "a.parquet")
    classify("--input", "a.parquet", "--output", "a.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text("utf-8").splitlines()]
    assert [(row["id"], row["tags"]) for row in rows] == [(1, ["a", "b"]), (2, None)]
    classify("--input", "a.parquet", "--output", "a.tsv", "--top-k", "1")
    first, second = csv.DictReader((tmp_path / "a.tsv").open(encoding="utf-8"), delimiter="\t")
    assert (first["id"], first["tags"], second["tags"]) == ("1", '["a", "b"]', "")
    assert second["predicted_label"] == rows[1]["predicted_label"]


def test_pairs_and_columns_of_other_names_come_from_a_file(classify: Run, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("review,title\nThe cat,The dog\nThe cat,\n")
    options = ("--text-column", "review", "--text-pair-column", "title")
    pair, blank = classify("--input", "a.csv", *options).rows
    (expected,) = classify("The cat", "--text-pair", "The dog", "--json").rows
    assert pair["probabilities"] == pytest.approx(expected["probabilities"])
    assert blank["predicted_label"] is None
    (tmp_path / "a.yaml").write_text("data: {columns: {text: review, text_pair: title}}\n")
    assert classify("--input", "a.csv", "--config", "a.yaml").rows == [pair, blank]


def test_a_file_is_summed_up_for_people_and_for_programs(classify: Run, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The cat\n\n" + "1" * 40 + "\n")
    shown = classify("--input", "a.txt", "--output", "a.jsonl")
    assert shown.stdout == ""
    assert "The results are in a.jsonl\n  rows    3 in " in shown.stderr
    assert "  blank   1 row has no text and an empty result\n" in shown.stderr
    assert "1 text is longer than the model's context of 32 tokens" in shown.stderr
    (facts,) = classify("--input", "a.txt", "--output", "a.jsonl", "--json").rows
    assert facts.pop("seconds") >= 0
    labels = facts.pop("labels")
    assert sum(labels.values()) == 2
    assert set(labels) <= set(LABELS)
    assert facts == {"output": "a.jsonl", "rows": 3, "blank": 1, "cut": 1}


def test_what_json_cannot_say_is_written_so_that_it_can(classify: Run) -> None:
    lines = b'{"text": "x", "a": NaN, "b": [Infinity], "c": "\\ud83d"}\n'
    (row,) = classify("-", "--input-format", "jsonl", stdin=lines).rows
    assert (row["a"], row["b"], row["c"]) == (None, [None], "\ud83d")


# What goes wrong


def test_a_bad_row_is_named_before_any_work_on_a_file(classify: Run, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' * 2000 + "{bad\n")
    (tmp_path / "b.csv").write_text("precious")
    line = refused(classify("--input", "a.jsonl", "--output", "b.csv"), 3)
    assert line.startswith("a.jsonl:2001 is not JSON: ")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.jsonl", "b.csv"]
    assert (tmp_path / "b.csv").read_text() == "precious"


def test_rows_before_a_bad_one_of_a_stream_are_answered(classify: Run) -> None:
    result = classify("-", "--input-format", "jsonl", stdin=b'{"text": "x"}\n' * 50 + b"{bad\n")
    assert (len(result.rows), result.code) == (50, 3)
    assert result.stderr.startswith("Error: standard input:51 is not JSON: ")


def test_results_before_a_failure_are_kept_under_another_name(classify: Run, tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text("of last week")
    lines = b'{"text": "x"}\n' * 50 + b"{bad\n"
    result = classify("-", "--input-format", "jsonl", "--output", "b.jsonl", stdin=lines)
    assert result.code == 3
    partial = tmp_path / "b.jsonl.partial"
    assert f"{partial} holds the results of the first 50 rows." in result.stderr
    assert len(partial.read_text().splitlines()) == 50
    assert (tmp_path / "b.jsonl").read_text() == "of last week"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "a.csv is empty (0 bytes)."),
        (b"text,label\n", "a.csv holds no row to classify."),
        (b"review,title\nx,y\n", "a.csv has no column 'text'; its columns are: review, title."),
        (b"text,label\nx\n", "a.csv:2 has 1 fields, but the header has 2 columns."),
        (b"text\ncaf\xe9\n", "a.csv: byte 0xe9 at offset 8 is not UTF-8. If the file has another"),
        (b"text,predicted_label\nx,y\n", "a.csv:2 has a column 'predicted_label' already"),
        (b"text,probability_bad\nx,y\n", "a.csv:2 has a column 'probability_bad' already"),
    ],
)
def test_a_file_that_cannot_be_classified_is_refused_in_one_line(
    classify: Run, tmp_path: Path, content: bytes, expected: str
) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    assert expected in refused(classify("--input", "a.csv", "--output-format", "csv"), 3)


@pytest.mark.parametrize(
    ("lines", "kind", "expected"),
    [
        ('{"text": 1}', "jsonl", "standard input:1: text is int 1, not a string."),
        ('{"text": "x"}\n{"text": "y", "z": 1}', "csv", "standard input:2 has 'z', which the first row"),
        ('{"text": "x\\ty"}', "tsv", "standard input:1 holds a tab or a line end, which .tsv cannot."),
    ],
)
def test_what_a_format_cannot_hold_is_named(classify: Run, lines: str, kind: str, expected: str) -> None:
    options = ("--input-format", "jsonl", "--output-format", kind)
    assert expected in refused(classify("-", *options, stdin=lines.encode()), 3)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["x", "--input", "a.txt"], "Give a text or --input, not both"),
        (["--input", "a.txt", "--text-pair", "y"], "Give a text or --input, not both"),
        ([""], "The text is blank"),
        (["x", "--text-pair", " "], "The text is blank"),
        (["caf\udce9"], "The text is not valid Unicode at character 4."),
        (["x", "--output", "a.xml"], "End it in .jsonl, .csv or .tsv, or give --output-format."),
        (["x", "--output-format", "xml"], "it must be one of jsonl, csv, tsv."),
        (["--input", "-", "--input-format", "xml"], "--input-format is 'xml'; it must be one of"),
        (["x", "--json", "--output-format", "csv"], "--json prints JSON lines"),
        (["x", "--output", "no/folder/a.csv"], "the folder no/folder does not exist"),
        (["--input", "a.csv", "--output", "a.csv"], "is the --input file"),
        (["--input", "a.csv.partial", "--output", "a.csv"], "is the --input file"),
        (["x", "--labels", "a,b"], "is a classifier of its own labels, bad, fair, good."),
        (["x", "--labels", "a"], "it must be two or more different labels"),
        (["x", "--labels", "a,,b"], "it must be two or more different labels"),
        (["x", "--labels", "a,b,a"], "it must be two or more different labels"),
        (["x", "--template", "{text}{label}"], "--template goes with --labels."),
        (["x", "--labels", "a,b", "--text-pair", "y"], "--labels is for single texts"),
        (["x", "--threshold", "0.3"], "--threshold is for several labels a text"),
        (["x", "--threshold", "1.5"], "--threshold"),
        (["x", "--top-k", "0"], "--top-k"),
        (["x", "--precision", "int4"], "runtime.precision is 'int4'; it must be"),
        (["-", "--set", "data.encoding=utf-9"], "Python knows no such text encoding."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_meant_is_refused_in_one_line(
    classify: Run, tmp_path: Path, arguments: list[str], expected: str
) -> None:
    for name in ("a.csv", "a.csv.partial", "a.txt"):
        (tmp_path / name).write_text("text\nx\n")
    assert expected in refused(classify(*arguments), 2)
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "a.csv.partial").read_text() == "text\nx\n"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nothing.csv", "nothing.csv: no such file (--input)."),
        (".", ". is a folder; --input takes a file."),
        ("a.dat", "a.dat: its name does not say how to read it (--input). Give --input-format "),
    ],
)
def test_a_file_that_is_not_there_or_of_no_kind_is_named(
    classify: Run, tmp_path: Path, name: str, expected: str
) -> None:
    (tmp_path / "a.dat").write_text("text\nx\n")
    assert refused(classify("--input", name), 3).startswith(expected)
    assert len(classify("--input", "a.dat", "--input-format", "csv").rows) == 1


def test_a_model_without_a_head_is_refused_with_what_to_do(run: Run, model_folder: Path) -> None:
    line = refused(run("x", "--model", model_folder), 4)
    assert "has no classification head; fine-tune it with `gptcli finetune`" in line
    assert "or give --labels" in line


def test_a_tokenizer_of_another_model_is_refused(run: Run, classifier: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(classifier, tmp_path / "mixed"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<mine>"])
    tokenizer.save_pretrained(folder)
    line = refused(run("a <mine>", "--model", folder), 4)
    assert "makes token 300 of a text, but the model knows 300 tokens" in line


# Streams and signals


def test_a_device_is_written_and_not_replaced(classify: Run) -> None:
    result = classify("The cat", "--output", os.devnull, "--output-format", "csv")
    assert (result.stdout, result.code) == ("", 0)
    assert not Path(os.devnull).is_file()


def test_a_link_stays_a_link(classify: Run, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.csv").symlink_to(tmp_path / "folder" / "b.csv")
    classify("The cat", "--output", "a.csv")
    assert (tmp_path / "a.csv").is_symlink()
    assert len(csv_rows((tmp_path / "folder" / "b.csv").read_text())) == 1


def test_a_reader_that_has_read_enough_ends_it_quietly(
    start: Start, classifier: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("The cat\n" * 20_000)
    process = start("classify", "--input", "a.txt", "--model", classifier)
    assert json.loads(process.stdout.readline())["text"] == "The cat"
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 0


def test_what_is_typed_is_answered_line_by_line(start: Start, classifier: Path) -> None:
    process = start("classify", "--input", "-", "--model", classifier)
    for text in ("The cat", "The dog", ""):
        process.stdin.write(f"{text}\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["text"] == text
    # While it waits for the next line.
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate()
    assert (process.returncode, rest) == (130, "Interrupted.\n")


def test_a_terminal_shows_what_is_waited_for(
    classify: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "texts.txt").write_text("".join(SENTENCES))
    for arguments, titles in (
        (["a text"], ["Loading"]),
        (["-i", "texts.txt"], ["Loading", "Classifying"]),
        (["-i", "texts.txt", "--output", "labels.csv"], ["Reading", "Loading", "Classifying"]),
    ):

        def work(arguments: list[str] = arguments) -> None:
            assert classify(*arguments).code == 0

        shown = shown_on_a_terminal(monkeypatch, "stderr", work)
        assert [title for title in ("Reading", "Loading", "Classifying") if title in shown] == titles


def test_ctrl_c_ends_with_130_and_leaves_what_was_done_beside(
    start: Start, classifier: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("The cat\n" * 200_000)
    process = start("classify", "--input", "a.txt", "--model", classifier, "--output", "b.csv")
    assert re.match(r"Classifying  [\d,]+/200,000 rows", process.stderr.readline())
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait() == 130
    assert "Traceback" not in rest
    partial = tmp_path / "b.csv.partial"
    count = len(partial.read_text().splitlines()) - 1
    assert f"{partial} holds the results of the first {count:,} rows." in rest
    assert not (tmp_path / "b.csv").exists()


def test_every_command_of_the_page_runs(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(REPOSITORY / "configs", tmp_path / "configs")
    shutil.copytree(model_folder, tmp_path / "runs" / "english")
    rows = [(n, text.strip()) for n, text in enumerate(SENTENCES)]
    tables = {
        "reviews.csv": ["text,label", *(f'"{text}",{"ab"[n % 2]}' for n, text in rows)],
        "comments.csv": ["text,rude,spam", *(f'"{text}",{n % 2},1' for n, text in rows)],
        "stars.csv": ["text,stars", *(f'"{text}",{n % 5}' for n, text in rows)],
        "new.csv": ["text,id", "The cat,1"],
    }
    for name, lines in tables.items():
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(
        r"```sh\n(.*?)```", (REPOSITORY / "docs/classification.md").read_text(), re.DOTALL
    )
    lines = "".join(blocks).splitlines()
    assert len(lines) >= 9
    for line in lines:
        before, _, shown = line.rpartition("|")
        stdin = shlex.split(before)[1] if before else ""
        arguments = shlex.split(shown)
        if arguments[1] == "finetune":  # The last --set wins.
            for setting in ("training.max_steps=2", "training.warmup_steps=1", "runtime.device=cpu"):
                arguments += ["--set", setting]
        monkeypatch.setattr(sys, "argv", arguments)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0, line
    assert (tmp_path / "labelled.csv").read_text().startswith("text,id,predicted_label,")
