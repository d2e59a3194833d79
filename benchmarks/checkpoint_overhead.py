"""What hashing and fsync cost a checkpoint of GPT-2 small: the share of the time that a save takes.

A round saves a whole checkpoint and, in turn with it, writes the same tensors with safetensors alone,
then flushes these files, then hashes them. Needs about 3 GB of memory and 2 GB on the disk, which is
that of the folder given as argument (the system's temporary folder if none is given).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

from gptcli.config.schema import TrainingSettings
from gptcli.files import flush_to_disk
from gptcli.training.checkpoint import Origin, save_checkpoint
from gptcli.training.job import count_parameters
from gptcli.training.loop import Progress
from gptcli.training.optimizers import Optimizers

ROUNDS = 7
ORIGIN = Origin(settings={}, data="", tokenizer="", versions={})


def measure(work: Callable[[], object]) -> float:
    """Return how long `work` takes, in seconds."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def hash_files(files: list[Path]) -> None:
    for path in files:
        with path.open("rb") as file:
            hashlib.file_digest(file, "sha256")


def make_empty(folder: Path) -> None:
    """Make `folder` anew, with nothing left for the disk to do."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    os.sync()
    time.sleep(1)  # Some disks are told of freed blocks a little later.


def main() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config())
    optimizers = Optimizers(model, TrainingSettings())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizers.step(1e-4)
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    contents = {"model.safetensors": weights, "optimizer.safetensors": optimizers.state_tensors()}

    rounds: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        folder = Path(name) / "files"
        files = [folder / file for file in contents]

        def save() -> None:
            save_checkpoint(folder, model, optimizers, Progress(), ORIGIN)

        def write() -> None:
            for file, tensors in contents.items():
                save_file(tensors, folder / file)

        def flush() -> None:
            for file in files:
                flush_to_disk(file)

        for number in range(ROUNDS + 1):
            seconds: dict[str, float] = {}
            # Both begin in an empty folder, and neither always comes first.
            for what in ("save", "write") if number % 2 else ("write", "save"):
                make_empty(folder)
                seconds[what] = measure(save if what == "save" else write)
                if what == "write":
                    # At once, while none of it need be on the disk.
                    seconds["flush"] = measure(flush)
                    seconds["hash"] = measure(lambda: hash_files(files))
            if number > 0:  # The first only warms up.
                rounds.append(seconds)

    gigabytes = sum(tensor.nbytes for part in contents.values() for tensor in part.values()) / 1e9
    print(f"GPT-2 of {count_parameters(model):,} parameters, AdamW: {gigabytes:.2f} GB a checkpoint")
    for what, label in (
        ("save", "save_checkpoint, in all"),
        ("write", "writing the tensors alone (safetensors, no fsync)"),
        ("hash", "hashing them alone (sha256, from memory)"),
        ("flush", "flushing them alone (fsync)"),
    ):
        times = [seconds[what] for seconds in rounds]
        print(
            f"{label:50} {statistics.median(times):6.2f} s "
            f"(median of {ROUNDS}; {min(times):.2f} to {max(times):.2f})"
        )
    shares = [1 - seconds["write"] / seconds["save"] for seconds in rounds]
    print(f"{'hashing and fsync, share of a save':50} {statistics.median(shares):6.0%}")
    in_turn = [seconds["write"] + seconds["hash"] + seconds["flush"] for seconds in rounds]
    saved = [1 - each["save"] / whole for each, whole in zip(rounds, in_turn, strict=True)]
    print(f"{'saved by doing it at once, not in turn':50} {statistics.median(saved):6.0%}")


if __name__ == "__main__":
    main()
