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
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from gptcli.errors import EnvironmentProblem, ModelError
from gptcli.files import flush_to_disk
from gptcli.training.loop import Progress
from gptcli.training.optimizers import Optimizers

MODEL_FILE, OPTIMIZER_FILE = "model.safetensors", "optimizer.safetensors"
STATE_FILE, MANIFEST_FILE = "state.json", "manifest.json"
CONTENT_FILES = (MODEL_FILE, OPTIMIZER_FILE, STATE_FILE)
_NAME = re.compile(r"step-(\d{8,})")
_STAGING_NAME = re.compile(r"\.step-\d{8,}\.partial")


@dataclass(frozen=True)
class Fingerprints:
    """What a run's data and tokenizer must still be when it is resumed."""

    data: str
    tokenizer: str


@dataclass(frozen=True)
class SavedState:
    """state.json."""

    progress: Progress
    fingerprints: Fingerprints


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizers: Optimizers,
    progress: Progress,
    fingerprints: Fingerprints,
) -> Path:
    """Write a checkpoint of `progress.step` into `folder` and return its path once it is on disk.

    Raises EnvironmentProblem if the disk does not take it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = f"step-{progress.step:08d}"
    staging = folder / f".{name}.partial"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        weights = {name: weight.detach() for name, weight in model.named_parameters()}
        _write_tensors(weights, staging / MODEL_FILE)
        _write_tensors(optimizers.state_tensors(), staging / OPTIMIZER_FILE)
        state = {"progress": asdict(progress), "fingerprints": asdict(fingerprints)}
        (staging / STATE_FILE).write_text(json.dumps(state, indent=2))
        manifest = {file: _describe_file(staging / file) for file in CONTENT_FILES}
        # Written last: a folder without it is an interrupted save.
        (staging / MANIFEST_FILE).write_text(json.dumps({"files": manifest}, indent=2))
        for file in (*CONTENT_FILES, MANIFEST_FILE):
            flush_to_disk(staging / file)
        flush_to_disk(staging)
        final = folder / name
        if final.is_dir():  # Left by a run that was resumed from an older checkpoint.
            shutil.rmtree(final)
        staging.rename(final)
        flush_to_disk(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return final


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


def find_problem(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None if every byte is as it was written."""
    try:
        manifest = json.loads((checkpoint / MANIFEST_FILE).read_text())["files"]
    except FileNotFoundError:
        return f"{MANIFEST_FILE} is missing"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST_FILE} is damaged"
    for file in CONTENT_FILES:
        path = checkpoint / file
        if path.is_symlink() or not path.is_file():
            return f"{file} is missing"
        if not isinstance(manifest, dict) or file not in manifest:
            return f"{MANIFEST_FILE} is damaged"
        if _describe_file(path) != manifest[file]:
            return f"{file} is not what was saved"
    return None


def newest_whole(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest whole checkpoint (None if there are none), and a warning a damaged newer one.

    Raises ModelError if there are checkpoints and none is whole.
    """
    warnings: list[str] = []
    checkpoints = list_checkpoints(folder)
    for checkpoint in checkpoints:
        problem = find_problem(checkpoint)
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
    """Restore weights and optimizers from a whole checkpoint and return the rest of its state."""
    weights = load_file(checkpoint / MODEL_FILE)
    parameters = dict(model.named_parameters())
    shapes = {name: tuple(weight.shape) for name, weight in parameters.items()}
    if shapes != {name: tuple(weight.shape) for name, weight in weights.items()}:
        raise ModelError(f"{checkpoint}: its weights do not fit the model that the config describes.")
    with torch.no_grad():
        for name, weight in weights.items():
            parameters[name].copy_(weight)
    optimizers.load_state_tensors(load_file(checkpoint / OPTIMIZER_FILE))
    return read_state(checkpoint)


def read_state(checkpoint: Path) -> SavedState:
    """Return the state of a whole checkpoint without its tensors."""
    state = json.loads((checkpoint / STATE_FILE).read_text())
    return SavedState(Progress(**state["progress"]), Fingerprints(**state["fingerprints"]))


def remove_old_checkpoints(folder: Path, keep: int, newest: Path | None = None) -> None:
    """Remove all but the `keep` newest up to `newest`, and what interrupted saves have left.

    newest: the one just saved. Those of later steps are damaged: resuming has passed them over.
    """
    checkpoints = list_checkpoints(folder)
    begin = checkpoints.index(newest) if newest else 0
    for checkpoint in checkpoints[:begin] + checkpoints[begin + keep :]:
        shutil.rmtree(checkpoint)
    for path in folder.iterdir():
        if _STAGING_NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)


def _write_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(on_cpu, path)
    except SafetensorError as error:  # Not an OSError, also where the disk is full.
        raise EnvironmentProblem(f"{path} cannot be written: {error}.") from error


def _describe_file(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}
