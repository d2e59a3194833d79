"""Files made to run code, to delete, to fill memory or to write to the terminal do none of it.

Most of them carry a canary: a file that is there afterwards if their code has run.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pickle
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from gptcli.config.loading import load_settings
from gptcli.errors import ConfigError, DataError, ExitCode, ModelError
from gptcli.models.loading import load_model
from gptcli.pipelines.train import run_training
from tests.conftest import TEXT
from tests.reliability.mutations import hang_guard, memory_guard
from tests.test_cli import run_main
from tests.test_console import shown_on_a_terminal

ESCAPE = "\x1b]0;owned\x07\x1b[2J\x9b31m"


class Payload:
    """Makes the canary when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (str(self.canary),)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A path at which something is if somebody's code has run."""
    path = tmp_path / "canary"
    pickle.loads(pickle.dumps(Payload(path)))
    assert path.exists()  # The payload works.
    path.rmdir()
    return path


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    """A copy of a sound model, to be tampered with."""
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def change_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def python_canary(canary: Path, *names: str) -> str:
    """Return a module that makes the canary when it is imported, and has classes of these names."""
    classes = "".join(
        f"class {name}:\n    @classmethod\n    def from_pretrained(cls, *a, **k): pass\n"
        for name in names
    )
    return f"import os\nos.mkdir({str(canary)!r})\n{classes}"


def generate(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> int:
    options = ["--model", str(folder), "--max-new-tokens", "3", "--device", "cpu"]
    return run_main(monkeypatch, "generate", "The cat", *options, *arguments)


# Artefacts of a model folder: each returns whether the model can still be used without its malice.


def pickled_weights(folder: Path, canary: Path) -> bool:
    torch.save({"weight": Payload(canary)}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return False


def pickled_weights_beside_sound_ones(folder: Path, canary: Path) -> bool:
    torch.save({"weight": Payload(canary)}, folder / "pytorch_model.bin")
    return True


def pickle_named_safetensors(folder: Path, canary: Path) -> bool:
    torch.save({"weight": Payload(canary)}, folder / "model.safetensors")
    return False


def bare_pickle_named_safetensors(folder: Path, canary: Path) -> bool:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Payload(canary)))
    return False


def index_of_pickles(folder: Path, canary: Path) -> bool:
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Payload(canary)}, folder / "part-1.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "part-1.bin")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return False


def index_of_another_folder(folder: Path, canary: Path) -> bool:
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "../elsewhere.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return False


def training_arguments(folder: Path, canary: Path) -> bool:
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save(Payload(canary), folder / name)
    return True


def code_named_in_config(folder: Path, canary: Path) -> bool:
    (folder / "modeling_evil.py").write_text(python_canary(canary, "Config", "Model"))
    names = {"AutoConfig": "modeling_evil.Config", "AutoModelForCausalLM": "modeling_evil.Model"}
    change_json(folder / "config.json", auto_map=names, architectures=["Model"])
    return False


def code_named_in_tokenizer_config(folder: Path, canary: Path) -> bool:
    (folder / "evil.py").write_text(python_canary(canary, "Tok"))
    change_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tok", "evil.Tok"]})
    return True


def tokenizer_class_of_its_own(folder: Path, canary: Path) -> bool:
    (folder / "evil.py").write_text(python_canary(canary, "EvilTokenizer", "EvilTokenizerFast"))
    change_json(
        folder / "tokenizer_config.json",
        tokenizer_class="EvilTokenizer",
        auto_map={"AutoTokenizer": ["evil.EvilTokenizer", None]},
    )
    return True  # With the plain class, which reads the same tokenizer.json.


def generation_code(folder: Path, canary: Path) -> bool:
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(python_canary(canary, "generate"))
    change_json(folder / "generation_config.json", custom_generate=str(folder))
    return True


def kernel_from_the_hub(folder: Path, canary: Path) -> bool:
    change_json(folder / "config.json", attn_implementation="evil/kernel", use_kernels=True)
    return True


def chat_template_with_code(folder: Path, canary: Path) -> bool:
    code = f"{{{{ ''.__class__.__mro__[1].__subclasses__() }}}}{{{{ mkdir({str(canary)!r}) }}}}"
    (folder / "chat_template.jinja").write_text(code)
    return True


def foreign_architecture(folder: Path, canary: Path) -> bool:
    (folder / "evil.py").write_text(python_canary(canary, "Model"))
    change_json(folder / "config.json", model_type="evil", architectures=["evil.Model"])
    return False


def adapter_of_pickle(folder: Path, canary: Path) -> bool:
    torch.save({"weight": Payload(canary)}, folder / "adapter_model.bin")
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "evil/model"}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    return False


@pytest.mark.parametrize(
    "tamper",
    [
        pickled_weights,
        pickled_weights_beside_sound_ones,
        pickle_named_safetensors,
        bare_pickle_named_safetensors,
        index_of_pickles,
        index_of_another_folder,
        training_arguments,
        code_named_in_config,
        code_named_in_tokenizer_config,
        tokenizer_class_of_its_own,
        generation_code,
        kernel_from_the_hub,
        chat_template_with_code,
        foreign_architecture,
        adapter_of_pickle,
    ],
)
def test_no_code_of_a_model_folder_is_run(
    tamper: Callable[[Path, Path], bool],
    folder: Path,
    canary: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    is_usable = tamper(folder, canary)
    code = generate(monkeypatch, folder)
    assert not canary.exists()
    out, err = capsys.readouterr()
    if is_usable:
        assert (code, out.startswith("The cat")) == (ExitCode.DONE, True), err
    else:
        assert code == ExitCode.MODEL, err
        assert err.startswith("Error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"n_positions": 10**10},
        {"vocab_size": 10**10},
        {"n_embd": 10**6},
        {"n_inner": 10**9},
        {"n_layer": 10**6},
        {"n_head": 0},
        {"n_head": -2},
    ],
    ids=str,
)
def test_a_config_that_claims_another_size_is_refused_before_memory_is_taken(
    folder: Path, changes: dict[str, int]
) -> None:
    change_json(folder / "config.json", **changes)
    with memory_guard(), hang_guard(str(changes)), pytest.raises(ModelError):
        load_model(str(folder), torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(
    "changes", [{"num_labels": 10**9}, {"return_dict": False}, {"dtype": "x"}], ids=str
)
def test_what_a_config_says_beside_the_shape_decides_nothing(
    folder: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    change_json(folder / "config.json", **changes)
    with memory_guard(), hang_guard(str(changes)):
        assert generate(monkeypatch, folder) == ExitCode.DONE


def test_layers_that_the_config_does_not_count_are_not_left_out(folder: Path) -> None:
    change_json(folder / "config.json", n_layer=1)
    with pytest.raises(ModelError, match="n_layer 1, but its weights are of 2 layers"):
        load_model(str(folder), torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("arguments", [[], ["--temperature", "0.8"]])
def test_weights_that_are_no_numbers_are_said_so(
    folder: Path,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["transformer.ln_f.weight"][:] = torch.nan
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert generate(monkeypatch, folder, *arguments) == ExitCode.MODEL
    assert "scores are not finite" in capsys.readouterr().err


# Configs


@pytest.mark.parametrize(
    "content",
    [
        "a: !!python/object/apply:os.mkdir ['{canary}']",
        "!!python/object/new:os.mkdir ['{canary}']",
        "data: !!python/object/apply:subprocess.check_output [[mkdir, '{canary}']]",
        "task: !!python/name:os.mkdir",
        "a: &a [x]\n" + "".join(f"k{i}: &k{i} [*a, *a]\n" for i in range(40)),
        "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)),
        "data: " + "[" * 40_000,
        "data: " + "{a: " * 20_000,
        "- " * 40_000,
        "data: {source: [" + "a, " * 10_000_000 + "]}",
        "a: 1\n" * 20_000,
        "a: '" + "x" * 90_000,
        "\n".join(f"k{i}: 1" for i in range(9000)),
    ],
    ids=lambda content: content[:20].split("\n")[0],
)
def test_a_malicious_config_is_refused_at_once(
    content: str,
    canary: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(content.replace("{canary}", str(canary)))
    with memory_guard(), hang_guard(content[:20]):
        assert run_main(monkeypatch, "pretrain", "--config", str(config)) == ExitCode.USAGE
    assert capsys.readouterr().err.startswith(f"Error: {config}:")
    assert not canary.exists()


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero here")
def test_an_endless_config_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with memory_guard(), hang_guard("/dev/zero"):
        assert run_main(monkeypatch, "pretrain", "--config", "/dev/zero") == ExitCode.USAGE


# Checkpoints and run folders


def pretrain(
    config: Path, run: Path, *assignments: str, resume: bool = False, overwrite: bool = False
) -> None:
    run_training(load_settings(config, assignments), run, resume=resume, overwrite=overwrite)


def rewrite_manifest(checkpoint: Path) -> None:
    """Make the manifest tell of the files as they are now."""
    manifest = checkpoint / "manifest.json"
    facts = json.loads(manifest.read_text())
    for name in facts["files"]:
        data = (checkpoint / name).read_bytes()
        facts["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest.write_text(json.dumps(facts, indent=2))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("is_hidden", [False, True])
def test_a_pickle_in_a_checkpoint_is_not_opened(
    name: str, is_hidden: bool, config_file: Path, tmp_path: Path, canary: Path
) -> None:
    run = tmp_path / "run"
    pretrain(config_file, run, "training.max_steps=1")
    checkpoint = run / "checkpoints" / "step-00000001"
    torch.save({"state": Payload(canary)}, checkpoint / name)
    torch.save(Payload(canary), checkpoint / "optimizer.pt")
    if is_hidden:
        rewrite_manifest(checkpoint)
    with pytest.raises(ModelError):
        pretrain(config_file, run, "training.max_steps=2", resume=True)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_checkpoint_file_that_is_a_link_out_of_the_folder_is_not_followed(
    name: str, config_file: Path, tmp_path: Path
) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    pretrain(config_file, run, "training.max_steps=1")
    file = run / "checkpoints" / "step-00000001" / name
    file.rename(outside)
    file.symlink_to(outside)
    before = outside.read_bytes()
    with pytest.raises(ModelError):
        pretrain(config_file, run, "training.max_steps=2", resume=True)
    assert outside.read_bytes() == before


def victim_of(folder: Path) -> dict[str, bytes]:
    """Return all that is in a folder that nobody should touch."""
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("option", ["resume", "overwrite"])
@pytest.mark.parametrize(
    "name",
    [
        "step-00000000",
        "step-00000001",
        ".step-00000002.partial",
    ],
)
def test_nothing_is_removed_through_a_link_among_checkpoints(
    option: str, name: str, config_file: Path, tmp_path: Path
) -> None:
    run, victim = tmp_path / "run", tmp_path / "victim"
    pretrain(config_file, run, "training.max_steps=3", "training.save_steps=2")
    victim.mkdir()
    (victim / "manifest.json").write_text("{}")
    (victim / "thesis.txt").write_text("of years")
    before = victim_of(victim)
    (run / "checkpoints" / name).symlink_to(victim, target_is_directory=True)
    pretrain(
        config_file,
        run,
        "training.max_steps=6",
        "training.save_steps=2",
        resume=option == "resume",
        overwrite=option == "overwrite",
    )
    assert victim_of(victim) == before
    # Rotation went on without it.
    names = [path.name for path in (run / "checkpoints").iterdir() if not path.is_symlink()]
    assert "step-00000006" in names


@pytest.mark.parametrize("name", ["model", "checkpoints"])
@pytest.mark.parametrize("option", ["resume", "overwrite"])
def test_a_part_of_a_run_that_is_a_link_is_refused(
    option: str, name: str, config_file: Path, tmp_path: Path
) -> None:
    run, victim = tmp_path / "run", tmp_path / "victim"
    pretrain(config_file, run, "training.max_steps=3")
    shutil.move(run / name, victim)
    (victim / "thesis.txt").write_text("of years")
    before = victim_of(victim)
    (run / name).symlink_to(victim, target_is_directory=True)
    is_resumed = option == "resume"
    with pytest.raises(ConfigError, match=f"/{name} is a link"):
        pretrain(config_file, run, "training.max_steps=4", resume=is_resumed, overwrite=not is_resumed)
    assert victim_of(victim) == before


@pytest.mark.parametrize("option", ["resume", "overwrite"])
def test_a_model_left_half_written_that_is_a_link_is_not_followed(
    option: str, config_file: Path, tmp_path: Path
) -> None:
    run, victim = tmp_path / "run", tmp_path / "victim"
    pretrain(config_file, run, "training.max_steps=3")
    victim.mkdir()
    (victim / "thesis.txt").write_text("of years")
    before = victim_of(victim)
    (run / ".model.partial").symlink_to(victim, target_is_directory=True)
    is_resumed = option == "resume"
    pretrain(config_file, run, "training.max_steps=4", resume=is_resumed, overwrite=not is_resumed)
    assert victim_of(victim) == before
    assert not (run / ".model.partial").exists()


# Data


def test_a_script_beside_the_data_is_not_run(tmp_path: Path, config_file: Path, canary: Path) -> None:
    data = tmp_path / "corpus"
    data.mkdir()
    (data / "corpus.py").write_text(python_canary(canary, "Builder"))
    (data / "text.txt").write_text(TEXT)
    run = tmp_path / "run"
    pretrain(config_file, run, f"data.source={data}", "training.max_steps=1")
    assert not canary.exists()
    ledger = json.loads((run / "data.json").read_text())
    assert ledger["reading"]["files_left_out"] == [str(data / "corpus.py")]


@pytest.mark.parametrize("source", ["corpus", "corpus/corpus.py", "./corpus", "corpus/corpus", "c*.py"])
def test_a_loading_script_is_no_data(
    source: str,
    tmp_path: Path,
    config_file: Path,
    canary: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "corpus").mkdir()
    for script in (tmp_path / "corpus" / "corpus.py", tmp_path / "corpus.py"):
        script.write_text(python_canary(canary, "Builder"))
    monkeypatch.chdir(tmp_path)
    code = run_main(
        monkeypatch, "pretrain", "--config", str(config_file), "--set", f"data.source={source}"
    )
    assert code in (ExitCode.DATA, ExitCode.ENVIRONMENT)
    assert capsys.readouterr().err.count("Error: ") == 1
    assert not canary.exists()


@pytest.mark.parametrize("name", ["data.pkl", "data.npy", "data.pt", "data.pkl.gz"])
def test_pickled_data_is_not_read(name: str, tmp_path: Path, config_file: Path, canary: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "text.txt").write_text(TEXT)
    if name.endswith(".npy"):
        np.save(data / name, np.array([Payload(canary)]), allow_pickle=True)
    else:
        content = pickle.dumps(Payload(canary))
        (data / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    pretrain(config_file, tmp_path / "run", f"data.source={data}", "training.max_steps=1")
    assert not canary.exists()


@pytest.mark.parametrize(
    ("name", "block", "what"),
    [("bomb.txt.gz", b" ", "white space"), ("bomb.jsonl.gz", b"x", "has a line of over")],
)
def test_a_gzip_bomb_fills_no_memory(
    name: str, block: bytes, what: str, tmp_path: Path, config_file: Path
) -> None:
    with gzip.open(tmp_path / name, "wb", compresslevel=1) as file:
        for _ in range(20):
            file.write(block * 50_000_000)
    settings = load_settings(config_file, [f"data.source={tmp_path / name}"])
    with memory_guard(), hang_guard(name), pytest.raises(DataError, match=what):
        run_training(settings, tmp_path / "run", dry_run=True)


# Terminals


def write_csv(folder: Path) -> list[str]:
    file = folder / "data.csv"
    file.write_text(f'"{ESCAPE}",b\n1,2\n')
    return ["pretrain", "--config", str(folder / "small.yaml"), "--set", f"data.source={file}"]


def write_jsonl(folder: Path) -> list[str]:
    file = folder / "data.jsonl"
    file.write_text(f'[{{"text": "{ESCAPE}"\n')
    return ["pretrain", "--config", str(folder / "small.yaml"), "--set", f"data.source={file}"]


def write_row_of_another_type(folder: Path) -> list[str]:
    file = folder / "data.jsonl"
    file.write_text(json.dumps({"text": [ESCAPE]}) + "\n")
    return ["pretrain", "--config", str(folder / "small.yaml"), "--set", f"data.source={file}"]


def name_a_file(folder: Path) -> list[str]:
    file = folder / f"{ESCAPE}.txt"
    file.write_text("")
    return ["pretrain", "--config", str(folder / "small.yaml"), "--set", f"data.source={folder}/*.txt*"]


def name_a_missing_config(folder: Path) -> list[str]:
    return ["pretrain", "--config", f"{folder}/{ESCAPE}.yaml"]


def write_a_key(folder: Path) -> list[str]:
    (folder / "bad.yaml").write_text('"\\e]0;owned\\a\\e[2J": 1\n')
    return ["pretrain", "--config", str(folder / "bad.yaml")]


def set_a_key(folder: Path) -> list[str]:
    return ["pretrain", "--config", str(folder / "small.yaml"), "--set", f"{ESCAPE}=1"]


def name_an_option(folder: Path) -> list[str]:
    return ["pretrain", f"--{ESCAPE}"]


def name_a_model(folder: Path) -> list[str]:
    return ["generate", "x", "--model", f"./{ESCAPE}"]


def write_model_type(folder: Path) -> list[str]:
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": ESCAPE}))
    return ["generate", "x", "--model", str(model)]


def prompt_with(folder: Path) -> list[str]:
    return ["generate", ESCAPE * 30, "--model", "MODEL"]


@pytest.mark.parametrize("debug", ["0", "1"])
@pytest.mark.parametrize(
    "prepare",
    [
        write_csv,
        write_jsonl,
        write_row_of_another_type,
        name_a_missing_config,
        write_a_key,
        set_a_key,
        name_an_option,
        name_a_model,
        write_model_type,
        prompt_with,
    ],
)
def test_errors_send_no_control_characters_to_a_terminal(
    prepare: Callable[[Path], list[str]],
    debug: str,
    tmp_path: Path,
    config_file: Path,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GPTCLI_DEBUG", debug)
    monkeypatch.chdir(tmp_path)
    arguments = [str(model_folder) if part == "MODEL" else part for part in prepare(tmp_path)]
    codes = list[int]()
    shown = shown_on_a_terminal(
        monkeypatch, "stderr", lambda: codes.append(run_main(monkeypatch, *arguments))
    )
    assert codes[0] in (ExitCode.USAGE, ExitCode.DATA, ExitCode.MODEL)
    _, error, line = shown.partition("Error: ")
    assert error
    assert not set(line) & {"\x1b", "\x07", "\x9b"}
    # Before it, a bar moves the cursor: with none of what the artefact holds.
    assert not re.search("\x1b\\]|\x1b\\[2J|\x07|\x9b", shown)


def test_a_file_name_in_the_ledger_is_no_escape(
    tmp_path: Path, config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / f"data{ESCAPE}"
    data.mkdir()
    (data / f"{ESCAPE}.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    source = json.dumps(str(data))
    arguments = ["pretrain", "--config", str(config_file), "--set", f"data.source={source}"]
    codes = list[int]()
    shown = shown_on_a_terminal(
        monkeypatch,
        "stderr",
        lambda: codes.append(run_main(monkeypatch, *arguments, "--output-dir", f"run{ESCAPE}")),
    )
    assert codes == [ExitCode.DONE]
    # The bar is drawn with escape sequences of its own.
    assert "\x1b]0;owned" not in shown and "\x1b[2J" not in shown and "\x9b" not in shown
    assert "\x1b" not in Path(f"run{ESCAPE}", "data.json").read_text()


@pytest.fixture
def escaping_model(folder: Path) -> Path:
    """A model that says the escape character, whatever it is asked."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    (token,) = tokenizer.encode("\x1b")
    weights = load_file(folder / "model.safetensors")
    # The last layer norm gives its bias alone, which is the row of that token.
    row = torch.ones_like(weights["transformer.ln_f.bias"])
    weights["transformer.ln_f.weight"].zero_()
    weights["transformer.ln_f.bias"].copy_(row)
    weights["transformer.wte.weight"].zero_()
    weights["transformer.wte.weight"][token] = row
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("arguments", [[], ["--json"], ["--temperature", "0.01", "-n", "2"]])
def test_prompts_and_model_output_send_no_control_characters_to_a_terminal(
    arguments: list[str],
    escaping_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    options = ["--model", str(escaping_model), "--max-new-tokens", "3", "--device", "cpu"]
    command = ["generate", ESCAPE, *options, *arguments]
    codes = list[int]()
    shown = shown_on_a_terminal(
        monkeypatch, "stdout", lambda: codes.append(run_main(monkeypatch, *command))
    )
    assert codes == [ExitCode.DONE]
    assert not set(shown) & {"\x1b", "\x07", "\x9b"}
    assert "x1b" in shown or "u001b" in shown
    # A file gets what the model said.
    capfd.readouterr()
    assert run_main(monkeypatch, *command) == ExitCode.DONE
    out, _ = capfd.readouterr()
    assert "\x1b\x1b\x1b" in out or "\\u001b\\u001b\\u001b" in out


# Secrets


@pytest.mark.parametrize("debug", ["0", "1"])
def test_tokens_of_the_environment_are_neither_printed_nor_written(
    debug: str,
    config_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    secret = "hf_canaryOfTheEnvironment"
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, secret)
    monkeypatch.setenv("GPTCLI_DEBUG", debug)
    run = tmp_path / "run"
    arguments = ["pretrain", "--config", str(config_file), "--output-dir", str(run), "--json"]
    assert run_main(monkeypatch, *arguments) == ExitCode.DONE
    monkeypatch.setattr(sys, "argv", ["gptcli", *arguments])
    for failing in (
        arguments,
        ["generate", "x", "--model", "no-such/model"],
        ["generate", "x", "--model", "no-such-model"],
        [*arguments[:3], "--set", "data.source=no-such/data", "--output-dir", str(tmp_path / "b")],
    ):
        assert run_main(monkeypatch, *failing) != ExitCode.DONE
    out, err = capfd.readouterr()
    assert secret not in out + err
    files = [path for path in run.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if secret.encode() in path.read_bytes()]
