from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from gptcli.data.documents import Piece
from gptcli.evaluation.detokenizing import detokenized, detokenized_wikitext

LINES = [
    # Numbers and compounds.
    ("a third @-@ generation , 2 @,@ 500 by 3 @.@ 5 m", "a third-generation, 2,500 by 3.5 m"),
    ("from 1990 – 1995 and 3 / 4", "from 1990–1995 and 3/4"),
    ("It costs $ 5 , or 20 % of £ 25 .", "It costs $5, or 20% of £25."),
    # Contractions and possession.
    ("The cat 's mat , and they 're sure I 'd do n't", "The cat's mat, and they're sure I'd don't"),
    ("the cats ' mats were old", "the cats' mats were old"),
    # Quotes and brackets.
    ('He said " The cat sat . " and left .', 'He said "The cat sat." and left.'),
    ("the song ' Mat ' of 1990", "the song 'Mat' of 1990"),
    ("The cat ( an old one ) sat .", "The cat (an old one) sat."),
    ("He [ the cat ] sat ; it slept : why ?", "He [the cat] sat; it slept: why?"),
    # Headings and blank lines stay.
    (" = = Gameplay = = ", " = = Gameplay = = "),
    (" ", " "),
    ("", ""),
    # What was never split.
    ('A plain text: no marks, "quotes" (brackets) or cats\' mats.',) * 2,
]


@pytest.mark.parametrize(("line", "expected"), LINES)
def test_a_line_reads_as_it_was_written(line: str, expected: str) -> None:
    assert detokenized_wikitext(line) == expected


TEXT = "\n".join(line for line, _ in LINES) + "\n"
EXPECTED = "\n".join(line for _, line in LINES) + "\n"


@pytest.mark.parametrize("seed", range(5))
def test_pieces_that_are_cut_anywhere_give_the_same_text(seed: int) -> None:
    random_numbers = random.Random(seed)
    pieces = []
    for _ in range(2):
        cuts = sorted(random_numbers.sample(range(len(TEXT)), random_numbers.randrange(12)))
        edges = list(zip([0, *cuts], [*cuts, len(TEXT)], strict=True))
        pieces += [Piece(TEXT[begin:end], end == len(TEXT)) for begin, end in edges]
    documents = [""]
    for piece in detokenized(pieces):
        documents[-1] += piece.text
        if piece.ends_document:
            documents.append("")
    assert documents == [EXPECTED, EXPECTED, ""]


def test_text_is_given_on_before_its_document_has_ended() -> None:
    taken = []

    def pieces() -> Iterator[Piece]:
        for number in range(3):
            taken.append(number)
            yield Piece(f"{number} @.@ 5\n", number == 2)

    assert next(detokenized(pieces())) == Piece("0.5\n", False)
    assert taken == [0]
