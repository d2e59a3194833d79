"""Damaged input of every kind ends in a result or in a GptcliError: no traceback, no hang."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from gptcli.cli import main
from gptcli.config.loading import dump_settings, load_settings
from gptcli.config.schema import Settings
from gptcli.data.preparation import prepare_text
from gptcli.errors import ExitCode, GptcliError
from gptcli.pipelines.train import run_training
from tests.conftest import REPOSITORY, SENTENCES, TEXT
from tests.reliability.mutations import (
    hang_guard,
    memory_guard,
    mutate_bytes,
    mutate_json_file,
)

REFUSALS = {ExitCode.USAGE, ExitCode.DATA, ExitCode.MODEL, ExitCode.ENVIRONMENT}


def batches(normal: int, slow: int) -> list[object]:
    """Return ranges of seeds to parametrize with: the first is run always, the rest is slow."""
    return [
        pytest.param(range(normal), id=f"{normal}"),
        pytest.param(range(normal, normal + slow), id=f"{slow}_more", marks=pytest.mark.slow),
    ]


@pytest.fixture(autouse=True)
def _bounded_memory() -> Iterator[None]:
    with memory_guard():
        yield


@pytest.mark.parametrize("seeds", batches(1000, 9000))
def test_damaged_configs_are_read_or_refused(seeds: range, tmp_path: Path) -> None:
    originals = [path.read_bytes() for path in sorted((REPOSITORY / "configs").rglob("*.yaml"))]
    originals.append(dump_settings(Settings()).encode())
    file, refused = tmp_path / "damaged.yaml", 0
    for seed in seeds:
        draw = random.Random(f"config {seed}")
        file.write_bytes(mutate_bytes(draw, draw.choice(originals)))
        with hang_guard(f"config {seed}"):
            try:
                settings = load_settings(file)
            except GptcliError as error:
                refused += 1
                assert error.exit_code == ExitCode.USAGE
            else:
                dumped = tmp_path / "dumped.yaml"
                dumped.write_text(dump_settings(settings), encoding="utf-8")
                assert load_settings(dumped) == settings
    assert 0 < refused < len(seeds)


@pytest.mark.parametrize("seeds", batches(200, 1800))
def test_damaged_assignments_are_read_or_refused(seeds: range) -> None:
    originals = [
        b"training.learning_rate=1e-4",
        b"model=small",
        b"model.n_layer=2",
        b"tokenizer.train.vocab_size=300",
        b"data.source=[a.txt, b.txt]",
    ]
    for seed in seeds:
        draw = random.Random(f"assignment {seed}")
        assignment = mutate_bytes(draw, draw.choice(originals)).decode(errors="surrogateescape")
        with hang_guard(f"assignment {seed}"):
            try:
                load_settings(None, [assignment])
            except GptcliError as error:
                assert error.exit_code == ExitCode.USAGE


@pytest.fixture(scope="module")
def data_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A sound file of each type that is read, by its suffix."""
    rows = [{"text": sentence.strip(), "number": number} for number, sentence in enumerate(SENTENCES)]
    parquet = tmp_path_factory.mktemp("parquet") / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), parquet)
    plain = {
        ".txt": TEXT.encode(),
        ".jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode(),
        ".csv": ("text,number\n" + "".join(f'"{x["text"]}",{x["number"]}\n' for x in rows)).encode(),
        ".parquet": parquet.read_bytes(),
    }
    return plain | {f"{suffix}.gz": gzip.compress(data, mtime=0) for suffix, data in plain.items()}


@pytest.mark.parametrize("seeds", batches(200, 1800))
def test_damaged_data_is_prepared_or_refused(
    seeds: range, data_files: dict[str, bytes], model_folder: Path, tmp_path: Path
) -> None:
    endings: set[str] = set()
    for seed in seeds:
        draw = random.Random(f"data {seed}")
        suffix = draw.choice(sorted(data_files))
        data = data_files[suffix]
        if suffix.endswith(".gz") and draw.random() < 0.5:
            # Damage inside a sound gzip file.
            data = gzip.compress(mutate_bytes(draw, gzip.decompress(data)), mtime=0)
        elif suffix == ".parquet" and draw.random() < 0.5:
            # What says where all is stands at the end.
            data = mutate_bytes(draw, data[::-1], near=2000)[::-1]
        else:
            data = mutate_bytes(draw, data)
        file = tmp_path / f"damaged{suffix}"
        file.write_bytes(data)
        cache = tmp_path / "cache"
        sections = {
            "tokenizer": {"name": str(model_folder)},
            "data": {
                "source": str(file),
                "cache_dir": str(cache),
                "encoding_errors": draw.choice(["strict", "replace"]),
                "text_unit": draw.choice(["file", "line"]),
            },
        }
        with hang_guard(f"data {seed}"):
            try:
                prepared = prepare_text(load_settings(None, (), sections))
            except GptcliError as error:
                assert error.exit_code == ExitCode.DATA, error
                endings.add("refused")
            else:
                ledger = prepared.ledger
                assert ledger.train.bytes + ledger.validation.bytes == ledger.reading.bytes
                endings.add("prepared")
        # Nothing half made is left for the next run to find.
        assert not list(cache.glob("building-*"))
        shutil.rmtree(cache, ignore_errors=True)
    assert endings == {"prepared", "refused"}


def generate(monkeypatch: pytest.MonkeyPatch, folder: Path) -> int:
    """Run `gptcli generate` on a model folder in this process; return its exit code."""
    arguments = [
        "generate",
        "The cat",
        "--model",
        str(folder),
        "--max-new-tokens",
        "2",
        "--temperature",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", ["gptcli", *arguments, "--device", "cpu"])
    with pytest.raises(SystemExit) as end:
        main()
    assert isinstance(end.value.code, int)
    return end.value.code


def check_generation(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], folder: Path, what: str
) -> int:
    """Generate from a damaged model; fail unless it works or is refused in one line."""
    capfd.readouterr()
    with hang_guard(what):
        code = generate(monkeypatch, folder)
    _, said = capfd.readouterr()
    if code != ExitCode.DONE:
        assert code in REFUSALS, f"{what}: exit {code}: {said}"
        assert said.startswith("Error: ") and said.count("\n") == 1, f"{what}: {said}"
    return code


def mutate_weights(draw: random.Random, data: bytes) -> bytes:
    """Return a safetensors file with damage to the length of its header, the header, or its end."""
    length = int.from_bytes(data[:8], "little")
    header, tensors = json.loads(data[8 : 8 + length]), data[8 + length :]
    match draw.randrange(5):
        case 0:
            claimed = draw.choice(
                [0, 1, length - 1, length + 1, 2**31, 2**63 - 1, 2**64 - 1, draw.getrandbits(64)]
            )
            return claimed.to_bytes(8, "little") + data[8:]
        case 1:
            text = mutate_bytes(draw, data[8 : 8 + length])
            return len(text).to_bytes(8, "little") + text + tensors
        case 2:
            return mutate_bytes(draw, data, near=8 + length)
        case 3:
            name = draw.choice(sorted(header.keys() - {"__metadata__"}))
            key = draw.choice(["dtype", "shape", "data_offsets"])
            match key:
                case "dtype":
                    header[name][key] = draw.choice(
                        ["F64", "BOOL", "F8_E4M3", "I64", "U8", "F16", "", None, 3]
                    )
                case "shape":
                    header[name][key] = draw.choice(
                        [
                            [],
                            [0],
                            [-1],
                            [2**63],
                            [2**32, 2**32],
                            header[name][key][::-1],
                            [1] * 5000,
                            "x",
                        ]
                    )
                case _:
                    begin, end = header[name][key]
                    header[name][key] = draw.choice(
                        [
                            [0, 0],
                            [end, begin],
                            [begin, 2**63],
                            [begin - 4, end - 4],
                            [begin],
                            [begin, 1e400],
                        ]
                    )
        case _:
            name = draw.choice(sorted(header.keys() - {"__metadata__"}))
            header[draw.choice(["x", "", "\x00", "__metadata__", name + "_"])] = header.pop(name)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + tensors


@pytest.mark.parametrize("seeds", batches(50, 450))
def test_damaged_weights_are_refused_by_generate(
    seeds: range,
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    weights = folder / "model.safetensors"
    sound, refused = weights.read_bytes(), 0
    for seed in seeds:
        # In place of the file, never in it: an earlier model may still be mapped into memory.
        weights.unlink()
        weights.write_bytes(mutate_weights(random.Random(f"weights {seed}"), sound))
        refused += check_generation(monkeypatch, capfd, folder, f"weights {seed}") == ExitCode.MODEL
    assert refused > len(seeds) / 2


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
)
@pytest.mark.parametrize("seeds", batches(25, 125))
def test_damaged_model_files_are_read_or_refused_by_generate(
    seeds: range,
    name: str,
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    file, refused = folder / name, 0
    sound = file.read_bytes()
    for seed in seeds:
        file.write_bytes(sound)
        mutate_json_file(random.Random(f"{name} {seed}"), file)
        refused += check_generation(monkeypatch, capfd, folder, f"{name} {seed}") != ExitCode.DONE
    # Of a model's own settings for generation nothing is read.
    assert (refused > 0) is (name != "generation_config.json")


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """A run of three steps with its config beside it, to be resumed with more."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "text.txt").write_text(TEXT)
    config = {
        "model": {"n_layer": 1, "n_head": 2, "n_embd": 16, "context_length": 16},
        "tokenizer": str(model_folder),
        "data": {"source": str(folder / "text.txt"), "cache_dir": str(folder / "cache")},
        "training": {"max_steps": 3, "batch_size": 2, "save_steps": 2, "warmup_steps": 0},
        "runtime": {"device": "cpu", "precision": "fp32"},
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    run_training(load_settings(folder / "config.yaml"), folder / "run")
    return folder


def rewrite_manifest(checkpoint: Path) -> None:
    """Make the manifest tell of the files as they are now, as somebody who tampers would."""
    manifest = checkpoint / "manifest.json"
    facts = json.loads(manifest.read_text())
    for name in facts["files"]:
        data = (checkpoint / name).read_bytes()
        facts["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest.write_text(json.dumps(facts, indent=2))


@pytest.mark.parametrize("is_tampering", [False, True], ids=["damaged", "tampered"])
@pytest.mark.parametrize("seeds", batches(25, 250))
def test_damaged_checkpoints_are_passed_over_or_refused(
    seeds: range, is_tampering: bool, finished_run: Path, tmp_path: Path
) -> None:
    settings = load_settings(finished_run / "config.yaml", ["training.max_steps=4"])
    names = ["model.safetensors", "optimizer.safetensors", "state.json"]
    if not is_tampering:
        names.append("manifest.json")
    for seed in seeds:
        draw = random.Random(f"checkpoint {is_tampering} {seed}")
        run = Path(shutil.copytree(finished_run / "run", tmp_path / f"run-{seed}"))
        checkpoint = run / "checkpoints" / "step-00000003"
        file = checkpoint / draw.choice(names)
        if file.suffix == ".json":
            mutate_json_file(draw, file)
        else:
            file.write_bytes(mutate_weights(draw, file.read_bytes()))
        if is_tampering:
            rewrite_manifest(checkpoint)
        with hang_guard(f"checkpoint {seed} ({file.name})"):
            try:
                assert run_training(settings, run, resume=True).step == 4
            except GptcliError as error:
                # Damage alone is no obstacle: the checkpoint of step 2 is whole.
                assert is_tampering, error
        shutil.rmtree(run)
