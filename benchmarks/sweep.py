"""Held-out bits per byte for each model size, optimizer, peak learning rate and schedule.

    python benchmarks/sweep.py                                   # What the defaults were chosen by.
    python benchmarks/sweep.py mini --rates 2e-3,4e-3 --schedules wsd

Every run sees the same tokens, in the same order, for the same number of steps; the held-out text
decides.
The text is WikiText-2's training text, looked for in ../shared/data or where --text says.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

TEXT = Path(__file__).parents[2] / "shared" / "data" / "language-modelling" / "wikitext2-train.txt"
# Layers, heads, width, optimizer steps: of 16 sequences of 128 tokens.
SIZES = {"tiny": (2, 2, 64, 300), "mini": (4, 4, 256, 200), "384": (6, 6, 384, 120)}


def train(
    text: Path, folder: Path, size: str, optimizer: str, rate: str, schedule: str, steps: int
) -> float:
    """Return the bits per byte of the held-out text at the end."""
    n_layer, n_head, n_embd, _ = SIZES[size]
    settings = {
        "model.n_layer": n_layer,
        "model.n_head": n_head,
        "model.n_embd": n_embd,
        "model.context_length": 128,
        "tokenizer.train.vocab_size": 4096,
        "data.source": text,
        "data.split_by": "position",
        "data.validation_fraction": 0.02,
        "data.cache_dir": folder / "cache",
        "training.optimizer": optimizer,
        "training.learning_rate": rate,
        "training.schedule": schedule,
        "training.max_steps": steps,
        "training.warmup_steps": max(10, steps // 10),
        "training.batch_size": 16,
        "training.save_steps": 1_000_000,
        "evaluation.eval_steps": 1_000_000,
        "runtime.compile": "false",
    }
    command = [sys.executable, "-m", "gptcli", "pretrain", "--json", "--overwrite"]
    command += ["--output-dir", str(folder / "run")]
    for name, value in settings.items():
        command += ["--set", f"{name}={value}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    bits: float = json.loads(done.stdout)["evaluation"]["bits_per_byte"]
    return bits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sizes", nargs="*", help=f"of {', '.join(SIZES)}; default: all")
    parser.add_argument("--optimizers", default="muon,adamw")
    parser.add_argument("--rates", default="1e-3,2e-3,4e-3,8e-3")
    parser.add_argument("--schedules", default="cosine,wsd")
    parser.add_argument("--steps", type=int, help="instead of those of the size")
    parser.add_argument("--text", type=Path, default=TEXT)
    options = parser.parse_args()
    if not options.text.is_file():
        sys.exit(f"There is no text at {options.text}; give --text. Nothing was measured.")
    with tempfile.TemporaryDirectory() as folder:
        for size, optimizer, schedule in itertools.product(
            options.sizes or SIZES, options.optimizers.split(","), options.schedules.split(",")
        ):
            steps = options.steps or SIZES[size][3]
            found = {
                rate: train(options.text, Path(folder), size, optimizer, rate, schedule, steps)
                for rate in options.rates.split(",")
            }
            listed = ", ".join(f"{rate}: {bits:.3f}" for rate, bits in found.items())
            print(f"{size:5} {steps} steps {optimizer:5} {schedule:6} {listed}", flush=True)


if __name__ == "__main__":
    main()
