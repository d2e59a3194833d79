from __future__ import annotations

import subprocess
import sys
import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.evaluation import overlap
from gptcli.evaluation.overlap import CopiedSpan, CopiedSpans, Leaks

Pieces = Sequence[tuple[str, bool]]

# Sixteen words: four runs of thirteen.
RHYME = "Sing a song of sixpence, a pocket full of rye, four and twenty blackbirds baked in"
NO_SPAN = CopiedSpan("", 0, 0)


def leaks(items: Sequence[str], *documents: str) -> Leaks:
    grams = overlap.ItemGrams(items)
    grams.look_in([(document, True) for document in documents])
    return grams.result()


def overlaps(items: Sequence[str], *documents: str) -> list[float | None]:
    """Return the overlap of each item; None if it is too short."""
    return [None if np.isnan(share) else share for share in leaks(items, *documents).overlap.tolist()]


def copied(texts: Sequence[str], *documents: str) -> list[CopiedSpan]:
    spans = CopiedSpans(texts)
    spans.look_in([(document, True) for document in documents])
    return spans.result()


def test_an_item_overlaps_as_far_as_its_runs_of_13_words_are_in_the_training_text() -> None:
    words = RHYME.split()
    assert overlaps([RHYME], f"It goes: {RHYME} a pie.") == [1]
    # The first 14 words hold runs 1 and 2 of 4, the last 13 hold one.
    assert overlaps([RHYME], " ".join(words[:14])) == [2 / 4]
    assert overlaps([RHYME], " ".join(words[3:])) == [1 / 4]
    assert overlaps([RHYME], " ".join(words[:12]), " ".join(words[4:])) == [0]
    assert overlaps([RHYME], " ".join([*words[:12], "all", *words[12:]])) == [0]


def test_capitals_punctuation_and_line_ends_do_not_matter() -> None:
    changed = "".join(char if char.isalnum() else " ...\n" for char in RHYME.upper())
    assert overlaps([RHYME], changed) == [1]
    assert overlaps(["Ο ΣΟΦΟΣ ΚΑΙ Η ΣΟΦΙΑ ΤΟΥΣ"], "ο σοφος και η σοφια τους") == [1]
    assert overlaps([RHYME], RHYME.replace("pocket", "pock et")) == [0]


def test_a_repeated_run_counts_once() -> None:
    # Of 14 equal words and another, the runs are 13 equal ones (twice) and one with the other word.
    assert overlaps(["la " * 14 + "lu"], "la " * 20) == [1 / 2]


def test_an_item_of_5_to_12_words_is_one_run_and_a_shorter_one_is_too_short_to_tell() -> None:
    items = ["one two three four five", "one two three four", "", "a b c d e f g h i j k l"]
    found = leaks(
        items, "zero one two three four five six", "a b c d e f g h i j k", "b c d e f g h i j k l"
    )
    np.testing.assert_array_equal(found.overlap, [1, np.nan, np.nan, 0])
    assert (found.items, found.too_short, found.touched, found.near_duplicates) == (4, 2, 1, 1)


def test_an_item_is_a_near_duplicate_from_half_of_its_runs_on_and_the_worst_come_first() -> None:
    words = RHYME.split()
    items = [
        "of other words entirely here",
        " ".join(words[2:]),
        RHYME,
        RHYME,
        "so all of the words " * 3,
    ]
    # Of the second item this holds 1 run of 2, of the third and the fourth 1 of 4 ...
    found = leaks(items, " ".join(words[3:]))
    np.testing.assert_array_equal(found.overlap, [0, 1 / 2, 1 / 4, 1 / 4, 0])
    assert (found.touched, found.near_duplicates) == (3, 1)
    assert found.worst == [1, 2, 3]


def test_runs_end_with_the_document() -> None:
    grams = overlap.ItemGrams(["one two three four five"])
    grams.look_in([("one two three", True), ("four five", True), ("one two", True)])
    grams.look_in([("three four five", True)])
    assert grams.result().touched == 0
    grams.look_in([("one two thr", False), ("ee four ", False), ("", False), ("five", False)])
    assert grams.result().touched == 1


def test_every_character_of_a_script_without_spaces_is_a_word() -> None:
    # 13 and 4 characters; the comma is none. "床" is not in the second document.
    items = ["床前明月光，疑是地上霜。举头望", "举头望月"]
    assert overlaps(items, "李白：床前明月光疑是地上霜举头望明月") == [1, None]
    assert overlaps(items, "李白：前明月光疑是地上霜举头望明月") == [0, None]
    assert overlaps(["ひらがなカ"], "カタカナとひらがなカナ") == [1]
    assert overlaps(["GPT是模型1"], "什么是GPT？GPT 是 模型 1。") == [1]
    # Korean and Hindi have spaces: two words, one word with its vowel signs.
    assert overlaps(["안녕하세요 여러분", "हिन्दी"], "안녕하세요 여러분", "हिन्दी") == [None, None]
    # Five Thai letters, the first and the last with a vowel and a tone above them; less a tone.
    assert overlaps(["ที่นครนี้", "ทีนครนี้"], "อยู่ที่นครนี้") == [1, 0]


def test_nothing_is_found_in_nothing() -> None:
    found = leaks([], RHYME)
    assert (found.items, found.too_short, found.touched, found.worst) == (0, 0, 0, [])
    assert overlaps([RHYME, ""]) == [0, None]
    assert overlaps([RHYME, ""], "", " ") == [0, None]


@pytest.mark.parametrize(
    ("items", "expected"),
    [(["a b c d eeee"], [0]), (["a b c d eeee", "a b c d " + "e" * 600_000], [0, 1])],
)
def test_a_word_goes_across_any_number_of_pieces(items: list[str], expected: list[float]) -> None:
    grams = overlap.ItemGrams(items)
    grams.look_in([("a b c d ", False), *[("e" * 200_000, False)] * 3, (" f", True)])
    assert grams.result().overlap.tolist() == expected


@pytest.mark.parametrize("before", [0, 1, 6, 11, 12, 13])
def test_a_run_is_found_wherever_words_are_looked_at_together(before: int) -> None:
    assert overlaps(
        ["床前明月光疑是地上霜举头望"], "中" * (2**19 - before) + "床前明月光疑是地上霜举头望月"
    ) == [1]


# Few words, so that much repeats; with capitals, accents, marks and characters that are words.
WORDS = st.sampled_from(["a", "b", "A", "é", "e\u0301", "中", "の", "ที่", "ς", "Σ", "ß", "1", "ab"])
GAPS = st.sampled_from([" ", "", ", ", "\n", "_"])
TEXTS = st.lists(st.tuples(WORDS, GAPS), max_size=40).map(lambda pairs: "".join(map("".join, pairs)))


def words_of(text: str) -> list[str]:
    """Return the words by going over the characters one by one."""
    words: list[str] = []
    in_word = None
    for char in text.casefold():
        is_spaceless = any(name in unicodedata.name(char, "") for name in ("CJK", "HIRAGANA", "THAI"))
        if unicodedata.category(char)[0] == "M":
            if in_word:
                words[-1] += char
        elif not char.isalnum():
            in_word = None
        elif in_word == "letters" and not is_spaceless:
            words[-1] += char
        else:
            in_word = "one" if is_spaceless else "letters"
            words.append(char)
        if in_word == "one" and not is_spaceless and char.isalnum():
            in_word = "letters"
    return words


def runs_of(words: Sequence[str], length: int) -> set[tuple[str, ...]]:
    return {tuple(words[start : start + length]) for start in range(len(words) - length + 1)}


@settings(deadline=None)
@given(st.lists(TEXTS, max_size=5), st.lists(TEXTS, max_size=4))
def test_the_overlap_is_that_of_sets_of_words(items: list[str], documents: list[str]) -> None:
    expected: list[float | None] = []
    for item in items:
        length = min(len(words_of(item)), 13)
        runs = runs_of(words_of(item), length)
        training = set().union(*(runs_of(words_of(document), length) for document in documents))
        expected.append(len(runs & training) / len(runs) if length >= 5 else None)
    assert overlaps(items, *documents) == expected


@st.composite
def cut_documents(draw: st.DrawFn, documents: st.SearchStrategy[str]) -> tuple[list[str], Pieces]:
    """Draw documents, and the same in pieces that are cut anywhere."""
    whole = draw(st.lists(documents, max_size=3))
    pieces = []
    for document in whole:
        cuts = [0, *sorted(draw(st.lists(st.integers(0, len(document)), max_size=5))), len(document)]
        parts = [document[start:end] for start, end in pairwise(cuts)]
        pieces += [(part, False) for part in parts[:-1]] + [(parts[-1], True)]
    return whole, pieces


@settings(deadline=None)
@given(st.lists(TEXTS, max_size=3), cut_documents(TEXTS))
def test_where_documents_are_cut_does_not_change_the_overlap(
    items: list[str], training: tuple[list[str], Pieces]
) -> None:
    whole, pieces = training
    grams = overlap.ItemGrams(items)
    grams.look_in(pieces)
    np.testing.assert_array_equal(grams.result().overlap, leaks(items, *whole).overlap)


def test_the_longest_copied_span_is_reported_with_its_length() -> None:
    texts = [
        "He sang: a pocket full of rye, four and twenty blackbirds! Four and twenty blackbirds baked",
        "Nothing of it is here, not even a pocket full of straw.",
        RHYME,
    ]
    # "a pocket full of " has 17 bytes.
    assert copied(texts, f"It goes: {RHYME} a pie.") == [
        CopiedSpan(" a pocket full of rye, four and twenty blackbirds", 49, 9),
        NO_SPAN,
        CopiedSpan(RHYME, 82, 16),
    ]


def test_a_span_of_fewer_than_24_bytes_is_not_reported() -> None:
    assert copied(["abcdefghijklmnopqrstuvw."], "abcdefghijklmnopqrstuvwxyz") == [NO_SPAN]
    assert copied(["abcdefghijklmnopqrstuvwx."], "abcdefghijklmnopqrstuvwxyz") == [
        CopiedSpan("abcdefghijklmnopqrstuvwx", 24, 1)
    ]
    assert copied(["床前明月光疑是。"], "床前明月光疑是地上霜") == [NO_SPAN]
    assert copied(["床前明月光疑是地。"], "床前明月光疑是地上霜") == [
        CopiedSpan("床前明月光疑是地", 8, 8)
    ]


def test_spans_begin_and_end_with_whole_characters() -> None:
    # "é" and "è" share their first byte, "上" (e4 b8 8a) and "予" (e4 ba 88) too; "ê" and "Ϊ" (ce aa)
    # share their last.
    assert copied(["Ϊ, said the cat on the mat, é"], "ê, said the cat on the mat, è") == [
        CopiedSpan(", said the cat on the mat, ", 27, 6)
    ]
    # 8 characters less one byte, and 23 bytes with one of the next character, are not enough.
    assert copied(["床前明月光疑是上"], "床前明月光疑是予") == [NO_SPAN]


def test_capitals_and_spaces_matter_to_copies() -> None:
    assert copied([RHYME.upper(), RHYME.replace(" ", "  ")], RHYME) == [NO_SPAN, NO_SPAN]


def test_spans_end_with_the_document_and_the_text() -> None:
    first, second = RHYME[:40], RHYME[40:]
    assert copied([RHYME], first, second)[0].text == second
    assert [span.text for span in copied([first, second], RHYME)] == [first, second]
    spans = CopiedSpans([RHYME])
    spans.look_in([(first, False), ("", False), (second, False)])
    assert spans.result()[0].text == RHYME


def test_no_span_is_copied_from_nothing_or_in_nothing() -> None:
    assert copied([], RHYME) == []
    assert copied(["", "a", RHYME]) == [NO_SPAN] * 3
    assert copied(["", RHYME], "", "a") == [NO_SPAN] * 2
    assert copied(["", ""], RHYME) == [NO_SPAN] * 2


@pytest.mark.parametrize("piece", ["a", "la di da, ", "床前"])
def test_a_text_that_repeats_itself_is_copied_as_far_as_the_training_text_repeats(piece: str) -> None:
    # Every place of the one agrees with thousands of the other, for hundreds of bytes.
    training = [piece * 700, piece * 200_000]
    texts = [piece * 3000 + "!", "?" + piece * 3000, f"{piece * 300}!{piece * 500}!{piece * 400}"]
    assert [span.text for span in copied(texts, training[0])] == [piece * 700] * 2 + [piece * 500]
    assert [span.text for span in copied(texts, *training)] == [piece * 3000] * 2 + [piece * 500]


# Long repeats of few characters, of 1 to 4 bytes, some of which share bytes.
COPIES = st.lists(
    st.sampled_from(["a", "b", "é", "è", "上", "予", "😀", "😁", "ababab" * 4, "aé上" * 5]), max_size=25
).map("".join)


def longest_copied(text: str, documents: Sequence[str]) -> str:
    """Return the longest span of `text` in any document by trying all of them, the first of equals."""
    longest = ""
    for start in range(len(text)):
        for end in range(start + 1, len(text) + 1):
            span = text[start:end]
            if not any(span in document for document in documents):
                break
            if len(span) > len(longest) and len(span.encode()) >= 24:
                longest = span
    return longest


@settings(deadline=None)
@given(st.lists(COPIES, max_size=4), st.lists(COPIES, max_size=4))
def test_no_longer_span_is_copied(texts: list[str], documents: list[str]) -> None:
    spans = copied(texts, *documents)
    assert [span.text for span in spans] == [longest_copied(text, documents) for text in texts]
    assert [span.characters for span in spans] == [len(span.text) for span in spans]
    assert [span.words for span in spans] == [len(words_of(span.text)) for span in spans]


@settings(deadline=None)
@given(st.lists(COPIES, max_size=3), cut_documents(COPIES))
def test_where_documents_are_cut_does_not_change_the_spans(
    texts: list[str], training: tuple[list[str], Pieces]
) -> None:
    whole, pieces = training
    spans = CopiedSpans(texts)
    spans.look_in(pieces)
    assert spans.result() == copied(texts, *whole)


@pytest.mark.parametrize("offset", [0, 2**18 - 60, 2**18 - 1, 2**18, 2**19 - 60, 600_000])
def test_a_copy_is_found_anywhere_in_a_long_document(offset: int) -> None:
    filler = "".join(f"{number} " for number in range(120_000))
    training = f"{filler[:offset]} {RHYME} {filler[offset:]}"
    assert overlaps([RHYME], training) == [1]
    assert copied([f"<{RHYME}>"], training)[0].text == RHYME


def test_all_processes_find_the_same() -> None:
    program = f"""\
from gptcli.evaluation.overlap import ItemGrams
grams = ItemGrams([{RHYME!r}])
grams.look_in([({RHYME[:-3]!r}, True)])
print(grams.result().overlap.tolist(), grams._grams[0].table.hashes.tolist())
"""
    printed = [
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            check=True,
            text=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
        ).stdout
        for seed in ("1", "2")
    ]
    assert printed[0].startswith("[0.75] ")
    assert printed[0] == printed[1]


def test_in_real_text_a_copied_paragraph_is_found_and_an_invented_one_is_not(shared_data: Path) -> None:
    folder = shared_data / "language-modelling"
    training = (folder / "wikitext2-train.txt").read_text("utf-8")
    held_out = (folder / "wikitext2-valid.txt").read_text("utf-8")
    planted = max(training[:100_000].splitlines(), key=len)
    invented = (
        "Grandmother Oduya keeps eleven purple tortoises behind the lighthouse of Brackenmoor and feeds "
        "them cardamom biscuits whenever the ferry from Quillhaven is more than nine minutes late."
    )
    items = [planted, invented, *(line for line in held_out.splitlines() if len(line) > 200)]
    pieces = [(training[start : start + 2**20], False) for start in range(0, len(training), 2**20)]
    grams = overlap.ItemGrams(items)
    grams.look_in(pieces)
    found = grams.result()
    assert found.overlap[:2].tolist() == [1, 0]
    assert found.worst[0] == 0
    # Both halves of WikiText hold other articles.
    assert found.near_duplicates < found.items / 100

    spans = CopiedSpans([f"It is told that {planted}{invented}", invented])
    spans.look_in(pieces)
    copy, none = spans.result()
    assert planted.strip() in copy.text
    assert none == NO_SPAN
