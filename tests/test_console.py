"""What is written where: control characters, bars and colour on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import os
import pty
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from gptcli import console

COLOUR = re.compile(r"\x1b\[[0-9;]*[349][0-9][0-9;]*m")


def shown_on_a_terminal(monkeypatch: pytest.MonkeyPatch, stream: str, write: Callable[[], None]) -> str:
    """Return what `write` sends to a terminal that is sys.stdout or sys.stderr."""
    terminal, side = pty.openpty()
    blocks: list[bytes] = []

    def read() -> None:
        try:
            while block := os.read(terminal, 65536):
                blocks.append(block)
        except OSError:  # What Linux says once the other side is closed.
            pass

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(side, "w", encoding="utf-8") as file, monkeypatch.context() as patch:
        patch.setattr(sys, stream, file)
        write()
    reader.join()
    os.close(terminal)
    return b"".join(blocks).decode()


def show_progress() -> None:
    with console.ProgressDisplay() as display:
        display.start("Training", 2)
        display.update(1, "loss 3.1")
        display.say("Step 1: [bold]fine[/bold] \x1b[31m.")
        display.update(2, "loss 2.9")


def be_a_terminal_of_colours(monkeypatch: pytest.MonkeyPatch, no_color: bool) -> None:
    """Let the environment be that of one, where NO_COLOR is set or not."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")


@pytest.mark.parametrize("no_color", [False, True])
def test_a_terminal_shows_a_bar_in_colour_unless_no_color_is_set(
    monkeypatch: pytest.MonkeyPatch, no_color: bool
) -> None:
    be_a_terminal_of_colours(monkeypatch, no_color)
    shown = shown_on_a_terminal(monkeypatch, "stderr", show_progress)
    assert "━" in shown
    assert "loss 2.9" in shown
    assert bool(COLOUR.search(shown)) == (not no_color)
    # Neither our markup nor somebody else's escape sequence is acted on.
    assert "Step 1: [bold]fine[/bold] \\x1b[31m." in shown


def test_elsewhere_progress_is_plain_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    show_progress()
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(
        r"Training  loss 3\.1  0:00 left\n"
        r"Step 1: \[bold\]fine\[/bold\] \\x1b\[31m\.\n"
        r"Training  loss 2\.9  0:00 left\n",
        err,
    )


def show_a_part() -> None:
    with console.ProgressDisplay() as display:
        display.start("Training", 4)
        display.update(1, "loss 3.1")
        display.show_part("Evaluating", 0, 2, "0 of 2")
        display.show_part("Evaluating", 1, 2, "1 of 2")
        display.end_part()
        display.update(4, "loss 2.9")


def test_a_part_has_a_bar_of_its_own_below_that_of_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    be_a_terminal_of_colours(monkeypatch, no_color=True)
    shown = shown_on_a_terminal(monkeypatch, "stderr", show_a_part)
    assert shown.index("Training") < shown.index("Evaluating")
    # The last picture is of the stage alone.
    assert "loss 2.9" in shown[shown.rindex("Evaluating") :]


def test_a_short_part_has_no_line_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    show_a_part()
    assert "Evaluating" not in capsys.readouterr().err
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
    show_a_part()
    assert "Evaluating  1 of 2  0:00 left\n" in capsys.readouterr().err


def test_work_without_a_known_end_is_shown_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        with console.working("Loading"):
            pass

    be_a_terminal_of_colours(monkeypatch, no_color=True)
    assert "Loading" in shown_on_a_terminal(monkeypatch, "stderr", work)
    work()
    assert capsys.readouterr() == ("", "")


def test_results_stay_on_stdout_while_a_bar_is_drawn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        with console.working("Generating"):
            console.write_result("once upon a time")

    assert "once upon" not in shown_on_a_terminal(monkeypatch, "stderr", work)
    assert capsys.readouterr().out == "once upon a time\n"


def test_results_of_a_terminal_with_a_bar_stand_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> None:
        monkeypatch.setattr(sys, "stdout", sys.stderr)
        with console.ProgressDisplay() as display:
            display.start("Classifying", 3)
            for number in (1, 2):
                display.write_result(f"text {number}\n")
                display.update(number, f"{number} rows")

    be_a_terminal_of_colours(monkeypatch, no_color=True)
    shown = shown_on_a_terminal(monkeypatch, "stderr", work)
    # Each result is on a line from which the bar has been erased; it is drawn again below.
    assert [line.rpartition("\x1b[2K")[2] for line in shown.split("\r\n") if "text" in line] == [
        "text 1",
        "text 2",
    ]
    assert shown.rindex("2 rows") > shown.index("text 2")


def test_results_are_made_safe_for_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "a\x1b]0;title\x07b\tc\nd"
    console.write_result(text)
    assert capsys.readouterr().out == text + "\n"
    shown = shown_on_a_terminal(monkeypatch, "stdout", lambda: console.write_result(text))
    assert shown.replace("\r\n", "\n") == "a\\x1b]0;title\\x07b\tc\nd\n"


def test_a_long_line_is_wrapped_below_itself_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "24")
    line = "  ok  length  all of them fit into it."

    def write() -> None:
        console.write_hanging(line, 14)

    write()
    assert capsys.readouterr().out == f"{line}\n"
    shown = shown_on_a_terminal(monkeypatch, "stdout", write)
    # Of 14, half of the width is left.
    assert shown.splitlines() == ["  ok  length  all of", " " * 12 + "them fit", " " * 12 + "into it."]


def test_a_result_that_the_encoding_lacks_is_written_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    console.write_result("é \ud800")
    assert written.getvalue() == b"\\xe9 \\ud800\n"


def test_json_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    console.write_json({"text": "a\nb\u2028é", "path": str(Path("x"))})
    assert capsys.readouterr().out == '{"text": "a\\nb\u2028é", "path": "x"}\n'


def test_json_never_holds_what_is_no_json() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        console.write_json({"loss": float("nan")})


def test_an_error_of_several_problems_is_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    console.report_error("first\nsecond")
    assert capsys.readouterr() == ("", "Error: first\nError: second\n")


def test_facts_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    console.show_facts("Done", [("a", "1"), ("long", "2")])
    assert capsys.readouterr().err == "Done\n  a     1\n  long  2\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0.0 s"), (59.9, "59.9 s"), (60, "1:00"), (3723, "1:02:03")]
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert console.duration(seconds) == text


@pytest.mark.parametrize("no_color", [False, True])
def test_what_is_learnt_is_in_colour_or_where_there_is_none_in_brackets(
    monkeypatch: pytest.MonkeyPatch, no_color: bool
) -> None:
    be_a_terminal_of_colours(monkeypatch, no_color)
    parts = [("Who?\n", False), ("It is\nme \x1b.", True)]
    shown = shown_on_a_terminal(
        monkeypatch, "stdout", lambda: console.write_learnt(parts, indent="  ")
    ).replace("\r\n", "\n")
    if no_color:
        assert shown == "  Who?\n  [[It is\n  me \\x1b.]]\n"
        return
    assert "[[" not in shown
    dim, learnt = re.findall(r"\x1b\[([0-9;]+)m[^\x1b]*(?:Who|It is)", shown)
    assert (dim, learnt) == ("2", "1;32")
    assert re.sub(r"\x1b\[[0-9;]*m", "", shown) == "  Who?\n  It is\n  me \\x1b.\n"


@pytest.mark.parametrize("no_color", [False, True])
def test_shaded_text_has_colours_unless_no_color_is_set_and_no_control_characters(
    monkeypatch: pytest.MonkeyPatch, no_color: bool
) -> None:
    be_a_terminal_of_colours(monkeypatch, no_color)
    can_shade = []

    def show() -> None:
        can_shade.append(console.can_shade())
        console.write_shaded([("[bold]a", 1.0), ("\x1b[2J", 0.0), ("c", None)], marked=1)

    shown = shown_on_a_terminal(monkeypatch, "stdout", show)
    assert can_shade == [not no_color]
    assert bool(COLOUR.search(shown)) is not no_color
    assert re.sub(r"\x1b\[[0-9;]*m", "", shown) == "[bold]a\\x1b[2Jc\r\n"


def test_what_is_no_terminal_is_not_shaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert not console.can_shade()


def test_columns_of_a_table_are_aligned_and_numbers_stand_to_the_right() -> None:
    rows = [["run", "steps", "best"], ["a", "1,000", "x"], ["longer", "5", ""]]
    assert console.table_lines(rows, right={1}) == [
        "run     steps  best",
        "a       1,000  x",
        "longer      5",
    ]
    assert console.table_lines([]) == []
