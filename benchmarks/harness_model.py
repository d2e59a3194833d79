"""Write a GPT-2 of random weights for comparing scores with lm-evaluation-harness.

    python benchmarks/harness_model.py FOLDER              # 124M parameters
    python benchmarks/harness_model.py FOLDER --size small # 3.3M, 2 layers, a context of 64

It has GPT-2's own tokenizer, looked for at ../shared/data. The weights come from torch's generator for
the CPU alone and are larger than those that training starts from: tokens' log-probabilities lie nats
apart, so that neither rounding nor chance decides which of some choices is the likeliest. No bias is 0.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
SHAPES = {
    "124m": GPT2Config(),
    "small": GPT2Config(n_layer=2, n_embd=64, n_head=2, n_positions=64),
}
# Of a weight matrix's product with a vector of unit variance: the same at every width.
GAIN = 2.2


def random_model(size: str) -> GPT2LMHeadModel:
    """Return a model in float32, the same on every machine. size: one of SHAPES."""
    model = GPT2LMHeadModel(SHAPES[size]).eval()
    generator = torch.Generator().manual_seed(0)
    scale = GAIN * SHAPES[size].n_embd ** -0.5
    with torch.no_grad():
        # The head is the embedding, and is no parameter of its own.
        for name, parameter in sorted(model.named_parameters()):
            if ".ln_" not in name or name.endswith("bias"):
                parameter.normal_(0, scale, generator=generator)
    return model


def save_model(size: str, data: Path, folder: Path) -> None:
    """Write the model and GPT-2's tokenizer into `folder`."""
    vocabulary = data / "gpt2-tokenizer"
    random_model(size).save_pretrained(folder)
    GPT2TokenizerFast(
        vocab=str(vocabulary / "vocab.json"), merges=str(vocabulary / "merges.txt")
    ).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SHAPES, default="124m")
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args()
    if not options.data.is_dir():
        sys.exit(f"GPT-2's tokenizer is not at {options.data}; give --data. Nothing was written.")
    save_model(options.size, options.data, options.folder)


if __name__ == "__main__":
    main()
