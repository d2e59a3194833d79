"""The Typer app: one line a command. A GptcliError becomes its one line and its exit code."""

from __future__ import annotations

import atexit
import errno
import functools
import gc
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from inspect import cleandoc
from typing import Any

import typer
import typer.core
import typer.exceptions

from gptcli import __version__, console
from gptcli.commands.answer import answer
from gptcli.commands.attention import attention
from gptcli.commands.chat import chat
from gptcli.commands.classify import classify
from gptcli.commands.config_init import init
from gptcli.commands.config_schema import schema
from gptcli.commands.config_show import show
from gptcli.commands.config_validate import validate
from gptcli.commands.data_inspect import inspect
from gptcli.commands.doctor import doctor
from gptcli.commands.eval import evaluate
from gptcli.commands.export import export
from gptcli.commands.finetune import finetune
from gptcli.commands.generate import generate
from gptcli.commands.import_checkpoint import import_checkpoint
from gptcli.commands.plan import plan
from gptcli.commands.pretrain import pretrain
from gptcli.commands.runs_compare import compare_runs
from gptcli.commands.runs_list import list_runs
from gptcli.commands.runs_report import report_run
from gptcli.commands.runs_rerun import rerun
from gptcli.commands.runs_show import show_run
from gptcli.errors import ExitCode, GptcliError, InterruptedRun

Command = Callable[..., None]

# To add a command: a line here. Its docstring is its help; what follows "Examples:" there stands last.
GROUPS: dict[str, dict[str, Command | tuple[str, dict[str, Command]]]] = {
    "Train": {
        "pretrain": pretrain,
        "finetune": finetune,
        "plan": plan,
        "config": (
            "Write, show and check configs.",
            {"init": init, "show": show, "validate": validate, "schema": schema},
        ),
    },
    "Use": {
        "generate": generate,
        "chat": chat,
        "classify": classify,
        "answer": answer,
        "export": export,
        "import": import_checkpoint,
    },
    "Measure": {"eval": evaluate},
    "Look": {
        "data": ("Look at data.", {"inspect": inspect}),
        "attention": attention,
        "runs": (
            "List, show and compare runs, write their reports, run them again.",
            {
                "list": list_runs,
                "show": show_run,
                "compare": compare_runs,
                "report": report_run,
                "rerun": rerun,
            },
        ),
        "doctor": doctor,
    },
}


class _CommandHelp(typer.core.TyperCommand):
    """Shows the examples last, as they are."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        if self.epilog:
            with formatter.section("Examples"):
                formatter.write_text(f"\b\n{self.epilog}")  # \b: no line is wrapped.


class _GroupHelp(typer.core.TyperGroup):
    """Lists commands under the names of their groups, each with the whole first sentence of its help."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = max(map(len, self.commands))
        groups: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            group = getattr(command, "rich_help_panel", None) or "Commands"
            row = (f"{name:<{width}}", command.get_short_help_str(limit=1000))
            groups.setdefault(group, []).append(row)
        for group, rows in groups.items():
            with formatter.section(group):
                formatter.write_dl(rows)


# Plain help: drawing it with rich would take twice as long as all the rest of `gptcli --help`.
app = typer.Typer(
    name="gptcli",
    cls=_GroupHelp,
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
    # torch and transformers make some 400,000 objects that stay. To look through them for garbage takes
    # a third of a second while they are imported, and a whole second when Python ends.
    gc.set_threshold(10_000)
    atexit.register(gc.freeze)
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
    message = _usage_message(error)
    # Typer keeps this class, which a command group without arguments raises, to itself.
    if type(error).__name__ == "NoArgsIsHelpError":
        console.say(message)
        return
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "gptcli"
    end = "" if message.endswith((".", "?")) else "."
    console.report_error(f"{message}{end} See `{command} --help`.")


def _usage_message(error: typer.exceptions.TyperException) -> str:
    """Return what is wrong; of an option's value, in the words in which settings are spoken of."""
    option, problem = getattr(error, "param", None), error.__cause__
    if option is None or problem is None:
        return error.format_message()
    from pydantic import ValidationError

    from gptcli.config.loading import wrong_value

    if not isinstance(problem, ValidationError):
        return error.format_message()
    return f"{max(option.opts, key=len)} is {wrong_value(problem.errors()[0])}"


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


def _add(to: typer.Typer, name: str, command: Command, group: str | None = None) -> None:
    text, _, examples = cleandoc(command.__doc__ or "").partition("\n\nExamples:\n")
    to.command(name, cls=_CommandHelp, help=text, epilog=cleandoc(examples), rich_help_panel=group)(
        _guarded(command)
    )


def command_paths() -> Iterator[tuple[str, ...]]:
    """Yield every command as the words that follow `gptcli`."""
    for commands in GROUPS.values():
        for name, command in commands.items():
            if isinstance(command, tuple):
                yield from ((name, inner) for inner in command[1])
            else:
                yield (name,)


for _group, _commands in GROUPS.items():
    for _name, _command in _commands.items():
        if isinstance(_command, tuple):
            _text, _inner = _command
            _family = typer.Typer(
                help=_text, cls=_GroupHelp, no_args_is_help=True, rich_markup_mode=None
            )
            for _inner_name, _inner_command in _inner.items():
                _add(_family, _inner_name, _inner_command)
            app.add_typer(_family, name=_name, rich_help_panel=_group)
        else:
            _add(app, _name, _command, _group)
