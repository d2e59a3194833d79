"""How soon, and how good: pretraining beside nanoGPT, scored on the same held-out text.

    python benchmarks/time_to_quality.py quick                      # gptcli's short run alone
    python benchmarks/time_to_quality.py shakespeare --nanogpt DIR  # 4 to 6 minutes
    python benchmarks/time_to_quality.py wikitext --nanogpt DIR     # twice --minutes, and a bit

`shakespeare`: tinyshakespeare, the last 10% held out. nanoGPT runs the recipe for CPUs of its README.
gptcli runs twice, each time from nothing, tokenizer and imports included: a smaller model for so few
steps that it ends at about nanoGPT's quality, and `configs/pretrain/tinyshakespeare.yaml` for as many as
fit into the time that nanoGPT took, less a twentieth.

`wikitext`: WikiText-2, trained on its train text and scored on its valid text. Both train a GPT-2 of
the same shape with batches of the same number of tokens for the same time: nanoGPT with the settings of
its config/train_gpt2.py (but for the number of steps and the batch, which are for eight GPUs) and
GPT-2's tokenizer, gptcli with a tokenizer of its own and Muon. The steps that fit are found by a short
run before.

A time is that of the whole process, but what nanoGPT needs to prepare its text does not count. The score
is made here, for both by the same rule: the held-out text in windows of the model's context that follow
each other, each token predicted once, the first one from what nanoGPT read last or from gptcli's
end-of-text; the sum of the bits over the bytes of the text. nanoGPT's own estimate, on random
windows, is reported too, and the better of the two is what gptcli has to reach.

DIR is a clone of karpathy/nanoGPT; the texts are looked for in ../shared/data or where `--data` says.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import RESULTS, write_section
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

REPOSITORY = Path(__file__).parent.parent
DATA = REPOSITORY.parent / "shared" / "data"
SHAKESPEARE_CONFIG = REPOSITORY / "configs" / "pretrain" / "tinyshakespeare.yaml"

# The recipe for CPUs of nanoGPT's README.
NANOGPT_CPU = [
    *("config/train_shakespeare_char.py", "--eval_iters=20", "--log_interval=1", "--block_size=64"),
    *("--batch_size=12", "--n_layer=4", "--n_head=4", "--n_embd=128", "--max_iters=2000"),
    *("--lr_decay_iters=2000", "--dropout=0.0"),
]
# What that recipe reached elsewhere, for runs without nanoGPT.
NANOGPT_CPU_BITS = 2.72
WANTED_SPEEDUP, WANTED_BITS, WANTED_SHARE = 8, 2.15, 0.85

# Shakespeare to nanoGPT's quality: a model as wide as its own and half as deep, few steps.
QUICK_STEPS = 85
QUICK = {
    "model.n_layer": 2,
    "model.n_head": 4,
    "model.n_embd": 128,
    "model.context_length": 128,
    "training.batch_size": 16,
    "training.learning_rate": 12e-3,
    "training.warmup_steps": 5,
}
PROBE_STEPS = 60
# WikiText-2: the shape and the tokens of a step, for both.
SHAPE = {"n_layer": 4, "n_head": 4, "n_embd": 256}
CONTEXT_LENGTH, BATCH_SIZE = 256, 16


@dataclass(frozen=True)
class Run:
    """A training run, whole process."""

    seconds: float
    bits_per_byte: float
    what: str

    def row(self) -> str:
        return f"| {self.what} | {self.seconds:.0f} s | {self.bits_per_byte:.3f} |"


# The score.


@torch.inference_mode()
def bits_of(logits: Any, ids: list[int], before: int, context_length: int) -> float:
    """Return the bits that a model needs for `ids` in windows that follow each other.

    logits: takes (1, tokens) ids and returns (1, tokens, vocabulary). before: the id before the first.
    """
    inputs, targets = torch.tensor([before, *ids[:-1]]), torch.tensor(ids)
    nats = 0.0
    for begin in range(0, len(ids), context_length):
        window = slice(begin, begin + context_length)
        scores: Tensor = logits(inputs[None, window])[0].float()
        nats += nn.functional.cross_entropy(scores, targets[window], reduction="sum").item()
    return nats / math.log(2)


def score_gptcli(model_folder: Path, text: str) -> float:
    """Return bits per byte of a model folder, as transformers opens it."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model: Any = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    ids = tokenizer(text, verbose=False)["input_ids"]
    assert tokenizer.decode(ids) == text, "the tokens are not the text"
    bits = bits_of(lambda x: model(x).logits, ids, tokenizer.eos_token_id, model.config.n_positions)
    return bits / len(text.encode())


def score_nanogpt(nanogpt: Path, checkpoint: Path, ids: list[int], before: int, size: int) -> float:
    """Return bits per byte of a checkpoint. ids: the text in its tokens; size: the text's bytes."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", nanogpt / "model.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model = module.GPT(module.GPTConfig(**saved["model_args"]))
    model.load_state_dict(saved["model"])
    model.eval()
    # Without targets it makes the logits of the last position alone.
    bits = bits_of(lambda x: model(x, x)[0], ids, before, model.config.block_size)
    return bits / size


# The two sides.


def run(command: list[str], folder: Path) -> tuple[float, str]:
    """Return the seconds that a whole process took, and its standard output."""
    started = time.perf_counter()
    done = subprocess.run(
        command, check=True, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    return time.perf_counter() - started, done.stdout


def pretrain(
    steps: int, config: Path, settings: dict[str, Any], folder: Path
) -> tuple[float, dict[str, Any]]:
    """Run `gptcli pretrain` in an empty folder; return its seconds and what it says.

    The text is tokenized anew each time, and the model evaluated once, at the end.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    command = [sys.executable, "-m", "gptcli", "pretrain", "--config", str(config), "--json"]
    command += ["--output-dir", str(folder / "run")]
    lengths = {"training.max_steps": steps, "evaluation.eval_steps": steps}
    for name, value in {**settings, **lengths, "data.cache_dir": str(folder / "cache")}.items():
        command += ["--set", f"{name}={json.dumps(value)}"]
    seconds, output = run(command, REPOSITORY)
    return seconds, json.loads(output)


def pretrain_within(
    seconds: float, config: Path, settings: dict[str, Any], folder: Path
) -> tuple[float, dict[str, Any]]:
    """Run `gptcli pretrain` with as many steps as fit into `seconds`, by those of a short run."""
    whole, result = pretrain(PROBE_STEPS, config, settings, folder)
    step_seconds = result["training_seconds"] / PROBE_STEPS
    # A reserve: what a machine does beside makes some steps slower.
    steps = int((0.95 * seconds - (whole - result["training_seconds"])) / step_seconds)
    return pretrain(steps, config, settings, folder)


class NanoGpt:
    """nanoGPT in a copy of its folder, which its data and checkpoints go into."""

    def __init__(self, clone: Path, folder: Path) -> None:
        if not (clone / "train.py").is_file():
            sys.exit(f"nanoGPT is not at {clone}; give --nanogpt. Nothing was measured.")
        self.folder = folder
        shutil.copytree(clone, folder, ignore=shutil.ignore_patterns(".git"))

    def train(self, *arguments: str) -> tuple[float, str]:
        """Return the seconds of the whole process, and what it printed."""
        out = ("--out_dir=out", "--device=cpu", "--compile=False")
        return run([sys.executable, "train.py", *arguments, *out], self.folder)

    def tokens(self, dataset: str, split: str) -> list[int]:
        file = self.folder / "data" / dataset / f"{split}.bin"
        tokens: list[int] = np.fromfile(file, dtype=np.uint16).tolist()
        return tokens

    def score(self, dataset: str, text: str) -> float:
        """Return bits per byte of the last run on the held-out text, whose tokens are in val.bin."""
        ids, before = self.tokens(dataset, "val"), self.tokens(dataset, "train")[-1]
        size = len(text.encode())
        return score_nanogpt(self.folder, self.folder / "out" / "ckpt.pt", ids, before, size)


def last_estimate(output: str) -> float:
    """Return the last held-out loss that nanoGPT printed, in nats a token."""
    return float(re.findall(r"val loss ([\d.]+)", output)[-1])


# The comparisons.


def shakespeare_text(data: Path) -> Path:
    text = data / "language-modelling" / "tinyshakespeare.txt"
    if not text.is_file():
        sys.exit(f"tinyshakespeare is not at {text}; give --data. Nothing was measured.")
    return text


def held_out_of(text: Path) -> str:
    whole = text.read_text(encoding="utf-8")
    return whole[int(len(whole) * 0.9) :]


def run_quick(text: Path, folder: Path) -> Run:
    settings = {**QUICK, "data.source": str(text)}
    seconds, result = pretrain(QUICK_STEPS, SHAKESPEARE_CONFIG, settings, folder)
    bits = score_gptcli(folder / "run" / "model", held_out_of(text))
    return Run(seconds, bits, f"gptcli, {result['step']} steps")


def compare_shakespeare(data: Path, clone: Path, folder: Path) -> list[str]:
    """Return the lines of the report."""
    text = shakespeare_text(data)
    held_out = held_out_of(text)
    nanogpt = NanoGpt(clone, folder / "nanogpt")
    prepared = nanogpt.folder / "data" / "shakespeare_char"
    shutil.copy(text, prepared / "input.txt")
    # Its prepare.py imports requests, to download the text that lies there already.
    (prepared / "requests.py").touch()
    subprocess.run([sys.executable, prepared / "prepare.py"], check=True, stdout=subprocess.DEVNULL)
    seconds, output = nanogpt.train(*NANOGPT_CPU)
    theirs = Run(seconds, nanogpt.score("shakespeare_char", held_out), "nanoGPT, its recipe for CPUs")
    estimate = last_estimate(output) / math.log(2)
    target = min(theirs.bits_per_byte, estimate)
    quick = run_quick(text, folder / "quick")
    seconds, result = pretrain_within(
        theirs.seconds, SHAKESPEARE_CONFIG, {"data.source": str(text)}, folder / "equal"
    )
    bits = score_gptcli(folder / "equal" / "run" / "model", held_out)
    equal = Run(seconds, bits, f"gptcli, {result['step']} steps of tinyshakespeare.yaml")
    reached = "reached" if quick.bits_per_byte <= target else "NOT reached"
    return [
        "| | whole process | bits per byte, held out |",
        "|---|---|---|",
        *(side.row() for side in (theirs, quick, equal)),
        "",
        f"nanoGPT's own estimate, on random windows: {estimate:.3f}. The better of its two figures is "
        f"{reached} by gptcli in 1/{theirs.seconds / quick.seconds:.1f} of its time "
        f"(1/{WANTED_SPEEDUP} is wanted).",
        f"At {equal.seconds / theirs.seconds:.2f} of its time: {equal.bits_per_byte:.3f} bits per byte "
        f"(at most {WANTED_BITS} is wanted).",
    ]


def compare_wikitext(data: Path, clone: Path, folder: Path, minutes: float) -> list[str]:
    """Return the lines of the report."""
    texts = {
        split: data / "language-modelling" / f"wikitext2-{split}.txt" for split in ("train", "valid")
    }
    for text in texts.values():
        if not text.is_file():
            sys.exit(f"WikiText-2 is not at {text}; give --data. Nothing was measured.")
    held_out = texts["valid"].read_text(encoding="utf-8")
    nanogpt = NanoGpt(clone, folder / "nanogpt")
    vocabulary = data / "gpt2-tokenizer"
    tokenizer = ByteLevelBPETokenizer(str(vocabulary / "vocab.json"), str(vocabulary / "merges.txt"))
    (nanogpt.folder / "data" / "wikitext").mkdir()
    for split, name in (("train", "train"), ("valid", "val")):
        ids = tokenizer.encode(texts[split].read_text(encoding="utf-8")).ids
        np.array(ids, dtype=np.uint16).tofile(nanogpt.folder / "data" / "wikitext" / f"{name}.bin")
    recipe = ["config/train_gpt2.py", "--wandb_log=False", "--dataset=wikitext", "--log_interval=1"]
    recipe += [f"--{name}={value}" for name, value in SHAPE.items()]
    recipe += [f"--block_size={CONTEXT_LENGTH}", f"--batch_size={BATCH_SIZE}"]
    recipe += ["--gradient_accumulation_steps=1", "--eval_iters=20"]

    def train_nanogpt(steps: int) -> tuple[float, str]:
        lengths = {"max_iters": steps, "lr_decay_iters": steps, "eval_interval": steps}
        # Its 2,000 steps of warm-up are for 600,000 steps.
        lengths["warmup_iters"] = min(2000, steps // 20)
        return nanogpt.train(*recipe, *(f"--{name}={value}" for name, value in lengths.items()))

    limit = minutes * 60
    whole, output = train_nanogpt(PROBE_STEPS)
    step_seconds = float(np.median([float(ms) for ms in re.findall(r"time ([\d.]+)ms", output)])) / 1000
    steps = int((limit - (whole - PROBE_STEPS * step_seconds)) / step_seconds)
    seconds, output = train_nanogpt(steps)
    theirs = Run(seconds, nanogpt.score("wikitext", held_out), f"nanoGPT, {steps:,} steps")
    settings = {
        **{f"model.{name}": value for name, value in SHAPE.items()},
        # The config's own is for another width.
        "training.learning_rate": 4e-3,
        "model.context_length": CONTEXT_LENGTH,
        "tokenizer.train.vocab_size": 8192,
        "data.source": str(texts["train"]),
        "data.validation_source": str(texts["valid"]),
        "training.batch_size": BATCH_SIZE,
    }
    seconds, result = pretrain_within(limit, SHAKESPEARE_CONFIG, settings, folder / "gptcli")
    bits = score_gptcli(folder / "gptcli" / "run" / "model", held_out)
    ours = Run(seconds, bits, f"gptcli, {result['step']:,} steps")
    return [
        "| | whole process | bits per byte, valid text |",
        "|---|---|---|",
        *(side.row() for side in (theirs, ours)),
        "",
        f"gptcli's bits are {1 - ours.bits_per_byte / theirs.bits_per_byte:.1%} fewer "
        f"({1 - WANTED_SHARE:.0%} is wanted).",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", choices=["quick", "shakespeare", "wikitext"])
    parser.add_argument("--nanogpt", type=Path, help="a clone of karpathy/nanoGPT")
    parser.add_argument("--minutes", type=float, default=15, help="of each side, on WikiText-2")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.nanogpt is None and options.names != ["quick"]:
        parser.error("--nanogpt is needed, but for quick")
    for name in options.names:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            if name == "quick":
                quick = run_quick(shakespeare_text(options.data), folder / "quick")
                print(
                    f"{quick.what}: {quick.bits_per_byte:.3f} bits per byte after {quick.seconds:.1f} s "
                    f"in all; nanoGPT's recipe for CPUs ends at about {NANOGPT_CPU_BITS}"
                )
                continue
            if name == "shakespeare":
                title = "Time to quality: tinyshakespeare"
                lines = compare_shakespeare(options.data, options.nanogpt, folder)
            else:
                title = f"Time to quality: WikiText-2, {options.minutes:g} minutes"
                lines = compare_wikitext(options.data, options.nanogpt, folder, options.minutes)
            print("\n".join(lines), flush=True)
            write_section(title, lines, file=options.results)


if __name__ == "__main__":
    main()
