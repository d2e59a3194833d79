"""`gptcli chat`: talk with a model."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import typer

from gptcli import console
from gptcli.commands.options import Assignments, Device, Precision
from gptcli.errors import ConfigError, DataError, GptcliError, ModelError

if TYPE_CHECKING:
    from gptcli.pipelines.chat import Chat, Reply

PROMPT = "> "
COMMANDS = {
    "/help": "show this",
    "/reset": "forget what was said, except the system message",
    "/save FILE": 'write the conversation to a new file, as a line of JSON: {"messages": [...]}',
    "/exit": "end, as Ctrl-D does; Ctrl-C ends a reply",
}


def chat(
    model: str = typer.Option(..., "--model", "-m", help="Model folder, run folder or hub name."),
    system: str | None = typer.Option(
        None, "--system", metavar="TEXT", help="What the model is told before the conversation."
    ),
    max_new_tokens: int | None = typer.Option(
        None, "--max-new-tokens", help="Most tokens of a reply [default: 200, or half the context]."
    ),
    temperature: float | None = typer.Option(
        None, "--temperature", "-t", help="Below 1 is less random [default: 0.7]."
    ),
    top_k: int | None = typer.Option(
        None, "--top-k", help="Sample from the k likeliest tokens; 1 is not random."
    ),
    top_p: float | None = typer.Option(
        None,
        "--top-p",
        help="Sample from the fewest tokens whose probability reaches p [default: 0.9].",
    ),
    seed: int | None = typer.Option(None, "--seed", help="Makes the replies repeatable."),
    device: Device = None,
    precision: Precision = None,
    config: Path | None = typer.Option(
        None, "--config", "-c", help="YAML file; its generation and runtime sections are used."
    ),
    assignments: Assignments = [],
    as_json: bool = typer.Option(False, "--json", help="Print JSON, one object a reply."),
) -> None:
    """Talk with a model.

    On a terminal, /help lists the commands. Otherwise every line of standard input is a message, and
    the replies are printed one after the other.

    Examples:
      gptcli chat --model runs/instruction
      echo "What is a cat?" | gptcli chat --model runs/instruction
    """
    from gptcli.config.loading import load_settings

    generation = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
    }
    runtime = {"seed": seed, "device": device, "precision": precision}
    settings = load_settings(config, assignments, {"generation": generation, "runtime": runtime})

    with console.working("Loading"):
        from gptcli.pipelines.chat import Chat

        talk = Chat(
            model,
            settings.generation,
            settings.runtime,
            seed=settings.runtime.given_seed,
            system=system,
        )
    if not talk.is_tuned:
        console.say(
            f"Note: {talk.loaded.name} has no chat template: it was not tuned for conversation, and "
            "continues text rather than answers."
        )
    if talk.seed_was_drawn and not as_json:
        console.say(f"Seed: {talk.seed} (--seed {talk.seed} makes this again)")
    if sys.stdin is not None and sys.stdin.isatty():
        _talk_on_terminal(talk, as_json)
    else:
        for number, line in _read_lines():
            where = f"standard input:{number}: the message"
            reply = talk.reply(line, _hide if as_json else _show, where=where)
            _end_reply(talk, reply, as_json)


def _read_lines() -> Iterator[tuple[int, str]]:
    """Yield the lines of standard input that hold something, with their numbers, as they come."""
    # None if it was closed, as in `gptcli chat <&-`.
    for number, data in enumerate(sys.stdin.buffer if sys.stdin else (), 1):
        try:
            line = data.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(
                f"standard input:{number}: byte 0x{data[error.start]:02x} is not UTF-8. "
                "Write it as UTF-8."
            ) from None
        if line.strip():
            yield number, line


def _talk_on_terminal(talk: Chat, as_json: bool) -> None:
    with suppress(ImportError):
        importlib.import_module("readline")  # Gives input() its editing and its history.
    console.say("Type a message. /help lists the commands, Ctrl-D ends.")
    # Where the output goes elsewhere, it is for the replies alone.
    prompt = PROMPT if sys.stdout.isatty() and not as_json else ""
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            console.say()
            return
        except UnicodeDecodeError:
            console.report_error("The message is not UTF-8.")
            continue
        try:
            if line.startswith("/"):
                if not _obey(talk, line):
                    return
            elif line:
                _answer(talk, line, as_json)
        except ModelError:
            raise
        except GptcliError as error:  # The next message may be a better one.
            console.report_error(str(error))


def _obey(talk: Chat, line: str) -> bool:
    """Carry out a command; return whether the conversation goes on."""
    command, _, argument = line.partition(" ")
    match command, argument.strip():
        case "/exit", "":
            return False
        case "/help", "":
            console.show_facts("Commands", COMMANDS.items())
        case "/reset", "":
            talk.conversation.reset()
            console.say("The conversation starts anew.")
        case "/save", name if name:
            file = Path(name)
            with suppress(RuntimeError):  # ~name of a user who does not exist: a name like any other.
                file = file.expanduser()
            talk.save(file)
            console.say(f"Saved {file}.")
        case _:
            raise ConfigError(f"{line} is no command. There are: {', '.join(COMMANDS)}.")
    return True


def _answer(talk: Chat, line: str, as_json: bool) -> None:
    with _ctrl_c_noted() as is_stopped:
        reply = talk.reply(line, _hide if as_json else _show, is_stopped=is_stopped)
    _end_reply(talk, reply, as_json)
    if reply.finish_reason == "length" and not as_json:
        console.say(f"[ended after --max-new-tokens {talk.max_new_tokens}]")


def _show(text: str) -> None:
    console.write_result(text, end="")


def _hide(text: str) -> None:
    pass


def _end_reply(talk: Chat, reply: Reply, as_json: bool) -> None:
    if as_json:
        console.write_json(reply.as_dict())
        return
    console.write_result("")
    if reply.dropped_messages:
        console.say(
            f"[the context of {talk.context_length} tokens is full: the model no longer sees the "
            f"{reply.dropped_messages} oldest of the messages it saw before]"
        )


@contextmanager
def _ctrl_c_noted() -> Iterator[Callable[[], bool]]:
    """Let a Ctrl-C be a wish to stop, and a second one a KeyboardInterrupt again; in the main thread.

    Yields a function that says whether it has come.
    """
    has_come = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal has_come
        if has_come:
            raise KeyboardInterrupt
        has_come = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: has_come
    finally:
        signal.signal(signal.SIGINT, before)
