"""The only module that prints. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
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


def result_width() -> int | None:
    """Return the columns of the terminal that stdout is; None if it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def write_table(rows: list[list[str]], right: Container[int] = (), spare: Sequence[int] = ()) -> None:
    """Write rows to stdout with aligned columns; the first row is the head.

    right: numbers of the columns that hold numbers. spare: of those that are left out, the first one
    first, where a terminal is too narrow for all.
    """
    width = result_width()
    shown = list(range(len(rows[0])))
    left_out = []
    for number in [*spare, None]:
        places = {place for place, of_row in enumerate(shown) if of_row in right}
        lines = table_lines([[row[n] for n in shown] for row in rows], places)
        if number is None or width is None or max(map(len, lines)) <= width:
            break
        shown.remove(number)
        left_out.append(rows[0][number])
    for line in lines:
        write_result(line)
    if left_out:
        say(f"Left out, for want of width: {', '.join(left_out)}. --json has all.")


def write_hanging(line: str, indent: int) -> None:
    """Write a line to stdout; a terminal that is too narrow gets the rest of it further to the right.

    indent: of the rest, in characters; less where hardly any room would be left.
    """
    if (width := result_width()) is not None:
        line = textwrap.fill(
            line,
            width,
            subsequent_indent=" " * min(indent, width // 2),
            replace_whitespace=False,
            break_on_hyphens=False,
            break_long_words=False,
        )
    write_result(line)


def quiet_stdout() -> None:
    """Let nothing more be written to stdout: its reader has gone."""
    _silence(sys.stdout)


def _silence(stream: TextIO) -> None:
    # What the stream still holds goes there too: the interpreter would fail to write it as it exits.
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@dataclass
class _Stage:
    """Something that takes its time, and how it is shown."""

    title: str
    total: int | None
    first: int
    """Of `total`, what was done before it began."""
    bar: Any = None
    """What rich knows it by."""
    started: float = field(default_factory=time.monotonic)

    def time_left(self, done: int) -> str:
        """Return how long the rest takes at the speed so far, for people; "" if it is not known."""
        if not self.total or done <= self.first:
            return ""
        seconds_each = (time.monotonic() - self.started) / (done - self.first)
        return f"{_clock(max(0, self.total - done) * seconds_each)} left"


class ProgressDisplay:
    """A bar on a terminal; elsewhere a plain line now and then. Use as a context manager."""

    def __init__(self) -> None:
        self._console: Console | None = None
        self._progress: Progress | None = None
        self._stage: _Stage | None = None
        self._part: _Stage | None = None
        self._last_line = 0.0
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
        self.close()

    @property
    def title(self) -> str:
        """Of the stage that is shown; "" if none is."""
        return "" if self._stage is None else self._stage.title

    def can_draw(self, *, is_live: bool = False) -> bool:
        """Whether there is a terminal to draw bars on, at which nobody types the input.

        is_live: the input comes while it is worked on.
        """
        if self._console is None:
            return False
        # Once it is read to its end, it may be closed.
        is_open = sys.stdin is not None and not sys.stdin.closed
        return not (is_live and is_open and sys.stdin.isatty())

    def start(self, title: str, total: int | None, done: int = 0) -> None:
        """Begin a stage of `total` units (None: not known), of which `done` are done."""
        self.close()
        self._last_line = 0.0
        self._stage = self._begin(title, total, done)

    def update(self, done: int, facts: str) -> None:
        """Show how far the stage is."""
        assert self._stage is not None
        is_last = self._stage.total is not None and done >= self._stage.total
        self._show(self._stage, done, facts, at_once=is_last)

    def show_part(self, title: str, done: int, total: int | None, facts: str) -> None:
        """Show how far something is that the stage waits for, below it, until `end_part`."""
        if self._part is None or self._part.title != title:
            self.end_part()
            self._part = self._begin(title, total, 0)
        self._show(self._part, done, facts)

    def end_part(self) -> None:
        """Go on with the stage alone."""
        if self._part is not None and self._progress is not None:
            self._progress.remove_task(self._part.bar)
        self._part = None

    def write_result(self, text: str) -> None:
        """Write whole lines to stdout, not over the bar if a terminal shows both."""
        shared = self._progress if sys.stdout.isatty() else None
        if shared is not None:
            shared.stop()
        write_result(text, end="")
        if shared is not None:
            shared.start()

    def close(self) -> None:
        """Take the bar off the terminal, so that it is free for other things."""
        if self._progress is not None:
            self._progress.stop()
        self._progress = self._stage = self._part = None

    def _begin(self, title: str, total: int | None, done: int) -> _Stage:
        stage = _Stage(title, total, done)
        if self._console is None:
            return stage
        if self._progress is None:
            from rich.progress import BarColumn, Progress, TextColumn

            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[facts]}"),
                console=self._console,
                transient=True,
                redirect_stdout=False,  # Else results would come out of stderr.
            )
            self._progress.start()
        stage.bar = self._progress.add_task(title, total=total, completed=done, facts="")
        return stage

    def _show(self, stage: _Stage, done: int, facts: str, *, at_once: bool = False) -> None:
        facts = "  ".join(part for part in (facts, stage.time_left(done)) if part)
        if self._progress is not None:
            self._progress.update(stage.bar, completed=done, facts=facts)
            return
        now = time.monotonic()
        # A part has a line only if it takes long.
        last = max(self._last_line, stage.started if stage is self._part else 0.0)
        if now - last < SECONDS_BETWEEN_LINES and not at_once:
            return
        self._last_line = now
        say("  ".join(part for part in (stage.title, facts) if part))

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


@contextmanager
def working(title: str) -> Iterator[None]:
    """Show on a terminal that something goes on whose end is not known; elsewhere nothing."""
    with ProgressDisplay() as display:
        display.start(title, None)
        yield


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def duration(seconds: float) -> str:
    """Return a time for people: 3.2 s, 4:05, 1:02:03."""
    return f"{seconds:.1f} s" if seconds < 60 else _clock(seconds)
