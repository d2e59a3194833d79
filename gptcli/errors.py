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
    """Problems that the user can mend, one line each; never raised for our own bugs."""

    exit_code = ExitCode.BUG

    def __init__(self, *problems: str) -> None:
        # A file name or a key can hold a line feed.
        super().__init__("\n".join(" ".join(problem.splitlines()) for problem in problems))


class ConfigError(GptcliError):
    """Wrong options or settings; all problems of a config are reported at once."""

    exit_code = ExitCode.USAGE


class DataError(GptcliError):
    """Text that is missing, empty, undecodable or too short."""

    exit_code = ExitCode.DATA


class ModelError(GptcliError):
    """A model, tokenizer or checkpoint that is missing, incomplete or not a GPT-2."""

    exit_code = ExitCode.MODEL


class EnvironmentProblem(GptcliError):
    """A device, disk, network or folder that cannot be used."""

    exit_code = ExitCode.ENVIRONMENT


class InterruptedRun(GptcliError):
    """A signal has ended the run at a point from which it can go on. No failure, but not done."""

    def __init__(self, message: str, exit_code: int, *, is_saved: bool) -> None:
        """is_saved: the run goes on with --resume; else the same command does its work again."""
        super().__init__(message)
        self.exit_code = exit_code
        self.is_saved = is_saved


class Diverged(GptcliError):
    """Training produced a loss or a gradient that is not finite."""

    exit_code = ExitCode.DIVERGED


class BelowThreshold(GptcliError):
    """A score is worse than --fail-under allows, or a finding than --fail-on does."""

    exit_code = ExitCode.BELOW_THRESHOLD
