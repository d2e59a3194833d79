"""Sampling is that of Hugging Face's `generate`, and temperature is never ignored."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gptcli.generation.sampling import Sampling, uniform

VOCABULARY = 500


def random_logits(seed: int, scale: float) -> Tensor:
    return scale * torch.randn(8, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def hugging_face_probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    warpers = LogitsProcessorList()
    if sampling.temperature is not None:
        warpers.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k is not None:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p is not None:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    probabilities: Tensor = warpers(torch.zeros(8, 1, dtype=torch.long), logits).softmax(dim=-1)
    return probabilities


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.7),
        Sampling(temperature=3.0),
        Sampling(top_k=1),
        Sampling(top_k=40),
        Sampling(top_k=10 * VOCABULARY),
        Sampling(top_p=0.9),
        Sampling(top_p=0.01),
        Sampling(top_p=1.0),
        Sampling(temperature=0.8, top_k=50, top_p=0.95),
        Sampling(temperature=1.5, top_k=3, top_p=0.5),
    ],
    ids=str,
)
@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_the_probabilities_equal_those_of_hugging_face(sampling: Sampling, scale: float) -> None:
    for seed in range(5):
        logits = random_logits(seed, scale)
        probabilities = sampling.filter(logits).softmax(dim=-1)
        expected = hugging_face_probabilities(logits, sampling)
        assert torch.equal(probabilities > 0, expected > 0)
        torch.testing.assert_close(probabilities, expected, rtol=1e-4, atol=1e-7)


def allowed(sampling: Sampling, probabilities: list[float]) -> list[int]:
    """Return the tokens that may be chosen."""
    logits = torch.tensor([probabilities]).log()
    return sampling.filter(logits)[0].isfinite().nonzero()[:, 0].tolist()


def test_top_k_keeps_all_that_tie_with_the_last() -> None:
    assert allowed(Sampling(top_k=2), [0.1, 0.3, 0.2, 0.2, 0.2]) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [(0.4, [1]), (0.5, [1]), (0.51, [1, 3]), (0.75, [1, 3]), (0.8, [0, 1, 3]), (1.0, [0, 1, 2, 3])],
)
def test_top_p_keeps_the_fewest_that_reach_it(top_p: float, expected: list[int]) -> None:
    # Powers of two, so that the sums are exact; of equals the first is kept.
    assert allowed(Sampling(top_p=top_p), [0.125, 0.5, 0.125, 0.25]) == expected


def test_top_p_of_equal_tokens_keeps_only_as_many_as_it_needs() -> None:
    assert len(allowed(Sampling(top_p=0.5), [0.25] * 4)) == 2


def test_greedy_takes_the_likeliest_and_the_first_of_several() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0], [3.0, 1.0, 2.0]])
    assert Sampling().choose(logits, [0.5, 0.5]) == [1, 0]


@pytest.mark.parametrize(
    ("sampling", "is_greedy"),
    [
        (Sampling(), True),
        (Sampling(temperature=0.7), False),
        (Sampling(temperature=1.0), False),
        (Sampling(top_k=50), False),
        (Sampling(top_p=1.0), False),
    ],
    ids=str,
)
def test_any_of_the_three_means_sampling(sampling: Sampling, is_greedy: bool) -> None:
    assert sampling.is_greedy is is_greedy
    logits = torch.zeros(1, 50)
    chosen = {sampling.choose(logits, [uniform(n)])[0] for n in range(20)}
    assert (len(chosen) == 1) is is_greedy


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-44, 1e-300])
def test_a_temperature_close_to_0_is_greedy(temperature: float) -> None:
    logits = random_logits(0, 20)
    chosen = Sampling(temperature=temperature).choose(logits, [0.9] * len(logits))
    assert chosen == logits.argmax(dim=-1).tolist()


def test_tokens_are_drawn_as_often_as_their_probability_says() -> None:
    # At temperature 0.5 weights of 1, 2, 3, 4 become their squares; top-k 3 drops the first.
    logits = torch.tensor([1.0, 2.0, 3.0, 4.0]).log()
    draws = 20_000
    sampling = Sampling(temperature=0.5, top_k=3)
    chosen = sampling.choose(logits.expand(draws, -1), [uniform(7, n) for n in range(draws)])
    counts = torch.bincount(torch.tensor(chosen), minlength=4)
    assert counts[0] == 0
    for token, weight in ((1, 4), (2, 9), (3, 16)):
        probability = weight / 29
        deviation = (draws * probability * (1 - probability)) ** 0.5
        assert abs(counts[token].item() - draws * probability) < 4 * deviation


@pytest.mark.parametrize(
    ("draw", "token"), [(0.0, 1), (0.124, 1), (0.125, 2), (0.374, 2), (0.375, 4), (1 - 2**-32, 4)]
)
def test_the_draw_decides_where_in_the_sum_of_probabilities_the_token_is(
    draw: float, token: int
) -> None:
    # Those that cannot be chosen take no room: 0 at the beginning, 3 between, 5 at the end.
    logits = torch.tensor([[0.0, 0.125, 0.25, 0.0, 0.625, 0.0]]).log()
    assert Sampling(temperature=1.0).choose(logits, [draw]) == [token]


def test_a_row_is_not_disturbed_by_those_beside_it() -> None:
    logits, sampling = random_logits(1, 1.0), Sampling(temperature=1.0, top_k=50, top_p=0.9)
    draws = [uniform(3, n) for n in range(len(logits))]
    alone = [sampling.choose(logits[n : n + 1], draws[n : n + 1])[0] for n in range(len(logits))]
    assert sampling.choose(logits, draws) == alone


def test_draws_are_even_and_decided_by_the_integers() -> None:
    draws = [uniform(1, n) for n in range(10_000)]
    assert draws[:3] == [uniform(1, n) for n in range(3)] != [uniform(2, n) for n in range(3)]
    assert min(draws) >= 0 and max(draws) < 1
    # The mean of n even numbers is off by 1 / sqrt(12 n); within four of these.
    assert abs(sum(draws) / len(draws) - 0.5) < 4 / (12 * len(draws)) ** 0.5


def test_top_p_is_the_same_however_many_of_the_likeliest_it_looks_at_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits = random_logits(5, 2.0).round(decimals=1)  # With many that are equal.
    expected = Sampling(top_p=0.8).filter(logits)
    monkeypatch.setattr("gptcli.generation.sampling.FIRST_LIKELIEST", 3)
    assert torch.equal(Sampling(top_p=0.8).filter(logits), expected)
