"""Examples in memory: batches, their order, and which are held out."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from gptcli.data.batches import IGNORED
from gptcli.data.examples import (
    Example,
    ExampleBatches,
    Examples,
    evaluation_batches,
    hold_out,
)


def examples_of(lengths: list[int]) -> Examples:
    """Example n consists of its number n, `lengths[n]` times, and has the target n."""
    return Examples(
        Example([number] * length, number, f"row {number}") for number, length in enumerate(lengths)
    )


def numbers_of(batches: ExampleBatches, steps: range) -> list[int]:
    return [int(target) for step in steps for target in batches.batch(step).targets]


def test_a_batch_is_padded_on_the_right_and_knows_its_lengths() -> None:
    batch = examples_of([2, 3, 1]).batch([1, 2])
    assert batch.input_ids.tolist() == [[1, 1, 1], [2, 0, 0]]
    assert batch.lengths.tolist() == [3, 1]
    assert batch.targets.tolist() == [1, 2]
    assert not batch.is_token_by_token


def test_targets_token_by_token_are_padded_with_what_the_loss_ignores() -> None:
    examples = Examples(
        [
            Example([5, 6, 7], np.array([IGNORED, 7, 8]), "a"),
            Example([9], np.array([4]), "b"),
        ],
        is_token_by_token=True,
    )
    batch = examples.batch([0, 1])
    assert batch.targets.tolist() == [[IGNORED, 7, 8], [4, IGNORED, IGNORED]]
    first, second = batch.split(1)
    assert first.targets.tolist() == [[IGNORED, 7, 8]]
    assert (second.input_ids.tolist(), second.targets.tolist()) == ([[9]], [[4]])


def test_targets_of_several_numbers_keep_their_shape_when_a_batch_is_split() -> None:
    examples = Examples(Example([1] * n, np.array([n, n + 1]), "where") for n in (1, 2, 3))
    parts = list(examples.batch([2, 0, 1]).split(2))
    assert [part.targets.tolist() for part in parts] == [[[3, 4], [1, 2]], [[2, 3]]]
    assert [part.input_ids.shape for part in parts] == [(2, 3), (1, 2)]


@pytest.mark.parametrize(("count", "batch_size"), [(10, 4), (64, 4), (7, 7), (3, 5), (1, 2)])
def test_every_example_comes_once_an_epoch(count: int, batch_size: int) -> None:
    batches = ExampleBatches(examples_of([1] * count), batch_size=batch_size, seed=1)
    steps = 10 * count  # A whole number of epochs, and of pools of batches.
    while steps % batches._pool_batches:
        steps += 10 * count
    seen = Counter(numbers_of(batches, range(steps)))
    assert set(seen.values()) == {steps * batch_size // count}
    assert len(seen) == count


def test_a_batch_is_a_pure_function_of_seed_and_step() -> None:
    examples = examples_of([1 + n % 13 for n in range(300)])
    forwards = ExampleBatches(examples, batch_size=4, seed=1)
    backwards = ExampleBatches(examples, batch_size=4, seed=1)
    steps = [200, 3, 77, 3, 0, 150]
    expected = {step: forwards.batch(step).targets.tolist() for step in sorted(steps)}
    assert {step: backwards.batch(step).targets.tolist() for step in steps} == expected
    other = ExampleBatches(examples, batch_size=4, seed=2)
    assert [other.batch(step).targets.tolist() for step in range(5)] != [
        forwards.batch(step).targets.tolist() for step in range(5)
    ]


def test_batches_are_of_like_length_in_random_order() -> None:
    random = np.random.default_rng(0)
    examples = examples_of(random.integers(1, 100, size=2560).tolist())
    batches = ExampleBatches(examples, batch_size=8, seed=1)
    lengths = [batches.batch(step).lengths for step in range(320)]
    padding = sum(int(of.max() * len(of) - of.sum()) for of in lengths)
    # Sorting 32 batches of 8 leaves about 100/32 tokens between the shortest and the longest of a batch,
    # a half of which is padded; batches of random lengths would be padded by 75%.
    assert padding / examples.token_count < 0.04
    means = [float(of.mean()) for of in lengths[:32]]
    assert means != sorted(means)


def test_a_description_says_where_the_examples_come_from() -> None:
    batches = ExampleBatches(examples_of([1] * 40), batch_size=5, seed=1)
    rows = [f"row {number}" for number in batches.batch(3).targets]
    assert batches.describe(3) == f"{', '.join(rows[:3])} and 2 more"


def test_an_evaluation_sees_each_example_once_the_longest_first() -> None:
    # 2 x 5 tokens are within the budget of 11, and so are 3 x 3.
    batches = list(evaluation_batches(examples_of([2, 5, 1, 4, 3]), 11))
    assert [numbers.tolist() for numbers, _ in batches] == [[1, 3], [4, 0, 2]]
    assert [batch.input_ids.shape[1] for _, batch in batches] == [5, 3]


def test_equal_keys_are_held_out_together() -> None:
    keys = [f"text {n % 50}" for n in range(200)]
    is_held_out = hold_out(keys, 0.2, seed=3)
    sides = {
        key: {bool(out) for k, out in zip(keys, is_held_out, strict=True) if k == key} for key in keys
    }
    assert all(len(side) == 1 for side in sides.values())
    assert is_held_out.sum() == 40  # 10 of 50 keys, 4 times each.


def test_each_stratum_gives_its_share() -> None:
    strata = ["rare"] * 10 + ["common"] * 190
    is_held_out = hold_out(list(range(200)), 0.1, seed=3, strata=strata)
    assert (is_held_out[:10].sum(), is_held_out[10:].sum()) == (1, 19)


def test_the_seed_decides_what_is_held_out_and_nothing_is_at_fraction_0() -> None:
    keys = list(range(100))
    first, again, other = (hold_out(keys, 0.3, seed) for seed in (1, 1, 2))
    assert first.tolist() == again.tolist() != other.tolist()
    assert first.sum() == other.sum() == 30
    assert not hold_out(keys, 0.0, 1).any()


def test_the_fingerprint_changes_with_tokens_targets_and_order() -> None:
    def fingerprint(*examples: tuple[list[int], int]) -> str:
        return Examples(Example(ids, target, "") for ids, target in examples).fingerprint()

    base = fingerprint(([1, 2], 0), ([3], 1))
    assert base == fingerprint(([1, 2], 0), ([3], 1))
    others = [
        fingerprint(([1, 2], 0), ([4], 1)),
        fingerprint(([1, 2], 0), ([3], 0)),
        fingerprint(([3], 1), ([1, 2], 0)),
        fingerprint(([1], 0), ([2, 3], 1)),
    ]
    assert len({base, *others}) == 5
