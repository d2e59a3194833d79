"""`gptcli runs`: list, show, compare, report, rerun."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gptcli.config.schema import DataSettings, Settings
from gptcli.training.run_folder import RunFolder
from tests.commands.conftest import Result, Run, refused
from tests.conftest import REPOSITORY
from tests.reports.run_folders import classification_lines, write_run
from tests.test_console import shown_on_a_terminal


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs of the same data, one damaged, and what is no run."""
    folder = tmp_path / "runs"
    first, second = (
        Settings.model_validate({"training": {"learning_rate": rate}}) for rate in (0.001, 0.002)
    )
    write_run(folder / "first", settings=first)
    write_run(
        folder / "second",
        settings=second,
        task="classification",
        lines=classification_lines({"a": [5, 0], "b": [1, 4]}),
        best_evaluation={"step": 100, "loss": 0.5, "accuracy": 0.9, "macro_f1": 0.8},
        ended="stopped: InterruptedRun",
        problem="Stopped by SIGTERM after step 100; it is saved.",
        updated="2026-01-03T00:00:00+00:00",
        fingerprints={"data": "e" * 64, "tokenizer": "f" * 64},
        parameters=950,
        trained_parameters=10,
    )
    (write_run(folder / "torn") / "run.json").write_text('{"task": ')
    (folder / "notes").mkdir()
    (folder / "readme.txt").touch()
    return folder


def test_runs_are_listed_newest_first_with_score_time_and_end(runs: Path, run: Run) -> None:
    result = run("runs", "list")
    assert result.code == 0
    assert [line.split() for line in result.stdout.splitlines()] == [
        line.split()
        for line in (
            "run task parameters steps best time ended when (UTC)",
            "second classification 950 100 macro-F1 0.8000 1:05 interrupted 2026-01-03 00:00",
            "first language-modelling 5.32M 100 1.2500 bits per byte 1:05 finished: max_steps "
            "2026-01-02 04:04",
        )
    ]
    assert result.notes == [
        "Warning: runs/torn/run.json is damaged: it is no JSON (Expecting value: line 1 column 10 "
        "(char 9))."
    ]


def test_a_narrow_terminal_gets_fewer_columns(
    runs: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    found: list[Result] = []
    shown = shown_on_a_terminal(monkeypatch, "stdout", lambda: found.append(run("runs", "list")))
    lines = shown.splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "run task steps best time ended",
        "second classification 100 macro-F1 0.8000 1:05 interrupted",
        "first language-modelling 100 1.2500 bits per byte 1:05 finished: max_steps",
    ]
    assert max(map(len, lines)) <= 90
    assert found[0].notes[-1] == ("Left out, for want of width: when (UTC), parameters. --json has all.")


def test_long_values_are_cut_to_the_width_of_a_terminal(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("first", "second"):
        source = DataSettings(source=f"{name}/{'x' * 50}")
        write_run(tmp_path / name, settings=Settings(data=source))
    # Of 80 columns, 28 are for names; two values have 24 each, and two more before them.
    found: list[Result] = []
    for columns, most in (("80", 24), ("30", 12), ("300", 40)):
        monkeypatch.setenv("COLUMNS", columns)
        shown = shown_on_a_terminal(
            monkeypatch, "stdout", lambda: found.append(run("runs", "compare", "first", "second"))
        )
        [line] = [line for line in shown.splitlines() if "data.source" in line]
        assert [len(word) for word in line.split()[1:]] == [most, most]


def test_the_list_as_json_has_the_same_facts(runs: Path, run: Run) -> None:
    (listed,) = run("runs", "list", runs, "--json").rows
    assert [(found["name"], found["state"]) for found in listed["runs"]] == [
        ("second", "interrupted"),
        ("first", "finished"),
    ]
    assert listed["runs"][1]["best_evaluation"]["bits_per_byte"] == 1.25
    assert [found["path"] for found in listed["damaged"]] == [str(runs / "torn")]


def test_a_run_that_goes_on_is_listed_as_running(runs: Path, run: Run) -> None:
    write_run(runs / "third", ended="running")
    with RunFolder(runs / "third").lock():
        states = {one["name"]: one["state"] for one in run("runs", "list", "--json").rows[0]["runs"]}
    assert states["third"] == "running"


def test_a_folder_without_runs_lists_none(tmp_path: Path, run: Run) -> None:
    (tmp_path / "empty").mkdir()
    result = run("runs", "list", "empty")
    assert (result.code, result.stdout, result.stderr) == (0, "", "empty holds no run.\n")
    assert "runs: no such folder" in refused(run("runs", "list"), 2)


def test_a_run_is_shown_by_its_folder_or_its_name(runs: Path, run: Run) -> None:
    shown = run("runs", "show", "second")
    assert shown.code == 0
    for expected in (
        "950; 10 trained",
        "100; 100,000 tokens",
        "2,000 tokens/s in steps",
        "interrupted: Stopped by SIGTERM after step 100; it is saved.",
        "loss 0.5000, accuracy 90.00%, macro-F1 0.8000 (step 100)",
        "e" * 64,
        "gptcli pretrain --config 'my config.yaml'",
    ):
        assert expected in shown.stdout
    (facts,) = run("runs", "show", runs / "second", "--json").rows
    assert (facts["state"], facts["parameters"]) == ("interrupted", 950)


@pytest.mark.parametrize("command", ["show", "report", "rerun"])
def test_what_is_no_run_is_refused_in_a_line(runs: Path, run: Run, command: str) -> None:
    assert "holds no run" in refused(run("runs", command, "runs/notes"), 2)
    assert "run.json is damaged" in refused(run("runs", command, "runs/torn"), 4)


def test_runs_are_compared_by_what_differs(runs: Path, run: Run) -> None:
    result = run("runs", "compare", "first", "second", "--output", "page.html")
    assert result.code == 0
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["first", "second"] in lines
    assert ["bits", "per", "byte", "1.2500", "-"] in lines
    assert ["macro-F1", "-", "0.8000"] in lines
    assert ["training.learning_rate", "0.001", "0.002"] in lines
    assert not [line for line in lines if "training.max_steps" in line]
    assert [line[:2] for line in lines if "fingerprint" in line] == [["data", "fingerprint"]]
    assert result.notes == ["The curves are in page.html."]
    assert "<title>first · second</title>" in Path("page.html").read_text()
    (facts,) = run("runs", "compare", "first", "second", "--json").rows
    assert facts["settings"] == {"training.learning_rate": {"first": 0.001, "second": 0.002}}
    assert facts["scores"]["loss"] == {"first": 2.0, "second": 0.5}


@pytest.mark.parametrize(
    ("fingerprints", "note"),
    [
        ({"data": "a" * 64, "tokenizer": "b" * 64}, "the data differ, so these are scores of different"),
        (
            {"data": "d" * 64, "tokenizer": "b" * 64},
            "the tokenizers differ, so of these scores only bits",
        ),
        ({"data": "d" * 64, "tokenizer": "f" * 64}, None),
    ],
)
def test_scores_that_say_nothing_side_by_side_are_called_so(
    tmp_path: Path, run: Run, fingerprints: dict[str, str], note: str | None
) -> None:
    write_run(tmp_path / "one")
    write_run(tmp_path / "other", fingerprints=fingerprints)
    shown = run("runs", "compare", "one", "other", "--output", "page.html").stdout
    found = [line for line in shown.splitlines() if "Note:" in line]
    on_page = re.findall("<p>Note: (.*)</p>", Path("page.html").read_text())
    (facts,) = run("runs", "compare", "one", "other", "--json").rows
    if note is None:
        assert found == on_page == facts["notes"] == []
    else:
        assert found[0].startswith(f"  Note: {note}")
        assert facts["notes"] == on_page == [found[0].removeprefix("  Note: ")]


def test_of_a_model_that_brings_its_tokenizer_none_is_compared(tmp_path: Path, run: Run) -> None:
    new = {"tokenizer": {"train": {"vocab_size": 300}}}
    for name, changes in (("new", new), ("tuned", {"model": {"name": "runs/new"}})):
        write_run(tmp_path / name, settings=Settings.model_validate(changes))
    (facts,) = run("runs", "compare", "new", "tuned", "--json").rows
    assert facts["settings"]["tokenizer.train.vocab_size"] == {"new": 300, "tuned": None}


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path: Path, run: Run) -> None:
    for parent in ("a", "b"):
        write_run(tmp_path / parent / "run")
    result = run("runs", "compare", "a/run", "b/run")
    assert ["a/run", "b/run"] in [line.split() for line in result.stdout.splitlines()]
    assert "The settings are the same." in result.stdout
    assert "same run is given twice" in refused(run("runs", "compare", "a/run", "a/run/"), 2)
    assert "two runs or more" in refused(run("runs", "compare", "a/run"), 2)


def test_a_config_that_cannot_be_read_is_said_and_not_compared(runs: Path, run: Run) -> None:
    (runs / "first" / "config.yaml").write_text("training: {max_stepz: 3}")
    result = run("runs", "compare", "first", "second")
    assert (result.code, result.notes) == (
        0,
        ["Warning: runs/first/config.yaml cannot be read; settings are not compared."],
    )


def test_a_report_is_written_into_the_run_or_elsewhere(runs: Path, run: Run) -> None:
    result = run("runs", "report", "first")
    assert (result.code, result.stdout) == (0, "runs/first/report.html\n")
    page = (runs / "first" / "report.html").read_text()
    assert "<title>first</title>" in page
    assert run("runs", "report", "second", "--output", "x.html", "--json").rows == [{"report": "x.html"}]
    assert Path("x.html").is_file()
    assert not (runs / "second" / "report.html").exists()
    assert "--output missing/x.html" in refused(
        run("runs", "report", "first", "--output", "missing/x.html"), 2
    )


@pytest.mark.parametrize(
    "arguments", [["list"], ["show", "first"], ["compare", "first", "second"], ["report", "first"]]
)
def test_looking_at_runs_needs_no_torch(runs: Path, arguments: list[str]) -> None:
    code = (
        "import sys\nfrom gptcli.cli import main\n"
        f"sys.argv = ['gptcli', 'runs', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'tokenizers', 'pyarrow'}\n"
        "print('heavy:', *sorted(heavy & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=runs.parent,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        timeout=60,
        check=True,
    )
    assert done.stderr.splitlines()[-1] == "heavy:"


def test_a_run_is_run_again_into_a_folder_of_its_own(config_file: Path, run: Run) -> None:
    assert run("pretrain", "--config", config_file, "--output-dir", "runs/mine").code == 0
    assert run("runs", "rerun", "mine").code == 0
    again = run("runs", "rerun", "mine")
    assert again.code == 0, again.stderr
    assert "Warning" not in again.stderr
    first, second, third = (Path("runs") / name for name in ("mine", "mine-2", "mine-3"))
    facts = [json.loads((path / "run.json").read_text()) for path in (first, second, third)]
    assert facts[0]["best_evaluation"] == facts[1]["best_evaluation"] == facts[2]["best_evaluation"]
    assert (second / "config.yaml").read_text() == (first / "config.yaml").read_text()
    assert (second / "report.html").is_file()
    refusal = refused(run("runs", "rerun", "mine", "--output-dir", "runs/mine-2"), 2)
    assert "--overwrite" in refusal


def test_a_rerun_says_that_the_data_has_changed(config_file: Path, text_file: Path, run: Run) -> None:
    assert run("pretrain", "--config", config_file, "--output-dir", "runs/mine").code == 0
    text_file.write_text(text_file.read_text() * 2)
    again = run("runs", "rerun", "mine", "--output-dir", "again", "--dry-run")
    assert again.code == 0, again.stderr
    assert [note for note in again.notes if note.startswith("Warning")][:1] == [
        "Warning: The data is not what runs/mine was trained on; this run will differ."
    ]
