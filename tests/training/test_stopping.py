from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from gptcli.config.schema import TrainingSettings
from gptcli.errors import ExitCode, InterruptedRun
from gptcli.training.loop import Progress
from gptcli.training.stopping import ASKING_SIGNALS, StopSignals, reached_limit


@pytest.mark.parametrize(
    ("limits", "progress", "expected"),
    [
        ({"max_steps": 10}, Progress(step=9), None),
        ({"max_steps": 10}, Progress(step=10), "training.max_steps"),
        ({"max_steps": 10}, Progress(step=11), "training.max_steps"),
        ({"max_tokens": 500}, Progress(tokens=499), None),
        ({"max_tokens": 500}, Progress(tokens=500), "training.max_tokens"),
        # A minute and a half is 90 s.
        ({"max_minutes": 1.5}, Progress(elapsed_seconds=89.9), None),
        ({"max_minutes": 1.5}, Progress(elapsed_seconds=90.0), "training.max_minutes"),
        ({"max_minutes": 1.5}, Progress(training_seconds=90.0), None),
        ({"target_loss": 2.0}, Progress(), None),
        ({"target_loss": 2.0}, Progress(last_evaluation_loss=2.01), None),
        ({"target_loss": 2.0}, Progress(last_evaluation_loss=2.0), "training.target_loss"),
        ({"patience": 3}, Progress(evaluations_since_best=2), None),
        ({"patience": 3}, Progress(evaluations_since_best=3), "training.patience"),
        ({}, Progress(tokens=10**12, elapsed_seconds=1e9, evaluations_since_best=99), None),
        # Where several are reached, the steps come first.
        ({"max_steps": 2, "max_tokens": 5}, Progress(step=2, tokens=5), "training.max_steps"),
    ],
)
def test_a_limit_is_reached_at_its_value_and_not_before(
    limits: dict[str, Any], progress: Progress, expected: str | None
) -> None:
    assert reached_limit(TrainingSettings(**limits), progress) == expected


@pytest.fixture
def _same_handlers_after() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in ASKING_SIGNALS}
    yield
    try:
        assert {number: signal.getsignal(number) for number in ASKING_SIGNALS} == before
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.usefixtures("_same_handlers_after")
@pytest.mark.parametrize(
    ("number", "name", "exit_code"),
    [
        (signal.SIGTERM, "SIGTERM", 75),
        (signal.SIGUSR1, "SIGUSR1", 75),
        (signal.SIGHUP, "SIGHUP", 75),
        (signal.SIGINT, "Ctrl-C", 130),
    ],
)
def test_a_signal_is_said_and_noted_and_ends_what_looks_for_it(
    number: signal.Signals, name: str, exit_code: int
) -> None:
    said: list[str] = []
    with StopSignals(said.append) as signals:
        signals.raise_if_received()
        signal.raise_signal(number)
        assert signals.received is number
        with pytest.raises(InterruptedRun, match=f"^Stopped by {name} before training") as early:
            signals.raise_if_received()
        later = signals.interruption("after step 7.", is_saved=True)
    assert early.value.exit_code == later.exit_code == exit_code
    assert str(later) == f"Stopped by {name} after step 7."
    assert (early.value.is_saved, later.is_saved) == (False, True)
    assert len(said) == 1 and said[0].startswith(f"{name}: stopping")
    assert {75, 130} == {ExitCode.INTERRUPTED, ExitCode.CTRL_C}


@pytest.mark.usefixtures("_same_handlers_after")
def test_a_second_ctrl_c_stops_at_once() -> None:
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGINT)
        assert signals.received is signal.SIGINT
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("_same_handlers_after")
def test_a_second_signal_that_is_not_ctrl_c_stops_nothing() -> None:
    with StopSignals() as signals:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
        assert signals.received is signal.SIGTERM  # The first decides the exit code.


def test_handlers_are_restored_after_an_error() -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: received.append(number))
    try:
        with suppress(ValueError), StopSignals() as signals:
            signal.raise_signal(signal.SIGUSR1)
            raise ValueError
        assert (signals.received, received) == (signal.SIGUSR1, [])
        signal.raise_signal(signal.SIGUSR1)
        assert received == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.usefixtures("_same_handlers_after")
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_the_caller_has_turned_off_stays_off(number: signal.Signals) -> None:
    # As `nohup` does to SIGHUP, and a shell script to the SIGINT of what it starts with `&`.
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            signal.raise_signal(number)
            assert signals.received is None
            signal.raise_signal(signal.SIGTERM)
            assert signals.received is signal.SIGTERM
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


@pytest.mark.usefixtures("_same_handlers_after")
def test_outside_the_main_thread_no_handler_is_changed() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def work() -> None:
        with StopSignals() as signals:
            seen.extend([signal.getsignal(signal.SIGTERM), signals.received])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before, None]
