"""The only module that prints. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Container, Iterable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

SECONDS_BETWEEN_LINES = 10.0
# Red, green, blue. Black text is readable on both, and they are seen on light and on dark terminals.
NO_SHADE, FULL_SHADE = (150, 150, 150), (255, 130, 20)
LEAST_SHADE = 0.1  # What is less gets none.

# C0 and C1 control characters except tab and newline: they can move the cursor or rewrite the screen.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def write_result(text: str, *, end: str = "\n") -> None:
    """Write text to stdout at once; control characters are made visible if stdout is a terminal."""
    if sys.stdout.isatty():
        text = visible(text)
    # Text may hold half a surrogate pair, which no encoding can write.
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write((text + end).encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()


def can_shade() -> bool:
    """Whether stdout is a terminal that shows colours, and NO_COLOR is not set."""
    if not sys.stdout.isatty():
        return False
    from rich.console import Console

    terminal = Console()
    return terminal.color_system is not None and not terminal.no_color


def write_shaded(parts: Iterable[tuple[str, float | None]], marked: int) -> None:
    """Write texts to stdout without a space between, on a colour from none (0) to full (1).

    Those without a shade are dim; that of the number `marked` is underlined, in bold. Colours are as
    many as the terminal has.
    """
    from rich.console import Console
    from rich.style import Style
    from rich.text import Text

    line = Text()
    for number, (text, shade) in enumerate(parts):
        style = Style(dim=True)
        if shade is not None:
            style = Style() if shade < LEAST_SHADE else Style(color="black", bgcolor=_shaded(shade))
        if number == marked:
            style += Style(bold=True, underline=True)
        line.append(visible(text), style)
    Console(highlight=False).print(line, soft_wrap=True)


def write_learnt(parts: Iterable[tuple[str, bool]], *, indent: str = "") -> None:
    """Write texts to stdout without a space between, every line indented: (text, whether it is learnt).

    What is learnt is in colour and the rest dim; without colours, [[ ]] is around it.
    """
    if not can_shade():
        text = "".join(f"[[{text}]]" if is_learnt else text for text, is_learnt in parts)
        write_result(indent + text.replace("\n", f"\n{indent}"))
        return
    from rich.console import Console
    from rich.style import Style
    from rich.text import Text

    lines = Text(indent)
    for text, is_learnt in parts:
        style = Style(color="green", bold=True) if is_learnt else Style(dim=True)
        lines.append(visible(text).replace("\n", f"\n{indent}"), style)
    Console(highlight=False).print(lines, soft_wrap=True)


def _shaded(shade: float) -> str:
    red, green, blue = (round(n + (f - n) * shade) for n, f in zip(NO_SHADE, FULL_SHADE, strict=True))
    return f"rgb({red},{green},{blue})"


def write_json(value: Any) -> None:
    """Write one JSON object on one line of stdout."""
    write_result(json.dumps(value, ensure_ascii=False, allow_nan=False))


def say(text: str = "") -> None:
    """Write a line to stderr; that nobody reads along any more stops no training run."""
    try:
        print(visible(text), file=sys.stderr, flush=True)
    except OSError:
        _silence(sys.stderr)


def say_at_once(text: str) -> None:
    """Write a line to stderr from a signal handler, which may have interrupted another write."""
    with suppress(OSError):
        os.write(2, f"\n{visible(text)}\n".encode())


def warn(text: str) -> None:
    say(f"Warning: {text}")


def report_error(text: str) -> None:
    for line in text.splitlines():
        say(f"Error: {line}")


def visible(text: str) -> str:
    """Return text with control characters written out, such as \\x1b."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def show_facts(title: str, facts: Iterable[tuple[str, str]]) -> None:
    """Write named facts to stderr, one a line, aligned."""
    for line in fact_lines(title, facts):
        say(line)


def fact_lines(title: str, facts: Iterable[tuple[str, str]]) -> list[str]:
    """Return a title and named facts, one a line, aligned."""
    rows = list(facts)
    width = max((len(name) for name, _ in rows), default=0)
    # What follows in a fact of several lines stands below its beginning.
    indent = "\n" + " " * (width + 4)
    lines = [f"  {name:<{width}}  {value}" for name, value in rows]
    return [title, *(line.replace("\n", indent) for line in lines)]


def table_lines(rows: list[list[str]], right: Container[int] = ()) -> list[str]:
    """Return rows as lines with aligned columns. right: numbers of the columns that hold numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def quiet_stdout() -> None:
    """Let nothing more be written to stdout: its reader has gone."""
    _silence(sys.stdout)


def _silence(stream: TextIO) -> None:
    # What the stream still holds goes there too: the interpreter would fail to write it as it exits.
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class ProgressDisplay:
    """A bar on a terminal; elsewhere a plain line now and then. Use as a context manager."""

    def __init__(self) -> None:
        self._console: Console | None = None
        self._progress: Progress | None = None
        self._bar: Any = None
        self._last_line = 0.0
        self._started = 0.0
        self._first = 0
        self._total: int | None = None
        self.title = ""
        """Of the stage that is shown."""
        if sys.stderr.isatty():
            from rich.console import Console

            self._console = Console(stderr=True, highlight=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close_bar()

    def start(self, title: str, total: int | None, done: int = 0) -> None:
        """Begin a stage of `total` units (None: not known), of which `done` are done."""
        self._close_bar()
        self.title, self._total, self._first = title, total, done
        self._started = time.monotonic()
        self._last_line = 0.0
        if self._console is None:
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        time_left = [] if total is None else [TimeRemainingColumn(), TextColumn("left")]
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[facts]}"),
            *time_left,
            console=self._console,
            transient=True,
        )
        self._progress.start()
        self._bar = self._progress.add_task(title, total=total, completed=done, facts="")

    def update(self, done: int, facts: str) -> None:
        """Show how far the stage is."""
        if self._progress is not None:
            self._progress.update(self._bar, completed=done, facts=facts)
            return
        now = time.monotonic()
        is_last = self._total is not None and done >= self._total
        if now - self._last_line < SECONDS_BETWEEN_LINES and not is_last:
            return
        self._last_line = now
        left = ""
        if self._total and done > self._first:
            seconds_each = (now - self._started) / (done - self._first)
            left = f"{_clock((self._total - done) * seconds_each)} left"
        say("  ".join(part for part in (self.title, facts, left) if part))

    def say(self, text: str) -> None:
        """Write a line that stays, above the bar."""
        if self._console is not None:
            self._console.print(visible(text), markup=False, soft_wrap=True)
        else:
            say(text)

    def say_facts(self, title: str, facts: Iterable[tuple[str, str]]) -> None:
        """Write named facts, aligned, above the bar."""
        for line in fact_lines(title, facts):
            self.say(line)

    def _close_bar(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def duration(seconds: float) -> str:
    """Return a time for people: 3.2 s, 4:05, 1:02:03."""
    return f"{seconds:.1f} s" if seconds < 60 else _clock(seconds)
