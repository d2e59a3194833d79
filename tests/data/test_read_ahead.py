from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from gptcli.data.read_ahead import Arrivals, one_ahead

SECONDS = 30  # For what should take none.


def test_a_pause_is_told_once_and_what_comes_later_comes() -> None:
    goes_on = threading.Event()

    def typed() -> Iterator[str]:
        yield "a"
        yield "b"
        assert goes_on.wait(SECONDS)
        yield "c"

    seen = []
    with Arrivals(typed()) as arrivals:
        for item in arrivals:
            seen.append(item)
            if item is None:
                goes_on.set()
    # None behind "c" only if the end let it wait.
    assert seen[:4] == ["a", "b", None, "c"]
    assert set(seen[4:]) <= {None}


def test_what_is_typed_is_dealt_with_though_more_may_come() -> None:
    answered = threading.Event()

    def typed() -> Iterator[int]:
        yield 1
        assert answered.wait(SECONDS), "the answer did not come"
        yield 2

    def in_groups(items: Iterator[int | None]) -> Iterator[list[int]]:
        group: list[int] = []
        for item in items:
            if item is None:
                yield group
                group = []
            else:
                group.append(item)
        yield group

    groups = one_ahead(typed(), in_groups, is_live=True)
    assert next(groups) == [1]
    answered.set()
    assert [item for group in groups for item in group] == [2]


def test_an_input_that_waits_for_ever_is_left_when_its_reader_ends() -> None:
    never = threading.Event()

    def silent() -> Iterator[int]:
        yield 1
        never.wait(SECONDS)

    items = one_ahead(silent(), lambda items: (item for item in items if item), is_live=True)
    assert next(items) == 1
    closing = threading.Thread(target=items.close)
    closing.start()
    closing.join(SECONDS / 2)
    is_left = not closing.is_alive()
    never.set()
    assert is_left


@pytest.mark.parametrize("is_live", [False, True])
def test_one_is_made_while_the_last_is_worked_on_and_no_more(is_live: bool) -> None:
    begun = [threading.Event() for _ in range(4)]

    def slowly(items: Iterator[int | None]) -> Iterator[int]:
        for item in items:
            if item is not None:
                begun[item].set()
                yield item

    for item in one_ahead(range(4), slowly, is_live=is_live):
        if item < 3:
            assert begun[item + 1].wait(SECONDS)
        assert not any(event.is_set() for event in begun[item + 2 :])


@pytest.mark.parametrize("is_live", [False, True])
def test_an_error_comes_behind_what_was_made_before_it(is_live: bool) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("no more")

    seen: list[int] = []
    with pytest.raises(ValueError, match="no more"):
        seen.extend(one_ahead(items(), lambda some: (item for item in some if item), is_live=is_live))
    assert seen in ([], [1])
    found = one_ahead(items(), lambda some: (item for item in some if item), is_live=is_live)
    assert next(found) == 1
