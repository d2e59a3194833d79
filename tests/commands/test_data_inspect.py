"""`gptcli data inspect`: what a training would be told about its data, without the training."""

from __future__ import annotations

import json
from itertools import takewhile
from pathlib import Path

import pytest

from tests.commands.conftest import Run
from tests.conftest import SENTENCES
from tests.test_cli import run_main
from tests.test_console import shown_on_a_terminal

CONFIG = """\
task: {task}
model: {{n_layer: 2, n_head: 2, n_embd: 32, context_length: 64}}
tokenizer: {{train: {{vocab_size: 300}}}}
data: {{source: rows.jsonl, validation_fraction: 0.2}}
training: {{max_steps: 2, batch_size: 4}}
runtime: {{device: cpu, precision: fp32}}
"""


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    lines = [{"text": s, "label": s.split()[2], "prompt": s, "completion": "Yes."} for s in SENTENCES]
    file.write_text("".join(json.dumps(line) + "\n" for line in [*lines, lines[0]]))
    return file


@pytest.mark.parametrize("task", ["classification", "instruction", "language-modelling"])
def test_it_says_what_the_training_says_and_writes_no_run(
    rows: Path, run: Run, tmp_path: Path, task: str
) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG.format(task=task))
    shown = run("data", "inspect", "--config", "config.yaml")
    assert shown.code == 0, shown.stderr
    title, *facts = shown.stdout.partition("\nfindings:")[0].splitlines()
    assert title == f"{task}:"
    assert not (tmp_path / "runs").exists()
    trained = run("finetune", "--config", "config.yaml", "--output-dir", "run")
    assert trained.code == 0, trained.stderr
    said = trained.stderr.partition("Model and data:\n")[2].splitlines()
    said = list(takewhile(lambda line: line.startswith("  "), said))
    # In place of one example for all there are some as they are trained on.
    said = [line for line in said if not line.startswith("  an example ")]
    assert len(said) >= 3
    assert set(said) <= set(facts)
    printed = run("data", "inspect", "--config", "config.yaml", "--json")
    ledger = json.loads((tmp_path / "run" / "data.json").read_text())
    found = json.loads(printed.stdout)
    assert found.items() >= {"task": task, **ledger}.items()
    assert found["scripts"] == {"Latin": 1.0}
    assert found["characters"]["longest"] == max(map(len, SENTENCES)) - (
        task != "language-modelling"
    ) + (len("Yes.") if task == "instruction" else 0)
    findings, *examples = shown.stdout.partition("\nfindings:\n")[2].split("\nexample ")
    lines = findings.splitlines()
    assert len(examples) == len(found["examples"]) == 2
    assert all("[[" in example for example in examples)
    assert [line.split()[:2] for line in lines] == [
        [finding["level"], finding["subject"]] for finding in found["findings"]
    ]


def test_it_needs_no_device_that_the_training_needs(rows: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG.format(task="classification"))
    shown = run("data", "inspect", "--config", "config.yaml", "--set", "runtime.device=cuda")
    assert shown.code == 0, shown.stderr
    assert "repeated       1 training examples have the input of another" in shown.stdout


def test_it_refuses_what_the_training_would(run: Run, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": ""}\n')
    (tmp_path / "config.yaml").write_text(CONFIG.format(task="classification"))
    shown = run("data", "inspect", "--config", "config.yaml")
    assert (shown.code, shown.stdout) == (3, "")
    assert shown.stderr == (
        "Error: rows.jsonl:1: the label is blank. Give it one, or leave the row out.\n"
    )


def test_findings_name_a_place_and_fail_the_command_that_asks_for_it(run: Run, tmp_path: Path) -> None:
    lines = [*SENTENCES[:10], "It wasnâ€™t.\n", *SENTENCES[10:]]
    (tmp_path / "rows.txt").write_text("".join(lines), encoding="utf-8")
    (tmp_path / "config.yaml").write_text(CONFIG.format(task="language-modelling"))
    command = ("data", "inspect", "-c", "config.yaml", "--set", "data.source=rows.txt")
    shown = run(*command, "--fail-on", "problem")
    assert shown.code == 7, shown.stderr
    problem = next(line for line in shown.stdout.splitlines() if line.startswith("  problem"))
    assert "(rows.txt:11). Read the original as UTF-8" in problem
    assert 'has "â€™" for "’"' in problem
    assert shown.stderr.splitlines()[-1].startswith("Error: --fail-on problem: 1 of ")
    (tmp_path / "rows.txt").write_text("".join(SENTENCES))
    assert run(*command, "--fail-on", "problem").code == 0
    # So little is held out.
    warned = run(*command, "--fail-on", "warning", "--json", "--examples", "0")
    found = json.loads(warned.stdout)
    assert (found["findings"][0]["level"], found["examples"]) == ("warning", [])
    assert warned.code == 7


def test_a_level_that_there_is_not_is_told_before_the_data_is_read(run: Run, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG.format(task="language-modelling"))
    shown = run("data", "inspect", "-c", "config.yaml", "--fail-on", "oops")
    assert (shown.code, shown.stdout) == (2, "")
    assert shown.stderr == "Error: --fail-on is 'oops'; it must be warning or problem.\n"


def test_each_kind_of_trouble_is_counted_as_it_was_put_in(run: Run, tmp_path: Path) -> None:
    # Of 20 words each, none of which is in another.
    texts = [" ".join(f"{letter}{n}" for letter in "abcdefghijklmnopqrst") for n in range(62)]
    rows = [{"text": text, "label": ("red", "blue")[n % 2]} for n, text in enumerate(texts[:60])]
    rows.append(dict(rows[3]))
    rows.append({"text": rows[4]["text"], "label": "blue"})
    rows.append({"text": f"{rows[5]['text']} again", "label": rows[5]["label"]})
    rows += [{"text": "One of its kind.", "label": "green"}, {"text": "", "label": "green"}]
    held_out = [{"text": f"{rows[7]['text']} too", "label": "red"}]
    held_out += [{"text": text, "label": "blue"} for text in texts[60:]]
    for name, some in (("rows", rows), ("held-out", held_out)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    (tmp_path / "config.yaml").write_text(CONFIG.format(task="classification"))
    shown = run(
        *("data", "inspect", "-c", "config.yaml", "--json"),
        *("--set", "data.validation_source=held-out.jsonl", "--set", "model.context_length=32"),
    )
    assert shown.code == 0, shown.stderr
    found = json.loads(shown.stdout)
    duplicates, near, overlap = (found[n] for n in ("duplicates", "near_duplicates", "overlap"))
    assert (duplicates["texts"], duplicates["repeated"]) == (67, 2)
    assert (duplicates["where"], duplicates["earlier"]) == ("rows.jsonl:61", "rows.jsonl:4")
    # Those with a word more.
    assert (near["texts"], near["repeated"]) == (64, 2)
    assert (near["where"], near["earlier"]) == ("rows.jsonl:63", "rows.jsonl:6")
    assert (overlap["items"], overlap["known"]) == (3, 1)
    places = {(finding["subject"], finding["where"]) for finding in found["findings"]}
    assert places >= {
        ("duplicates", "rows.jsonl:61 as 4"),
        ("contradictions", "rows.jsonl:62 and rows.jsonl:5"),
        ("overlap", "held-out.jsonl:1"),
        ("labels", "rows.jsonl:64"),
    }
    reading = next(finding for finding in found["findings"] if finding["subject"] == "reading")
    assert reading["message"].endswith("are left out: 1")


def test_a_narrow_terminal_gets_the_rest_of_a_line_below_it(
    rows: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG.format(task="classification"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("NO_COLOR", "1")

    def show() -> None:
        assert run_main(monkeypatch, "data", "inspect", "--config", "config.yaml") == 0

    shown = shown_on_a_terminal(monkeypatch, "stdout", show).replace("\r\n", "\n")
    facts = shown.partition("\nfindings:\n")[0].splitlines()
    assert max(map(len, facts)) <= 60
    begun = next(number for number, line in enumerate(facts) if line.startswith("  lengths "))
    assert facts[begun + 1].startswith(" " * facts[begun].index("shortest"))
