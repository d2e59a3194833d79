"""benchmarks/inference.py: what it makes of its runs, and that its sides continue prompts alike."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from tests.conftest import REPOSITORY, TEXT

Module = Callable[[str], Any]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Module:
    """Imports a program of benchmarks/, which is no package."""
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return importlib.import_module


@pytest.fixture
def wide_model(module: Module, model: Any, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A model whose continuations are no repetition of one token, and never end."""
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 10
    model.save_pretrained(tmp_path / "source")
    module("inference").write_model(tmp_path / "source", tokenizer, tmp_path / "model")
    return tmp_path / "model"


# Reports.


def test_ratios_are_those_of_the_same_rounds(module: Module) -> None:
    inference, sides = module("inference"), module("inference_sides")
    runs = {
        sides.GPTCLI_INT8: [100.0, 300.0, 200.0],
        sides.CTRANSLATE2_INT8: [50.0, 300.0, 80.0],  # 2, 1 and 2.5 times.
        sides.LLAMA_CPP_Q8_0: [40.0],  # Failed in the second round; 2.5 times.
        sides.TRANSFORMERS_BF16: [],
    }
    assert inference.speed_table(runs) == [
        "|  | tokens/s | gptcli, int8 is |",
        "|---|---|---|",
        "| gptcli, int8 | 200.0 (100.0 to 300.0) |  |",
        "| ctranslate2, int8 | 80.0 (50.0 to 300.0) | 2.00 times as fast |",
        "| llama.cpp, Q8_0 | 40.0 | 2.50 times as fast |",
        "| transformers, bf16 | failed |  |",
    ]
    assert inference.verdicts(inference.WANTED["one-stream"], runs) == [
        "Wanted: gptcli, int8 2 times as fast as ctranslate2, int8; it is 2.00.",
        "Wanted: gptcli, int8 1.3 times as fast as llama.cpp, Q8_0; it is 2.50.",
    ]


def test_bandwidth_is_a_share_of_reading_the_weights(module: Module) -> None:
    inference = module("inference")
    # 12 layers of 12 * 768 * 768, and a head of 50,257 * 768.
    assert inference.weight_bytes(GPT2Config()) == 84_934_656 + 38_597_376
    line = inference.bandwidth_line(100.0, 120_000_000, 20e9, 16e9)
    assert line == (
        "Wanted: 60% of the bandwidth, gptcli, int8; it is 60%: a token makes 120.0 MB of weights read, "
        "and this machine reads a buffer of that size at 20.0 GB/s (one of 1 GiB at 16.0)."
    )


def test_what_stands_again_behind_the_same_two_tokens_is_repeated(module: Module) -> None:
    repeated_share = module("inference").repeated_share
    assert repeated_share([1, 2, 3], [4, 1, 2, 3]) == 1 / 4  # The last 3, behind 1 and 2.
    assert repeated_share([1, 2, 3, 1, 2, 3], [5, 6]) == 0  # What the prompt repeats does not count.
    assert repeated_share([7], [7, 7, 7, 7]) == 2 / 4  # From the second three of 7 on.


def test_prompts_are_counted_where_they_are_what_is_read(module: Module) -> None:
    inference, sides = module("inference"), module("inference_sides")
    request = sides.Request([[1, 2, 3], [4]], [5, 7])
    answer = sides.Answer(2.0, [5, 7], None, None)
    for counts_prompts, expected in ((False, 6.0), (True, 2.0)):
        work = inference.Work("name", "title", "description", request, 1, counts_prompts)
        assert work.tokens_per_second(answer) == expected


def test_agreement_is_with_transformers_in_float32(module: Module) -> None:
    inference, sides = module("inference"), module("inference_sides")
    found = {
        sides.TRANSFORMERS_FP32: [" a", " b", " c"],
        sides.GPTCLI_INT8: [" a", " x", " c"],
    }
    assert inference.agreement_table(found)[2:] == ["| gptcli, int8 | 2 of 3 |"]


def test_starts_are_compared_round_by_round(module: Module) -> None:
    times = {
        "gptcli": [0.1, 0.2],
        "transformers": [1.0, 4.0],  # 10 and 20 times.
        "gptcli generate": [3.0, 3.3],  # 1 and 1.1 times.
        "bare cost": [3.0, 3.0],
    }
    assert module("inference_startup").startup_lines(times) == [
        "| | seconds |",
        "|---|---|",
        "| `gptcli --help` | 0.15 (0.10 to 0.20) |",
        "| `transformers --help` | 2.50 (1.00 to 4.00) |",
        "| `gptcli generate` until its first token | 3.15 (3.00 to 3.30) |",
        "| importing torch and transformers' GPT-2, loading the weights | 3.00 (3.00 to 3.00) |",
        "",
        "- Wanted: `gptcli --help` 12 times as fast as `transformers --help`; it is 15.0.",
        "- Wanted: the first token after at most 1.15 times the bare cost; it is 1.05.",
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")
def test_without_a_gpu_nothing_is_measured_on_one(
    module: Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["inference.py", "one-stream", "--device", "cuda", "--peers", ""])
    with pytest.raises(SystemExit, match=r"^torch sees no CUDA GPU here. Nothing was measured.$"):
        module("inference").read_options()


# Sides.


def test_pieces_of_text_are_the_tokens_of_their_own_text(
    module: Module, tokenizer: PreTrainedTokenizerFast, text_file: Path
) -> None:
    prompts = module("inference").Prompts(text_file, tokenizer)
    pieces = prompts.cut([3, 1, 8])
    assert [len(piece) for piece in pieces] == [3, 1, 8]
    for piece in pieces:
        text = tokenizer.decode(piece)
        assert text in TEXT
        assert tokenizer.encode(text) == piece
    with pytest.raises(SystemExit, match="too short"):
        prompts.cut([100_000])


@pytest.mark.slow
def test_sides_continue_prompts_of_different_lengths_alike(
    module: Module, wide_model: Path, tokenizer: PreTrainedTokenizerFast, text_file: Path, tmp_path: Path
) -> None:
    inference, sides, workers = (
        module(name) for name in ("inference", "inference_sides", "inference_workers")
    )
    prompts = inference.Prompts(text_file, tokenizer).cut([9, 2, 5])
    request = sides.Request(prompts, [3, 12, 7], at_once=2)
    here = Path(sys.executable)
    job = sides.Job(sides.GPTCLI_FP32, str(wide_model), str(tmp_path), str(here), "cpu", 1)
    pythons = {"gptcli": here, "transformers": here, "ctranslate2": tmp_path / "python"}
    wrong = sides.Side("gptcli", "int3")
    chosen = (sides.GPTCLI_FP32, sides.TRANSFORMERS_FP32, sides.CTRANSLATE2_INT8, wrong)
    with workers.Workers(chosen, job, pythons) as loaded:
        ours, theirs = (loaded.of[side].answer(request) for side in chosen[:2])
    assert loaded.left_out[0] == f"ctranslate2, int8 was left out: {tmp_path / 'python'} is not there."
    assert loaded.left_out[1].startswith("gptcli, int3 was left out: ")
    assert ours.counts == theirs.counts == [3, 12, 7]
    assert ours.texts == [tokenizer.decode(ids) for ids in theirs.ids]
    # Alone, none is padded.
    model = GPT2LMHeadModel.from_pretrained(wide_model)
    for prompt, count, ids in zip(prompts, request.new_tokens, theirs.ids, strict=True):
        alone = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=count)
        assert alone[0, len(prompt) :].tolist() == ids
    assert len(set(theirs.ids[1])) > 1
