"""`gptcli export --format gguf`, as a person types it: what the file holds and llama.cpp makes of it."""

from __future__ import annotations

import json
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import (
    AutoTokenizer,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from gptcli.models.saving import save_model
from tests.commands.conftest import Run, refused
from tests.conftest import SHARED_DATA, TEXT

gguf = pytest.importorskip("gguf", reason="the package gguf (extra gguf) is not here")

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
# What llama.cpp calls the second layer's weights and those of no layer, and whether its rows are our
# columns.
NAMES = {
    "token_embd.weight": ("wte.weight", False),
    "position_embd.weight": ("wpe.weight", False),
    "output_norm.weight": ("ln_f.weight", False),
    "output_norm.bias": ("ln_f.bias", False),
    "blk.1.attn_norm.weight": ("h.1.ln_1.weight", False),
    "blk.1.attn_norm.bias": ("h.1.ln_1.bias", False),
    "blk.1.attn_qkv.weight": ("h.1.attn.c_attn.weight", True),
    "blk.1.attn_qkv.bias": ("h.1.attn.c_attn.bias", False),
    "blk.1.attn_output.weight": ("h.1.attn.c_proj.weight", True),
    "blk.1.attn_output.bias": ("h.1.attn.c_proj.bias", False),
    "blk.1.ffn_norm.weight": ("h.1.ln_2.weight", False),
    "blk.1.ffn_norm.bias": ("h.1.ln_2.bias", False),
    "blk.1.ffn_up.weight": ("h.1.mlp.c_fc.weight", True),
    "blk.1.ffn_up.bias": ("h.1.mlp.c_fc.bias", False),
    "blk.1.ffn_down.weight": ("h.1.mlp.c_proj.weight", True),
    "blk.1.ffn_down.bias": ("h.1.mlp.c_proj.bias", False),
}
IN_FULL = "position_embd.weight"
TEXTS = [
    "The small cat sat on the mat.",
    "  two  spaces\tand\ttabs \n\n\n and lines\r\n   ",
    "Grüße aus Österreich: Ärzte, Straßen, naïve cafés; e\u0301 und ñ",
    "👩‍👩‍👧‍👦 🚀🦙 ✅ 🏳️‍🌈 𝕏 ☃",
    "don't I'LL you've 'tis it''s 'd'm",
    "3 33 333 1,000.5 ½ ³ ٣٤ Ⅷ",
    "我想 привет ქართული कर्म ไทย 한국어",
    "\xa0\u3000\u2009\u200b\x85\x1c\x00\ufeff_\u00ad",
    'f(x) = {"a": [1, 2]}  # !?...------',
    "Before.<|endoftext|>After.",
]


@pytest.fixture
def varied_model(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """A model whose likeliest tokens are no close call: with large weights, and a bias for none."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 10
            weight += 0.1 * torch.randn_like(weight)
    return model


def read(folder: Path) -> Any:
    return gguf.GGUFReader(folder / "model.gguf")


def contents(reader: Any, key: str) -> Any:
    return reader.get_field(key).contents()


@pytest.mark.parametrize(
    ("precision", "dtype", "stored_as"),
    [
        ("fp32", torch.float32, "F32"),
        ("bf16", torch.bfloat16, "BF16"),
        ("fp16", torch.float16, "F16"),
        ("q8_0", None, "Q8_0"),
    ],
)
def test_the_file_holds_the_weights_with_a_row_an_output(
    run: Run,
    varied_model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    precision: str,
    dtype: torch.dtype | None,
    stored_as: str,
) -> None:
    save_model(varied_model, tokenizer, tmp_path / "model")
    options = ("--output", "new/out", "--format", "gguf", "--precision", precision, "--json")
    (result,) = run("export", "--model", "model", *options).rows
    out = tmp_path / "new" / "out"
    reader = read(out)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == 4 + 12 * 2  # The head is the embedding.
    for name, (ours, is_transposed) in NAMES.items():
        weight = varied_model.get_parameter(f"transformer.{ours}").detach()
        rows = weight.T if is_transposed else weight
        tensor = tensors[name]
        is_full = rows.ndim == 1 or name == IN_FULL
        assert tensor.tensor_type.name == ("F32" if is_full else stored_as)
        found = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if is_full or dtype is not None:
            rounded = rows if is_full else rows.to(dtype).float()
            assert np.array_equal(found, rounded.numpy()), name
            continue
        # 32 numbers share a scale, which float16 rounds: the largest is 127, the others whole numbers.
        blocks = rows.reshape(-1, 32).numpy()
        step = np.abs(blocks).max(1, keepdims=True) / 127
        differences = np.abs(found.reshape(-1, 32) - blocks)
        assert (differences <= step / 2 + np.abs(blocks) / 1024).all(), name
        assert differences.max() > 0
    assert {file.name for file in out.iterdir()} == {"model.gguf", "README.md"}
    assert not list(out.parent.glob(".*"))  # Nothing is left beside it.
    assert "library_name: gguf\n" in (out / "README.md").read_text()
    assert (result["format"], result["precision"]) == ("gguf", precision)
    assert result["bytes"] == sum(file.stat().st_size for file in out.iterdir())
    assert result["compared_tokens"] == 31  # The context is 32 tokens.
    if precision == "fp32":
        assert result["equal_tokens"] == 31


def test_the_file_says_the_shape_and_holds_the_tokenizer(
    run: Run, model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    own = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()),
        eos_token=tokenizer.eos_token,
        chat_template=TEMPLATE,
    )
    own.add_tokens(["Straße"])
    own.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    model.resize_token_embeddings(305)
    model.config.layer_norm_epsilon = 1e-6
    save_model(model, own, tmp_path / "model")
    assert run("export", "--model", "model", "--output", "out", "--format", "gguf").code == 0
    reader = read(tmp_path / "out")
    said = {
        "general.architecture": "gpt2",
        "general.name": "out",
        "general.file_type": 0,
        "gpt2.context_length": 32,
        "gpt2.embedding_length": 32,
        "gpt2.feed_forward_length": 128,
        "gpt2.block_count": 2,
        "gpt2.attention.head_count": 2,
        "gpt2.vocab_size": 305,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.eot_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }
    assert {key: contents(reader, key) for key in said} == said
    assert contents(reader, "gpt2.attention.layer_norm_epsilon") == pytest.approx(1e-6)
    tokens = contents(reader, "tokenizer.ggml.tokens")
    assert tokens[:300] == tokenizer.convert_ids_to_tokens(range(300))
    assert tokens[300:302] == ["Straße", "<|user|>"]
    assert len(tokens) == len(set(tokens)) == 305
    # 1 is normal, 3 control, 4 defined by the user, 5 unused (gguf's documentation).
    assert contents(reader, "tokenizer.ggml.token_type") == [3, *[1] * 299, 4, 3, 5, 5, 5]
    rules = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    assert contents(reader, "tokenizer.ggml.merges") == [f"{one} {two}" for one, two in rules["merges"]]


def test_a_head_of_its_own_and_a_width_inside_are_kept(
    run: Run, model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    config = model.config
    config.tie_word_embeddings = False
    config.n_inner = 96
    torch.manual_seed(0)
    save_model(GPT2LMHeadModel(config), tokenizer, tmp_path / "model")
    assert run("export", "--model", "model", "--output", "out", "--format", "gguf").code == 0
    reader = read(tmp_path / "out")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    weights = load_file(tmp_path / "model" / "model.safetensors")
    assert np.array_equal(tensors["output.weight"].data, weights["lm_head.weight"].numpy())
    assert not torch.equal(weights["lm_head.weight"], weights["transformer.wte.weight"])
    assert contents(reader, "gpt2.feed_forward_length") == 96


def test_adapters_of_a_run_are_merged(
    run: Run, adapted_run: Path, model_folder: Path, tmp_path: Path
) -> None:
    options = ("--output", "out", "--format", "gguf", "--precision", "fp32")
    assert run("export", "--model", "run", *options).code == 0
    tensors = {tensor.name: tensor.data for tensor in read(tmp_path / "out").tensors}
    assert len(tensors) == 4 + 12 * 2
    before, merged = (
        load_file(of / "model.safetensors") for of in (model_folder, adapted_run / "model")
    )
    for name, (ours, is_transposed) in NAMES.items():
        weight = merged[f"transformer.{ours}"]
        assert np.array_equal(tensors[name], (weight.T if is_transposed else weight).numpy()), name
    adapted = "transformer.h.1.attn.c_attn.weight"
    assert not torch.equal(merged[adapted], before[adapted])


END_OF_TEXT = {
    "id": 0,
    "content": "<|endoftext|>",
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
}
TOKENS_DIFFER = "so llama.cpp would make other tokens of a text."


@pytest.mark.parametrize(
    ("name", "section", "change", "says"),
    [
        (
            "config",
            None,
            {"activation_function": "relu"},
            "its config.json says activation_function relu, and llama.cpp takes GPT-2's gelu_new.",
        ),
        (
            "config",
            None,
            {"scale_attn_by_inverse_layer_idx": True},
            "its config.json says scale_attn_by_inverse_layer_idx True, and llama.cpp takes GPT-2's "
            "False.",
        ),
        (
            "tokenizer",
            "pre_tokenizer",
            {"add_prefix_space": True},
            f"its tokenizer does not cut a text into words as GPT-2's does, {TOKENS_DIFFER}",
        ),
        (
            "tokenizer",
            "model",
            {"type": "WordLevel", "vocab": {"<|endoftext|>": 0}, "unk_token": "<|endoftext|>"},
            f"its tokenizer is WordLevel, no byte-level BPE, {TOKENS_DIFFER}",
        ),
        (
            "tokenizer",
            "model",
            {"ignore_merges": True},
            f"its tokenizer has ignore_merges true, {TOKENS_DIFFER}",
        ),
        ("tokenizer", "model", {"merges": []}, f"its tokenizer merges nothing, {TOKENS_DIFFER}"),
        (
            "tokenizer",
            None,
            {"added_tokens": [{**END_OF_TEXT, "lstrip": True}]},
            "its tokenizer takes '<|endoftext|>' with the space beside it, or as a whole word alone, "
            f"{TOKENS_DIFFER}",
        ),
    ],
)
def test_what_llama_cpp_would_read_as_something_else_is_refused(
    run: Run,
    model_folder: Path,
    tmp_path: Path,
    name: str,
    section: str | None,
    change: dict[str, Any],
    says: str,
) -> None:
    shutil.copytree(model_folder, tmp_path / "model")
    file = tmp_path / "model" / f"{name}.json"
    facts = json.loads(file.read_text())
    (facts if section is None else facts[section]).update(change)
    file.write_text(json.dumps(facts))
    shown = run("export", "--model", "model", "--output", "out", "--format", "gguf")
    assert refused(shown, 4) == f"model: {says} --format huggingface keeps it."
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_of_more_tokens_than_the_model_knows_is_refused(
    run: Run, model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model.resize_token_embeddings(290)
    save_model(model, tokenizer, tmp_path / "model")
    last = tokenizer.convert_ids_to_tokens(299)
    line = refused(run("export", "--model", "model", "--output", "out", "--format", "gguf"), 4)
    assert line == (
        f"model: its tokenizer makes token 299 of {last!r}, but the model knows 290 tokens. "
        "They do not belong together."
    )


def test_rows_that_blocks_do_not_divide_are_refused(
    run: Run, model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    config = model.config
    config.n_inner = 80
    save_model(GPT2LMHeadModel(config), tokenizer, tmp_path / "model")
    command = ("export", "--model", "model", "--output", "out", "--format", "gguf", "--precision")
    assert refused(run(*command, "q8_0"), 4) == (
        "model: n_inner is 80; q8_0 takes multiples of 32. Try --precision bf16."
    )
    assert run(*command, "bf16").code == 0


@pytest.mark.filterwarnings("error")
def test_numbers_that_the_type_cannot_hold_are_refused(
    run: Run, model_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(model_folder, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    weights["transformer.h.0.mlp.c_fc.weight"][0, 0] = 1e7  # 65,504 and 127 times that are the largest.
    save_file(weights, file, metadata={"format": "pt"})
    command = ("export", "--model", "model", "--output", "out", "--format", "gguf", "--precision")
    for precision in ("fp16", "q8_0"):
        assert refused(run(*command, precision), 4) == (
            f"model: transformer.h.0.mlp.c_fc.weight has numbers that {precision} cannot hold. "
            "Try --precision fp32."
        )
    assert {path.name for path in tmp_path.iterdir()} == {"model"}
    assert run(*command, "bf16").code == 0


def test_a_full_disk_leaves_nothing_and_is_no_bug(run: Run, model_folder: Path, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))  # Enough for the card and the tokens.
    try:
        shown = run("export", "--model", model_folder, "--output", "out", "--format", "gguf")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert refused(shown, 5) == (
        "out cannot be written: No space left on device. Make room, or choose another folder."
    )
    assert not list(tmp_path.iterdir())


def test_other_models_and_a_missing_package_are_refused_at_once(
    run: Run,
    model: GPT2LMHeadModel,
    model_folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_model(GPT2ForSequenceClassification(model.config), tokenizer, tmp_path / "classifier")
    command = ("export", "--output", "out", "--format", "gguf", "--model")
    assert refused(run(*command, "classifier"), 4) == (
        "classifier is for classification; --format gguf takes only language models."
    )
    line = "--precision is 'int8'; with --format gguf it must be one of fp32, bf16, fp16, q8_0."
    assert refused(run(*command, model_folder, "--precision", "int8"), 2) == line
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert refused(run(*command, model_folder), 2) == (
        '--format gguf needs the package gguf: pip install "gptcli[gguf]".'
    )


# llama.cpp.


def engine(file: Path) -> Any:
    """Return llama.cpp with the model; what it keeps of earlier tokens, in float32 as the weights."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="the package llama-cpp-python is not here")
    return llama_cpp.Llama(
        str(file),
        n_ctx=0,
        n_threads=1,
        n_threads_batch=1,
        logits_all=True,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        verbose=False,
    )


def test_llama_cpp_computes_what_the_model_does(
    run: Run, varied_model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    pytest.importorskip("llama_cpp", reason="the package llama-cpp-python is not here")
    save_model(varied_model, tokenizer, tmp_path / "model")
    assert run("export", "--model", "model", "--output", "out", "--format", "gguf").code == 0
    llama = engine(tmp_path / "out" / "model.gguf")
    for text in ("The small cat", "\n", "Grüße 🚀"):
        ids = tokenizer.encode(text)
        llama.reset()
        continued = llama.generate(ids, temp=0.0)
        found = [int(next(continued)) for _ in range(12)]
        greedy = varied_model.generate(
            torch.tensor([ids]), do_sample=False, max_new_tokens=12, eos_token_id=None
        )
        assert found == greedy[0, len(ids) :].tolist()
        assert len(set(found)) > 2
        with torch.inference_mode():
            logits = varied_model(greedy[:, :-1]).logits[0].numpy()
        # Its activation function is a table of float16.
        np.testing.assert_allclose(
            llama.scores[: len(logits)], logits, atol=0.01 * np.abs(logits).max(), rtol=0
        )


def tokens_of_texts(file: Path) -> list[list[int]]:
    llama = engine(file)
    return [llama.tokenize(text.encode(), add_bos=True, special=True) for text in [*TEXTS, TEXT]]


def test_llama_cpp_makes_the_same_tokens_of_texts(
    run: Run, model_folder: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    assert run("export", "--model", model_folder, "--output", "out", "--format", "gguf").code == 0
    expected = [tokenizer.encode(text) for text in [*TEXTS, TEXT]]
    assert tokens_of_texts(tmp_path / "out" / "model.gguf") == expected


def test_llama_cpp_makes_gpt2s_tokens_of_texts(run: Run, model: GPT2LMHeadModel, tmp_path: Path) -> None:
    files = SHARED_DATA / "gpt2-tokenizer"
    if not files.is_dir():
        pytest.skip("GPT-2's tokenizer (../shared/data/gpt2-tokenizer) is not here")
    model.resize_token_embeddings(50_257)
    model.save_pretrained(tmp_path / "model")
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(files / name, tmp_path / "model")
    assert run("export", "--model", "model", "--output", "out", "--format", "gguf").code == 0
    gpt2 = AutoTokenizer.from_pretrained(tmp_path / "model")
    expected = [gpt2.encode(text) for text in [*TEXTS, TEXT]]
    assert tokens_of_texts(tmp_path / "out" / "model.gguf") == expected
