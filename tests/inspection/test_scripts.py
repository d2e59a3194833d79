"""Letters are counted by their scripts."""

from __future__ import annotations

import pytest

from gptcli.inspection.scripts import Scripts, script_of


@pytest.mark.parametrize(
    ("letters", "script"),
    [
        ("aßÉｚ", "Latin"),
        ("яЖ", "Cyrillic"),
        ("λ", "Greek"),
        ("漢字", "Han"),
        ("ひ", "Hiragana"),
        ("カｶ", "Katakana"),
        ("한", "Hangul"),
        ("क", "Devanagari"),
        ("ع", "Arabic"),
        ("א", "Hebrew"),
        ("ก", "Thai"),
        ("𐌀", "Old Italic"),
    ],
)
def test_a_letter_has_the_script_of_its_name(letters: str, script: str) -> None:
    assert {script_of(letter) for letter in letters} == {script}


@pytest.mark.parametrize("char", ["1", " ", ".", "%", "😀", "\u0301", "µ", "𝐱", "ʰ"])
def test_digits_signs_marks_and_letters_of_no_script_have_none(char: str) -> None:
    assert script_of(char) is None


def test_shares_are_of_all_letters_the_largest_first() -> None:
    scripts = Scripts()
    for text in ("да, да!", "yes", "123 "):
        scripts.look_in(text)
    # Four Cyrillic letters and three Latin ones.
    assert scripts.letters() == {"Cyrillic": 4, "Latin": 3}
    assert list(scripts.as_dict().items()) == [("Cyrillic", 4 / 7), ("Latin", 3 / 7)]
    assert Scripts().as_dict() == {}
