from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gptcli.errors import ConfigError, EnvironmentProblem, ExitCode
from gptcli.training.run_folder import RunFolder
from tests.conftest import REPOSITORY

HOLD_THE_LOCK = """
import sys, time
from pathlib import Path
from gptcli.training.run_folder import RunFolder
with RunFolder(Path(sys.argv[1])).lock():
    print("locked", flush=True)
    time.sleep(60)
"""

RUN_FILES = ["run.json", "config.yaml", "data.json", "metrics.jsonl", "report.html"]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A folder with a run in it."""
    path = tmp_path / "run"
    for name in ("checkpoints/step-00000003", "checkpoints/.step-00000006.partial", "model"):
        (path / name).mkdir(parents=True)
    (path / "model" / "config.json").touch()
    for name in RUN_FILES:
        (path / name).touch()
    return RunFolder(path)


def test_a_new_or_empty_folder_may_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "deep" / "new", tmp_path / "empty"):
        with RunFolder(folder).lock():
            assert folder.is_dir()
            RunFolder(folder).check(resume=False, overwrite=False)
            RunFolder(folder).check(resume=True, overwrite=False)
            RunFolder(folder).check(resume=False, overwrite=True)


def test_a_run_is_only_written_to_when_asked(run: RunFolder) -> None:
    with pytest.raises(ConfigError, match=r"not empty.*--resume.*--overwrite.*--output-dir") as caught:
        run.check(resume=False, overwrite=False)
    assert caught.value.exit_code == ExitCode.USAGE == 2
    run.check(resume=True, overwrite=False)
    run.check(resume=False, overwrite=True)
    with pytest.raises(ConfigError, match="exclude each other"):
        run.check(resume=True, overwrite=True)


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    # A project of someone's own may well have these two.
    (tmp_path / "config.yaml").touch()
    (tmp_path / "model").mkdir()
    with pytest.raises(ConfigError, match="holds no run"), RunFolder(tmp_path).lock():
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "model"]


def test_only_one_process_at_a_time_has_the_lock(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_THE_LOCK, tmp_path / "run"],
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"locked\n"
    with (
        pytest.raises(EnvironmentProblem, match="in use by another gptcli process") as caught,
        RunFolder(tmp_path / "run").lock(),
    ):
        pass
    assert caught.value.exit_code == ExitCode.ENVIRONMENT == 5
    holder.kill()
    holder.wait()
    with RunFolder(tmp_path / "run").lock():
        pass


def test_a_file_where_the_folder_should_be_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with (
        pytest.raises(ConfigError, match="file is a file; --output-dir takes a folder"),
        RunFolder(file).lock(),
    ):
        pass
    with (
        pytest.raises(EnvironmentProblem, match="cannot be written: ") as caught,
        RunFolder(file / "run").lock(),
    ):
        pass
    assert caught.value.exit_code == ExitCode.ENVIRONMENT == 5


def test_overwriting_removes_the_run_and_nothing_else(run: RunFolder, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").touch()
    own = [
        "notes.txt",
        "samples/one.txt",
        "checkpoints/step-3/weights",
        "checkpoints/readme",
        "config.yaml.bak",
    ]
    for name in own:
        (run.path / name).parent.mkdir(exist_ok=True)
        (run.path / name).touch()
    (run.path / "checkpoints" / "step-00000001").symlink_to(elsewhere)

    run.clear()

    left = {str(path.relative_to(run.path)) for path in run.path.rglob("*") if not path.is_dir()}
    assert left == set(own)
    assert (run.path / "checkpoints" / "step-00000001").is_symlink()
    assert (elsewhere / "precious").exists()
    run.clear()  # Nothing is left to remove; that is fine.


def test_overwriting_does_not_follow_a_link_to_a_model(run: RunFolder, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    run.model.rename(elsewhere)
    run.model.symlink_to(elsewhere)
    run.clear()
    assert (elsewhere / "config.json").exists()
