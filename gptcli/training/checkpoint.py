"""Checkpoints: published whole or not at all, verified before they are used.

    checkpoints/step-00000500/
        model.safetensors       weights, float32
        optimizer.safetensors   the optimizers' state
        state.json              progress and fingerprints
        manifest.json           size and sha256 of each file above; written last

A checkpoint is made in a staging folder and renamed. One whose manifest is missing or does not match is
an interrupted save or a damaged disk, and is passed over. No pickle is read or written.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import disk_usage
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from gptcli.errors import EnvironmentProblem, ModelError
from gptcli.files import flush_to_disk, partial_path, remove_tree, sha256_of_file, writing_to
from gptcli.training.loop import Progress
from gptcli.training.optimizers import Optimizers

MODEL_FILE, OPTIMIZER_FILE = "model.safetensors", "optimizer.safetensors"
STATE_FILE, MANIFEST_FILE = "state.json", "manifest.json"
CONTENT_FILES = (MODEL_FILE, OPTIMIZER_FILE, STATE_FILE)
# Raised when the files above change in meaning; older checkpoints are then said to be of another format.
FORMAT = 1
_NAME = re.compile(r"step-(\d{8,})")
_STAGING_NAME = re.compile(r"\.step-\d{8,}\.partial")


@dataclass(frozen=True)
class Origin:
    """What a run's steps follow from; a checkpoint goes on only with the same."""

    settings: dict[str, Any]
    """The settings as resolved, as JSON."""
    data: str
    """Fingerprint of the text of both splits."""
    tokenizer: str
    """Fingerprint of the tokenizer."""
    versions: dict[str, str]
    """Of gptcli, Python and the libraries: other ones may round differently."""


@dataclass(frozen=True)
class SavedState:
    """state.json."""

    progress: Progress
    origin: Origin


def save_checkpoint(
    folder: Path, model: nn.Module, optimizers: Optimizers, progress: Progress, origin: Origin
) -> Path:
    """Write a checkpoint of `progress.step` into `folder` and return its path once it is on disk.

    Raises EnvironmentProblem if the disk does not take it; nothing of it is left then.
    """
    final = folder / f"step-{progress.step:08d}"
    staging = partial_path(final)
    with writing_to(final):
        folder.mkdir(parents=True, exist_ok=True)
        remove_tree(staging)
        staging.mkdir()
        try:
            _write_files(staging, model, optimizers, progress, origin)
            remove_tree(final)  # A damaged one, which resuming has passed over.
            staging.rename(final)
            flush_to_disk(folder)
        finally:
            remove_tree(staging)
    return final


def _write_files(
    staging: Path, model: nn.Module, optimizers: Optimizers, progress: Progress, origin: Origin
) -> None:
    """Write the files of a checkpoint, and wait until they are on disk."""
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    state = {"progress": asdict(progress), "origin": asdict(origin)}
    # Writing, flushing and hashing keep different parts of the machine busy: while one file is flushed
    # and hashed, the next is written. The largest goes first.
    with ThreadPoolExecutor() as pool:
        settling = {}

        def settle(file: str) -> None:
            settling[file] = (
                pool.submit(flush_to_disk, staging / file),
                pool.submit(_describe_file, staging / file),
            )

        (staging / STATE_FILE).write_text(json.dumps(state, indent=2))
        settle(STATE_FILE)
        mode = (staging / STATE_FILE).stat().st_mode
        tensors = {OPTIMIZER_FILE: optimizers.state_tensors(), MODEL_FILE: weights}
        for file in tensors:
            _write_tensors(tensors[file], staging / file)
            (staging / file).chmod(mode)  # safetensors makes files that only their owner can read.
            settle(file)
        for flush, _ in settling.values():
            flush.result()
        manifest = _manifest({file: settling[file][1].result() for file in CONTENT_FILES}, origin)
    # Written last: a folder without it is an interrupted save.
    (staging / MANIFEST_FILE).write_text(manifest)
    flush_to_disk(staging / MANIFEST_FILE)
    flush_to_disk(staging)


def _manifest(files: dict[str, dict[str, Any]], origin: Origin) -> str:
    settings = json.dumps(origin.settings, sort_keys=True).encode()
    facts = {
        "format": FORMAT,
        "files": files,
        "fingerprints": {
            "settings": hashlib.sha256(settings).hexdigest(),
            "data": origin.data,
            "tokenizer": origin.tokenizer,
        },
        "versions": origin.versions,
    }
    return json.dumps(facts, indent=2)


def checkpoint_bytes(model: nn.Module, optimizers: Optimizers) -> int:
    """Return about what one checkpoint takes on disk."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return weights + optimizers.state_bytes() + 100_000


def check_disk_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Raise EnvironmentProblem if the disk of `folder` has less than `needed_bytes` free."""
    free = disk_usage(folder).free
    if free < needed_bytes:
        raise EnvironmentProblem(
            f"{folder}: {what} need about {needed_bytes / 1e6:,.0f} MB, but the disk has "
            f"{free / 1e6:,.0f} MB free. Make room, or choose an --output-dir on another disk."
        )


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoint folders in `folder`, newest first; links are not followed."""
    if not folder.is_dir():
        return []
    found = [
        (int(match[1]), path)
        for path in folder.iterdir()
        if (match := _NAME.fullmatch(path.name)) and path.is_dir() and not path.is_symlink()
    ]
    return [path for _, path in sorted(found, reverse=True)]


def find_problem(
    checkpoint: Path, then: Callable[[int, int], None] = lambda done, total: None
) -> str | None:
    """Return what is wrong with a checkpoint, or None if every byte is as it was written.

    then: called with the bytes that have been looked at, and all there are.
    """
    try:
        manifest = (checkpoint / MANIFEST_FILE).read_text()
        facts = json.loads(manifest)
        files = {file: facts["files"][file] for file in CONTENT_FILES}
        written_as = facts["format"]
    except FileNotFoundError:
        return f"{MANIFEST_FILE} is missing"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return f"{MANIFEST_FILE} is damaged"
    if written_as != FORMAT:
        return f"it has format {written_as!r:.20}, this version of gptcli reads {FORMAT}"
    done = 0

    def looked_at(count: int) -> None:
        nonlocal done
        done += count
        then(done, total)

    total = sum((checkpoint / file).stat().st_size for file in files if (checkpoint / file).is_file())
    for file, expected in files.items():
        path = checkpoint / file
        if path.is_symlink() or not path.is_file():
            return f"{file} is missing"
        if _describe_file(path, looked_at) != expected:
            return f"{file} is not what was saved"
    try:
        origin = read_state(checkpoint).origin
    except ValueError:
        return f"{STATE_FILE} is not what this version of gptcli writes"
    # The manifest is the one file that no hash covers; all it says can be made again.
    return None if manifest == _manifest(files, origin) else f"{MANIFEST_FILE} is damaged"


def newest_whole(
    folder: Path, then: Callable[[int, int], None] = lambda done, total: None
) -> tuple[Path | None, list[str]]:
    """Return the newest whole checkpoint (None if there are none), and a warning a damaged newer one.

    then: as of `find_problem`. Raises ModelError if there are checkpoints and none is whole.
    """
    warnings: list[str] = []
    checkpoints = list_checkpoints(folder)
    for checkpoint in checkpoints:
        problem = find_problem(checkpoint, then)
        if problem is None:
            return checkpoint, warnings
        warnings.append(f"{checkpoint} is passed over: {problem}.")
    if checkpoints:
        raise ModelError(
            f"{folder}: no checkpoint is whole ({'; '.join(warnings)}) "
            "Start again with --overwrite, or into another --output-dir."
        )
    return None, warnings


def load_checkpoint(checkpoint: Path, model: nn.Module, optimizers: Optimizers) -> SavedState:
    """Restore weights and optimizers from a whole checkpoint and return the rest of its state.

    Raises ModelError if they are not those of this model and these optimizers.
    """
    try:
        weights = load_file(checkpoint / MODEL_FILE)
        parameters = dict(model.named_parameters())
        if {name: p.shape for name, p in parameters.items()} != {
            name: weight.shape for name, weight in weights.items()
        }:
            raise ValueError("its weights do not fit the model that the config describes")
        with torch.no_grad():
            for name, weight in weights.items():
                parameters[name].copy_(weight)
        optimizers.load_state_tensors(load_file(checkpoint / OPTIMIZER_FILE))
    except (SafetensorError, ValueError) as error:
        raise ModelError(f"{checkpoint} cannot be resumed: {error}.") from error
    return read_state(checkpoint)


def read_state(checkpoint: Path) -> SavedState:
    """Return the state of a checkpoint without its tensors. Raises ValueError if it is not one."""
    state = TypeAdapter(SavedState).validate_json((checkpoint / STATE_FILE).read_bytes(), strict=True)
    progress = state.progress
    if progress.step != step_of(checkpoint) or progress.micro_batch_size < 1:
        raise ValueError(f"{STATE_FILE} is not of this step")
    if progress.best is not None and not {"step", "loss"} <= progress.best.keys():
        raise ValueError(f"{STATE_FILE} names a best evaluation without its loss")
    return state


def rotate_checkpoints(folder: Path, newest_step: int, keep: int, best_step: int | None) -> None:
    """Remove all but the `keep` newest up to `newest_step` and that of `best_step`.

    newest_step: that of the one just saved, or resumed. Those of later steps are damaged: resuming has
    passed them over.
    What interrupted saves have left goes too. Nothing with another name is touched.
    """
    checkpoints = list_checkpoints(folder)
    kept = [checkpoint for checkpoint in checkpoints if step_of(checkpoint) <= newest_step][:keep]
    for checkpoint in checkpoints:
        if checkpoint not in kept and step_of(checkpoint) != best_step:
            _remove(checkpoint)
    remove_partial(folder)


def remove_all_checkpoints(folder: Path) -> None:
    """Remove every checkpoint, and nothing with another name."""
    for checkpoint in list_checkpoints(folder):
        _remove(checkpoint)
    remove_partial(folder)


def step_of(checkpoint: Path) -> int:
    """Return the step that a checkpoint's name says."""
    return int(checkpoint.name.removeprefix("step-"))


def remove_partial(folder: Path) -> None:
    """Remove what interrupted saves and removals have left."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if _STAGING_NAME.fullmatch(path.name):
            remove_tree(path)


def _remove(checkpoint: Path) -> None:
    staging = partial_path(checkpoint)
    remove_tree(staging)
    # Under this name nobody takes a half removed one for a damaged one.
    remove_tree(checkpoint.rename(staging))


def _write_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(on_cpu, path)


def _describe_file(path: Path, then: Callable[[int], None] = lambda count: None) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of_file(path, then)}
