"""Lengths, and what of the texts the model's context cuts or pads."""

from __future__ import annotations

import numpy as np

from gptcli.data.batches import Batch
from gptcli.inspection.findings import Finding, in_order, share, worst_level
from gptcli.inspection.lengths import Fit, Lengths, fit_findings, padding_of


def test_of_lengths_the_median_and_the_ninth_of_ten_occur() -> None:
    # Of ten lengths, the higher of the two in the middle, and the tenth.
    assert Lengths.of([5, 1, 2, 3, 4, 6, 7, 8, 9, 100]) == Lengths(1, 6, 100, 100, 145)
    assert Lengths.of([]) is None


def test_padding_is_counted_in_the_micro_batches_that_are_computed() -> None:
    lengths = np.array([1, 2, 4, 4])
    batch = Batch(np.zeros((4, 4), np.int64), lengths, np.zeros(4, np.int64), is_token_by_token=False)
    # Rows of 2, 2, 4 and 4, of which 1 + 2 + 4 + 4 are text; in one, four rows of 4.
    assert padding_of([batch], 2).as_dict() == {
        "padding_tokens": 1,
        "positions": 12,
        "micro_batch_size": 2,
        "share": 1 / 12,
    }
    assert padding_of([batch], 4).share == 5 / 16


def test_what_is_cut_is_a_warning_and_a_tenth_of_the_tokens_a_problem() -> None:
    assert [finding.level for finding in fit_findings(Fit(64, 10, 0, 0, 0, 100))] == ["ok"]
    (warning,) = fit_findings(Fit(64, 10, 1, 0, 9, 100))
    assert warning.level == "warning"
    assert warning.message == (
        "1 of 10 (10.0%) are longer than the context of 64 tokens and are cut: 9 tokens (9.0%) are lost"
    )
    (problem,) = fit_findings(Fit(64, 10, 0, 2, 10, 100))
    assert (problem.level, "dropped" in problem.message) == ("problem", True)


def test_findings_are_ordered_by_level_and_then_as_they_come() -> None:
    findings = [
        Finding(*pair, "") for pair in (("ok", "a"), ("problem", "b"), ("warning", "c"), ("ok", "d"))
    ]
    assert [finding.subject for finding in in_order(findings)] == ["b", "c", "a", "d"]
    assert worst_level(findings) == "problem"
    assert worst_level([]) == "ok"


def test_a_finding_is_one_line_with_its_place_and_what_to_do() -> None:
    assert Finding("ok", "a", "so it is").line == "so it is."
    assert Finding("ok", "a", "so it is", "f.txt:3", "Do this.").line == "so it is (f.txt:3). Do this."


def test_a_share_is_never_nothing_of_something() -> None:
    assert [share(*pair) for pair in ((1, 8), (0, 8), (1, 5000), (0, 0))] == [
        "12.5%",
        "0.0%",
        "under 0.1%",
        "0.0%",
    ]
