"""What there is to work with, and whether the main path works on it: offline, in a temporary folder."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from gptcli.config.loading import load_settings
from gptcli.config.names import VARIABLE_PREFIX
from gptcli.config.schema import RuntimeSettings, Settings, TokenizerTraining
from gptcli.data.preparation import cache_folder
from gptcli.data.tokenizing import train_tokenizer
from gptcli.errors import EnvironmentProblem, GptcliError
from gptcli.generation.decoder import Decoder, NewToken, Request
from gptcli.generation.sampling import Sampling
from gptcli.models.loading import load_model
from gptcli.pipelines.doctor_compiled import check_compiled_code
from gptcli.pipelines.train import run_training
from gptcli.training.checkpoint import list_checkpoints, step_of
from gptcli.training.device import choose_compute
from gptcli.training.run import library_versions

SCRIPTS = "Hello, world! Привет, мир! 你好，世界！ नमस्ते दुनिया! مرحبا بالعالم! 🎉\n"  # noqa: RUF001
STEPS = 60
CONFIG = """\
model: {n_layer: 2, n_head: 2, n_embd: 32, context_length: 32, dropout: 0.1}
tokenizer:
  train: {vocab_size: 300}
training: {max_steps: STEPS, batch_size: 4, warmup_steps: 5, save_steps: 5}
evaluation: {eval_steps: 20}
runtime: {device: cpu, precision: fp32, threads: 1}
""".replace("STEPS", str(STEPS))


@dataclass(frozen=True)
class Check:
    """One line of the diagnosis."""

    name: str
    is_fine: bool
    detail: str


def examine() -> Iterator[Check]:
    """Yield the checks one by one, as they are made. A failed check does not stop the others."""
    versions = ", ".join(f"{name} {number}" for name, number in library_versions().items())
    yield Check("versions", True, f"{versions}, on {platform.platform()}")
    yield Check("devices", True, _devices())
    yield _checked("precision", _precision)
    yield _checked("compiled code", check_compiled_code)
    yield _checked("token cache", lambda: _disk(cache_folder(None)))
    yield _checked("this folder", lambda: _disk(Path.cwd()))
    with tempfile.TemporaryDirectory(prefix="gptcli-doctor-") as name:
        folder = Path(name)
        lines = (f"The {n}th line of a text that {n % 7} people read.\n" for n in range(400))
        (folder / "text.txt").write_text("".join(lines) + SCRIPTS, encoding="utf-8")
        (folder / "config.yaml").write_text(CONFIG)
        yield _checked("tokenizer", _tokenizer)
        yield _checked("pretraining", lambda: _pretraining(folder))
        yield _checked("kill and resume", lambda: _kill_and_resume(folder))
        yield _checked("generation", lambda: _generation(folder))


def _checked(name: str, work: Callable[[], str]) -> Check:
    try:
        return Check(name, True, work())
    except GptcliError as error:
        return Check(name, False, str(error))
    except Exception as error:  # A diagnosis goes on, whatever is broken.
        return Check(name, False, f"{type(error).__name__}: {error}")


def _devices() -> str:
    found = [f"cpu ({os.cpu_count()} cores, {torch.get_num_threads()} threads)"]
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        found.append(f"cuda:{index} ({facts.name}, {facts.total_memory / 2**30:.0f} GiB)")
    if torch.backends.mps.is_available():
        found.append("mps")
    return ", ".join(found)


def _precision() -> str:
    return f"auto takes {choose_compute(RuntimeSettings(), for_training=True).describe()}"


def _disk(folder: Path) -> str:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        raise EnvironmentProblem(f"{folder} cannot be written: {error.strerror}.") from error
    return f"{folder} can be written; {shutil.disk_usage(folder).free / 1e9:.1f} GB free"


def _tokenizer() -> str:
    tokenizer = train_tokenizer(iter([SCRIPTS * 5]), TokenizerTraining(vocab_size=300))
    token_ids = tokenizer.encode(SCRIPTS, add_special_tokens=False)
    if tokenizer.decode(token_ids) != SCRIPTS:
        raise EnvironmentProblem("text in six scripts does not come back as it was.")
    return f"text in six scripts comes back from {len(token_ids)} tokens exactly"


def _assignments(folder: Path) -> list[str]:
    return [f"data.source={folder / 'text.txt'}", f"data.cache_dir={folder / 'cache'}"]


def _settings(folder: Path) -> Settings:
    # What the environment changes is for the user's runs.
    return load_settings(folder / "config.yaml", _assignments(folder), environment={})


def _pretraining(folder: Path) -> str:
    settings = _settings(folder)
    result = run_training(settings, folder / "whole")
    logged = [json.loads(line) for line in (folder / "whole/metrics.jsonl").open()]
    losses = [entry["loss"] for entry in logged if "split" not in entry]
    if losses[-1] >= losses[0]:
        raise EnvironmentProblem(f"the loss rose from {losses[0]:.3f} to {losses[-1]:.3f}.")
    return (
        f"{result.step} steps in {result.training_seconds:.1f} s, "
        f"loss {losses[0]:.3f} to {losses[-1]:.3f}"
    )


def _kill_and_resume(folder: Path) -> str:
    run = folder / "killed"
    command = [sys.executable, "-m", "gptcli", "pretrain", "--config", str(folder / "config.yaml")]
    command += ["--output-dir", str(run)]
    for assignment in _assignments(folder):
        command += ["--set", assignment]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(VARIABLE_PREFIX)}
    process = subprocess.Popen(  # noqa: S603
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if list_checkpoints(run / "checkpoints"):
            break
        time.sleep(0.005)
    process.kill()
    process.wait()
    saved = list_checkpoints(run / "checkpoints")
    if not saved:
        raise EnvironmentProblem("a run in a process of its own saved no checkpoint.")
    settings = _settings(folder)
    run_training(settings, run, resume=True)
    name = f"checkpoints/step-{STEPS:08d}/model.safetensors"
    whole, resumed = load_file(folder / "whole" / name), load_file(run / name)
    if any(not torch.equal(whole[key], resumed[key]) for key in whole):
        raise EnvironmentProblem("the resumed run has other weights than the one that ran through.")
    return f"killed after step {step_of(saved[0])}, resumed to the same weights, bit for bit"


def _generation(folder: Path) -> str:
    loaded = load_model(str(folder / "whole" / "model"), torch.device("cpu"), torch.float32)
    prompt_ids = loaded.tokenizer.encode("The 7th line", add_special_tokens=False)
    end_of_text_id = loaded.tokenizer.eos_token_id
    decoder = Decoder(loaded.model, end_of_text_id, torch.float32)
    events = decoder.decode([Request(prompt_ids, 10)], Sampling())
    ours = [event.token_id for event in events if isinstance(event, NewToken)]
    inputs = torch.tensor([prompt_ids])
    expected = loaded.model.generate(
        inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_new_tokens=10
    )[0, len(prompt_ids) :].tolist()
    if ours != [token_id for token_id in expected if token_id != end_of_text_id]:
        raise EnvironmentProblem("greedy decoding differs from Hugging Face's generate.")
    return f"{len(ours)} greedy tokens, the same as Hugging Face's generate"
