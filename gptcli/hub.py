"""The Hugging Face hub: whether it answers, and what a failed load from it means for the user."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

from gptcli.errors import EnvironmentProblem, GptcliError, ModelError

# Matched by name: some come from huggingface_hub, some from its HTTP client, which has changed before.
_NETWORK_ERRORS = {
    "ConnectError",
    "ConnectionError",
    "ConnectTimeout",
    "LocalEntryNotFoundError",
    "OfflineModeIsEnabled",
    "ProxyError",
    "ReadTimeout",
    "TimeoutError",
}


def quiet_libraries() -> None:
    """Keep bars and advice of Hugging Face's libraries off stderr, which is for what we say.

    Only downloads, which can take minutes, keep their bars, and only on a terminal.
    """
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    shows_downloads = sys.stderr.isatty() and not are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # Those of huggingface_hub with it.
    if shows_downloads:
        enable_progress_bars()
    # Read when `datasets` is imported, which takes a second and is for hub data only.
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


@functools.cache
def use_cache_if_unreachable() -> None:
    """Work from the hub's cache alone if the hub does not answer; call this before asking it for a name.

    Its client would try again for 20 seconds and more, and say so line by line.
    """
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception:  # The HTTP client, which has changed before, raises errors of its own.
        constants.HF_HUB_OFFLINE = True


def hub_problem(what: str, name: str, error: Exception) -> GptcliError:
    """Return the error to raise when `what` (a "model", "tokenizer") could not be loaded from `name`."""
    if Path(name).expanduser().exists():
        return ModelError(f"{name}: its {what} cannot be loaded: {first_line(error)}")
    if is_network_failure(error):
        return EnvironmentProblem(
            f"{name} is no folder here and not in the hub cache, and the hub cannot be reached for its "
            f"{what}. Check the path or the network."
        )
    if _comes_from(error, {"RepositoryNotFoundError"}):
        return ModelError(
            f"{name} is no folder here, and the hub has no {what} of that name that is open to you. "
            "Check it; for a private or gated one, log in with `hf auth login`."
        )
    return ModelError(f"{name} is no folder here, and the hub has no {what} for it: {first_line(error)}")


def is_network_failure(error: BaseException) -> bool:
    """Whether `error`, or an error that it came from, says that the hub was not reached."""
    return _comes_from(error, _NETWORK_ERRORS)


def _comes_from(error: BaseException, names: set[str]) -> bool:
    seen: BaseException | None = error
    while seen is not None:
        if names & {kind.__name__ for kind in type(seen).__mro__}:
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none.

    A line that ends with a colon says nothing without the next.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    end = 2 if lines and lines[0].endswith(":") else 1
    return " ".join(lines[:end] or [type(error).__name__])[:300]
