"""Held-out bits per byte for each model size, optimizer, schedule and peak learning rate.

    python benchmarks/sweep.py                                   # What the defaults are held against.
    python benchmarks/sweep.py mini --factors 0.5,1,2 --schedules wsd

Rates are given as multiples of the default of the size, which falls with the root of the width: where
the best one is at the same multiple for all sizes, the rule holds. Every run of a size sees the same
tokens, in the same order, for the same number of steps; the held-out text decides. Each runs on one
thread, so several can run beside each other without changing anything but the time.
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

from results import RESULTS, write_section

from gptcli.config.schema import Settings

TEXT = Path(__file__).parents[2] / "shared" / "data" / "language-modelling" / "wikitext2-train.txt"
CONTEXT_LENGTH = 128
# Layers, heads, width, optimizer steps: of 16 sequences.
SIZES = {
    "2x64": (2, 2, 64, 300),
    "4x128": (4, 4, 128, 300),
    "4x256": (4, 4, 256, 200),
    "6x384": (6, 6, 384, 120),
}


def default_rate(size: str) -> float:
    """Return what training.learning_rate is for a new model of that width."""
    n_layer, n_head, n_embd, _ = SIZES[size]
    model = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "context_length": CONTEXT_LENGTH}
    return Settings.model_validate({"model": model}).training.learning_rate


def train(
    text: Path, folder: Path, size: str, optimizer: str, rate: float, schedule: str, steps: int
) -> float:
    """Return the bits per byte of the held-out text at the end."""
    n_layer, n_head, n_embd, _ = SIZES[size]
    settings = {
        "model": {
            "n_layer": n_layer,
            "n_head": n_head,
            "n_embd": n_embd,
            "context_length": CONTEXT_LENGTH,
        },
        "tokenizer": {"train": {"vocab_size": 4096}},
        "data": {
            "source": str(text),
            "split_by": "position",
            "validation_fraction": 0.02,
            "cache_dir": str(folder / "cache"),
        },
        "training": {
            "optimizer": optimizer,
            "learning_rate": rate,
            "schedule": schedule,
            "max_steps": steps,
            "warmup_steps": max(10, steps // 10),
            "batch_size": 16,
            "save_steps": 1_000_000,
        },
        "evaluation": {"eval_steps": 1_000_000},
        "runtime": {"compile": False, "threads": 1},
    }
    config = folder / "config.yaml"
    config.write_text(json.dumps(settings), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "gptcli",
        "pretrain",
        "--config",
        str(config),
        "--json",
        "--overwrite",
    ]
    command += ["--output-dir", str(folder / "run")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    bits: float = json.loads(done.stdout)["evaluation"]["bits_per_byte"]
    return bits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sizes", nargs="*", help=f"of {', '.join(SIZES)}; default: all")
    parser.add_argument("--optimizers", default="muon,adamw")
    parser.add_argument("--factors", default="0.25,0.5,1,2", help="of the default rate")
    parser.add_argument("--schedules", default="cosine,wsd")
    parser.add_argument("--steps", type=int, help="instead of those of the size")
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if not options.text.is_file():
        sys.exit(f"There is no text at {options.text}; give --text. Nothing was measured.")
    factors = [float(factor) for factor in options.factors.split(",")]
    for size in options.sizes or SIZES:
        steps, rate = options.steps or SIZES[size][3], default_rate(size)
        lines = [
            f"{steps} steps of 16 sequences of 128 tokens, a vocabulary of 4,096; the default rate is "
            f"{rate:g}.",
            "",
            f"| times the default rate | {' | '.join(f'{factor:g}' for factor in factors)} |",
            f"|---|{'---|' * len(factors)}",
        ]
        with tempfile.TemporaryDirectory() as folder:
            for optimizer, schedule in itertools.product(
                options.optimizers.split(","), options.schedules.split(",")
            ):
                found = [
                    train(options.text, Path(folder), size, optimizer, factor * rate, schedule, steps)
                    for factor in factors
                ]
                shown = [f"**{bits:.3f}**" if bits == min(found) else f"{bits:.3f}" for bits in found]
                lines.append(f"| {optimizer}, {schedule} | {' | '.join(shown)} |")
        print("\n".join((f"{size}:", *lines)), flush=True)
        write_section(f"Learning rates: {size}, bits per byte", lines, file=options.results)


if __name__ == "__main__":
    main()
