"""Compiled code computes what GPT-2 computes, to the rounding of its number formats, for any tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gptcli.generation.decoder import Decoder, NewToken, Request
from gptcli.generation.sampling import Sampling
from gptcli.models.activation import fuse_activation
from gptcli.models.decoding_forward import DecodingForward
from gptcli.models.native_forward import NativeForward
from gptcli.training.device import multiplies_int8
from tests.conftest import skip_without_compiled_code

CONTEXT_LENGTH = 256
VOCABULARY = 300  # Not a multiple of a tile's outputs.


@pytest.fixture(scope="module", autouse=True)
def _kernel() -> None:
    skip_without_compiled_code("forward")


def make_model(**settings: Any) -> GPT2LMHeadModel:
    """Return a model whose weights are numbers of bfloat16, and far from 0."""
    torch.manual_seed(7)
    sizes = {"n_embd": 64, "n_head": 2, "n_layer": 3, "n_positions": CONTEXT_LENGTH}
    model = GPT2LMHeadModel(GPT2Config(**{**sizes, "vocab_size": VOCABULARY, **settings})).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.15)
    for name, weight in model.named_parameters():
        if "ln_" in name and name.endswith("weight"):
            weight.data += 1
        weight.data = weight.data.bfloat16().float()
    fuse_activation(model)
    return model


FORMATS = [
    pytest.param(False, id="bf16"),
    pytest.param(
        True,
        id="int8",
        marks=pytest.mark.skipif(not multiplies_int8(), reason="this torch has no int8 products here"),
    ),
]


def forward_of(model: GPT2LMHeadModel, is_int8: bool, *, is_native: bool = True) -> DecodingForward:
    dtype = torch.float32 if is_int8 else torch.bfloat16
    forward = DecodingForward(model, dtype, is_int8=is_int8, is_native=is_native)
    assert isinstance(forward._forward, NativeForward) == is_native
    return forward


def some_ids(rows: int, tokens: int) -> list[list[int]]:
    numbers = torch.Generator().manual_seed(3)
    return torch.randint(VOCABULARY, (rows, tokens), generator=numbers).tolist()


@pytest.mark.parametrize("is_int8", FORMATS)
@pytest.mark.parametrize(
    "settings",
    [
        {"activation_function": "gelu_new"},
        {"activation_function": "gelu"},
        {"n_inner": 192, "n_head": 1},
        {"n_embd": 192, "n_head": 2},  # Heads of more numbers than a tile has outputs.
        {"scale_attn_by_inverse_layer_idx": True},
    ],
    ids=str,
)
# Alone; by products of tiles; more than one tile of keys, and no whole number of units.
@pytest.mark.parametrize("tokens", [1, 9, 37, 131])
def test_probabilities_are_those_of_hugging_face(
    is_int8: bool, settings: dict[str, Any], tokens: int
) -> None:
    model = make_model(**settings)
    ids = some_ids(2, tokens)
    with torch.inference_mode():
        expected = model(torch.tensor(ids)).logits.flatten(0, 1).softmax(-1)
    distances = []
    for is_native in (True, False):
        forward = forward_of(model, is_int8, is_native=is_native)
        hidden = forward.hidden_states(ids, [0, 0], forward.new_keys_and_values(2, tokens))
        found = forward.logits(hidden).float().softmax(-1)
        # Half the sum of differences.
        distances.append((found - expected).abs().sum(-1).mean() / 2)
    of_compiled, of_operators = distances
    assert of_compiled < 0.05
    assert of_compiled < 1.3 * of_operators + 1e-4


@pytest.mark.parametrize("is_int8", FORMATS)
def test_tokens_one_by_one_a_few_or_all_at_once_are_the_same(is_int8: bool) -> None:
    model = make_model()
    forward = forward_of(model, is_int8)
    ids = some_ids(1, 100)
    at_once = forward.hidden_states(ids, [0], forward.new_keys_and_values(1, 100))
    for sizes in ([1] * 100, [40, 1, 1, 5, 33, 20]):
        earlier = forward.new_keys_and_values(1, 128)
        found, begin = [], 0
        for size in sizes:
            found.append(forward.hidden_states([ids[0][begin : begin + size]], [begin], earlier))
            begin += size
        # Attention to many rounds its queries and weights, and levels of bytes fall to either side.
        torch.testing.assert_close(torch.cat(found), at_once, rtol=0, atol=0.1 if is_int8 else 0.05)


@pytest.mark.parametrize("is_int8", FORMATS)
@pytest.mark.parametrize("rows", [2, 5, 17, 33])
def test_a_row_does_not_depend_on_those_beside_it(is_int8: bool, rows: int) -> None:
    forward = forward_of(make_model(), is_int8)
    prompts = [ids[: 1 + 3 * row] for row, ids in enumerate(some_ids(rows, 120))]
    last = some_ids(rows, 1)
    lengths = [len(ids) for ids in prompts]
    together = forward.new_keys_and_values(rows + 3, 128)
    found = forward.hidden_states(prompts, [0] * rows, together)
    found = torch.cat([found, forward.hidden_states(last, lengths, together)])
    alone, behind = [], []
    for prompt, ids, length in zip(prompts, last, lengths, strict=True):
        earlier = forward.new_keys_and_values(1, length + 1)
        alone.append(forward.hidden_states([prompt], [0], earlier))
        behind.append(forward.hidden_states([ids], [length], earlier))
    assert torch.equal(found, torch.cat(alone + behind))


@pytest.mark.parametrize("is_int8", FORMATS)
def test_texts_are_the_same_together_and_alone(is_int8: bool) -> None:
    model = make_model()
    dtype = torch.float32 if is_int8 else torch.bfloat16
    requests = [
        Request(some_ids(1, 1 + 7 * number)[0], 5 + 3 * number, seed=number) for number in range(9)
    ]

    def texts(some: list[Request]) -> list[list[int]]:
        made: list[list[int]] = [[] for _ in some]
        decoder = Decoder(model, -1, dtype, is_int8=is_int8)
        for event in decoder.decode(some, Sampling(temperature=1.0)):
            if isinstance(event, NewToken):
                made[event.request].append(event.token_id)
        return made

    assert texts(requests) == [texts([request])[0] for request in requests]


@pytest.mark.parametrize("is_int8", FORMATS)
@pytest.mark.parametrize("name", ["wte", "h.1.ln_2", "h.2.mlp.c_proj"])
@pytest.mark.parametrize("flaw", [float("nan"), float("inf")])
def test_scores_of_a_damaged_model_are_not_finite(is_int8: bool, name: str, flaw: float) -> None:
    model = make_model()
    part = model.transformer.get_submodule(name)
    (part.bias if hasattr(part, "bias") else part.weight).data[5] = flaw
    forward = forward_of(model, is_int8)
    hidden = forward.hidden_states([[1, 5, 2]], [0], forward.new_keys_and_values(1, 3))
    assert not forward.logits(hidden)[-1].amax().isfinite()


@pytest.mark.parametrize(
    "settings",
    [{"n_embd": 32}, {"n_head": 4}, {"n_inner": 100}, {"activation_function": "relu"}],
    ids=str,
)
def test_other_shapes_are_left_to_operators(settings: dict[str, Any]) -> None:
    model = make_model(**settings)
    assert not NativeForward.suits(model)
    forward_of(model, is_int8=False, is_native=False)
