"""Train a GPT-2 with Hugging Face's Trainer as its example `run_clm.py` does; print each step's seconds.

Runs in an environment of its own; benchmarks/training.py starts it and ends it. As in run_clm.py, the
text is cut into blocks by `datasets`, with an attention mask of ones (unless --no-mask) and labels that
are the inputs; the collator is the default one, the optimizer the Trainer's own. Dropout is 0, as on all
sides of the comparison.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)


class StepTimes(TrainerCallback):  # type: ignore[misc]
    """Prints the time from the end of one optimizer step to the end of the next."""

    def __init__(self, device: str) -> None:
        self._device = device

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._last = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        print(f"step took {now - self._last:.6f} s", flush=True)
        self._last = now


def read_blocks(tokens: Path, context: int, has_mask: bool) -> Any:
    """Return a data set of all whole blocks of the uint16 tokens in a file."""
    ids = np.fromfile(tokens, dtype="<u2")
    blocks = ids[: len(ids) // context * context].reshape(-1, context).astype(np.int64).tolist()
    columns = {"input_ids": blocks, "labels": blocks}
    if has_mask:
        columns["attention_mask"] = np.ones((len(blocks), context), dtype=np.int64).tolist()
    return Dataset.from_dict(columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=Path, required=True)
    for name in ("vocabulary", "layers", "heads", "width", "context", "sequences"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--no-mask", action="store_true")
    options = parser.parse_args()
    config = GPT2Config(
        vocab_size=options.vocabulary,
        n_positions=options.context,
        n_embd=options.width,
        n_layer=options.layers,
        n_head=options.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=1_000_000,
            per_device_train_batch_size=options.sequences,
            bf16=options.bf16,
            torch_compile=options.compile,
            use_cpu=options.device == "cpu",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        Trainer(
            model=GPT2LMHeadModel(config),
            args=arguments,
            train_dataset=read_blocks(options.tokens, options.context, not options.no_mask),
            data_collator=default_data_collator,
            callbacks=[StepTimes(options.device)],
        ).train()


if __name__ == "__main__":
    main()
