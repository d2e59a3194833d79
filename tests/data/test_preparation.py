"""From settings to token stores: nothing is lost, the splits are exact, the cache is never wrong."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from gptcli.config.schema import Settings
from gptcli.data import preparation
from gptcli.data.ledger import Ledger
from gptcli.data.preparation import PreparedText, prepare_text
from gptcli.data.progress import PreparationProgress
from gptcli.data.token_store import TokenStore
from gptcli.errors import DataError, EnvironmentProblem
from tests.conftest import REPOSITORY, SENTENCES, TEXT
from tests.data.test_documents import read_in_blocks


@pytest.fixture
def tokenizer_folder(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizer"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def lines_file(tmp_path: Path) -> Path:
    """81 documents, one a line."""
    file = tmp_path / "lines.txt"
    file.write_text(TEXT)
    return file


def settings(
    source: Path | str | list[str], tokenizer: Path | None = None, *, seed: int = 42, **data: Any
) -> Settings:
    """`tokenizer`: an existing one; if there is none, one of 300 tokens is trained."""
    return Settings.model_validate(
        {
            "tokenizer": str(tokenizer) if tokenizer else {"train": {"vocab_size": 300}},
            "data": {"source": str(source) if isinstance(source, Path) else source, **data},
            "runtime": {"seed": seed},
        }
    )


def documents_of(prepared: PreparedText, store: TokenStore | None) -> list[str]:
    """Return the text of each document, its end-of-text token checked and taken off."""
    assert store is not None
    documents, begin = [], 0
    for end in store.document_ends.tolist():
        ids = store.read_circular(begin, end - begin).tolist()
        assert ids[-1] == store.end_of_text_id and store.end_of_text_id not in ids[:-1]
        documents.append(prepared.tokenizer.decode(ids[:-1]))
        begin = end
    assert begin == store.token_count
    return documents


def cache_folders(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").iterdir())


# ---- The splits


@pytest.mark.parametrize(("fraction", "held_out"), [(0.1, 8), (0.5, 40), (0.99, 80)])
def test_documents_are_split_exactly(
    lines_file: Path, tokenizer_folder: Path, fraction: float, held_out: int
) -> None:
    prepared = prepare_text(
        settings(lines_file, tokenizer_folder, text_unit="line", validation_fraction=fraction)
    )
    train = documents_of(prepared, prepared.train)
    validation = documents_of(prepared, prepared.validation)
    assert len(validation) == held_out
    assert sorted(train + validation) == sorted(line.rstrip("\n") for line in SENTENCES)
    order = [line.rstrip("\n") for line in SENTENCES].index
    assert train == sorted(train, key=order) and validation == sorted(validation, key=order)
    assert prepared.ledger.split_by == "document"


def test_the_seed_decides_which_documents_are_held_out(lines_file: Path, tokenizer_folder: Path) -> None:
    def held_out(seed: int, cache: str) -> list[str]:
        prepared = prepare_text(
            settings(
                lines_file,
                tokenizer_folder,
                seed=seed,
                text_unit="line",
                cache_dir=str(lines_file.parent / cache),
            )
        )
        assert not prepared.was_cached
        return documents_of(prepared, prepared.validation)

    first = held_out(1, "first cache")
    assert first == held_out(1, "second cache")
    assert first != held_out(2, "first cache")
    assert first != [line.rstrip("\n") for line in SENTENCES[-8:]]


def test_one_long_file_is_split_by_position(text_file: Path, tokenizer_folder: Path) -> None:
    prepared = prepare_text(settings(text_file, tokenizer_folder, validation_fraction=0.25))
    cut = int(len(TEXT) * 0.75)  # In bytes; the text is ASCII.
    assert documents_of(prepared, prepared.train) == [TEXT[:cut]]
    assert documents_of(prepared, prepared.validation) == [TEXT[cut:]]
    assert prepared.ledger.split_by == "position"
    assert prepared.ledger.documents_cut_by_the_split == 1


@pytest.mark.parametrize("piece_size", [8, 1 << 20])
@pytest.mark.parametrize("percent", range(5, 100, 10))
def test_a_split_by_position_loses_no_byte_and_halves_no_character(
    tmp_path: Path,
    tokenizer_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    piece_size: int,
    percent: int,
) -> None:
    read_in_blocks(monkeypatch, piece_size)
    text = "\U0001f600é漢字 ñ\u0301. " * 5 + "<|endoftext|>" + "字\U0001f600 " * 7
    file = tmp_path / "a.txt"
    file.write_text(text)
    prepared = prepare_text(
        settings(file, tokenizer_folder, split_by="position", validation_fraction=1 - percent / 100)
    )
    train = documents_of(prepared, prepared.train)
    validation = documents_of(prepared, prepared.validation)
    whole = text.replace("<|endoftext|>", "")
    assert "".join(train + validation) == whole
    assert len(train + validation) == 2 + prepared.ledger.documents_cut_by_the_split
    cut, size = len("".join(train).encode()), len(whole.encode())
    assert size * percent / 100 - 4 < cut <= size * percent / 100 + 1e-6
    assert prepared.ledger.train.bytes == cut
    assert prepared.ledger.validation.bytes == size - cut


def test_a_split_between_two_documents_cuts_neither(tmp_path: Path, tokenizer_folder: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one two" + "<|endoftext|>" + "six ten")
    prepared = prepare_text(
        settings(file, tokenizer_folder, split_by="position", validation_fraction=0.5)
    )
    assert documents_of(prepared, prepared.train) == ["one two"]
    assert documents_of(prepared, prepared.validation) == ["six ten"]
    assert prepared.ledger.documents_cut_by_the_split == 0


def test_validation_text_of_its_own_is_held_out_whole(
    lines_file: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "a.jsonl").write_text('{"text": "one"}\n{"text": ""}\n{"text": "two"}\n')
    seen: list[PreparationProgress] = []
    prepared = prepare_text(
        settings(lines_file, tokenizer_folder, validation_source=str(tmp_path / "held")), seen.append
    )
    assert documents_of(prepared, prepared.train) == [TEXT]
    assert documents_of(prepared, prepared.validation) == ["one", "two"]
    ledger = prepared.ledger
    assert ledger.split_by == "validation_source"
    assert ledger.sources == [str(lines_file), str(tmp_path / "held" / "a.jsonl")]
    assert (ledger.reading.files, ledger.reading.rows, ledger.reading.documents) == (2, 3, 3)
    assert ledger.reading.empty_documents_dropped == 1
    assert seen[-1] == PreparationProgress("tokenizing", len(TEXT) + 6, len(TEXT) + 6)


def test_how_far_the_hashing_of_much_text_is_is_told(
    lines_file: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for much, told in ((len(TEXT), []), (len(TEXT) - 1, [("hashing", len(TEXT), len(TEXT))])):
        monkeypatch.setattr(preparation, "WORTH_A_BAR", much)
        seen: list[PreparationProgress] = []
        prepare_text(settings(lines_file, tokenizer_folder), seen.append)
        found = [(one.stage, one.done, one.total) for one in seen if one.stage == "hashing"]
        assert found == told


def test_bad_validation_text_is_found_before_anything_expensive(text_file: Path, tmp_path: Path) -> None:
    bad, blank = tmp_path / "bad.txt", tmp_path / "blank.txt"
    bad.write_bytes(b"abc\xff")
    blank.write_text(" \n")
    for file, said in ((bad, "offset 3 is not UTF-8"), (blank, "only white space")):
        seen: list[PreparationProgress] = []
        with pytest.raises(DataError, match=said) as caught:
            prepare_text(settings(text_file, validation_source=str(file)), seen.append)
        assert str(file) in str(caught.value)
        assert {progress.stage for progress in seen} == {"reading"}


def test_nothing_is_held_out_if_nothing_is_asked_for(text_file: Path, tokenizer_folder: Path) -> None:
    prepared = prepare_text(settings(text_file, tokenizer_folder, validation_fraction=0.0))
    assert documents_of(prepared, prepared.train) == [TEXT]
    assert prepared.validation is None
    assert prepared.ledger.split_by == "none"
    assert prepared.ledger.validation.tokens == 0


@pytest.mark.parametrize(
    ("text", "data", "said"),
    [
        (" \n\t\n", {}, "no text, only white space"),
        ("x", {}, "all of its text is held out"),
        ("one\ntwo", {"text_unit": "line", "split_by": "document"}, "of 2 documents is 0"),
        ("one", {"split_by": "document", "validation_fraction": 0.9}, "of 1 documents is 1"),
    ],
)
def test_text_that_is_too_short_to_split_is_refused(
    tmp_path: Path, tokenizer_folder: Path, text: str, data: dict[str, Any], said: str
) -> None:
    file = tmp_path / "a.txt"
    file.write_text(text)
    cache = tmp_path / "cache"
    with pytest.raises(DataError, match=said) as caught:
        prepare_text(settings(file, tokenizer_folder, cache_dir=str(cache), **data))
    assert "\n" not in str(caught.value)
    assert list(cache.iterdir()) == []


# ---- The tokens and the ledger


def test_the_store_holds_the_tokens_of_every_document_and_one_end_of_text_each(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, tokenizer_folder: Path
) -> None:
    texts = ["The small cat", "sat\n\non the mat, and", "漢字\U0001f600", "it was happy.\n"]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text)
    prepared = prepare_text(settings(str(tmp_path / "*.txt"), tokenizer_folder, validation_fraction=0.0))
    expected = [[*tokenizer(text)["input_ids"], 0] for text in texts]
    flat = [token_id for ids in expected for token_id in ids]
    assert prepared.train.read_circular(0, len(flat)).tolist() == flat
    assert prepared.train.token_count == len(flat)
    ends = [sum(map(len, expected[: number + 1])) for number in range(len(expected))]
    assert prepared.train.document_ends.tolist() == ends


def test_the_ledger_counts_what_was_read_dropped_and_cut(tmp_path: Path, tokenizer_folder: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo<|endoftext|>three\xff")
    (folder / "b.csv").write_bytes('text\n"äö"\n" "\n'.encode())
    (folder / "c.jsonl").write_text('{"text": null}\n{"text": "four \\ud83d"}\n')
    (folder / "d.pdf").write_bytes(b"%PDF")
    prepared = prepare_text(
        settings(folder, tokenizer_folder, encoding_errors="replace", validation_fraction=0.25)
    )
    # Documents: "one\ntwo", "three\ufffd", "äö", "four \ufffd".
    ledger = prepared.ledger
    assert ledger.as_dict()["reading"] == {
        "files": 3,
        "rows": 4,
        "documents": 4,
        "bytes": 7 + 8 + 4 + 8,
        "empty_documents_dropped": 2,
        "undecodable_bytes_replaced": 1,
        "lone_surrogates_replaced": 1,
        "byte_order_marks_removed": 1,
        "carriage_returns_removed": 1,
        "end_of_text_markers": 1,
        "files_left_out": [str(folder / "d.pdf")],
    }
    assert (ledger.train.documents, ledger.validation.documents) == (3, 1)
    assert ledger.train.bytes + ledger.validation.bytes == 27
    for count, store in ((ledger.train, prepared.train), (ledger.validation, prepared.validation)):
        documents = documents_of(prepared, store)
        assert count.bytes == sum(len(document.encode()) for document in documents)
        assert store is not None and count.tokens == store.token_count
    assert Ledger.from_dict(ledger.as_dict()) == ledger


def test_ids_beyond_16_bits_are_stored_without_loss(tokenizer_folder: Path, text_file: Path) -> None:
    # A vocabulary of 300 with a gap before its last token.
    file = tokenizer_folder / "tokenizer.json"
    saved = json.loads(file.read_text())
    last = max(saved["model"]["vocab"], key=saved["model"]["vocab"].get)
    saved["model"]["vocab"][last] = 70_000
    file.write_text(json.dumps(saved))
    word = last.replace("\u0120", " ")
    text_file.write_text(word + ".")
    prepared = prepare_text(settings(text_file, tokenizer_folder, validation_fraction=0.0))
    assert documents_of(prepared, prepared.train) == [word + "."]
    assert prepared.train.read_circular(0, 1).tolist() == [70_000]


def test_big_documents_are_stored_like_small_ones(
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
    tokenizer_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read_in_blocks(monkeypatch, 50)
    monkeypatch.setattr(preparation, "BATCH_CHARACTERS", 120)
    texts = [TEXT[:700], TEXT[700:703], TEXT[703:1500]]
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(texts))
    prepared = prepare_text(settings(tmp_path / "a.txt", tokenizer_folder, validation_fraction=0.0))
    flat = [token_id for text in texts for token_id in (*tokenizer(text)["input_ids"], 0)]
    assert prepared.train.read_circular(0, prepared.train.token_count).tolist() == flat
    assert prepared.ledger.train.documents == 3


def test_a_tokenizer_is_trained_on_training_text_only(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("known words " * 90 + "heldout " * 45)
    prepared = prepare_text(settings(tmp_path / "a.txt", validation_fraction=0.25))
    vocabulary = prepared.tokenizer.get_vocab()
    assert {"known", "\u0120words"} <= vocabulary.keys()
    assert "h" in vocabulary and not {"he", "held", "\u0120h", "\u0120heldout"} & vocabulary.keys()
    assert "".join(documents_of(prepared, prepared.validation)).strip().startswith("heldout")


# ---- The cache


def test_the_second_call_finds_what_the_first_one_stored(text_file: Path, tmp_path: Path) -> None:
    asked = settings(text_file, cache_dir=str(tmp_path / "cache"))
    first = prepare_text(asked)
    seen: list[PreparationProgress] = []
    second = prepare_text(asked, seen.append)
    assert not first.was_cached and second.was_cached
    assert seen == []
    assert first.ledger == second.ledger
    assert first.data_fingerprint == second.data_fingerprint
    assert first.tokenizer_fingerprint == second.tokenizer_fingerprint
    assert first.train.token_count == second.train.token_count
    assert documents_of(first, first.train) == documents_of(second, second.train)
    assert documents_of(first, first.validation) == documents_of(second, second.validation)
    assert len(cache_folders(tmp_path)) == 1


@pytest.mark.parametrize(
    "change",
    [
        "content",
        "validation content",
        "tokenizer",
        "seed",
        {"validation_fraction": 0.2},
        {"split_by": "position"},
        {"text_unit": "file"},
        {"encoding": "latin-1"},
        {"encoding_errors": "replace"},
    ],
)
def test_whatever_changes_the_tokens_is_not_served_from_the_cache(
    tmp_path: Path, lines_file: Path, tokenizer_folder: Path, change: str | dict[str, Any]
) -> None:
    data: dict[str, Any] = {"cache_dir": str(tmp_path / "cache"), "text_unit": "line"}
    if change == "validation content":
        (tmp_path / "held.txt").write_text("held out")
        data["validation_source"] = str(tmp_path / "held.txt")
    first = prepare_text(settings(lines_file, tokenizer_folder, **data))
    assert prepare_text(settings(lines_file, tokenizer_folder, **data)).was_cached
    seed = 42
    tokenizer: Path | None = tokenizer_folder
    match change:
        case "content":  # Of the same size, as an edit in place may leave it.
            lines_file.write_text(TEXT.replace("small cat", "small bat"))
        case "validation content":
            (tmp_path / "held.txt").write_text("held 0ut")
        case "tokenizer":
            tokenizer = None
        case "seed":
            seed = 43
        case dict():
            data.update(change)
    second = prepare_text(settings(lines_file, tokenizer, seed=seed, **data))
    assert not second.was_cached
    assert (second.data_fingerprint == first.data_fingerprint) == (change == "tokenizer")
    assert len(cache_folders(tmp_path)) == 2


def test_the_size_of_a_trained_vocabulary_is_part_of_the_fingerprint(text_file: Path) -> None:
    prepared = [
        prepare_text(
            Settings.model_validate(
                {"tokenizer": {"train": {"vocab_size": size}}, "data": {"source": str(text_file)}}
            )
        )
        for size in (290, 300)
    ]
    assert [len(each.tokenizer) for each in prepared] == [290, 300]


def test_text_that_has_moved_is_found_in_the_cache_and_named_as_it_is_now(
    tmp_path: Path, text_file: Path, tokenizer_folder: Path
) -> None:
    before = prepare_text(settings(text_file, tokenizer_folder))
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    text_file.rename(moved / "renamed.txt")
    (moved / "other.bin").write_bytes(b"\0")
    after = prepare_text(settings(moved, tokenizer_folder))
    assert after.was_cached and after.data_fingerprint == before.data_fingerprint
    assert after.ledger.sources == [str(moved / "renamed.txt")]
    assert after.ledger.reading.files_left_out == [str(moved / "other.bin")]


@pytest.mark.parametrize(
    "damaged",
    [
        "store.json",
        "train.tokens",
        "train.documents",
        "validation.tokens",
        "validation.documents",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
    ],
)
@pytest.mark.parametrize("damage", ["missing", "cut short", "empty"])
def test_a_damaged_cache_folder_is_rebuilt(
    tmp_path: Path, text_file: Path, tokenizer_folder: Path, damaged: str, damage: str
) -> None:
    asked = settings(text_file, tokenizer_folder, cache_dir=str(tmp_path / "cache"))
    whole = documents_of(prepare_text(asked), prepare_text(asked).train)
    (folder,) = cache_folders(tmp_path)
    file = folder / damaged
    content = file.read_bytes()
    file.unlink()
    if damage != "missing":
        file.write_bytes(content[:-1] if damage == "cut short" else b"")
    rebuilt = prepare_text(asked)
    assert not rebuilt.was_cached
    assert documents_of(rebuilt, rebuilt.train) == whole
    assert prepare_text(asked).was_cached
    assert cache_folders(tmp_path) == [folder]


def test_an_interrupted_build_leaves_nothing_behind(
    tmp_path: Path, text_file: Path, tokenizer_folder: Path
) -> None:
    asked = settings(text_file, tokenizer_folder, cache_dir=str(tmp_path / "cache"))

    def interrupt(progress: PreparationProgress) -> None:
        if progress.stage == "tokenizing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_text(asked, interrupt)
    assert cache_folders(tmp_path) == []
    assert not prepare_text(asked).was_cached


def test_what_a_killed_build_left_is_not_used(
    tmp_path: Path, text_file: Path, tokenizer_folder: Path
) -> None:
    asked = settings(text_file, tokenizer_folder, cache_dir=str(tmp_path / "cache"))
    left: list[Path] = []

    def copy_half(progress: PreparationProgress) -> None:
        if progress.stage == "tokenizing" and not left:
            (staging,) = cache_folders(tmp_path)
            left.append(Path(shutil.copytree(staging, tmp_path / "half")))

    whole = prepare_text(asked, copy_half)
    expected = documents_of(whole, whole.train)
    (folder,) = cache_folders(tmp_path)
    shutil.rmtree(folder)
    left[0].rename(folder)
    again = prepare_text(asked)
    assert not again.was_cached
    assert documents_of(again, again.train) == expected


def test_what_killed_builds_left_is_removed_and_builds_that_go_on_are_not(
    text_file: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    left, going_on, new = (cache / f"building-{name}" for name in ("left", "going-on", "new"))
    for folder in (left, going_on, new):
        folder.mkdir(parents=True)
        (folder / "train.bin").write_text("tokens")
    an_hour_ago = time.time() - 3600
    for folder in (left, going_on):
        os.utime(folder, (an_hour_ago, an_hour_ago))
    lock = os.open(going_on, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        prepare_text(settings(text_file, cache_dir=str(cache)))
    finally:
        os.close(lock)
    assert sorted(cache.glob("building-*")) == [going_on, new]


def test_a_store_that_another_process_built_first_is_used(
    tmp_path: Path, text_file: Path, tokenizer_folder: Path
) -> None:
    asked = settings(text_file, tokenizer_folder, cache_dir=str(tmp_path / "cache"))
    others: list[PreparedText] = []

    def overtake(progress: PreparationProgress) -> None:
        if progress.stage == "tokenizing" and not others:
            others.append(prepare_text(asked))

    prepared = prepare_text(asked, overtake)
    assert documents_of(prepared, prepared.train) == documents_of(others[0], others[0].train)
    assert len(cache_folders(tmp_path)) == 1


def test_a_cache_that_cannot_be_written_is_a_problem_of_the_environment(
    tmp_path: Path, text_file: Path, tokenizer_folder: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EnvironmentProblem, match=r"data\.cache_dir"):
        prepare_text(settings(text_file, tokenizer_folder, cache_dir=str(tmp_path / "file" / "cache")))


# ---- Memory

PEAK_MEMORY = """
import re, resource, sys
from pathlib import Path
from gptcli.config.schema import Settings
from gptcli.data import documents, preparation, rows
from gptcli.data.preparation import prepare_text

# Smaller pieces and batches than usual: growth would show above them.
documents.READ_BYTES = rows.READ_BYTES = 2**17
preparation.BATCH_CHARACTERS = 2**19
text, tokenizer, cache = sys.argv[1:]
prepare_text(Settings.model_validate(
    {"tokenizer": tokenizer, "data": {"source": text, "cache_dir": cache, "text_unit": "UNIT"}}
))
if sys.platform == "linux":
    # Not ru_maxrss, which is at least the memory of the process that started this one.
    print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("unit", "small", "large"), [("file", 8, 64), ("line", 4, 24)])
def test_peak_memory_does_not_grow_with_the_text(
    tmp_path: Path, tokenizer_folder: Path, unit: str, small: int, large: int
) -> None:
    peaks = []
    for megabytes in (small, large):
        file = tmp_path / f"{megabytes}.txt"
        with file.open("w") as opened:
            for _ in range(megabytes * 1_000_000 // len(TEXT)):
                opened.write(TEXT)
        result = subprocess.run(
            [
                sys.executable,
                "-c",
                PEAK_MEMORY.replace("UNIT", unit),
                str(file),
                str(tokenizer_folder),
                str(tmp_path / "cache"),
            ],
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
            check=True,
        )
        peaks.append(int(result.stdout) // 1024)
    assert peaks[1] - peaks[0] < (large - small) / 2, f"peaks in MB: {peaks}"


def test_text_that_is_in_both_splits_is_refused(tmp_path: Path, lines_file: Path) -> None:
    copy = tmp_path / "copy.txt"
    copy.write_bytes(lines_file.read_bytes())
    with pytest.raises(DataError, match=r"lines\.txt is training text.*copy\.txt"):
        prepare_text(settings(lines_file, validation_source=str(copy)))
