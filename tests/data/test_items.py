"""Items of both splits, what limits their length, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gptcli.config.schema import Settings
from gptcli.data.items import Items, LengthLimit, count_labels, length_percentiles, read_items
from gptcli.data.labelled_texts import LabelledText, LabelledTexts
from gptcli.errors import DataError


def read(path: Path, texts: list[str], held_out: float) -> Items[LabelledText]:
    file = path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": t, "label": "ab"[len(t) % 2]}) + "\n" for t in texts))
    settings = Settings.model_validate(
        {"data": {"source": str(file), "validation_fraction": held_out}, "task": "classification"}
    )
    return read_items(settings, LabelledTexts("auto").parse, lambda progress: None)


def test_items_of_the_same_input_are_on_one_side_and_counted(tmp_path: Path) -> None:
    texts = [f"text {n % 10}" for n in range(40)]
    items = read(tmp_path, texts, 0.3)
    assert (len(items.train), len(items.validation)) == (28, 12)
    assert items.repeated == 28 - 7
    assert items.overlap == 0


@pytest.mark.parametrize(
    ("texts", "held_out", "message"),
    [
        (["one", "two", "one"], 0.1, "0.1 of 2 different examples is none. Raise data.validation_frac"),
        (["one", "one"], 0.6, "0.6 of the examples is all of them, and none is left to learn from."),
    ],
)
def test_a_split_that_leaves_one_side_empty_is_refused(
    tmp_path: Path, texts: list[str], held_out: float, message: str
) -> None:
    with pytest.raises(DataError) as raised:
        read(tmp_path, texts, held_out)
    assert message in str(raised.value)


def test_percentiles_are_lengths_that_occur() -> None:
    # Of 1 to 200, half do not exceed 100 or 101; the higher is taken, so that half truly fit.
    expected = {"shortest": 1, "median": 101, "90%": 181, "99%": 199, "longest": 200}
    assert length_percentiles(np.arange(1, 201)) == expected
    assert length_percentiles(np.array([])) == {}


def test_what_is_too_long_is_cut_dropped_or_refused() -> None:
    cut, drop, refuse = (LengthLimit(10, rule) for rule in ("cut", "drop", "refuse"))
    assert [cut.fit(n, "") for n in (9, 10, 11)] == [9, 10, 10]
    assert [drop.fit(n, "") for n in (9, 10, 11)] == [9, 10, 0]
    assert (cut.cut, cut.dropped, drop.cut, drop.dropped) == (1, 0, 0, 1)
    assert (cut.tokens_lost, drop.tokens_lost) == (1, 11)
    assert cut.lengths == [9, 10, 11]
    with pytest.raises(DataError, match=r"row 3 has 11 tokens; model\.context_length is 10, and"):
        refuse.fit(11, "row 3")


def test_labels_are_counted_in_both_splits() -> None:
    counted = count_labels([["a"], ["a", "b"], []], [["b"]], ["a", "b", "c"])
    assert counted == {"a": [2, 0], "b": [1, 1], "c": [0, 0]}
