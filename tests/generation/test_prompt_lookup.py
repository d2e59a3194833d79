"""Guesses are what followed the last tokens when they stood before."""

from __future__ import annotations

from gptcli.generation.prompt_lookup import MOST_DRAFTED, PromptLookup


def test_what_followed_the_last_three_tokens_before_is_guessed() -> None:
    assert PromptLookup([1, 2, 3, 4, 5, 9, 1, 2, 3]).draft(6) == [4, 5, 9, 1, 2, 3]
    assert PromptLookup([1, 2, 3, 4, 5, 9, 1, 2, 3]).draft(2) == [4, 5]


def test_the_newest_place_counts() -> None:
    assert PromptLookup([1, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3]).draft(1) == [8]


def test_nothing_is_guessed_where_nothing_has_stood_before() -> None:
    assert PromptLookup([1, 2, 3, 4]).draft(8) == []
    assert PromptLookup([1, 2]).draft(8) == []
    assert PromptLookup([]).draft(8) == []
    assert PromptLookup([1, 1, 1, 1]).draft(0) == []


def test_tokens_that_are_added_are_found() -> None:
    lookup = PromptLookup([1, 2])
    lookup.extend([3, 4, 5, 1])
    lookup.extend([2, 3])
    assert lookup.draft(5) == [4, 5, 1, 2, 3]


def test_what_goes_round_is_guessed_to_go_on() -> None:
    assert PromptLookup([7, 7, 7, 7]).draft(8) == [7] * 8
    assert PromptLookup([1, 2, 1, 2, 1]).draft(5) == [2, 1, 2, 1, 2]


def test_fewer_are_guessed_where_guesses_fail_and_more_again_where_they_are_right() -> None:
    lookup = PromptLookup(list(range(20)) + list(range(3)))
    assert len(lookup.draft(99)) == MOST_DRAFTED == 8
    lookup.note(8, 0)
    assert len(lookup.draft(99)) == 1
    lookup.note(1, 1)
    assert len(lookup.draft(99)) == 2
    lookup.note(2, 2)
    lookup.note(4, 3)
    assert len(lookup.draft(99)) == 3
