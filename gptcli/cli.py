"""The Typer app: one line a command. A GptcliError becomes its one line and its exit code."""

from __future__ import annotations

import errno
import functools
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import typer
import typer.exceptions

from gptcli import __version__, console
from gptcli.commands.answer import answer
from gptcli.commands.chat import chat
from gptcli.commands.classify import classify
from gptcli.commands.data_inspect import inspect
from gptcli.commands.doctor import doctor
from gptcli.commands.eval import evaluate
from gptcli.commands.finetune import finetune
from gptcli.commands.generate import generate
from gptcli.commands.pretrain import pretrain
from gptcli.errors import ExitCode, GptcliError, InterruptedRun

# Plain help: drawing it with rich would take twice as long as all the rest of `gptcli --help`.
app = typer.Typer(
    name="gptcli",
    help="Turn raw text into a GPT-2 of your own: pretrain it, fine-tune it, use it.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_WHAT_IS_SMALLER = (
    "Try a smaller model, or in training a smaller training.micro_batch_size or model.context_length."
)


def main() -> None:
    """Run the command line and exit."""
    try:
        code = app(standalone_mode=False, prog_name="gptcli")
    except typer.exceptions.TyperException as error:  # An unknown option or command, a wrong type.
        _report_usage(error)
        code = ExitCode.USAGE
    except SystemExit:
        # Typer's answer when the reader of its help, such as `| head`, has read enough.
        console.quiet_stdout()
        code = ExitCode.DONE
    except Exception as error:
        code = _exit_code(error)
    sys.exit(code or ExitCode.DONE)


def _report_usage(error: typer.exceptions.TyperException) -> None:
    message = error.format_message()
    # Typer keeps this class, which a command group without arguments raises, to itself.
    if type(error).__name__ == "NoArgsIsHelpError":
        console.say(message)
        return
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "gptcli"
    end = "" if message.endswith((".", "?", ")")) else "."
    console.report_error(f"{message}{end} See `{command} --help`.")


def _guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with every exception turned into an exit code."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (KeyboardInterrupt, Exception) as error:
            raise typer.Exit(_exit_code(error)) from error

    return run


def _exit_code(error: BaseException) -> int:
    """Say what happened, if anything is to be said, and return the exit code for it."""
    if os.environ.get("GPTCLI_DEBUG") == "1" and not isinstance(error, typer.Exit):
        console.say("".join(traceback.format_exception(error)).rstrip())
    match error:
        case typer.Exit():
            return error.exit_code
        case InterruptedRun():
            console.say(str(error))
            return error.exit_code
        case GptcliError():
            console.report_error(str(error))
            return error.exit_code
        case KeyboardInterrupt():
            console.say("Interrupted.")
            return ExitCode.CTRL_C
        case BrokenPipeError():
            # `gptcli ... | head` has read enough.
            console.quiet_stdout()
            return ExitCode.DONE
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            where = f" ({error.filename})" if error.filename else ""
            console.quiet_stdout()  # What it still holds, for that disk perhaps, cannot be written.
            console.report_error(f"The disk is full{where}. Free some space and run this again.")
            return ExitCode.ENVIRONMENT
        case MemoryError():
            console.report_error(f"Out of memory. {_WHAT_IS_SMALLER}")
            return ExitCode.ENVIRONMENT
        case OSError(filename=str(), strerror=str()):
            # A read-only folder, a file where a folder should be, ...
            console.report_error(f"{error.filename} cannot be used: {error.strerror}.")
            return ExitCode.ENVIRONMENT
    # Matched by name, so that saying this does not import torch; on a CPU it has no class of its own.
    if type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error):
        console.report_error(f"The device is out of memory. {_WHAT_IS_SMALLER}")
        return ExitCode.ENVIRONMENT
    message = " ".join(str(error).split())
    console.report_error(
        f"This is a bug in gptcli: {type(error).__name__}: {message} "
        "(GPTCLI_DEBUG=1 shows where; please report it)"
    )
    return ExitCode.BUG


def _show_version(value: bool) -> None:
    if value:
        console.write_result(f"gptcli {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    pass


for _command in (pretrain, finetune, generate, chat, classify, answer, doctor):
    app.command()(_guarded(_command))

app.command("eval")(_guarded(evaluate))

_data = typer.Typer(help="Look at data.", no_args_is_help=True, rich_markup_mode=None)
_data.command()(_guarded(inspect))
app.add_typer(_data, name="data")
