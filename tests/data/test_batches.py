"""The batch for step n is a pure function of (seed, n), and an epoch uses every token exactly once."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gptcli.data.batches import (
    IGNORED,
    Batch,
    TrainingBatches,
    evaluation_batches,
    mix,
    permuted,
)
from gptcli.data.token_store import SplitWriter, TokenStore, token_dtype

END_OF_TEXT = 0


@pytest.fixture
def counting_store(tmp_path: Path) -> Callable[[int], TokenStore]:
    """Make a store of the tokens 1, 2, 3, ..., each different, and end-of-text: 0."""

    def make(token_count: int) -> TokenStore:
        dtype = token_dtype(100_000)
        with SplitWriter(tmp_path, "train", dtype, END_OF_TEXT) as writer:
            writer.write(list(range(1, token_count)), token_count, ends_document=True)
        return TokenStore(tmp_path, "train", writer.count, dtype, END_OF_TEXT)

    return make


MakeStore = Callable[[int], TokenStore]


def sequences(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """Return (inputs, targets) of each sequence, its padding checked and taken off."""
    assert batch.input_ids.shape == batch.targets.shape
    assert batch.input_ids.dtype == batch.targets.dtype == np.int64
    found = []
    for inputs, targets in zip(batch.input_ids.tolist(), batch.targets.tolist(), strict=True):
        length = sum(target != IGNORED for target in targets)
        assert targets[length:] == [IGNORED] * (len(targets) - length), "padding is on the right"
        found.append((inputs[:length], targets[:length]))
    return found


def first_sequences(batches: TrainingBatches, count: int) -> list[tuple[list[int], list[int]]]:
    found: list[tuple[list[int], list[int]]] = []
    for step in itertools.count():
        if len(found) >= count:
            return found[:count]
        found += sequences(batches.batch(step))
    raise AssertionError


@pytest.mark.parametrize(
    ("token_count", "context_length", "batch_size"),
    [
        (64, 8, 4),  # Everything divides.
        (65, 8, 4),  # The last sequence is of one token.
        (100, 7, 3),  # Nothing divides: batches straddle epochs.
        (100, 7, 64),  # A batch holds several epochs.
        (9, 8, 1),
        (8, 8, 5),
        (5, 8, 2),  # The text is shorter than the context.
        (1, 2, 3),  # One token, which predicts itself.
        (1000, 3, 7),
    ],
)
def test_every_token_is_a_target_exactly_once_an_epoch(
    counting_store: MakeStore, token_count: int, context_length: int, batch_size: int
) -> None:
    batches = TrainingBatches(
        counting_store(token_count), context_length=context_length, batch_size=batch_size, seed=3
    )
    per_epoch = batches.sequences_per_epoch
    assert per_epoch == (token_count + context_length - 1) // context_length
    found = first_sequences(batches, 3 * per_epoch)
    for epoch in range(3):
        targets = Counter(
            target
            for _, sequence in found[epoch * per_epoch : (epoch + 1) * per_epoch]
            for target in sequence
        )
        assert targets == Counter(range(token_count))


@pytest.mark.parametrize(("token_count", "context_length"), [(100, 7), (64, 8), (5, 8)])
def test_inputs_are_the_tokens_before_their_targets(
    counting_store: MakeStore, token_count: int, context_length: int
) -> None:
    batches = TrainingBatches(
        counting_store(token_count), context_length=context_length, batch_size=5, seed=0
    )
    for step in range(20):
        for inputs, targets in sequences(batches.batch(step)):
            assert 1 <= len(targets) <= context_length
            # In this store, the token before n is n - 1, all round the circle.
            assert inputs == [(target - 1) % token_count for target in targets]


def test_a_batch_does_not_depend_on_what_was_asked_before(counting_store: MakeStore) -> None:
    store = counting_store(100)

    def batches() -> TrainingBatches:
        return TrainingBatches(store, context_length=7, batch_size=4, seed=1)

    in_order = batches()
    expected = [in_order.batch(step) for step in range(12)]
    backwards = batches()
    for step in reversed(range(12)):
        for found in (backwards.batch(step), batches().batch(step)):
            assert found.input_ids.tolist() == expected[step].input_ids.tolist()
            assert found.targets.tolist() == expected[step].targets.tolist()


def test_a_step_far_ahead_costs_no_more_than_the_first(counting_store: MakeStore) -> None:
    batches = TrainingBatches(counting_store(100), context_length=7, batch_size=4, seed=1)
    assert batches.batch(10**12).input_ids.shape[0] == 4


def test_the_seed_and_the_epoch_change_the_order_and_the_cuts(counting_store: MakeStore) -> None:
    store = counting_store(20_000)

    def epoch(seed: int, number: int) -> list[list[int]]:
        batches = TrainingBatches(store, context_length=1000, batch_size=20, seed=seed)
        return [targets for _, targets in sequences(batches.batch(number))]

    orders = [epoch(seed, number) for seed in (0, 1) for number in (0, 1)]
    for one, other in itertools.combinations(orders, 2):
        assert one != other
        assert sorted(one) != sorted(other), "sequences begin elsewhere in each epoch"


@pytest.mark.parametrize(("batch_size", "processes"), [(8, 2), (7, 3), (4, 4)])
def test_the_processes_together_make_the_whole_batch(
    counting_store: MakeStore, batch_size: int, processes: int
) -> None:
    store = counting_store(100)

    def batch(rank: int, of: int, step: int) -> list[tuple[list[int], list[int]]]:
        batches = TrainingBatches(
            store, context_length=7, batch_size=batch_size, seed=2, rank=rank, processes=of
        )
        return sequences(batches.batch(step))

    for step in range(6):
        parts = [batch(rank, processes, step) for rank in range(processes)]
        whole = [parts[place % processes][place // processes] for place in range(batch_size)]
        assert whole == batch(0, 1, step)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_micro_batches_hold_every_sequence_once_in_order(counting_store: MakeStore, size: int) -> None:
    batch = TrainingBatches(counting_store(50), context_length=7, batch_size=5, seed=0).batch(0)
    parts = list(batch.split(size))
    assert [len(part.input_ids) for part in parts][:-1] == [size] * (len(parts) - 1)
    assert np.concatenate([part.input_ids for part in parts]).tolist() == batch.input_ids.tolist()
    assert np.concatenate([part.targets for part in parts]).tolist() == batch.targets.tolist()
    assert sum(part.token_count for part in parts) == batch.token_count


def test_padding_is_not_counted_but_a_real_end_of_text_is(counting_store: MakeStore) -> None:
    # 9 tokens in sequences of 8 and 1: seven of the sixteen places are padding.
    batch = TrainingBatches(counting_store(9), context_length=8, batch_size=2, seed=0).batch(0)
    assert batch.targets.shape == (2, 8)
    assert batch.token_count == 9
    assert (batch.targets == END_OF_TEXT).sum() == 1


# ---- Evaluation


@pytest.mark.parametrize("context_length", [2, 7, 10, 11])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("max_tokens", [None, 1, 7, 9, 10, 50])
def test_evaluation_scores_every_token_once_in_order_from_end_of_text(
    counting_store: MakeStore, context_length: int, batch_size: int, max_tokens: int | None
) -> None:
    found = [
        sequence
        for batch in evaluation_batches(
            counting_store(10),
            context_length=context_length,
            batch_size=batch_size,
            max_tokens=max_tokens,
        )
        for sequence in sequences(batch)
    ]
    scored = [1, 2, 3, 4, 5, 6, 7, 8, 9, END_OF_TEXT][:max_tokens]
    assert [target for _, targets in found for target in targets] == scored
    assert [token for inputs, _ in found for token in inputs] == [END_OF_TEXT, *scored[:-1]]
    assert all(len(targets) <= context_length for _, targets in found)


# ---- The permutation


@pytest.mark.parametrize("count", [*range(1, 70), 127, 128, 129, 1000, 4096, 4097, 10_007])
def test_permuted_sends_each_position_to_a_place_of_its_own(count: int) -> None:
    for key in (0, 1, 2**64 - 1):
        assert sorted(permuted(position, count, key) for position in range(count)) == list(range(count))


def test_permuted_mixes_well() -> None:
    places = [permuted(position, 10_000, 5) for position in range(10_000)]
    # Hardly anything stays, no two neighbours stay neighbours, and places and positions are unrelated.
    assert sum(place == position for position, place in enumerate(places)) < 10
    assert sum(abs(one - other) == 1 for one, other in itertools.pairwise(places)) < 20
    assert abs(np.corrcoef(np.arange(10_000), places)[0, 1]) < 0.05
    assert places != [permuted(position, 10_000, 6) for position in range(10_000)]


def test_permuted_works_for_counts_beyond_any_text() -> None:
    count = 10**15
    places = {permuted(position, count, 9) for position in range(count - 1000, count)}
    assert len(places) == 1000
    assert all(0 <= place < count for place in places)


def test_mix_is_splitmix64() -> None:
    # The first outputs of the published generator for the seeds 0 and 1234567.
    assert mix(0) == 0xE220A8397B1DCDAF
    assert mix(1234567) == 6457827717110365317
    assert mix(1, 2) != mix(2, 1)
