"""Which size suits what there is."""

from __future__ import annotations

from itertools import pairwise

import pytest

from gptcli.config.schema import NAMED_SIZES
from gptcli.errors import ConfigError
from gptcli.planning.findings import Limits
from gptcli.planning.plan import facts_of
from gptcli.planning.shape import operations_per_token
from gptcli.planning.sizes import best_size, choose_size, family, shape_of_size


@pytest.mark.parametrize("size", ["small", "124M", "0.124B", "124_439_808", "120000k"])
def test_a_size_is_a_name_or_a_number(size: str) -> None:
    assert shape_of_size(size).parameters == 124_439_808


@pytest.mark.parametrize("size", ["smal", "0", "-3M", "1e99", "nan", ""])
def test_what_is_no_size_is_refused(size: str) -> None:
    with pytest.raises(ConfigError, match="--size is"):
        shape_of_size(size)


def test_the_family_grows_steadily_and_has_the_named_sizes() -> None:
    sizes = [shape.parameters for shape in family()]
    assert all(1 < larger / smaller <= 4 for smaller, larger in pairwise(sizes))
    for name, shape in NAMED_SIZES.items():
        found = shape_of_size(name)
        assert (found.n_layer, found.n_head, found.n_embd, found.positions) == shape


def test_a_wished_size_has_twenty_tokens_a_parameter() -> None:
    choice = choose_size("small")
    assert choice.tokens == 20 * 124_439_808
    training = choice.settings.training
    assert training.max_steps == choice.tokens // (training.batch_size * 1024)
    # So much text has so many tokens, held-out text aside.
    text = facts_of(choice.settings, choice.text_bytes).text
    assert text.train_tokens == pytest.approx(choice.tokens, rel=1e-6)


def test_time_decides_on_the_largest_model_whose_training_it_allows() -> None:
    shape = shape_of_size("small")
    choice = choose_size("small")
    operations = operations_per_token(shape, choice.settings, 1024).training
    seconds = choice.tokens * operations / 1e12 * 1.001
    best = best_size(Limits(seconds=seconds), None, 1e12)
    assert best.settings.model == choice.settings.model
    assert best.decided_by == "time"
    less = best_size(Limits(seconds=seconds * 0.99), None, 1e12)
    assert less.settings.model.n_embd == 640


def test_text_may_be_read_four_times() -> None:
    choice = choose_size("mini")
    best = best_size(Limits(), choice.text_bytes // 4 + 1, None)
    assert best.settings.model == choice.settings.model
    assert best.decided_by == "text"


def test_memory_decides_on_the_size_and_on_the_micro_batch() -> None:
    little = best_size(Limits(memory_bytes=2_000_000_000), None, None)
    more = best_size(Limits(memory_bytes=20_000_000_000), None, None)
    assert little.decided_by == "memory"
    assert little.settings.model.n_embd is not None
    assert more.settings.model.n_embd is not None
    assert little.settings.model.n_embd < more.settings.model.n_embd


def test_without_a_size_that_fits_it_is_the_smallest_with_the_tokens_that_there_are() -> None:
    best = best_size(Limits(), 1_000, None)
    assert best.settings.model.n_embd == 64
    assert best.decided_by == "text"
    assert 0 < best.tokens < 4_000
