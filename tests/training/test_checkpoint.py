from __future__ import annotations

import copy
import hashlib
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel

from gptcli.config.schema import TrainingSettings
from gptcli.errors import EnvironmentProblem, ExitCode, ModelError
from gptcli.training.checkpoint import (
    Origin,
    find_problem,
    list_checkpoints,
    load_checkpoint,
    newest_whole,
    read_state,
    rotate_checkpoints,
    save_checkpoint,
)
from gptcli.training.loop import Progress
from gptcli.training.optimizers import Optimizers

FILES = ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]
ORIGIN = Origin(
    settings={"training": {"max_steps": 9}},
    data="the data",
    tokenizer="the tokenizer",
    versions={"torch": "2.13.0"},
)


@pytest.fixture
def optimizers(model: GPT2LMHeadModel) -> Optimizers:
    """An optimizer that has made a step."""
    optimizers = Optimizers(model, TrainingSettings(optimizer="muon"))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.01)
    optimizers.step(1e-3)
    return optimizers


@pytest.fixture
def folder(tmp_path: Path, model: GPT2LMHeadModel, optimizers: Optimizers) -> Path:
    """Checkpoints of steps 3 and 6."""
    folder = tmp_path / "checkpoints"
    for step in (3, 6):
        save_checkpoint(folder, model, optimizers, Progress(step=step), ORIGIN)
    return folder


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_saved_checkpoint_is_whole_and_holds_the_documented_files_only(folder: Path) -> None:
    assert names_in(folder) == ["step-00000003", "step-00000006"]
    newest = folder / "step-00000006"
    assert names_in(newest) == FILES
    seen: list[tuple[int, int]] = []
    assert find_problem(newest, lambda done, total: seen.append((done, total))) is None
    size = sum((newest / name).stat().st_size for name in FILES[1:])
    assert seen[-1] == (size, size)
    assert newest_whole(folder) == (newest, [])
    manifest = json.loads((newest / "manifest.json").read_text())
    assert manifest["files"] == {
        name: {
            "bytes": len((newest / name).read_bytes()),
            "sha256": hashlib.sha256((newest / name).read_bytes()).hexdigest(),
        }
        for name in FILES[1:]
    }
    assert manifest["fingerprints"]["data"] == "the data"
    assert manifest["fingerprints"]["tokenizer"] == "the tokenizer"
    assert manifest["versions"] == {"torch": "2.13.0"}


def test_loading_restores_weights_optimizers_and_progress_exactly(
    tmp_path: Path, model: GPT2LMHeadModel, optimizers: Optimizers
) -> None:
    progress = Progress(
        step=7,
        tokens=12345,
        training_seconds=1.5,
        best={"step": 4, "loss": 0.1 + 0.2, "perplexity": 1.35, "bits_per_byte": 0.43},
        loss_scale=1024.0,
        steps_at_this_scale=12,
    )
    checkpoint = save_checkpoint(tmp_path, model, optimizers, progress, ORIGIN)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.fill_(9)
    restored = Optimizers(other, TrainingSettings(optimizer="muon"))
    state = load_checkpoint(checkpoint, other, restored)
    assert (state.progress, state.origin) == (progress, ORIGIN)
    assert read_state(checkpoint) == state
    torch.testing.assert_close(
        dict(other.named_parameters()), dict(model.named_parameters()), rtol=0, atol=0
    )
    torch.testing.assert_close(restored.state_tensors(), optimizers.state_tensors(), rtol=0, atol=0)


def flip_a_bit(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << position % 8
    path.write_bytes(content)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "bit flipped", "a folder"])
def test_damage_to_any_file_is_noticed_and_the_older_checkpoint_is_taken(
    folder: Path, name: str, damage: str
) -> None:
    newest = folder / "step-00000006"
    path = newest / name
    content = path.read_bytes()
    match damage:
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(content[:-1])
        case "bit flipped":
            flip_a_bit(path, 0)
        case "a folder":
            path.unlink()
            path.mkdir()
    checkpoint, warnings = newest_whole(folder)
    assert checkpoint == folder / "step-00000003"
    assert len(warnings) == 1
    assert warnings[0].startswith(f"{newest} is passed over: {name} is ")


def test_a_flipped_bit_is_noticed_wherever_it_is(folder: Path) -> None:
    newest = folder / "step-00000006"
    for name in FILES:
        path = newest / name
        content = path.read_bytes()
        for position in range(0, len(content), max(1, len(content) // 60)):
            flip_a_bit(path, position)
            assert find_problem(newest) is not None, (name, position)
            path.write_bytes(content)
    assert find_problem(newest) is None


@pytest.mark.parametrize("manifest", ["[]", "{}", '{"files": []}', '{"files": {}}', "null", "\xff"])
def test_a_manifest_of_another_kind_is_damage(folder: Path, manifest: str) -> None:
    (folder / "step-00000006" / "manifest.json").write_text(manifest, encoding="latin-1")
    assert find_problem(folder / "step-00000006") == "manifest.json is damaged"


def test_without_a_whole_checkpoint_there_is_an_error_that_names_every_problem(folder: Path) -> None:
    (folder / "step-00000003" / "optimizer.safetensors").unlink()
    flip_a_bit(folder / "step-00000006" / "model.safetensors", 100)
    with pytest.raises(ModelError) as caught:
        newest_whole(folder)
    message = str(caught.value)
    assert "step-00000003 is passed over: optimizer.safetensors is missing" in message
    assert "step-00000006 is passed over: model.safetensors is not what was saved" in message
    assert "--overwrite" in message
    assert "\n" not in message
    assert caught.value.exit_code == ExitCode.MODEL == 4


def test_no_checkpoints_are_no_error(tmp_path: Path) -> None:
    assert newest_whole(tmp_path / "absent") == (None, [])
    assert newest_whole(tmp_path) == (None, [])


def test_weights_of_another_shape_are_not_loaded(
    folder: Path, model: GPT2LMHeadModel, optimizers: Optimizers
) -> None:
    model.transformer.wpe = torch.nn.Embedding(64, 32)
    with pytest.raises(ModelError, match="step-00000006 cannot be resumed: its weights do not fit"):
        load_checkpoint(folder / "step-00000006", model, optimizers)


def test_old_checkpoints_are_removed_by_step_number_and_nothing_else_is_touched(
    tmp_path: Path,
) -> None:
    folder, elsewhere = tmp_path / "checkpoints", tmp_path / "elsewhere"
    numbered = ["step-00000002", "step-00000010", "step-99999999", "step-100000000"]
    kept = [
        "notes",
        "step-00000001.bak",
        "step-1",
        "my-step-00000001",
        "step-000000011x",
        ".step-1.partial",
    ]
    for age, name in enumerate(numbered):
        (folder / name / "deep").mkdir(parents=True)
        # The oldest step was touched last.
        os.utime(folder / name, (1_000_000 - age, 1_000_000 - age))
    for name in kept:
        (folder / name).mkdir()
    (folder / ".step-00000011.partial").mkdir()
    elsewhere.mkdir()
    (elsewhere / "precious").touch()
    (folder / "step-00000001").symlink_to(elsewhere)
    (folder / ".step-00000012.partial").symlink_to(elsewhere)
    (folder / "step-00000003").write_text("a file")

    rotate_checkpoints(folder, 100_000_000, keep=2, best_step=None)

    left = ["step-99999999", "step-100000000", *kept]
    # A link in the place of a save yet to come is in its way: the link goes, what it leads to stays.
    left += ["step-00000001", "step-00000003"]
    assert names_in(folder) == sorted(left)
    assert names_in(elsewhere) == ["precious"]


def test_checkpoints_that_resuming_has_passed_over_do_not_push_out_the_one_just_saved(
    tmp_path: Path,
) -> None:
    for step in (2, 3, 4, 8, 9):
        (tmp_path / f"step-{step:08d}").mkdir()
    rotate_checkpoints(tmp_path, 4, keep=2, best_step=None)
    assert names_in(tmp_path) == ["step-00000003", "step-00000004"]


@contextmanager
def files_limited_to(size_bytes: int) -> Iterator[None]:
    """Let writes beyond `size_bytes` of a file fail, as they do on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_save_that_the_disk_does_not_take_leaves_the_older_checkpoints_and_nothing_else(
    folder: Path, model: GPT2LMHeadModel, optimizers: Optimizers
) -> None:
    with (
        files_limited_to(10_000),
        pytest.raises(EnvironmentProblem, match="cannot be written") as caught,
    ):
        save_checkpoint(folder, model, optimizers, Progress(step=9), ORIGIN)
    assert caught.value.exit_code == ExitCode.ENVIRONMENT == 5
    assert names_in(folder) == ["step-00000003", "step-00000006"]
    assert newest_whole(folder) == (folder / "step-00000006", [])


def test_a_save_that_was_killed_is_never_taken_and_is_cleared_away(
    folder: Path, model: GPT2LMHeadModel, optimizers: Optimizers
) -> None:
    # Killed just before the rename: all files are there, under the staging name.
    (folder / "step-00000006").rename(folder / ".step-00000006.partial")
    assert newest_whole(folder) == (folder / "step-00000003", [])
    saved = save_checkpoint(folder, model, optimizers, Progress(step=6), ORIGIN)
    assert newest_whole(folder) == (saved, [])
    assert names_in(folder) == ["step-00000003", "step-00000006"]


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(
    folder: Path, model: GPT2LMHeadModel, optimizers: Optimizers
) -> None:
    (folder / "step-00000006" / "manifest.json").unlink()
    saved = save_checkpoint(folder, model, optimizers, Progress(step=6), ORIGIN)
    assert find_problem(saved) is None


def test_links_are_not_taken_for_checkpoints(folder: Path) -> None:
    (folder / "step-00000009").symlink_to(folder / "step-00000006")
    assert list_checkpoints(folder) == [folder / "step-00000006", folder / "step-00000003"]
