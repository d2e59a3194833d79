"""Text that was read in the wrong encoding is found, named with its place, and told from good text."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptcli.data.documents import Place
from gptcli.data.ledger import Reading
from gptcli.inspection.encoding_trouble import KINDS, EncodingTrouble, mended


def trouble_in(*texts: str) -> EncodingTrouble:
    trouble = EncodingTrouble()
    for text in texts:
        trouble.look_in(text, Place("a.txt", 1))
    return trouble


def kinds_in(text: str) -> set[str]:
    return {kind for kind in KINDS if trouble_in(text).of_kind(kind) is not None}


def as_windows(text: str) -> str:
    """Return UTF-8 as it looks when it is read as Windows-1252, with what that lacks as in Latin-1."""
    return "".join(bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in text.encode())


@pytest.mark.parametrize(
    "text", ["it’s", "“so”", "a – b", "café", "50 °C", "naïve 😀", "œuvre", "źle", "Привет", "日本語"]
)
def test_utf8_that_was_read_as_windows_1252_or_latin_1_is_found_and_mended(text: str) -> None:
    for broken in (as_windows(text), text.encode().decode("latin-1")):
        assert "mojibake" in kinds_in(f"We say {broken}, and go on."), broken
        assert mended(broken) == text


@pytest.mark.parametrize(
    "text",
    [
        "« À BIENTÔT… », dit-elle. « Allé…» « CAFÉ» É»",
        "SÃO PAULO, IRMÃ, ÂNGELA: «Não…»",
        "Ä „Å“ – ÄÖÜ ß € £ ½ × ¿Qué? ¡AÑO! Nº 5 ÅÅÅ",
        "Ðăng Ñandú Îles Ïambe",
    ],
)
def test_accents_and_quotation_marks_of_living_languages_are_no_mojibake(text: str) -> None:
    assert kinds_in(text) == set()


def test_no_translation_of_the_declaration_of_human_rights_is_taken_for_mojibake(
    shared_data: Path,
) -> None:
    files = sorted((shared_data / "languages" / "udhr").glob("*.txt"))
    assert len(files) > 40
    for file in files:
        text = file.read_text(encoding="utf-8-sig")
        assert kinds_in(text) == set(), file.name
        if not text.isascii():
            assert "mojibake" in kinds_in(as_windows(text)), file.name


def test_other_trouble_is_counted_by_kind_with_the_place_of_the_first() -> None:
    trouble = trouble_in(
        "one\ntwo\x00 \x07", "a \ufffd b \ufffd", "x\ufeffy", "that\x92s", "\tfine\r\n\x0c"
    )
    counts = {kind: found.count for kind in KINDS if (found := trouble.of_kind(kind))}
    assert counts == {"control": 2, "replacement": 2, "byte_order_mark": 1, "windows": 1}
    control = trouble.of_kind("control")
    assert control is not None
    assert (control.where, control.texts) == ("a.txt:2", 1)
    assert control.example == '"one two\\u0000 \\u0007"'
    windows = trouble.of_kind("windows")
    assert windows is not None
    assert windows.example == '"that\\u0092s" has "\\u0092" for "’"'


def test_a_slip_is_a_warning_and_much_of_it_a_problem() -> None:
    slip = "donâ€™t " + "x" * 20_000
    levels = [
        [finding.level for finding in trouble_in(text).findings(Reading(), "utf-8")]
        for text in ("fine", slip, "donâ€™t")
    ]
    assert levels == [["ok"], ["warning"], ["problem"]]


def test_undecodable_bytes_are_a_problem_however_few() -> None:
    trouble = trouble_in("x" * 100_000 + "\n\ufffd")
    (finding,) = trouble.findings(Reading(undecodable_bytes_replaced=1), "utf-8")
    assert (finding.level, finding.where) == ("problem", "a.txt:2")
    assert finding.message == "bytes that are not UTF-8 were read as U+FFFD, once"
