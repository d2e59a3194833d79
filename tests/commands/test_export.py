"""`gptcli export` and `gptcli import` as a person types them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.commands.conftest import Run, refused
from tests.nanogpt_checkpoints import nanogpt_logits, nanogpt_weights, write_checkpoint

IDS = [5, 250, 17, 3]


def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        found: torch.Tensor = model(torch.tensor([IDS])).logits[0]
    return found


def test_a_model_folder_comes_out_as_it_went_in(run: Run, model_folder: Path, tmp_path: Path) -> None:
    (result,) = run("export", "--model", model_folder, "--output", "new/out", "--json").rows
    out = tmp_path / "new" / "out"
    assert torch.equal(logits(out), logits(model_folder))
    assert AutoTokenizer.from_pretrained(out).encode("The cat") == AutoTokenizer.from_pretrained(
        model_folder
    ).encode("The cat")
    assert result["parameters"] == sum(
        weight.numel() for weight in AutoModelForCausalLM.from_pretrained(out).parameters()
    )
    assert result["bytes"] == sum(file.stat().st_size for file in out.iterdir())
    assert (result["format"], result["precision"], result["output"]) == (
        "huggingface",
        "fp32",
        "new/out",
    )
    assert "Not known" in (out / "README.md").read_text()


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_half_precision_rounds_each_weight_once(
    run: Run, model_folder: Path, tmp_path: Path, precision: str, dtype: torch.dtype
) -> None:
    assert run("export", "--model", model_folder, "--output", "out", "--precision", precision).code == 0
    before = load_file(model_folder / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], before[name].to(dtype)) for name in before)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == dtype


def test_adapters_of_a_run_are_merged_and_its_card_has_its_facts(
    run: Run, adapted_run: Path, model_folder: Path, tmp_path: Path
) -> None:
    assert run("export", "--model", "run", "--output", "out").code == 0
    out = tmp_path / "out"
    assert torch.equal(logits(out), logits(adapted_run / "model"))
    assert not torch.equal(logits(out), logits(model_folder))
    assert not any("lora" in name for name in load_file(out / "model.safetensors"))
    card = (out / "README.md").read_text()
    assert "- text.txt" in card
    assert "| steps | 6 |" in card
    assert "Only the scores above were measured" in card
    # The same of the folder that the run has written.
    assert run("export", "--model", "run/model", "--output", "again").code == 0
    assert (tmp_path / "again" / "README.md").read_text() == card.replace("# out", "# again")


def test_what_cannot_be_exported_is_refused_before_anything_is_written(
    run: Run, model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for options, message in {
        ("--output", "full"): "--output full is not empty; it is left alone. Choose another.",
        ("--output", "full/mine.txt"): "--output full/mine.txt is a file; it takes a folder.",
        ("--output", "out", "--format", "onnx"): "--format is 'onnx'; it must be one of huggingface, "
        "ctranslate2, gguf.",
        (
            "--output",
            "out",
            "--precision",
            "int8",
        ): "--precision is 'int8'; with --format huggingface it must be one of fp32, bf16, fp16.",
    }.items():
        assert refused(run("export", "--model", model_folder, *options), 2) == message
    assert refused(run("export", "--model", "./no", "--output", "out"), 4).startswith("./no: no such")
    assert not (tmp_path / "out").exists()
    (tmp_path / "empty").mkdir()
    assert run("export", "--model", model_folder, "--output", "empty").code == 0


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "int8"])
def test_ctranslate2_opens_its_folder_and_chooses_the_same_tokens(
    run: Run, model_folder: Path, tmp_path: Path, precision: str
) -> None:
    engine = pytest.importorskip("ctranslate2")
    options = ("--output", "out", "--format", "ctranslate2", "--precision", precision)
    shown = run("export", "--model", model_folder, *options, "--json")
    (result,) = shown.rows
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    tokens = tokenizer.tokenize("The cat")
    (found,) = engine.Generator(str(tmp_path / "out"), device="cpu").generate_batch(
        [tokens], max_length=8, sampling_topk=1, include_prompt_in_result=False
    )
    assert 0 < len(found.sequences_ids[0]) <= 8
    assert {file.name for file in (tmp_path / "out").iterdir()} >= {"model.bin", "README.md"}
    assert not list(tmp_path.glob(".*"))  # Nothing is left beside it.
    assert result["compared_tokens"] == 31  # The context is 32 tokens.
    if precision == "fp32":
        model = AutoModelForCausalLM.from_pretrained(model_folder)
        ids = torch.tensor([tokenizer.encode("The cat")])
        greedy = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False
        )
        assert found.sequences_ids[0] == greedy[0, ids.shape[1] :].tolist()
        assert result["equal_tokens"] == result["compared_tokens"]
        assert shown.stderr == ""


def test_ctranslate2_is_not_given_what_it_would_read_as_something_else(
    run: Run, model_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ctranslate2")
    shutil.copytree(model_folder, tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"layer_norm_epsilon": 1e-6}))
    command = ("export", "--model", "model", "--output", "out")
    assert refused(run(*command, "--format", "ctranslate2"), 4) == (
        "model: its config.json says layer_norm_epsilon 1e-06, and CTranslate2's converter takes "
        "GPT-2's 1e-05. --format huggingface keeps it."
    )
    assert run(*command).code == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["layer_norm_epsilon"] == 1e-6


def test_numbers_that_half_precision_cannot_hold_are_not_lost_in_it(
    run: Run, model_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(model_folder, tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["transformer.ln_f.weight"][0] = 1e5  # float16 ends at 65,504.
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    line = refused(run("export", "--model", "model", "--output", "out", "--precision", "fp16"), 4)
    assert line == (
        "model: transformer.ln_f.weight has numbers that fp16 cannot hold. Try --precision fp32."
    )
    assert not (tmp_path / "out").exists()


def test_an_imported_checkpoint_computes_what_nanogpt_does_and_generates(
    run: Run, model_folder: Path, tmp_path: Path
) -> None:
    weights = nanogpt_weights(320, bias=False)
    write_checkpoint(tmp_path / "ckpt.pt", weights, prefix="_orig_mod.")
    shutil.copytree(model_folder, tmp_path / "run" / "model")
    (tmp_path / "run" / "run.json").write_text("{}")
    command = ("import", "ckpt.pt", "--tokenizer", "run", "--output", "out")
    (result,) = run(*command, "--json").rows
    assert (result["layers"], result["context_length"], result["vocab_size"]) == (2, 32, 300)
    torch.testing.assert_close(
        logits(tmp_path / "out"), nanogpt_logits(weights, IDS)[:, :300], rtol=1e-4, atol=1e-4
    )
    assert run("generate", "The cat", "--model", "out", "--max-new-tokens", "3").code == 0
    assert refused(run(*command), 2) == "--output out is not empty; it is left alone. Choose another."
    other = ("import", "no.pt", "--tokenizer", model_folder, "--output", "other")
    assert refused(run(*other), 4) == "no.pt: no such file."
