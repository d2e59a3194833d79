"""Disks that take no more: one clear error, the older checkpoints whole, nothing to clean up."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reliability.conftest import CommandServer, Ended
from tests.reliability.runs import (
    RunSettings,
    assert_nothing_acknowledged_is_lost,
    assert_same_run,
    file_names,
)


@pytest.fixture
def settings(tmp_path: Path) -> RunSettings:
    settings = RunSettings(tmp_path)
    settings.write()
    return settings


def assert_one_error(ended: Ended) -> None:
    assert ended.exit_code == 5, ended.output
    errors = [line for line in ended.output.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, ended.output
    assert ended.output.endswith(errors[0] + "\n")
    assert "Traceback" not in ended.output
    assert "bug" not in ended.output


def assert_no_leftovers(folder: Path) -> None:
    assert [name for name in file_names(folder) if ".partial" in name or "building-" in name] == []


def test_whatever_file_does_not_fit_the_run_ends_in_one_error_and_resumes_exactly(
    server: CommandServer, settings: RunSettings
) -> None:
    whole = settings.root / "whole"
    assert settings.run(server, whole).exit_code == 0
    sizes = {path.stat().st_size for path in settings.root.rglob("*") if path.is_file()}
    # Just too small for one kind of file after the other, and large enough for all.
    limits = sorted({0, 1, *(size - 1 for size in sizes if size), max(sizes) + 1})
    ended_well = []
    for limit in limits:
        run = settings.root / f"limit-{limit}"
        settings.forget_preparation()
        limited = settings.run(server, run, file_size_limit=limit)
        if limited.exit_code == 0:
            ended_well.append(limit)
        else:
            assert_one_error(limited)
        assert_no_leftovers(settings.root)
        assert_nothing_acknowledged_is_lost(run, limited.saved)
        resumed = settings.run(server, run, "--resume")
        assert resumed.exit_code == 0, resumed.output
        assert_same_run(run, whole)
    assert ended_well == limits[-1:]


def test_a_limit_that_comes_later_leaves_the_checkpoints_before_it(
    server: CommandServer, settings: RunSettings
) -> None:
    whole, run = settings.root / "whole", settings.root / "run"
    assert settings.run(server, whole).exit_code == 0
    first_step = {"call": "accumulate_gradients", "count": 4}
    stopped = settings.run(server, run, trigger=first_step, signals=[15])
    assert stopped.exit_code == 75
    # Enough for run.json and metrics.jsonl, too little for weights.
    limited = settings.run(server, run, "--resume", file_size_limit=20_000)
    assert_one_error(limited)
    assert_nothing_acknowledged_is_lost(run, stopped.saved)
    assert_no_leftovers(run)
    assert settings.run(server, run, "--resume").exit_code == 0
    assert_same_run(run, whole)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MB, which only root can make."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(disk: Path, free_bytes: int) -> None:
    """Leave about `free_bytes` free, whatever else is there."""
    filler = disk / "filler"
    filler.unlink(missing_ok=True)
    with filler.open("wb") as file:
        file.write(b"x" * (shutil.disk_usage(disk).free - free_bytes))


def test_a_disk_that_is_too_small_is_noticed_before_training(
    server: CommandServer, settings: RunSettings, small_disk: Path
) -> None:
    fill(small_disk, 1_000_000)
    ended = settings.run(server, small_disk / "run")
    assert_one_error(ended)
    # Five of 0.5 MB while the sixth is made.
    assert "the checkpoints of this run need about " in ended.output
    assert "but the disk has 1 MB free" in ended.output
    assert "Training 3" not in ended.output
    (small_disk / "filler").unlink()
    ended = settings.run(server, small_disk / "run")
    assert ended.exit_code == 0, ended.output


@pytest.mark.parametrize("free_kilobytes", [4, 150, 500, 900])
def test_a_disk_that_fills_up_during_training_costs_no_checkpoint(
    server: CommandServer, settings: RunSettings, small_disk: Path, free_kilobytes: int
) -> None:
    whole, run = settings.root / "whole", small_disk / "run"
    assert settings.run(server, whole).exit_code == 0
    stopped = settings.run(
        server, run, trigger={"call": "accumulate_gradients", "count": 2}, signals=[19]
    )
    fill(small_disk, free_kilobytes * 1000)
    ended = server.let_go_on(stopped)
    assert_one_error(ended)
    assert ended.saved[0] == "step-00000001"
    assert_nothing_acknowledged_is_lost(run, ended.saved)
    assert_no_leftovers(run)
    (small_disk / "filler").unlink()
    resumed = settings.run(server, run, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert_same_run(run, whole)
