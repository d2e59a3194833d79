"""Train configs/pretrain/tinyshakespeare.yaml with each optimizer; print time and bits per byte.

The text is looked for at ../shared/data, or where the first argument says.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
CONFIG = REPOSITORY / "configs" / "pretrain" / "tinyshakespeare.yaml"
TEXT = REPOSITORY.parent / "shared" / "data" / "language-modelling" / "tinyshakespeare.txt"


# Each optimizer at the better of the rates that were tried for it: 2e-3 and 4e-3.
LEARNING_RATES = {"muon": "4e-3", "adamw": "2e-3"}


def train(text: Path, optimizer: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "gptcli", "pretrain", "--config", str(CONFIG), "--json"]
        command += ["--output-dir", f"{folder}/run", "--set", f"data.source={text}"]
        command += [
            "--set",
            f"data.cache_dir={folder}/cache",
            "--set",
            f"training.optimizer={optimizer}",
        ]
        command += ["--set", f"training.learning_rate={LEARNING_RATES[optimizer]}"]
        started = time.perf_counter()
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        seconds = time.perf_counter() - started
    result = json.loads(done.stdout)
    best = result["evaluation"]
    print(
        f"{optimizer:6} {result['step']} steps: {best['bits_per_byte']:.4f} bits per byte held out "
        f"(step {best['step']}), training {result['training_seconds']:.0f} s, in all {seconds:.0f} s",
        flush=True,
    )


def main() -> None:
    text = Path(sys.argv[1]) if len(sys.argv) > 1 else TEXT
    if not text.is_file():
        sys.exit(
            f"tinyshakespeare is not at {text}; give its path as the argument. Nothing was measured."
        )
    print("wanted: at most 2.4 bits per byte within 300 s")
    for optimizer in LEARNING_RATES:
        train(text, optimizer)


if __name__ == "__main__":
    main()
