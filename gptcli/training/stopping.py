"""What ends a run: signals, which ask for it, and limits, which it reaches."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Self

from gptcli.config.schema import TrainingSettings
from gptcli.errors import ExitCode, InterruptedRun
from gptcli.training.loop import Progress

# What schedulers send some time before they kill, and what a closing terminal and Ctrl-C send.
ASKING_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)


class StopSignals:
    """Turns signals into a wish to stop, which the run looks at where stopping loses nothing.

    A second Ctrl-C stops at once. Use as a context manager; outside the main thread, where Python takes
    no signals, it notes none.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

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
            raise self.interruption("before training; run the same command again.")

    def interruption(self, what: str) -> InterruptedRun:
        """Return the exception that ends the run: exit code 130 for Ctrl-C, else 75."""
        assert self.received is not None
        code = ExitCode.CTRL_C if self.received is signal.SIGINT else ExitCode.INTERRUPTED
        return InterruptedRun(f"Stopped by {self.received.name} {what}", code)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received is signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)


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
