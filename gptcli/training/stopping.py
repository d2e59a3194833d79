"""What ends a run: signals, which ask for it, and limits, which it reaches."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Self

from gptcli.errors import ExitCode, InterruptedRun

if TYPE_CHECKING:  # Commands take signals before they import torch, which takes seconds.
    from gptcli.config.schema import TrainingSettings
    from gptcli.training.loop import Progress

# What schedulers send some time before they kill, and what a closing terminal and Ctrl-C send.
ASKING_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)


class StopSignals:
    """Turns signals into a wish to stop, which the run looks at where stopping loses nothing.

    A second Ctrl-C stops at once. Use as a context manager; before it is entered, and outside the main
    thread, where Python takes no signals, it notes none.
    """

    def __init__(self, say_at_once: Callable[[str], None] = lambda text: None) -> None:
        """say_at_once: tells the user what happens next; called in the middle of anything."""
        self.received: signal.Signals | None = None
        """The first that has come."""
        self._say_at_once = say_at_once
        self._was_ctrl_c = False

    def __enter__(self) -> Self:
        is_main = threading.current_thread() is threading.main_thread()
        self._before = {
            number: signal.signal(number, self._note)
            for number in ASKING_SIGNALS
            # What the caller has turned off, as nohup does, stays off.
            if is_main and signal.getsignal(number) is not signal.SIG_IGN
        }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def raise_if_received(self) -> None:
        """Raise InterruptedRun if a signal has come; for work that can be left and done again."""
        if self.received is not None:
            raise self.interruption("before training; run the same command again.", is_saved=False)

    def interruption(self, what: str, *, is_saved: bool) -> InterruptedRun:
        """Return the exception that ends the run: exit code 130 for Ctrl-C, else 75."""
        assert self.received is not None
        code = ExitCode.CTRL_C if self.received is signal.SIGINT else ExitCode.INTERRUPTED
        return InterruptedRun(f"Stopped by {_name(self.received)} {what}", code, is_saved=is_saved)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._was_ctrl_c:
                raise KeyboardInterrupt
            self._was_ctrl_c = True
        if self.received is None:
            self.received = signal.Signals(number)
            self._say_at_once(
                f"{_name(self.received)}: stopping as soon as nothing is lost, at the latest after the "
                "current step. Ctrl-C twice stops at once."
            )


def _name(number: signal.Signals) -> str:
    return "Ctrl-C" if number is signal.SIGINT else number.name


def reached_limit(settings: TrainingSettings, progress: Progress) -> str | None:
    """Return the setting whose limit `progress` has reached, or None."""
    loss = progress.last_evaluation_loss
    reached = {
        "training.max_steps": progress.step >= settings.max_steps,
        "training.max_tokens": settings.max_tokens is not None
        and progress.tokens >= settings.max_tokens,
        "training.max_minutes": settings.max_minutes is not None
        and progress.elapsed_seconds >= settings.max_minutes * 60,
        "training.target_loss": settings.target_loss is not None
        and loss is not None
        and loss <= settings.target_loss,
        "training.patience": settings.patience is not None
        and progress.evaluations_since_best >= settings.patience,
    }
    return next((name for name, is_reached in reached.items() if is_reached), None)
