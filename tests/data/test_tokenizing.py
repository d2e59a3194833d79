"""Text becomes ids and comes back exactly; saved and reopened, a tokenizer is the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer, GPT2TokenizerFast, PreTrainedTokenizerFast

from gptcli.config.schema import TokenizerTraining
from gptcli.data.progress import PreparationProgress
from gptcli.data.tokenizing import (
    encode_batch,
    load_tokenizer,
    tokenizer_fingerprint,
    tokenizer_summary,
    train_tokenizer,
)
from gptcli.errors import EnvironmentProblem, InterruptedRun, ModelError
from tests.conftest import SENTENCES, TEXT

# What clean-up, normalization and special tokens could lose.
HARD_TEXTS = [
    "",
    " ",
    " leading and trailing  ",
    "tabs\t\tand\n\n\nlines\r\n",
    "do n't . ' s , it 's !",
    "e\u0301 is not \u00e9; \ufb01 is not fi; \u212b is not \u00c5",
    "\u200b\u200d\ufeff\u2028\x00\x7f\ud7ff\U0010ffff",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
]


def languages(shared_data: Path) -> list[str]:
    files = sorted((shared_data / "languages" / "udhr").glob("*.txt"))
    assert len(files) >= 40
    return [file.read_bytes().decode() for file in files]


def assert_round_trip(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> None:
    for text, ids in zip(texts, encode_batch(tokenizer, texts), strict=True):
        assert tokenizer.decode(ids) == text


def test_every_language_round_trips_with_a_tokenizer_of_other_text(
    tokenizer: PreTrainedTokenizerFast, shared_data: Path
) -> None:
    assert_round_trip(tokenizer, [*languages(shared_data), *HARD_TEXTS])


def test_every_language_round_trips_with_a_tokenizer_trained_on_it(shared_data: Path) -> None:
    texts = languages(shared_data)
    trained = train_tokenizer(iter(texts), TokenizerTraining(vocab_size=2000))
    assert len(trained) == 2000
    assert_round_trip(trained, [*texts, *HARD_TEXTS])


def test_gpt2s_own_tokenizer_gives_the_ids_of_transformers(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "gpt2-tokenizer"
    loaded, expected = load_tokenizer(str(folder)), GPT2TokenizerFast.from_pretrained(folder)
    texts = [*languages(shared_data), *HARD_TEXTS]
    assert encode_batch(loaded, texts) == [expected(text)["input_ids"] for text in texts]
    assert encode_batch(loaded, ["Hello world", "I love programming"]) == [
        [15496, 995],
        [40, 1842, 8300],
    ]
    assert_round_trip(loaded, texts)
    loaded.save_pretrained(tmp_path)
    assert encode_batch(load_tokenizer(str(tmp_path)), texts) == encode_batch(loaded, texts)


def test_end_of_text_is_bos_eos_and_pad(tokenizer: PreTrainedTokenizerFast, shared_data: Path) -> None:
    gpt2 = load_tokenizer(str(shared_data / "gpt2-tokenizer"))
    for each, expected_id in ((tokenizer, 0), (gpt2, 50256)):
        assert each.bos_token == each.eos_token == each.pad_token == "<|endoftext|>"
        assert each.bos_token_id == each.eos_token_id == each.pad_token_id == expected_id
        assert encode_batch(each, ["<|endoftext|>"]) == [[expected_id]]


def test_a_trained_tokenizer_opens_in_transformers_with_the_same_ids(
    tokenizer: PreTrainedTokenizerFast, model_folder: Path, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    texts = [TEXT, *HARD_TEXTS]
    expected = encode_batch(tokenizer, texts)
    for folder in (tmp_path, model_folder):
        reopened = AutoTokenizer.from_pretrained(folder)
        assert reopened(texts)["input_ids"] == expected
        assert [reopened.decode(ids) for ids in expected] == texts
        assert reopened.bos_token_id == reopened.eos_token_id == reopened.pad_token_id == 0
        assert encode_batch(load_tokenizer(str(folder)), texts) == expected


def test_the_fingerprint_survives_saving_and_tells_tokenizers_apart(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    reopened = load_tokenizer(str(tmp_path))
    assert tokenizer_fingerprint(reopened) == tokenizer_fingerprint(tokenizer)
    other = train_tokenizer(iter([TEXT]), TokenizerTraining(vocab_size=299))
    assert tokenizer_fingerprint(other) != tokenizer_fingerprint(tokenizer)
    # Another end-of-text gives other tokens for the same documents.
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["eos_token"] = "."
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert tokenizer_fingerprint(load_tokenizer(str(tmp_path))) != tokenizer_fingerprint(tokenizer)


def test_the_summary_says_what_the_vocabulary_is(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer_summary(tokenizer) == {
        "vocab_size": 300,
        "end_of_text": "<|endoftext|>",
        "end_of_text_id": 0,
        "fingerprint": tokenizer_fingerprint(tokenizer),
    }


def test_training_is_deterministic() -> None:
    settings = TokenizerTraining(vocab_size=280)
    trained = [train_tokenizer(iter(SENTENCES), settings) for _ in range(3)]
    assert len({tokenizer_fingerprint(each) for each in trained}) == 1


def test_a_vocabulary_is_smaller_than_asked_for_when_there_is_no_more_to_merge() -> None:
    trained = train_tokenizer(iter(["abc abc"]), TokenizerTraining(vocab_size=5000))
    # The 256 bytes, end-of-text, ab or bc, abc, and abc after a space.
    assert len(trained) == 260
    assert encode_batch(trained, ["abc abc"]) == [trained.convert_tokens_to_ids(["abc", "\u0120abc"])]


def test_only_the_first_megabytes_are_learnt_from() -> None:
    texts = iter(["known " * 100_000, "unknown " * 100_000, "never"])
    trained = train_tokenizer(texts, TokenizerTraining(vocab_size=400, sample_megabytes=1))
    assert next(texts) == "never"
    assert "unknown" in trained.get_vocab()


def test_how_far_the_training_is_is_told() -> None:
    seen: list[PreparationProgress] = []
    texts = ["known " * 100_000, "more " * 100_000, "last"]  # Of 0.6 and 0.5 MB.
    train_tokenizer(iter(texts), TokenizerTraining(vocab_size=300), seen.append)
    assert [(one.stage, one.done, one.unit) for one in seen] == [
        ("counting words", 0, "bytes"),
        ("counting words", 1_100_000, "bytes"),
        ("training the tokenizer", 0, "bytes"),
    ]


def test_a_training_can_be_stopped_while_it_reads() -> None:
    def stop(progress: PreparationProgress) -> None:
        if progress.done:
            raise InterruptedRun("Stopped.", 75, is_saved=False)

    with pytest.raises(InterruptedRun, match="Stopped"):
        train_tokenizer(iter(["known " * 200_000] * 2), TokenizerTraining(vocab_size=300), stop)


def test_truncation_and_padding_in_a_saved_tokenizer_lose_no_text(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    saved = json.loads(file.read_text())
    saved["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    saved["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }
    file.write_text(json.dumps(saved))
    texts = ["short", TEXT]
    reopened = load_tokenizer(str(tmp_path))
    assert encode_batch(reopened, texts) == encode_batch(tokenizer, texts)


def test_ids_that_a_post_processor_would_add_are_not_added(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    saved = json.loads(file.read_text())
    end = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    saved["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [end, sequence, end],
        "pair": [end, sequence, end],
        "special_tokens": {
            "<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}
        },
    }
    file.write_text(json.dumps(saved))
    assert encode_batch(load_tokenizer(str(tmp_path)), [TEXT]) == encode_batch(tokenizer, [TEXT])


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "holds no tokenizer"),
        ({"config.json": "{}", "model.safetensors": ""}, "holds no tokenizer"),
        ({"vocab.json": "{}"}, "holds no tokenizer"),
        ({"tokenizer.json": "{"}, "its tokenizer cannot be loaded"),
        ({"tokenizer.json": ""}, "its tokenizer cannot be loaded"),
        ({"vocab.json": "{", "merges.txt": ""}, "its tokenizer cannot be loaded"),
    ],
)
def test_a_folder_without_a_usable_tokenizer_is_refused(
    tmp_path: Path, files: dict[str, str], said: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ModelError, match=said) as caught:
        load_tokenizer(str(tmp_path))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_tokenizer_without_end_of_text_is_refused(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
    )
    with pytest.raises(ModelError, match="no end-of-text token"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_is_found_below_the_home_folder(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(model_folder, tmp_path / "model")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_tokenizer("~/model").eos_token_id == 0


def test_a_hub_name_without_the_hub_is_a_problem_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What HF_HUB_OFFLINE sets, which is read when the libraries are imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EnvironmentProblem, match="someone/some-model"):
        load_tokenizer("someone/some-model")
