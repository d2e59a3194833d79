from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from gptcli.reports.curves import comparison_panels, run_panels, thinned
from gptcli.training.run_record import RunRecord
from tests.reports.run_folders import (
    classification_lines,
    evaluation_line,
    step_line,
    write_run,
)


def test_a_short_curve_is_drawn_whole() -> None:
    assert thinned([3.0, 1.0, 2.0, 5.0], parts=2) == [0, 1, 2, 3]


def test_of_each_part_of_a_long_curve_the_least_and_the_most_are_drawn() -> None:
    values = [5.0, 9.0, 1.0, 6.0, 2.0, 7.0, 8.0, 3.0, 4.0, 6.0]
    # Two parts of five: 9 and 1, then 8 and 3; and both ends.
    assert thinned(values, parts=2) == [0, 1, 2, 6, 7, 9]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(1, 20))
def test_a_thinned_curve_keeps_its_ends_and_its_extremes(values: list[float], parts: int) -> None:
    kept = thinned(values, parts)
    assert kept == sorted(set(kept))
    assert len(kept) <= 2 * parts + 2
    assert (kept[0], kept[-1]) == (0, len(values) - 1)
    shown = [values[n] for n in kept]
    assert (min(shown), max(shown)) == (min(values), max(values))


def titles_and_labels(record: RunRecord) -> dict[str, list[str]]:
    return {panel.title: [curve.label for curve in panel.curves] for panel in run_panels(record)}


def test_a_pretraining_has_a_panel_a_measure(tmp_path: Path) -> None:
    assert titles_and_labels(RunRecord(write_run(tmp_path / "run"))) == {
        "Loss": ["training", "held-out"],
        "Bits per byte": ["held-out"],
        "Learning rate": ["learning rate"],
        "Gradient norm": ["gradient norm"],
        "Tokens per second": ["tokens per second"],
    }


def test_scores_that_are_shares_have_one_panel(tmp_path: Path) -> None:
    lines = classification_lines({"cat": [8, 2], "dog": [2, 8]})
    found = titles_and_labels(RunRecord(write_run(tmp_path / "run", lines=lines)))
    assert found["Scores, held-out"] == ["accuracy", "macro-F1"]
    assert "Bits per byte" not in found


def test_errors_of_numbers_have_panels_of_their_own(tmp_path: Path) -> None:
    lines = [evaluation_line(1, loss=2.0, mean_squared_error=2.0, mean_absolute_error=1.0, r2=0.5)]
    found = titles_and_labels(RunRecord(write_run(tmp_path / "run", lines=lines)))
    assert list(found) == ["Loss", "Mean squared error", "Mean absolute error", "Scores, held-out"]


def test_what_is_no_number_is_not_drawn(tmp_path: Path) -> None:
    values = (1.0, "x", None, True, [1], 3.0)
    lines = [step_line(step, value) for step, value in enumerate(values, 1)]  # type: ignore[arg-type]
    run = write_run(tmp_path / "run", lines=lines)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "loss": NaN}\n{"step": 8, "loss": 1e999}\n')
    (loss, *_) = run_panels(RunRecord(run))
    assert (loss.curves[0].steps, loss.curves[0].values) == ([1, 6], [1.0, 3.0])


def test_runs_are_compared_by_a_curve_each(tmp_path: Path) -> None:
    records = [RunRecord(write_run(tmp_path / name)) for name in "ab"]
    panels = comparison_panels(records, ["a", "b"])
    assert [panel.title for panel in panels] == [
        "Training loss",
        "Held-out loss",
        "Bits per byte, held-out",
        "Learning rate",
        "Gradient norm",
        "Tokens per second",
    ]
    for panel in panels:
        assert [(curve.label, curve.run) for curve in panel.curves] == [("a", 0), ("b", 1)]
