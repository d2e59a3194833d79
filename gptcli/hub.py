"""What a failed load from the Hugging Face hub, its cache or a folder means for the user."""

from __future__ import annotations

from pathlib import Path

from gptcli.errors import EnvironmentProblem, GptcliError, ModelError

# Matched by name: some come from huggingface_hub, some from its HTTP client, which has changed before.
_NETWORK_ERRORS = {
    "ConnectError",
    "ConnectionError",
    "ConnectTimeout",
    "LocalEntryNotFoundError",
    "OfflineModeIsEnabled",
    "ReadTimeout",
    "TimeoutError",
}


def quiet_libraries() -> None:
    """Keep bars and advice of Hugging Face's libraries off stderr, which is for what we say."""
    import datasets
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()


def hub_problem(what: str, name: str, error: Exception) -> GptcliError:
    """Return the error to raise when `what` (a "model", "tokenizer") could not be loaded from `name`."""
    if Path(name).expanduser().exists():
        return ModelError(f"{name}: its {what} cannot be loaded: {first_line(error)}")
    if is_network_failure(error):
        return EnvironmentProblem(
            f"{name} is no folder here and not in the hub cache, and the hub cannot be reached for its "
            f"{what}. Check the path or the network."
        )
    return ModelError(f"{name} is no folder here, and the hub has no {what} for it: {first_line(error)}")


def is_network_failure(error: BaseException) -> bool:
    """Whether `error`, or an error that it came from, says that the hub was not reached."""
    seen: BaseException | None = error
    while seen is not None:
        kinds = {kind.__name__ for kind in type(seen).__mro__}
        if kinds & _NETWORK_ERRORS:
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
