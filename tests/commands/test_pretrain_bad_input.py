"""What `gptcli pretrain` says to bad input: one line, the right exit code, before any training."""

from __future__ import annotations

import gzip
import re
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gptcli.cli import main
from tests.conftest import TEXT

CONFIG, DATA, MODEL, ENVIRONMENT = 2, 3, 4, 5
# Without the time of day, so that a test with it has the same name in every process.
HALF_GZIP = gzip.compress(TEXT.encode(), mtime=0)[:60]

Pretrain = Callable[..., tuple[int, str]]


@pytest.fixture
def pretrain(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], config_file: Path
) -> Pretrain:
    """Run `gptcli pretrain` from the config's folder; return its exit code and its one error."""
    monkeypatch.chdir(config_file.parent)

    def run(*arguments: str | Path) -> tuple[int, str]:
        options = ["--config", "small.yaml", "--output-dir", "run"]
        monkeypatch.setattr(sys, "argv", ["gptcli", "pretrain", *options, *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        *notes, last = err.splitlines()
        assert out == ""
        assert last.startswith("Error: ")
        assert not [line for line in notes if re.match(r"Error|Traceback|Training \d|Step", line)]
        assert not Path("run/model").exists()
        assert not Path("run/config.yaml").exists()
        assert isinstance(end.value.code, int)
        return end.value.code, last.removeprefix("Error: ")

    return run


# Settings


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("training: {warmup_step: 5}", "training.warmup_step is not a setting. Did you mean"),
        ("train: {max_steps: 5}", "train is not a setting. Did you mean"),
        ("training: {num_train_epochs: 5}", "Use training.epochs instead."),
        ("training: {learning_rate: -1}", "training.learning_rate is -1; it must be more than 0."),
        ("training: {learning_rate: fast}", "training.learning_rate is 'fast'; it must be a number."),
        ("training: {batch_size: 0}", "training.batch_size is 0; it must be at least 1."),
        ("model: {size: small, n_head: 7}", "model: n_embd 768 is not divisible by n_head 7"),
        ("model: huge", "model.size is 'huge'; it must be 'tiny', 'mini', 'small'"),
        (
            "runtime: {device: gpu}",
            "runtime.device is 'gpu'; it must be auto, cpu, cuda, cuda:N or mps.",
        ),
        ("data: {source: }", "data.source is empty; it must be a path, a glob"),
        ("task: language-modelling", "task is set twice, first on line 1."),
        ("data: [1, 2", "it is not valid YAML"),
    ],
)
def test_a_wrong_setting_is_named_with_its_line(
    pretrain: Pretrain, config_file: Path, line: str, message: str
) -> None:
    config_file.write_text(f"task: language-modelling\n{line}\n")
    code, error = pretrain()
    assert code == CONFIG
    assert re.match(r"small\.yaml:[23]: ", error)
    assert message in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "nope.yaml"], "nope.yaml: no such config file."),
        (["--config", "."], ". is a folder; --config takes a YAML file."),
        (["--set", "training.max_steps"], "write it as section.key=value."),
        (["--set", "training.max_step=5"], "Did you mean training.max_steps?"),
        (["--set", "training.micro_batch_size=5"], "micro_batch_size 5 is more than batch_size 4"),
        (["--set", "data.encoding=utf-9"], "data.encoding is 'utf-9'; Python knows no such"),
        (["--set", "data.source=builtin:bible"], "the embedded text is builtin:python-docs,"),
        (["--resume", "--overwrite"], "--resume and --overwrite exclude each other."),
        (["--output-dir", "text.txt"], "text.txt is a file; --output-dir takes a folder."),
    ],
)
def test_a_wrong_option_is_a_usage_error(pretrain: Pretrain, arguments: list[str], message: str) -> None:
    code, error = pretrain(*arguments)
    assert code == CONFIG
    assert message in error


def test_a_number_in_scientific_notation_is_a_number(pretrain: Pretrain, config_file: Path) -> None:
    config_file.write_text("training: {learning_rate: 1e-4}\ndata: {source: nope.txt}\n")
    assert pretrain()[0] == DATA  # The config is fine.


@pytest.mark.parametrize("options", [[], ["--overwrite"], ["--resume"]])
def test_a_folder_with_other_files_is_left_alone(
    pretrain: Pretrain, config_file: Path, options: list[str]
) -> None:
    folder = config_file.parent / "run"
    folder.mkdir()
    (folder / "thesis.tex").write_text("important")
    code, error = pretrain(*options)
    assert code == CONFIG
    assert error.startswith("run is not empty")
    assert "--output-dir" in error
    assert [file.name for file in folder.iterdir()] == ["thesis.tex"]


# Data


def test_a_missing_file_is_named(pretrain: Pretrain, tmp_path: Path) -> None:
    code, error = pretrain("--set", "data.source=nope.txt")
    assert code == DATA
    assert error.startswith("nope.txt: no such file or folder (data.source")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "empty.txt is empty (0 bytes)"),
        ("blank.txt", b" \n\t\n" * 100, "blank.txt: there is no text, only white space"),
        ("short.txt", b"Hello, world.\n", "less than one sequence of model.context_length 32"),
        ("latin.txt", b"caf\xe9 au lait\n" * 50, "latin.txt: byte 0xe9 at offset 3 is not UTF-8"),
        (
            "late.txt",
            b"0123456789" * 150_000 + b"\xff",
            "late.txt: byte 0xff at offset 1,500,000 is not UTF-8",
        ),
        ("cut.txt", TEXT.encode() + "é".encode()[:1], f"byte 0xc3 at offset {len(TEXT):,} is not UTF-8"),
        ("wide.txt", TEXT.encode("utf-16"), "It looks like UTF-16: set data.encoding to utf-16"),
        ("picture.png", b"\x89PNG", "picture.png: files of type .png are not read"),
        ("rows.jsonl", b'{"text": "a"}\n{"text": \n', "rows.jsonl:2 is not JSON"),
        ("list.jsonl", b'["a"]\n', "list.jsonl:1 is not a JSON object"),
        ("other.jsonl", b'{"body": "a"}\n', "no column 'text'; its columns are: body"),
        ("other.csv", b"body,label\na,b\n", "no column 'text'; its columns are: body, label"),
        ("ragged.csv", b"text,label\na,b\nc\n", "ragged.csv:3 has 1 fields"),
        ("no.parquet", b"PAR0 nonsense", "no.parquet is not a readable Parquet file"),
        ("no.txt.gz", b"plain text", "no.txt.gz is not a whole gzip file"),
        ("half.txt.gz", HALF_GZIP, "half.txt.gz is not a whole gzip file"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_reason(
    pretrain: Pretrain, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    code, error = pretrain("--set", f"data.source={name}")
    assert code == DATA
    assert message in error
    assert ("data.encoding" in error) == ("UTF" in message)


def test_a_bad_byte_is_found_in_held_out_text_too(pretrain: Pretrain, tmp_path: Path) -> None:
    (tmp_path / "held.txt").write_bytes(b"abc\xff")
    code, error = pretrain("--set", "data.validation_source=held.txt")
    assert (code, error.partition(" is not")[0]) == (DATA, "held.txt: byte 0xff at offset 3")


@pytest.mark.parametrize(
    "source", ["pictures", "pictures/", "pictures/*", "no/such/*.txt", "pictures/**"]
)
def test_a_folder_or_glob_without_text_is_named(pretrain: Pretrain, tmp_path: Path, source: str) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"\x89PNG")
    code, error = pretrain("--set", f"data.source={source}")
    assert code == DATA
    assert source.rstrip("/") in error


# Models


def test_a_tokenizer_folder_without_a_tokenizer_is_a_model_error(
    pretrain: Pretrain, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    code, error = pretrain("--set", "tokenizer.name=empty")
    assert code == MODEL
    assert error.startswith("empty holds no tokenizer: tokenizer.json")


def test_a_broken_tokenizer_is_a_model_error(pretrain: Pretrain, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    code, error = pretrain("--set", "tokenizer.name=broken")
    assert code == MODEL
    assert error.startswith("broken: its tokenizer cannot be loaded: ")


# Environment


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        # No machine has a GPU of that number.
        (["--set", "runtime.device=cuda:99"], "runtime.device is cuda:99, but "),
        (["--set", "runtime.precision=fp16"], "runtime.precision is fp16, which needs a GPU."),
        (["--output-dir", "text.txt/run"], "text.txt/run cannot be written: Not a directory."),
        (["--set", "data.cache_dir=text.txt"], "text.txt"),
    ],
)
def test_what_this_machine_lacks_is_an_environment_error(
    pretrain: Pretrain, arguments: list[str], message: str
) -> None:
    code, error = pretrain(*arguments)
    assert code == ENVIRONMENT
    assert message in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu_says_what_to_use(pretrain: Pretrain) -> None:
    code, error = pretrain("--set", "runtime.device=cuda")
    assert code == ENVIRONMENT
    assert re.fullmatch(r"runtime\.device is cuda, but .*\. Use auto or cpu\.", error)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.source", "is no file or folder here, and the hub cannot be reached"),
        ("tokenizer.name", "is no folder here and not in the hub cache, and the hub cannot be reached"),
    ],
)
def test_a_hub_name_without_network_is_an_environment_error(
    pretrain: Pretrain, setting: str, message: str
) -> None:
    name = "no-such-team/no-such-name"
    code, error = pretrain("--dry-run", "--set", f"{setting}={name}")
    assert code == ENVIRONMENT
    assert error.startswith(f"{name} {message}")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit a process's memory")
def test_a_model_too_large_for_the_memory_is_an_environment_error(
    pretrain: Pretrain,
) -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (64 * 10**9, before[1]))
    try:
        # The first matrix of a block has 100,000 x 300,000 x 4 bytes, 120 GB.
        code, error = pretrain("--dry-run", "--set", "model.n_embd=100000")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert code == ENVIRONMENT
    assert error.startswith("The device is out of memory.")
