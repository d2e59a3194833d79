"""Labelled texts from rows, and their labels in order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest

from gptcli.config.schema import DataSettings
from gptcli.data.labelled_texts import LabelledText, LabelledTexts, labels_in_order
from gptcli.data.ledger import Reading
from gptcli.data.sources import FileSource
from gptcli.errors import DataError

Wanted = Literal["auto", "single-label", "multi-label", "regression"]


def parse(
    path: Path, *rows: dict[str, Any], objective: Wanted = "auto", **data: Any
) -> tuple[list[LabelledText], LabelledTexts, Reading]:
    file = path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings, reading = DataSettings.model_validate(data), Reading()
    reader = LabelledTexts(objective)
    return list(reader.parse(FileSource(file), settings, reading)), reader, reading


def labelled(*labels: str) -> list[LabelledText]:
    return [LabelledText(f"row {n}", "text", None, (label,)) for n, label in enumerate(labels, 1)]


def test_a_label_is_text_or_a_whole_number_as_written(tmp_path: Path) -> None:
    items, reader, _ = parse(
        tmp_path,
        {"text": "a", "label": " NA "},
        {"text": "b", "label": 7},
        {"text": "c", "label": True},
        {"text": "d", "label": "07"},
    )
    assert [item.labels for item in items] == [("NA",), ("7",), ("True",), ("07",)]
    assert reader.objective == "single-label"


def test_rows_without_text_are_dropped_and_counted(tmp_path: Path) -> None:
    items, _, reading = parse(
        tmp_path,
        {"text": " \n", "label": "x"},
        {"text": None, "label": "x"},
        {"text": "NA", "label": "x"},
    )
    assert [item.text for item in items] == ["NA"]
    assert (reading.rows, reading.documents, reading.empty_documents_dropped) == (3, 1, 2)


def test_a_pair_of_texts_is_one_input(tmp_path: Path) -> None:
    rows = [{"a": "x", "b": "y", "label": "1"}, {"a": "x", "b": "", "label": "1"}]
    items, _, reading = parse(tmp_path, *rows, columns={"text": "a", "text_pair": "b"})
    assert [item.key for item in items] == [("x", "y")]
    assert reading.empty_documents_dropped == 1


def test_lists_of_labels_are_several_labels(tmp_path: Path) -> None:
    items, reader, _ = parse(
        tmp_path,
        {"text": "a", "label": ["x", "y", "x"]},
        {"text": "b", "label": []},
        {"text": "c", "label": None},
    )
    assert [item.labels for item in items] == [("x", "y"), (), ()]
    assert reader.objective == "multi-label"


def test_labels_in_one_field_are_separated(tmp_path: Path) -> None:
    items, _, _ = parse(
        tmp_path,
        {"text": "a", "label": "x; y"},
        {"text": "b", "label": ""},
        objective="multi-label",
        label_separator=";",
    )
    assert [item.labels for item in items] == [("x", "y"), ()]


def test_columns_of_0_and_1_are_a_label_each(tmp_path: Path) -> None:
    items, reader, _ = parse(
        tmp_path,
        {"text": "a", "joy": 1, "fear": 0},
        {"text": "b", "joy": "0", "fear": "1"},
        {"text": "c", "joy": False, "fear": False},
        columns={"label": ["joy", "fear"]},
    )
    assert [item.labels for item in items] == [("joy",), ("fear",), ()]
    assert reader.objective == "multi-label"


def test_regression_reads_numbers(tmp_path: Path) -> None:
    first, second = {"text": "a", "label": "-1.5"}, {"text": "b", "label": 3}
    items, _, _ = parse(tmp_path, first, second, objective="regression")
    assert [item.number for item in items] == [-1.5, 3.0]


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        ({"text": "a", "label": ""}, {}, ":1: the label is blank."),
        ({"text": "a", "label": None}, {}, ":1: the label is blank."),
        ({"text": "a", "label": 0.5}, {}, ":1: the label is float 0.5; it must be text or a whole"),
        ({"text": "a", "label": 0.5}, {}, "set training.objective to regression"),
        ({"text": "a", "label": {"x": 1}}, {}, ":1: the label is dict {'x': 1}"),
        ({"text": 5, "label": "x"}, {}, ":1: text is int 5, not a string."),
        ({"text": "a", "label": "x"}, {"objective": "regression"}, ":1: the label is 'x'; regression"),
        ({"text": "a", "label": "nan"}, {"objective": "regression"}, "regression needs a number"),
        ({"text": "a", "label": True}, {"objective": "regression"}, "regression needs a number"),
        (
            {"text": "a", "x": 1, "y": 2},
            {"columns": {"label": ["x", "y"]}},
            ":1: y is 2; a column for each label holds 0 or 1.",
        ),
        (
            {"text": "a", "sentiment": "x"},
            {},
            "columns are: text, sentiment. Set data.columns.label",
        ),
    ],
)
def test_what_is_no_label_is_refused_with_its_row(
    tmp_path: Path, row: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError) as raised:
        parse(tmp_path, row, **settings)
    assert "rows.jsonl" in str(raised.value)
    assert message in str(raised.value)


def test_labels_are_sorted_by_name_or_by_number_or_as_given() -> None:
    assert labels_in_order(labelled("spam", "ham"), [], None) == ["ham", "spam"]
    assert labels_in_order(labelled("10", "9", "-1"), [], None) == ["-1", "9", "10"]
    assert labels_in_order(labelled("ham"), [], ["spam", "ham"]) == ["spam", "ham"]


@pytest.mark.parametrize(
    ("train", "validation", "given", "message"),
    [
        (
            ["a", "b"],
            ["c"],
            None,
            "row 1: the label 'c' is not among the labels of the training data (a, b)",
        ),
        (["a", "b", "c"], [], ["a", "b"], "row 3: the label 'c' is not among data.labels (a, b)."),
        (["a", "a"], [], None, "row 1: all examples have the label 'a'; there must be two"),
    ],
)
def test_labels_that_cannot_be_learnt_are_refused(
    train: list[str], validation: list[str], given: list[str] | None, message: str
) -> None:
    with pytest.raises(DataError) as raised:
        labels_in_order(labelled(*train), labelled(*validation), given)
    assert message in str(raised.value)
