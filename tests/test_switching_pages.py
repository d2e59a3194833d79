"""docs/from-*.md: what they name of ours is there, and all options of the Trainer are on its page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import transformers
from transformers import TrainingArguments
from typer.main import get_command

from gptcli.cli import app, command_paths
from gptcli.config.loading import load_settings
from gptcli.config.names import setting_names
from gptcli.config.schema import Settings
from gptcli.training.run_folder import RunFolder
from tests.conftest import REPOSITORY
from tests.test_cli import run_main

PAGES = sorted((REPOSITORY / "docs").glob("from-*.md"))
CODE = re.compile(r"`([^`]+)`")
# Settings of ours, as they are written in running text; model.safetensors is a file.
SETTING = re.compile(rf"(?:{'|'.join(Settings.model_fields)})\.(?!safetensors)[a-z_.]+(?:: .+)?")
FILES = {
    value.fget(RunFolder(Path("run"))).name
    for value in vars(RunFolder).values()
    if isinstance(value, property) and value.fget
}


def tables(page: Path) -> Iterator[list[str]]:
    """Yield the rows of the page's tables as their cells: theirs, ours, remarks."""
    for line in page.read_text().splitlines():
        if line.startswith("| ") and "|---" not in line:
            # \| is a character of a cell.
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            assert len(cells) == 3, line
            yield cells


def options() -> set[str]:
    """Return every option of every command."""
    found = {"--help"}
    for path in command_paths():
        command = get_command(app)
        for name in path:
            command = command.commands[name]  # type: ignore[attr-defined]
        found |= {option for parameter in command.params for option in parameter.opts}
    return found


def problem_with(name: str, known_options: set[str]) -> str | None:
    """Return what is wrong with a name of ours, as a page has it; None if it is there."""
    words = name.split()
    if words[0] == "gptcli":
        paths = {" ".join(path) for path in command_paths()}
        if not {words[1], " ".join(words[1:3])} & paths:
            return f"{name}: no such command"
        unknown = {word for word in words if word.startswith("--")} - known_options
        return f"{name}: no option {min(unknown)}" if unknown else None
    if words[0].startswith("--"):
        return None if words[0].partition("=")[0] in known_options else f"{name}: no such option"
    if name.startswith("runs/NAME"):
        file = name.rstrip("/").removeprefix("runs/NAME").removeprefix("/")
        return None if not file or file in FILES else f"{name}: no such file"
    setting, is_set, value = name.partition(": ")
    if is_set:
        load_settings(None, [f"{setting}={value}"], environment={})
        return None
    is_there = any(f"{known}.".startswith(f"{setting}.") for known in setting_names())
    return None if is_there else f"{name}: no such setting"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_names_of_ours_is_there(page: Path) -> None:
    known = options()
    rows = [row for row in tables(page) if row[1] != "gptcli"]  # Without the heads.
    assert len(rows) > 30
    problems = []
    for _, ours, remarks in rows:
        names = CODE.findall(ours)
        assert names or ours in ("none", "the prompt"), ours
        names += [
            name for name in CODE.findall(remarks) if name.startswith(("--", "gptcli ", "runs/NAME"))
        ]
        problems += [problem_with(name, known) for name in names]
    problems += [
        problem_with(name, known) for name in CODE.findall(page.read_text()) if SETTING.fullmatch(name)
    ]
    assert [problem for problem in problems if problem] == []


def test_the_check_sees_what_is_not_there() -> None:
    known = options()
    for name in (
        "training.lr",
        "--learning-rate",
        "gptcli train",
        "gptcli eval --config-dir",
        "runs/NAME/x",
    ):
        assert problem_with(name, known) is not None, name
    for name in ("training.learning_rate", "--resume", "gptcli config init", "runs/NAME/model/"):
        assert problem_with(name, known) is None, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_names_from_there_are_answered_as_a_page_shows(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = re.search(
        r"`old\.yaml`:\n\n```yaml\n(.*?)```\n\n`gptcli (.*?)` says:\n\n```text\n(.*?)```",
        page.read_text(),
        re.DOTALL,
    )
    assert shown is not None
    config, arguments, said = shown.groups()
    (tmp_path / "old.yaml").write_text(config)
    monkeypatch.chdir(tmp_path)
    assert run_main(monkeypatch, *arguments.split()) == 2
    assert capsys.readouterr().err == said


def test_every_argument_of_the_trainer_is_on_its_page() -> None:
    page = REPOSITORY / "docs" / "from-trainer.md"
    version = re.search(r"As of transformers (\d+\.\d+)", page.read_text())
    assert version is not None
    if not transformers.__version__.startswith(f"{version[1]}."):
        pytest.skip(f"the page is about transformers {version[1]}")
    named = {name for theirs, _, _ in tables(page) for name in CODE.findall(theirs)}
    assert {field.name for field in fields(TrainingArguments)} - named == set()
