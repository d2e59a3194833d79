"""SIGKILL at any moment: nothing acknowledged is lost, and the resumed run is the uninterrupted one."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest

from tests.reliability.conftest import CommandServer
from tests.reliability.runs import (
    RunSettings,
    assert_nothing_acknowledged_is_lost,
    assert_same_run,
    progress_in,
)

MOST_KILLS_A_RUN = 4


@pytest.fixture
def settings(tmp_path: Path) -> RunSettings:
    settings = RunSettings(tmp_path)
    settings.write()
    return settings


def kill_until_done(
    server: CommandServer, settings: RunSettings, whole: Path, triggers: list[dict[str, Any]]
) -> int:
    """Run, with a kill at each trigger and a resume after it, and check the run; return the kills."""
    run = settings.root / "killed"
    settings.forget_preparation()
    acknowledged: list[str] = []
    options: tuple[str, ...] = ()
    kills = 0
    for trigger in [*triggers, None]:
        ended = settings.run(server, run, *options, trigger=trigger, signals=[SIGKILL])
        acknowledged += ended.saved
        assert_nothing_acknowledged_is_lost(run, acknowledged)
        if ended.exit_code == 0:
            break
        assert ended.exit_code == -SIGKILL, ended.output
        assert "passed over" not in ended.output
        kills += 1
        options = ("--resume",)
    assert ended.exit_code == 0, ended.output
    assert_same_run(run, whole)
    assert progress_in(run) == progress_in(whole)
    shutil.rmtree(run)
    return kills


@pytest.mark.parametrize("wanted", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_kills_at_random_moments_lose_nothing(
    server: CommandServer, settings: RunSettings, wanted: int
) -> None:
    whole = settings.root / "whole"
    uninterrupted = settings.run(server, whole)
    assert uninterrupted.exit_code == 0
    random_source = random.Random(wanted)
    kills = 0
    while kills < wanted:
        triggers: list[dict[str, Any]] = [
            random_source.choice(
                [
                    {"file_event": random_source.randint(1, uninterrupted.file_events)},
                    # In the middle of a write, a flush or a computation.
                    {"seconds": random_source.uniform(0, uninterrupted.seconds)},
                ]
            )
            for _ in range(random_source.randint(1, MOST_KILLS_A_RUN))
        ]
        kills += kill_until_done(server, settings, whole, triggers)


@pytest.mark.slow
def test_a_kill_before_any_file_operation_of_a_run_loses_nothing(
    server: CommandServer, settings: RunSettings
) -> None:
    whole = settings.root / "whole"
    operations = settings.run(server, whole).file_events
    for operation in range(1, operations):
        # And once more on the way from there to the end.
        again = {"file_event": 1 + operation * 7 % 60}
        assert kill_until_done(server, settings, whole, [{"file_event": operation}, again])
