from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from gptcli.data import token_budget
from gptcli.data.token_budget import (
    FIRST_POOL,
    LARGEST_POOL,
    PART_ITEMS,
    POOL_ITEMS,
    TokenBatch,
    TokenBudget,
    score_in_order,
)
from gptcli.errors import DataError


@dataclass(frozen=True)
class Row:
    """`length` tokens of the same number."""

    number: int
    length: int

    @property
    def input_ids(self) -> list[int]:
        return [self.number] * self.length


BUDGET = TokenBudget(100, context_length=60)


def rows_of(lengths: list[int]) -> list[Row]:
    return [Row(number, length) for number, length in enumerate(lengths, 1)]


def random_lengths(count: int) -> list[int]:
    generator = random.Random(0)
    return [generator.randint(1, 60) for _ in range(count)]


def first_tokens(batch: TokenBatch[Row]) -> list[int]:
    return [int(ids[0]) for ids in batch.input_ids]


def scored(
    items: list[Row] | Iterator[Row], is_live: bool = False
) -> Iterator[list[tuple[Row, list[int]]]]:
    return score_in_order(
        items,
        lambda some: [[row] for row in some],
        first_tokens,
        BUDGET,
        characters=lambda row: row.length,
        is_live=is_live,
    )


def test_batches_hold_every_sequence_once_the_longest_first_within_the_budget() -> None:
    lengths = np.array(random_lengths(500))
    batches = list(BUDGET.batches(lengths))
    assert sorted(number for numbers, _ in batches for number in numbers) == list(range(500))
    for numbers, width in batches:
        assert len(numbers) * width <= 100
        assert lengths[numbers].max() <= width <= 60
    in_order = np.concatenate([lengths[numbers] for numbers, _ in batches])
    assert (np.diff(in_order) <= 0).all()


def test_a_batch_counts_padding_and_what_each_sequence_takes_with_it() -> None:
    # With 2 tokens beside, 4 rows of 10 are 48 of 50. In two batches, 2 x 12 and 3 x 10 are the fewest.
    budget = TokenBudget(50, context_length=60, beside=2, size_cost=0)
    batches = list(budget.batches(np.array([7, 10, 9, 8, 6])))
    assert [(numbers.tolist(), width) for numbers, width in batches] == [([1, 2], 10), ([3, 0, 4], 8)]


@pytest.mark.parametrize("batch_cost", [0, 3, 20, 1000])
def test_no_other_way_to_part_the_sorted_sequences_costs_less(batch_cost: int) -> None:
    lengths = np.array([30, 29, 29, 20, 11, 10, 9, 3, 2, 1])
    budget = TokenBudget(60, context_length=60, batch_cost=batch_cost, size_cost=0)
    costs = []
    for cuts in itertools.product([False, True], repeat=len(lengths) - 1):
        begins = [0, *(n for n, is_cut in enumerate(cuts, 1) if is_cut), len(lengths)]
        sizes = [(end - begin) * lengths[begin] for begin, end in itertools.pairwise(begins)]
        if max(sizes) <= 60:
            costs.append(sum(sizes) + batch_cost * len(sizes))
    found = [len(numbers) * width + batch_cost for numbers, width in budget.batches(lengths)]
    assert sum(found) == min(costs)


def test_batches_are_of_few_sizes_where_these_cost_something() -> None:
    lengths = np.array(random_lengths(3000))
    sizes = []
    for size_cost in (0, 256):
        budget = TokenBudget(2048, context_length=1024, size_cost=size_cost)
        batches = [*budget.batches(lengths[:1500]), *budget.batches(lengths[1500:])]
        sizes.append(len({len(numbers) * width for numbers, width in batches}))
    assert sizes[1] < sizes[0] / 2


def test_a_sequence_beyond_the_budget_is_a_batch_alone() -> None:
    budget = TokenBudget(10, context_length=60)
    batches = list(budget.batches(np.array([3, 60, 40])))
    assert [numbers.tolist() for numbers, _ in batches] == [[1], [2], [0]]


def test_a_pool_is_padded_by_few_tokens() -> None:
    budget = TokenBudget(2048, context_length=1024)
    lengths = np.array(random_lengths(3000))
    padded = sum(len(numbers) * width for numbers, width in budget.batches(lengths))
    # 60 lengths for 45 batches of 2,048 tokens at least. Lengths over 31 are rounded up to even ones.
    assert padded / lengths.sum() < 1.05


def test_a_batch_is_padded_on_the_right_and_knows_its_sequences() -> None:
    rows = rows_of([2, 3, 1])
    ((numbers, batch),) = TokenBudget(12, context_length=60).token_batches(rows[:2])
    assert numbers.tolist() == [1, 0]
    assert batch.input_ids.tolist() == [[2, 2, 2], [1, 1, 0]]
    assert batch.lengths.tolist() == [3, 2]
    assert batch.sequences == [rows[1], rows[0]]


@pytest.mark.parametrize("is_live", [False, True])
def test_results_come_in_the_order_of_the_items(is_live: bool) -> None:
    rows = rows_of(random_lengths(2000))
    found = [pair for some in scored(rows, is_live) for pair in some]
    assert found == [(row, [row.number]) for row in rows]


def test_an_item_may_have_several_sequences_or_none() -> None:
    def parts(some: list[int]) -> list[list[Row]]:
        return [[Row(10 * item + part, part + 1) for part in range(item)] for item in some]

    (found,) = score_in_order(
        [3, 0, 1, 0], parts, first_tokens, BUDGET, characters=lambda item: item, is_live=False
    )
    assert found == [(3, [30, 31, 32]), (0, []), (1, [10]), (0, [])]


@pytest.mark.parametrize("is_live", [False, True])
def test_no_more_is_read_than_a_pool_in_work_and_one_ahead(is_live: bool) -> None:
    taken = 0

    def endless() -> Iterator[Row]:
        nonlocal taken
        while True:
            taken += 1
            yield Row(taken, 10)

    # Of 10 tokens each. A pool ends behind a part that fills it; a live input has two more in hand.
    most = 2 * (LARGEST_POOL * 10 + PART_ITEMS) + 2
    written, sizes = 0, []
    for some in scored(endless(), is_live):
        assert taken - written <= most
        written += len(some)
        sizes.append(len(some))
        if written > 5000:
            break
    if not is_live:
        # Parts of 32: the first that reach 400 tokens, 1,600, 3,200; from there on they are as large.
        assert sizes[:4] == [64, 160, 320, 320]
        assert FIRST_POOL * BUDGET.tokens == 400


def test_blank_items_and_long_texts_end_a_pool_too() -> None:
    blank = score_in_order(
        range(3 * POOL_ITEMS),
        lambda some: [[] for _ in some],
        first_tokens,
        BUDGET,
        characters=lambda item: 0,
    )
    assert [len(some) for some in blank] == [POOL_ITEMS] * 3
    long = score_in_order(
        range(6),
        lambda some: [[] for _ in some],
        first_tokens,
        BUDGET,
        characters=lambda item: token_budget.POOL_CHARACTERS // 2,
    )
    assert [len(some) for some in long] == [2, 2, 2]


@pytest.mark.parametrize("is_live", [False, True])
@pytest.mark.parametrize("count", [0, 1, PART_ITEMS, 1000])
def test_items_before_one_that_cannot_be_read_come_before_the_error(count: int, is_live: bool) -> None:
    def rows() -> Iterator[Row]:
        yield from rows_of([5] * count)
        raise DataError("row 7 is bad")

    found: list[Any] = []
    with pytest.raises(DataError, match="row 7 is bad"):
        found.extend(pair for some in scored(rows(), is_live) for pair in some)
    assert [row.number for row, _ in found] == list(range(1, count + 1))


def test_an_error_of_the_model_ends_it_at_once() -> None:
    def fail(batch: TokenBatch[Row]) -> list[int]:
        raise ArithmeticError

    rows = iter(rows_of([5] * 10_000))
    with pytest.raises(ArithmeticError):
        next(score_in_order(rows, lambda s: [[r] for r in s], fail, BUDGET, characters=lambda r: 1))
    # The pool in work, one that waits, and one that is being read.
    assert next(rows).number <= (4 + 16 + 32) * 20
