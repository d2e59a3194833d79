"""What benchmarks/training.py compares: shapes; programs, their flags, how they start, what they say."""

from __future__ import annotations

import json
import pickle
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PEERS = Path(__file__).parent / "peers"
GPT2_VOCABULARY = 50257


@dataclass(frozen=True)
class Shape:
    """A GPT-2, and where it matters how many sequences are in a step."""

    layers: int
    heads: int
    width: int
    context: int
    vocabulary: int
    sequences: int | None = None

    @property
    def operations(self) -> int:
        """Of a token, forward and backward; training.py gives the formula and its source."""
        of_layers = self.layers * 12 * self.width**2
        of_attention = self.layers * self.width * self.context
        return 6 * (of_layers + self.vocabulary * self.width) + 12 * of_attention // 2


SHAPES = {
    "4x128": Shape(4, 4, 128, 128, 2048),
    "6x384": Shape(6, 6, 384, 256, 8192),
    "12x768-512": Shape(12, 12, 768, 512, GPT2_VOCABULARY),
    "12x768-1024": Shape(12, 12, 768, 1024, GPT2_VOCABULARY),
    # GPT-2 124M with four sequences at once, for its peak memory.
    "memory": Shape(12, 12, 768, 1024, GPT2_VOCABULARY, sequences=4),
}


@dataclass(frozen=True)
class Side:
    """A program with its flags."""

    peer: Literal["gptcli", "trainer", "nanogpt", "litgpt"]
    flags: str
    """For people."""
    kind: Literal["ours", "defaults", "flags", "changed"]
    """changed: not the peer as it comes, or another computation; shown, but no bound speaks of it."""
    options: tuple[str, ...] = ()
    program: str = ""
    """Of PEERS, in place of the peer's own."""

    @property
    def name(self) -> str:
        return f"{self.peer}, {self.flags}"

    @property
    def is_compiled(self) -> bool:
        """Whether it needs a C++ compiler. litgpt always compiles."""
        wishes = {"--compile", "--compile=True", _COMPILE}
        return self.peer == "litgpt" or bool(wishes & {*self.options})


_ADAMW = ("--set", "training.optimizer=adamw")
_COMPILE, _NO_COMPILE = "runtime.compile=true", "runtime.compile=false"
GPTCLI = Side("gptcli", "with the peers' AdamW", "ours", _ADAMW)
# Its optimizer for new models is Muon.
_AS_IT_COMES = Side("gptcli", "as it comes", "changed")
_TRAINER = [
    Side("trainer", "as it comes", "defaults"),
    Side("trainer", "bf16, no mask", "flags", ("--bf16", "--no-mask")),
    Side("trainer", "bf16, no mask, compiled", "flags", ("--bf16", "--no-mask", "--compile")),
]
_LITGPT = [
    Side("litgpt", "as it comes", "defaults"),
    Side("litgpt", "bf16-true", "changed", ("--precision", "bf16-true")),
]
_EAGER, _COMPILED, _BF16 = "--compile=False", "--compile=True", "--dtype=bfloat16"
_AUTOCAST = "nanogpt_autocast.py"
SIDES = {
    "cpu": [
        GPTCLI,
        # In place of its own compiled code.
        Side("gptcli", "with AdamW, torch.compile", "changed", (*_ADAMW, "--set", _COMPILE)),
        _AS_IT_COMES,
        *_TRAINER,
        Side("nanogpt", "as its README says", "defaults", (_EAGER,)),
        Side("nanogpt", "compiled", "flags", (_COMPILED, _BF16)),
        Side("nanogpt", "autocast added", "changed", (_EAGER, _BF16), _AUTOCAST),
        Side("nanogpt", "autocast added, compiled", "changed", (_COMPILED, _BF16), _AUTOCAST),
        *_LITGPT,
    ],
    "cuda": [
        GPTCLI,
        Side("gptcli", "with AdamW, not compiled", "changed", (*_ADAMW, "--set", _NO_COMPILE)),
        _AS_IT_COMES,
        *_TRAINER,
        # Compiled, and in bf16 where the GPU has it.
        Side("nanogpt", "as it comes", "defaults", (_COMPILED,)),
        Side("nanogpt", "not compiled", "flags", (_EAGER,)),
        *_LITGPT,
    ],
}
# What a peer says of a step: a time, and how many of its units are a second.
_STEP = {
    "trainer": (re.compile(r"^step took ([\d.]+) s$", re.M), 1.0),
    "nanogpt": (re.compile(r"^iter \d+: .* time ([\d.]+)ms", re.M), 1000.0),
    "litgpt": (re.compile(r"iter time: ([\d.]+) ms \(step\)"), 1000.0),
}


@dataclass(frozen=True)
class Work:
    """A shape, and all that the sides need to train it."""

    shape: Shape
    sequences: int
    device: str
    folder: Path
    """For all that is written."""
    text: Path
    tokenizer: Path
    """GPT-2's; other vocabularies are learnt from the text."""
    settings: list[str]
    """gptcli's, beside those of the shape."""
    peers_python: Path
    litgpt: Path
    nanogpt: Path | None

    @property
    def tokens(self) -> int:
        """Of an optimizer step."""
        return self.sequences * self.shape.context

    @property
    def store(self) -> Path:
        """The tokens and their tokenizer as gptcli keeps them."""
        (file,) = (self.folder / "cache").glob("*/store.json")
        return file.parent

    def command(self, side: Side, run: Path) -> list[str]:
        """Return what is run; run: an empty folder for it."""
        if side.peer == "gptcli":
            return [*self.pretraining(run), *side.options]
        of_peer = {"trainer": self._trainer, "nanogpt": self._nanogpt, "litgpt": self._litgpt}
        return [*of_peer[side.peer](side, run), *side.options]

    def step_seconds(self, side: Side, run: Path, log: Path) -> list[float]:
        """Return what a side has said so far of its steps."""
        if side.peer != "gptcli":
            pattern, unit = _STEP[side.peer]
            found = pattern.findall(log.read_text(encoding="utf-8", errors="replace"))
            return [float(text) / unit for text in found]
        metrics = run / "metrics.jsonl"
        lines = metrics.read_text().split("\n")[:-1] if metrics.exists() else []
        return [self.tokens / json.loads(line)["tokens_per_second"] for line in lines]

    def pretraining(self, run: Path) -> list[str]:
        """Return the command of gptcli: no evaluation, and no end."""
        shape = self.shape
        is_gpt2 = shape.vocabulary == GPT2_VOCABULARY
        settings = {
            "model": {
                "n_layer": shape.layers,
                "n_head": shape.heads,
                "n_embd": shape.width,
                "context_length": shape.context,
            },
            "tokenizer": (
                {"name": str(self.tokenizer)} if is_gpt2 else {"train": {"vocab_size": shape.vocabulary}}
            ),
            "data": {
                "source": str(self.text),
                "validation_fraction": 0,
                "cache_dir": str(self.folder / "cache"),
            },
            "training": {
                "max_steps": 1_000_000,
                "save_steps": 1_000_000,
                "batch_size": self.sequences,
                "micro_batch_size": shape.sequences or "auto",
            },
            "runtime": {"device": self.device},
            "logging": {"log_steps": 1},
        }
        config = self.folder / "pretrain.yaml"
        config.write_text(json.dumps(settings))  # JSON is YAML too.
        command = [sys.executable, "-m", "gptcli", "pretrain", "--config", str(config)]
        given = [part for setting in self.settings for part in ("--set", setting)]
        return [*command, "--output-dir", str(run), *given]

    def _trainer(self, side: Side, run: Path) -> list[str]:
        shape = self.shape
        return [
            str(self.peers_python),
            str(PEERS / "hf_trainer.py"),
            f"--tokens={self.store / 'train.tokens'}",
            f"--vocabulary={shape.vocabulary}",
            f"--layers={shape.layers}",
            f"--heads={shape.heads}",
            f"--width={shape.width}",
            f"--context={shape.context}",
            f"--sequences={self.sequences}",
            f"--device={self.device}",
        ]

    def _nanogpt(self, side: Side, run: Path) -> list[str]:
        shape = self.shape
        for name in ("train.bin", "val.bin"):
            (run / name).symlink_to(self.store / "train.tokens")
        # Without this file it takes GPT-2's vocabulary, made a little larger, which is faster.
        if shape.vocabulary != GPT2_VOCABULARY:
            (run / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": shape.vocabulary}))
        return [
            str(self.peers_python),
            str(PEERS / side.program) if side.program else "train.py",
            f"--dataset={run}",
            f"--out_dir={run / 'out'}",
            f"--device={self.device}",
            "--eval_interval=1000000",
            "--eval_iters=1",
            f"--batch_size={self.sequences}",
            "--gradient_accumulation_steps=1",
            f"--block_size={shape.context}",
            f"--n_layer={shape.layers}",
            f"--n_head={shape.heads}",
            f"--n_embd={shape.width}",
        ]

    def _litgpt(self, side: Side, run: Path) -> list[str]:
        shape = self.shape
        config = {
            "model_name": "gpt2-like",
            "model_config": {
                "name": "gpt2-like",
                "block_size": shape.context,
                "n_layer": shape.layers,
                "n_head": shape.heads,
                "n_embd": shape.width,
                "vocab_size": shape.vocabulary,
                "padding_multiple": 64,
                "rotary_percentage": 1.0,
                "parallel_residual": False,
                "gelu_approximate": "tanh",
                "attn_bias": True,
            },
            "out_dir": str(run / "out"),
            "data": {
                "class_path": "litgpt_tokens.TokenFile",
                "init_args": {"path": str(self.store / "train.tokens")},
            },
            "train": {
                "global_batch_size": self.sequences,
                "micro_batch_size": self.sequences,
                "max_tokens": 10**12,
                "max_norm": 1.0,
                "save_interval": None,
                "tie_embeddings": True,
            },
            "logger_name": "csv",
            "devices": 1,
        }
        file = run / "pretrain.yaml"
        file.write_text(json.dumps(config))  # JSON is YAML too.
        return [str(self.litgpt), "pretrain", "--config", str(file)]
