"""Planned and measured memory and time of training, side by side, each in a process of its own.

    python benchmarks/planning.py memory [WORD ...]    steps: four shapes, two optimizers, two precisions
    python benchmarks/planning.py time                 whole runs, beside `gptcli plan --measure`

With words such as `6x384 adamw`, only the rows that have them all. Memory takes about 6 minutes on two
cores, time about 4. When the training's forward or backward pass changes, this shows how far
planning/memory.py is off.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gptcli.config.schema import Settings
from gptcli.native import product as native_product
from gptcli.planning.memory import Precision, automatic_micro_batch_size, training_memory
from gptcli.planning.shape import Shape

# Layers, heads, width, context, vocabulary, sequences a step.
SHAPES = {
    "4x128": (4, 4, 128, 128, 2_048, 16),
    "6x384": (6, 6, 384, 256, 8_192, 8),
    "12x768/512": (12, 12, 768, 512, 50_257, 4),
    "12x768/1024": (12, 12, 768, 1024, 50_257, 2),
}
DEMO = Path(__file__).parent.parent / "configs" / "pretrain" / "demo.yaml"
# What is changed in the demo's config.
RUNS = {
    "demo": [],
    "6x384": [
        "model.n_layer=6",
        "model.n_head=6",
        "model.n_embd=384",
        "model.context_length=256",
        "training.batch_size=8",
        "training.max_steps=60",
        "training.optimizer=adamw",
        "training.learning_rate=6e-4",
        "evaluation.eval_steps=60",
    ],
}


def settings_of(name: str, optimizer: str, precision: str) -> Settings:
    layers, heads, width, context, _, batch = SHAPES[name]
    shape = {"n_layer": layers, "n_head": heads, "n_embd": width, "context_length": context}
    return Settings.model_validate(
        {
            "model": shape,
            "training": {"batch_size": batch, "optimizer": optimizer, "learning_rate": 1e-4},
            "runtime": {"device": "cpu", "precision": precision},
        }
    )


def shape_of(name: str) -> Shape:
    layers, heads, width, context, vocabulary, _ = SHAPES[name]
    return Shape.of(layers, heads, width, context, vocabulary)


def measure(name: str, optimizer: str, precision: str) -> None:
    """Print what this process has held before its model and after a few steps."""
    from gptcli.pipelines.plan import measure_shape

    status = Path("/proc/self/status").read_text()
    libraries = int(status.partition("VmRSS:")[2].split()[0]) * 1024
    settings, shape = settings_of(name, optimizer, precision), shape_of(name)
    context = shape.positions
    size = automatic_micro_batch_size(shape, settings.training.batch_size, context, "cpu")
    measured = measure_shape(settings, shape, context, size)
    print(json.dumps({"libraries": libraries, "micro_batch_size": size, **asdict(measured)}))


def result_of(*command: str | Path) -> Any:
    """Return the JSON that a command prints."""
    done = subprocess.run([sys.executable, *command], check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def compare_memory(words: set[str]) -> None:
    print("shape        optimizer precision  at once  planned MB  measured MB  ratio  libraries MB")
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    for name, optimizer, precision in itertools.product(SHAPES, ("adamw", "muon"), precisions):
        if not words <= {name, optimizer, precision}:
            continue
        found = result_of(__file__, "--one", name, optimizer, precision)
        settings, shape = settings_of(name, optimizer, precision), shape_of(name)
        size = found["micro_batch_size"]
        is_native = precision == "bf16" and native_product.is_faster(native_product.LEAST_WEIGHTS)
        planned = training_memory(
            shape, settings, shape.positions, size, "cpu", precision, is_native
        ).peak
        measured = found["peak_bytes"]
        print(
            f"{name:12} {optimizer:9} {precision:9} {size:8} {planned / 1e6:11,.0f} "
            f"{measured / 1e6:12,.0f} {planned / measured:6.2f} {found['libraries'] / 1e6:13,.0f}",
            flush=True,
        )


def compare_time() -> None:
    print("run     planned s  measured s  ratio  planned MB  measured MB")
    for name, changes in RUNS.items():
        options = [option for change in changes for option in ("--set", change)]
        with tempfile.TemporaryDirectory() as folder:
            gptcli = ("-m", "gptcli")
            plan = result_of(*gptcli, "plan", "--config", DEMO, *options, "--measure", "--json")
            run = Path(folder) / "run"
            result_of(*gptcli, "pretrain", "--config", DEMO, *options, "--output-dir", run, "--json")
            facts = json.loads((run / "run.json").read_text())
        seconds = facts["elapsed_seconds"]
        print(
            f"{name:7} {plan['seconds']:9.0f} {seconds:11.0f} {plan['seconds'] / seconds:6.2f} "
            f"{plan['memory']['peak'] / 1e6:11,.0f} {plan['measured_peak_bytes'] / 1e6:12,.0f}",
            flush=True,
        )


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--one", name, optimizer, precision]:
            measure(name, optimizer, precision)
        case ["memory", *words]:
            compare_memory(set(words))
        case ["time"]:
            compare_time()
        case _:
            sys.exit(__doc__)
