"""Greedy decoding equals Hugging Face's token for token, and text never splits a character."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from transformers import AddedToken, GPT2LMHeadModel, PreTrainedTokenizerFast

from gptcli.generation import decoder as decoding
from gptcli.generation.decoder import Decoder, Finished, NewToken, Request, TextStream
from gptcli.generation.sampling import Sampling
from gptcli.models import decoding_forward, step_graphs
from gptcli.models.decoding_forward import DecodingForward, KeysAndValues
from gptcli.training.device import multiplies_int8

CONTEXT_LENGTH = 32
needs_int8 = pytest.mark.skipif(not multiplies_int8(), reason="this torch has no int8 products here")
NOT_A_TOKEN = -1
PROMPTS = [[0], [5], [40, 41, 42], [0, 99, 7, 7, 7, 250], list(range(100, 120))]


@dataclass
class Made:
    """The continuations of one prompt, by sequence."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)


def make_all(
    model: GPT2LMHeadModel,
    requests: list[Request],
    *,
    sampling: Sampling | None = None,
    end_of_text_id: int = NOT_A_TOKEN,
    slides: bool = False,
    is_int8: bool = False,
) -> list[Made]:
    made = [Made({sequence: [] for sequence in range(one.sequences)}) for one in requests]
    decoder = Decoder(model.eval(), end_of_text_id, torch.float32, is_int8=is_int8)
    for event in decoder.decode(requests, sampling or Sampling(), slides=slides):
        of_prompt = made[event.request]
        assert event.sequence not in of_prompt.reasons, "an event of a finished sequence"
        if isinstance(event, NewToken):
            of_prompt.tokens[event.sequence].append(event.token_id)
        else:
            assert isinstance(event, Finished)
            of_prompt.reasons[event.sequence] = event.reason
    assert all(one.reasons.keys() == one.tokens.keys() for one in made)
    return made


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
    request = Request(prompt_ids, max_new_tokens, sequences, seed)
    (made,) = make_all(model, [request], sampling=sampling, end_of_text_id=end_of_text_id)
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


@pytest.fixture(params=["any size", "few sizes"])
def step_sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps as they are done here, and in the few sizes in which a GPU replays them."""
    if request.param == "few sizes":
        monkeypatch.setattr(decoding_forward, "_RECORDED_ON", ("cpu",))
        monkeypatch.setattr(step_graphs, "SMALLEST_END", 8)


@pytest.mark.usefixtures("step_sizes")
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


def test_a_sequence_that_is_stopped_ends_there_and_others_go_on(varied_model: GPT2LMHeadModel) -> None:
    requests = [Request(prompt, 9, sequences=2) for prompt in PROMPTS[:3]]
    whole = make_all(varied_model, requests, sampling=Sampling(temperature=3.0))
    decoder = Decoder(varied_model.eval(), NOT_A_TOKEN, torch.float32)
    stopped: set[tuple[int, int]] = set()
    made: dict[tuple[int, int], list[int]] = {}
    reasons: dict[tuple[int, int], str] = {}
    for event in decoder.decode(requests, Sampling(temperature=3.0), stopped=stopped):
        which = (event.request, event.sequence)
        if isinstance(event, Finished):
            reasons[which] = event.reason
            continue
        made.setdefault(which, []).append(event.token_id)
        if which == (1, 1) and len(made[which]) == 4:
            stopped.add(which)
    for (number, sequence), tokens in made.items():
        is_stopped = (number, sequence) == (1, 1)
        assert tokens == whole[number].tokens[sequence][: 4 if is_stopped else 9]
        assert reasons[number, sequence] == ("stopped" if is_stopped else "length")
    assert len(made) == 6


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


# Several prompts


def varied_requests() -> list[Request]:
    """Return requests of many lengths, more than there are rows at once."""
    numbers = random.Random(5)
    return [
        Request(
            [numbers.randrange(300) for _ in range(numbers.randrange(1, 25))], numbers.randrange(1, 40)
        )
        for _ in range(40)
    ]


@pytest.mark.usefixtures("step_sizes")
@pytest.mark.parametrize("max_rows", [1, 3, 32])
def test_prompts_of_any_length_together_give_what_each_gives_in_hugging_face(
    varied_model: GPT2LMHeadModel, max_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "MAX_ROWS", max_rows)
    monkeypatch.setattr(decoding, "CAPACITY_STEP", 4)
    requests = varied_requests()
    for request, made in zip(requests, make_all(varied_model, requests), strict=True):
        room = CONTEXT_LENGTH - len(request.prompt_ids)
        count = min(room, request.max_new_tokens)
        assert made.tokens[0] == hugging_face_greedy(varied_model, request.prompt_ids, count)
        assert made.reasons[0] == ("length" if request.max_new_tokens <= room else "context")


@pytest.mark.usefixtures("step_sizes")
@pytest.mark.parametrize("is_int8", [False, pytest.param(True, marks=needs_int8)])
def test_a_text_does_not_depend_on_those_that_are_made_beside_it(
    varied_model: GPT2LMHeadModel, is_int8: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = Sampling(temperature=1.0, top_p=0.9)
    requests = [
        Request(one.prompt_ids, one.max_new_tokens, 1 + number % 3, seed=number)
        for number, one in enumerate(varied_requests())
    ]
    alone = [
        make_all(varied_model, [one], sampling=sampling, end_of_text_id=7, is_int8=is_int8)[0]
        for one in requests
    ]
    assert {reason for one in alone for reason in one.reasons.values()} == {
        *("length", "context", "end_of_text"),
    }
    for max_rows in (4, 32):
        monkeypatch.setattr(decoding, "MAX_ROWS", max_rows)
        together = make_all(varied_model, requests, sampling=sampling, end_of_text_id=7, is_int8=is_int8)
        assert together == alone


def test_fewer_rows_have_room_where_each_takes_more(
    varied_model: GPT2LMHeadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder(varied_model, NOT_A_TOKEN, torch.float32)
    new, taken = decoder._forward.new_keys_and_values, []

    def new_and_counted(rows: int, capacity: int) -> KeysAndValues:
        taken.append(rows * capacity)
        return new(rows, capacity)

    monkeypatch.setattr(decoder._forward, "new_keys_and_values", new_and_counted)
    monkeypatch.setattr(decoding, "CAPACITY_STEP", 4)
    monkeypatch.setattr(decoding, "REQUESTS_AT_ONCE", 8)
    # Eight rows of 8 tokens each, or two of 32.
    monkeypatch.setattr(decoding, "MAX_BYTES", 64 * decoder._forward.bytes_per_token())
    requests = [Request([number] * 4, 4) for number in range(8)]
    requests += [Request([number] * 8, 24) for number in range(4)]
    finished = [
        event for event in decoder.decode(iter(requests), Sampling()) if isinstance(event, Finished)
    ]
    assert len(finished) == len(requests)
    assert max(taken) == 64


def test_requests_are_read_a_part_at_a_time(
    model: GPT2LMHeadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "REQUESTS_AT_ONCE", 4)
    monkeypatch.setattr(decoding, "MAX_ROWS", 2)
    taken = 0

    def requests() -> Iterator[Request]:
        nonlocal taken
        for number in range(40):
            taken += 1
            yield Request([number], 3)

    decoder = Decoder(model.eval(), NOT_A_TOKEN, torch.float32)
    finished = 0
    for event in decoder.decode(requests(), Sampling()):
        finished += isinstance(event, Finished)
        assert taken - finished <= 4 + 2 + 1
    assert finished == taken == 40


# The end of the context


@pytest.mark.usefixtures("step_sizes")
def test_a_text_that_slides_goes_on_behind_the_last_half_of_the_context(
    varied_model: GPT2LMHeadModel,
) -> None:
    (made,) = make_all(varied_model, [Request([3, 4, 5], 60)], slides=True)
    assert (len(made.tokens[0]), made.reasons[0]) == (60, "length")
    # Full at 32 tokens, one more is made of them; the last 16 begin anew.
    ids, in_view = [3, 4, 5], [3, 4, 5]
    while len(ids) < 63:
        token = hugging_face_greedy(varied_model, in_view, 1)[0]
        ids.append(token)
        in_view.append(token)
        if len(in_view) > CONTEXT_LENGTH:
            in_view = in_view[-16:]
    assert made.tokens[0] == ids[3:]


@pytest.mark.usefixtures("step_sizes")
def test_texts_that_slide_are_the_same_together_and_alone(varied_model: GPT2LMHeadModel) -> None:
    requests = [Request([number], 50 + number) for number in range(5)]
    alone = [make_all(varied_model, [one], slides=True)[0] for one in requests]
    assert make_all(varied_model, requests, slides=True) == alone


# Guessing from what stands before


@pytest.mark.usefixtures("step_sizes")
@pytest.mark.parametrize("slides", [False, True])
def test_a_text_that_repeats_itself_takes_fewer_steps_and_no_token_differs(
    model: GPT2LMHeadModel, slides: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 60 if slides else CONTEXT_LENGTH - 1

    def steps_and_tokens(matched: int) -> tuple[int, list[int]]:
        steps = 0
        step = DecodingForward.hidden_states

        def counted(*arguments: Any) -> torch.Tensor:
            nonlocal steps
            steps += 1
            return step(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr("gptcli.generation.prompt_lookup.MATCHED", matched)
            patch.setattr(DecodingForward, "hidden_states", counted)
            (made,) = make_all(model, [Request([1], count)], slides=slides)
        return steps, made.tokens[0]

    with_guesses, tokens = steps_and_tokens(3)
    # No text is so long that a thousand tokens could stand twice in it.
    without_guesses, expected = steps_and_tokens(1000)
    assert tokens == expected
    assert len(tokens) == count
    assert with_guesses < without_guesses / 2


def test_text_that_is_guessed_ends_at_end_of_text(model: GPT2LMHeadModel) -> None:
    endless = make(model, [1], max_new_tokens=30).tokens[0]
    # The untrained model repeats a token for ever: end there.
    made = make(model, [1], max_new_tokens=30, end_of_text_id=endless[-1])
    assert made.tokens[0] == endless[: endless.index(endless[-1])]
    assert made.reasons[0] == "end_of_text"


# Text


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
