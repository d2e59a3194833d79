"""What can go wrong, and the exit code that each kind ends with.

An error's message is the one line that a person sees: what, where, the value, what to do.
"""


class ExitCode:
    """Exit codes of every command; scripts and schedulers rely on them."""

    DONE = 0
    BUG = 1
    USAGE = 2
    DATA = 3
    MODEL = 4
    ENVIRONMENT = 5
    DIVERGED = 6
    BELOW_THRESHOLD = 7
    INTERRUPTED = 75
    CTRL_C = 130


class GptcliError(Exception):
    """A problem that the user can mend; never raised for our own bugs."""

    exit_code = ExitCode.BUG


class ConfigError(GptcliError):
    """A wrong option or setting. Holds one line a problem, so that all are reported at once."""

    exit_code = ExitCode.USAGE

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))


class DataError(GptcliError):
    """Text that is missing, empty, undecodable or too short."""

    exit_code = ExitCode.DATA


class ModelError(GptcliError):
    """A model, tokenizer or checkpoint that is missing, incomplete or not a GPT-2."""

    exit_code = ExitCode.MODEL


class EnvironmentProblem(GptcliError):
    """A device, disk, network or folder that cannot be used."""

    exit_code = ExitCode.ENVIRONMENT


class Diverged(GptcliError):
    """Training produced a loss or a gradient that is not finite."""

    exit_code = ExitCode.DIVERGED
