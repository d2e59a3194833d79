"""What tests share: a throw-away tokenizer, a 2-layer model, the command line as a person uses it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

# Read when transformers is imported, here and in every process that a test starts.
os.environ["HF_HUB_OFFLINE"] = "1"
# Threads cost these small models more than they bring, above all where tests run beside each other.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest

# Shells let what they start in the background ignore Ctrl-C, and nohup a hang-up, as does all that is
# started then; tests send both.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from gptcli.config.schema import ModelSettings, TokenizerTraining
from gptcli.data.tokenizing import train_tokenizer
from gptcli.models.architecture import model_config, new_model
from gptcli.models.saving import save_model
from gptcli.native import kernels
from gptcli.native import product as native_product
from gptcli.native.kernels import NoKernelError, build_kernels, load_kernels

# Where much else runs, a compiler may wait for minutes; without it, tests would be of torch's operators.
kernels._MAX_SECONDS = 3600

REPOSITORY = Path(__file__).parent.parent
# For a command in a process of its own, on a busy machine.
TIMEOUT_SECONDS = 120
# Real data beside the project; tests that want it skip where it is absent.
SHARED_DATA = REPOSITORY.parent / "shared" / "data"

# Long enough for a vocabulary of 300 and for a few sequences.
SENTENCES = [
    f"The {size} {animal} sat on the {place}, and it was {mood}.\n"
    for size in ("small", "large", "old")
    for animal in ("cat", "dog", "owl")
    for place in ("mat", "roof", "wall")
    for mood in ("happy", "sad", "asleep")
]
TEXT = "".join(SENTENCES)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep every test off the user's cache and settings."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    for variable in [name for name in os.environ if name.startswith("GPTCLI_")]:
        monkeypatch.delenv(variable)  # They are settings, too.


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(iter([TEXT]), TokenizerTraining(vocab_size=300))


@pytest.fixture(scope="session")
def model_settings() -> ModelSettings:
    return ModelSettings(n_layer=2, n_head=2, n_embd=32, context_length=32)


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast, model_settings: ModelSettings) -> GPT2LMHeadModel:
    """A GPT-2 of two layers, 32 wide, with random weights and a context of 32."""
    return new_model(model_config(model_settings, tokenizer), seed=0)


@pytest.fixture(scope="session")
def model_folder(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: PreTrainedTokenizerFast,
    model_settings: ModelSettings,
) -> Path:
    """The same model, saved."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_model(new_model(model_config(model_settings, tokenizer), seed=0), tokenizer, folder)
    return folder


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    return file


@pytest.fixture
def config_file(tmp_path: Path, text_file: Path) -> Path:
    """The config of a run of a few seconds."""
    file = tmp_path / "small.yaml"
    file.write_text(
        f"""\
model: {{n_layer: 2, n_head: 2, n_embd: 32, context_length: 32}}
tokenizer:
  train: {{vocab_size: 300}}
data:
  source: {text_file}
training:
  max_steps: 6
  batch_size: 4
  learning_rate: 1e-3
  warmup_steps: 2
  save_steps: 3
evaluation: {{eval_steps: 3}}
runtime: {{device: cpu, precision: fp32}}
logging: {{log_steps: 1}}
"""
    )
    return file


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "gptcli", *map(str, arguments)]


def environment(**changes: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), **changes}


Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def gptcli(tmp_path: Path) -> Cli:
    """Run `gptcli` in a process of its own, from a folder of its own; return what it printed."""

    def run(
        *arguments: str | Path, stdin: str | None = "", variables: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments),
            input=stdin,
            capture_output=True,
            text=True,
            encoding="utf-8",
            cwd=tmp_path,
            env=environment(**(variables or {})),
            timeout=TIMEOUT_SECONDS,
            check=False,
        )

    return run


class Process(subprocess.Popen[str]):
    """A process whose streams are pipes to the test."""

    stdin: IO[str]
    stdout: IO[str]
    stderr: IO[str]


Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start `gptcli` as the fixture of that name does, and leave it running while the test goes on.

    A process that the test would wait for in vain is killed.
    """
    with ExitStack() as stack:

        def start(*arguments: str | Path) -> Process:
            pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
            process = Process(
                command(*arguments),
                **pipes,
                text=True,
                encoding="utf-8",
                cwd=tmp_path,
                env=environment(),
            )
            stack.enter_context(process)
            guard = threading.Timer(TIMEOUT_SECONDS, process.kill)
            guard.start()
            stack.callback(process.kill)
            stack.callback(guard.cancel)
            return process

        yield start


@pytest.fixture
def shared_data() -> Path:
    if not SHARED_DATA.is_dir():
        pytest.skip("the real data sets (../shared/data) are not here")
    return SHARED_DATA


def skip_without_compiled_code(name: str) -> None:
    """Skip a test of native/NAME.cpp where it cannot be compiled."""
    if load_kernels(name) is not None:  # Kept by this process: each test has a cache of its own.
        return
    try:
        build_kernels(name)
    except NoKernelError as error:
        pytest.skip(f"no compiled code here: {error}")


def skip_without_native_products() -> None:
    """Skip a test of what multiplies by native/product.cpp where torch is as fast."""
    skip_without_compiled_code("product")
    if not native_product.is_faster(native_product.LEAST_WEIGHTS):
        pytest.skip("no compiled code here: it is for processors that multiply small matrices (AMX)")


def thread_counts(*counts: int) -> Iterator[int]:
    """Let torch use each number of threads in turn, and then as many as before."""
    before = torch.get_num_threads()
    try:
        for count in counts:
            torch.set_num_threads(count)
            yield count
    finally:
        torch.set_num_threads(before)


def errors(found: Sequence[Tensor], expected: Sequence[Tensor]) -> list[float]:
    """Return how large the error of each is, next to what is expected."""
    return [
        ((one - other).norm() / other.norm()).item() for one, other in zip(found, expected, strict=True)
    ]
