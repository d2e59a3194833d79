from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from gptcli.config.schema import Settings
from gptcli.errors import EnvironmentProblem
from gptcli.pipelines.train import run_training
from gptcli.training.compiling import FusableGelu, choose_compilation
from gptcli.training.device import Compute
from gptcli.training.loss import _fusable_loss_and_change, loss_and_change
from tests.conftest import TEXT

HAS_COMPILER = any(map(shutil.which, ("g++", "clang++", "c++")))
BF16 = Compute(torch.device("cpu"), "bf16", "as set", "as set")
FP32 = Compute(torch.device("cpu"), "fp32", "as set", "as set")
MPS = Compute(torch.device("mps"), "bf16", "as set", "as set")
NOT_MISSING: dict[str, str] = {"g++": "/bin/g++"}


@pytest.mark.parametrize(
    ("values", "compute", "tokens", "expected"),
    [
        ({}, BF16, 10**9, (True, "6e+15 operations are worth it")),
        ({}, BF16, 10**6, (False, "6e+12 operations are done before it has paid back")),
        ({}, FP32, 10**9, (False, "in fp32 it gains next to nothing")),
        ({}, MPS, 10**9, (False, "it is not tried on mps")),
        ({"task": "classification"}, BF16, 10**9, (False, "sequences differ in length")),
        (
            {"training": {"gradient_checkpointing": True}},
            BF16,
            10**9,
            (False, "not with lora or gradient_checkpointing"),
        ),
        ({"runtime": {"compile": False}}, BF16, 10**9, (False, "as set")),
        ({"runtime": {"compile": True}}, FP32, 10, (True, "as set")),
    ],
)
def test_what_is_compiled_is_decided_by_what_is_planned(
    values: dict[str, Any],
    compute: Compute,
    tokens: int,
    expected: tuple[bool, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "which", NOT_MISSING.get)
    settings = Settings.model_validate(values)
    assert choose_compilation(settings, compute, 10**6, tokens) == expected


def test_layers_with_compiled_code_are_compiled_by_torch_only_if_it_is_asked_for() -> None:
    found = choose_compilation(Settings(), BF16, 10**6, 10**9, is_native=True)
    assert found == (False, "the layers have compiled code of their own")
    wanted = Settings.model_validate({"runtime": {"compile": True}})
    if HAS_COMPILER:
        assert choose_compilation(wanted, BF16, 10**6, 10**9, is_native=True) == (True, "as set")


def test_without_a_compiler_nothing_is_compiled_unless_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    is_compiled, why = choose_compilation(Settings(), BF16, 10**6, 10**9)
    assert (is_compiled, why) == (False, "there is no C++ compiler (g++ or clang++)")
    wanted = Settings.model_validate({"runtime": {"compile": True}})
    with pytest.raises(EnvironmentProblem, match=r"runtime\.compile is true, but there is no C"):
        choose_compilation(wanted, BF16, 10**6, 10**9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_activation_that_compilers_fuse_is_that_of_torch(dtype: torch.dtype) -> None:
    inputs = torch.linspace(-12, 12, 4001).to(dtype)
    found, expected = FusableGelu()(inputs), F.gelu(inputs, approximate="tanh")
    # Neighbours in bfloat16 are 2^-8 to 2^-7 of them apart.
    rtol = 2**-7 if dtype is torch.bfloat16 else 1e-6
    torch.testing.assert_close(found, expected, rtol=rtol, atol=2e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_that_compilers_fuse_is_the_other_one(smoothing: float) -> None:
    torch.manual_seed(0)
    scores, chosen = torch.randn(5, 11), torch.randint(0, 11, (5, 1))
    for one, other in zip(
        _fusable_loss_and_change(scores, chosen, smoothing),
        loss_and_change(scores, chosen, smoothing),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def settings_of(folder: Path, **runtime: Any) -> Settings:
    text = folder / "text.txt"
    text.write_text(TEXT * 20, encoding="utf-8")
    return Settings.model_validate(
        {
            "model": {"n_layer": 2, "n_head": 2, "n_embd": 32, "context_length": 16},
            "tokenizer": {"train": {"vocab_size": 300}},
            "data": {"source": str(text), "cache_dir": str(folder / "cache")},
            "training": {"max_steps": 6, "batch_size": 4, "save_steps": 3, "warmup_steps": 2},
            "evaluation": {"eval_steps": 3},
            "runtime": {"device": "cpu", "precision": "bf16", **runtime},
        }
    )


@pytest.mark.slow
@pytest.mark.skipif(not HAS_COMPILER, reason="there is no C++ compiler")
def test_a_compiled_run_learns_the_same_but_for_rounding_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole, parts, plain = (tmp_path / name for name in ("whole", "parts", "plain"))
    settings = settings_of(tmp_path, compile=True)
    compiled = run_training(settings, whole)
    first = settings.training.model_copy(update={"max_steps": 6, "max_tokens": 3 * 4 * 16})
    run_training(settings.model_copy(update={"training": first}), parts)
    # What was decided holds on, also where it is left open now.
    run_training(settings_of(tmp_path), parts, resume=True)
    one, other = (
        load_file(run / "checkpoints" / "step-00000006" / "model.safetensors") for run in (whole, parts)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    uncompiled = run_training(settings_of(tmp_path, compile=False), plain)
    assert compiled.evaluation is not None
    assert uncompiled.evaluation is not None
    assert compiled.evaluation["loss"] == pytest.approx(uncompiled.evaluation["loss"], rel=2e-3)
