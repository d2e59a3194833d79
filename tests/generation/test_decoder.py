"""Greedy decoding equals Hugging Face's token for token, and text never splits a character."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
import torch
from transformers import AddedToken, GPT2LMHeadModel, PreTrainedTokenizerFast

from gptcli.generation.decoder import Finished, NewToken, TextStream, continue_prompt
from gptcli.generation.sampling import Sampling

CONTEXT_LENGTH = 32
NOT_A_TOKEN = -1
PROMPTS = [[0], [5], [40, 41, 42], [0, 99, 7, 7, 7, 250], list(range(100, 120))]


@dataclass
class Made:
    """The continuations of one prompt, by sequence."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)


def make(
    model: GPT2LMHeadModel,
    prompt_ids: list[int],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    sequences: int = 1,
    end_of_text_id: int = NOT_A_TOKEN,
    seed: int = 0,
) -> Made:
    made = Made({sequence: [] for sequence in range(sequences)})
    for event in continue_prompt(
        model.eval(),
        prompt_ids,
        max_new_tokens=max_new_tokens,
        sampling=sampling or Sampling(),
        sequences=sequences,
        end_of_text_id=end_of_text_id,
        seed=seed,
    ):
        assert event.sequence not in made.reasons, "an event of a finished sequence"
        if isinstance(event, NewToken):
            made.tokens[event.sequence].append(event.token_id)
        else:
            assert isinstance(event, Finished)
            made.reasons[event.sequence] = event.reason
    assert made.reasons.keys() == made.tokens.keys()
    return made


def hugging_face_greedy(
    model: GPT2LMHeadModel, prompt_ids: list[int], max_new_tokens: int, end_of_text_id: int | None = None
) -> list[int]:
    """Return the new tokens of `model.generate`."""
    inputs = torch.tensor([prompt_ids])
    output = model.eval().generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=end_of_text_id,
        pad_token_id=0,
    )
    new_ids: list[int] = output[0, len(prompt_ids) :].tolist()
    return new_ids


@pytest.fixture
def varied_model(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """A model whose greedy text does not repeat one token for ever."""
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.dim() == 2:
                generator = torch.Generator().manual_seed(len(name))
                weights.copy_(torch.randn(weights.shape, generator=generator) * 0.3)
    return model


@pytest.mark.parametrize("prompt_ids", PROMPTS, ids=len)
def test_greedy_equals_generate_of_hugging_face(
    varied_model: GPT2LMHeadModel, prompt_ids: list[int]
) -> None:
    count = CONTEXT_LENGTH - len(prompt_ids)
    made = make(varied_model, prompt_ids, max_new_tokens=count)
    expected = hugging_face_greedy(varied_model, prompt_ids, count)
    assert made.tokens[0] == expected
    assert len(set(expected)) > 3
    assert made.reasons[0] == "length"


@pytest.mark.parametrize("prompt_ids", PROMPTS, ids=len)
def test_greedy_stops_where_generate_of_hugging_face_stops(
    varied_model: GPT2LMHeadModel, prompt_ids: list[int]
) -> None:
    count = CONTEXT_LENGTH - len(prompt_ids)
    unstopped = hugging_face_greedy(varied_model, prompt_ids, count)
    end_of_text_id = unstopped[5]
    expected = hugging_face_greedy(varied_model, prompt_ids, count, end_of_text_id)
    assert expected[-1] == end_of_text_id
    made = make(varied_model, prompt_ids, max_new_tokens=count, end_of_text_id=end_of_text_id)
    # The end-of-text itself is no part of the text.
    assert made.tokens[0] == expected[:-1]
    assert made.reasons[0] == "end_of_text"


@pytest.mark.parametrize(
    ("prompt_length", "max_new_tokens", "count", "reason"),
    [
        (30, 1, 1, "length"),
        (30, 2, 2, "length"),
        (30, 3, 2, "context"),
        (31, 100, 1, "context"),
        (1, 100, 31, "context"),
    ],
)
def test_a_continuation_ends_when_the_context_is_full(
    model: GPT2LMHeadModel, prompt_length: int, max_new_tokens: int, count: int, reason: str
) -> None:
    made = make(model, [7] * prompt_length, max_new_tokens=max_new_tokens)
    assert len(made.tokens[0]) == count
    assert made.reasons[0] == reason


def test_several_sequences_differ_and_each_draws_from_its_own_context(
    varied_model: GPT2LMHeadModel,
) -> None:
    # Top-k 2 at a high temperature: each token is one of the two likeliest behind its own sequence.
    sampling = Sampling(temperature=5.0, top_k=2)
    prompt_ids = [3, 4, 5]
    made = make(varied_model, prompt_ids, max_new_tokens=12, sampling=sampling, sequences=4)
    assert len({tuple(tokens) for tokens in made.tokens.values()}) == 4
    for tokens in made.tokens.values():
        with torch.no_grad():
            logits = varied_model(torch.tensor([prompt_ids + tokens])).logits[0]
        for position, token_id in enumerate(tokens, len(prompt_ids) - 1):
            assert token_id in logits[position].topk(2).indices.tolist()


def test_a_sequence_that_ends_does_not_disturb_the_others(varied_model: GPT2LMHeadModel) -> None:
    sampling = Sampling(temperature=3.0, top_k=4)
    prompt_ids = [11, 12]
    endless = make(varied_model, prompt_ids, max_new_tokens=20, sampling=sampling, sequences=6)
    end_of_text_id = endless.tokens[2][4]
    made = make(
        varied_model,
        prompt_ids,
        max_new_tokens=20,
        sampling=sampling,
        sequences=6,
        end_of_text_id=end_of_text_id,
    )
    assert made.reasons[2] == "end_of_text"
    for sequence, tokens in made.tokens.items():
        assert end_of_text_id not in tokens
        assert (len(tokens) == 20) is (made.reasons[sequence] == "length")
        with torch.no_grad():
            logits = varied_model(torch.tensor([prompt_ids + tokens])).logits[0]
        for position, token_id in enumerate(tokens, len(prompt_ids) - 1):
            assert token_id in logits[position].topk(4).indices.tolist()


def test_a_seed_makes_the_same_tokens_again(varied_model: GPT2LMHeadModel) -> None:
    first, again, other = (
        make(
            varied_model,
            [1],
            max_new_tokens=20,
            sampling=Sampling(temperature=1.0),
            sequences=3,
            seed=seed,
        )
        for seed in (8, 8, 9)
    )
    assert first == again
    assert first.tokens != other.tokens


TEXTS = [
    "The cat sat on the mat.",
    "深圳市福田区，你好世界！",
    "👩‍👩‍👧‍👦 🦉🏴󠁧󠁢󠁥󠁮󠁧󠁿 family",
    "مرحبا بالعالم",
    "  two  spaces ,  punctuation ' s .\n\n\ttabs",
    "e\u0301 \ufffd replacement \u200b\u2028",
    "caf\u00e9<|endoftext|>na\u00efve",
]


def stream_pieces(
    tokenizer: PreTrainedTokenizerFast, prompt_ids: list[int], new_ids: list[int]
) -> list[str]:
    stream = TextStream(tokenizer, prompt_ids)
    pieces = [stream.add(token_id) for token_id in new_ids]
    pieces.append(stream.finish())
    assert stream.text == "".join(pieces)
    return pieces


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("prompt", ["", "The cat", "区", "🦉"])
def test_pieces_are_whole_characters_and_join_to_the_text(
    tokenizer: PreTrainedTokenizerFast, prompt: str, text: str
) -> None:
    prompt_ids = tokenizer.encode(prompt, add_special_tokens=False) or [0]
    new_ids = tokenizer.encode(text, add_special_tokens=False)
    pieces = stream_pieces(tokenizer, prompt_ids, new_ids)
    assert "".join(pieces) == text.replace("<|endoftext|>", "")
    # A split character would show as U+FFFD.
    assert "".join(pieces).count("\ufffd") == text.count("\ufffd")


def test_a_character_comes_with_its_last_byte(tokenizer: PreTrainedTokenizerFast) -> None:
    new_ids = tokenizer.encode("a🦉b", add_special_tokens=False)
    assert len(new_ids) == 6  # The owl is four bytes, which this small vocabulary has not merged.
    assert stream_pieces(tokenizer, [0], new_ids) == ["a", "", "", "", "🦉", "b", ""]


def test_bytes_that_are_no_text_join_to_what_the_tokenizer_decodes(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    draw = random.Random(0)
    vocabulary = len(tokenizer)
    for _ in range(100):
        new_ids = [draw.randrange(vocabulary) for _ in range(60)]
        pieces = stream_pieces(tokenizer, [0], new_ids)
        assert "".join(pieces) == tokenizer.decode(new_ids, skip_special_tokens=True)


def test_a_character_cut_off_by_the_end_is_shown_as_the_tokenizer_decodes_it(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    new_ids = tokenizer.encode("ok 🦉", add_special_tokens=False)[:-1]
    pieces = stream_pieces(tokenizer, [0], new_ids)
    assert "".join(pieces) == "ok \ufffd"
    assert pieces[-1] == "\ufffd"


def test_a_tokenizer_that_drops_the_space_of_the_first_token_keeps_it_between_pieces() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = {"<|endoftext|>": 0, "▁the": 1, "▁cat": 2, "▁sat": 3}
    backend = Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=AddedToken("<|endoftext|>", special=True)
    )
    assert tokenizer.decode([2]) == "cat"
    assert stream_pieces(tokenizer, [1], [2, 3, 2]) == [" cat", " sat", " cat", ""]
