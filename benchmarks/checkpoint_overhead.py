"""What hashing and fsync cost a checkpoint of GPT-2 small: the share of the time that a save takes.

A round saves a whole checkpoint, then writes the same tensors with safetensors alone, then hashes and
flushes these files, each alone. Needs about 3 GB of memory and 5 GB on the disk, which is that of the
folder given as argument (the system's temporary folder if none is given).
"""

from __future__ import annotations

import functools
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
from gptcli.models.architecture import count_parameters
from gptcli.training.checkpoint import Origin, save_checkpoint
from gptcli.training.loop import Progress
from gptcli.training.optimizers import Optimizers

ROUNDS = 7
ORIGIN = Origin(settings={}, data="", tokenizer="", versions={})


def measure(work: Callable[[], object]) -> float:
    """Return how long `work` takes, in seconds, begun with nothing left for the disk to do."""
    os.sync()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def hash_files(files: list[Path]) -> None:
    for path in files:
        with path.open("rb") as file:
            hashlib.file_digest(file, "sha256")


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
        checkpoints, plain = Path(name) / "checkpoints", Path(name) / "plain"
        files = [plain / file for file in contents]

        def write() -> None:
            for file, tensors in contents.items():
                save_file(tensors, plain / file)

        def flush() -> None:
            for file in files:
                flush_to_disk(file)

        for number in range(ROUNDS + 1):
            plain.mkdir()
            progress = Progress(step=number)
            seconds = {
                "save": measure(
                    functools.partial(save_checkpoint, checkpoints, model, optimizers, progress, ORIGIN)
                ),
                "write": measure(write),
                "hash": measure(lambda: hash_files(files)),
            }
            # Flushing is measured on files that are not on the disk yet.
            write()
            started = time.perf_counter()
            flush()
            seconds["flush"] = time.perf_counter() - started
            gigabytes = sum(file.stat().st_size for file in files) / 1e9
            shutil.rmtree(checkpoints)
            shutil.rmtree(plain)
            if number > 0:  # The first only warms up.
                rounds.append(seconds)

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
