"""Data that nobody here wrote: what is found in it, as far as it can be counted in another way."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from gptcli.config.schema import Settings
from gptcli.pipelines.inspect_data import Inspection, inspect_data

SMALL = {
    "model": {"n_layer": 1, "n_head": 1, "n_embd": 16, "context_length": 128},
    "tokenizer": {"train": {"vocab_size": 1000}},
}


def inspect(task: str, source: Path, **data: Any) -> Inspection:
    training = {"max_steps": 10} if task == "language-modelling" else {"epochs": 1}
    settings = {"task": task, "data": {"source": str(source), **data}, "training": training, **SMALL}
    return inspect_data(Settings.model_validate(settings), examples=2)


def subjects(inspection: Inspection, level: str) -> set[str]:
    return {finding.subject for finding in inspection.findings if finding.level == level}


def test_sms_spam_repeats_414_messages_and_has_windows_quotation_marks(shared_data: Path) -> None:
    source = shared_data / "classification" / "sms-spam" / "sms-spam.tsv"
    lines = source.read_text(encoding="utf-8").split("\n")
    messages = [line.split("\t")[1].strip() for line in lines if line]
    found = inspect("classification", source, column_names=["label", "text"])
    duplicates = found.facts["duplicates"]
    # 403 lines are equal to another; 11 more are but for white space at their end.
    assert len(messages) - len(set(lines[:-1])) == 403
    assert duplicates["repeated"] == len(messages) - len(set(messages)) == 414
    marks = sum(
        0x80 <= ord(char) < 0xA0 and ord(char) != 0x85 for text in set(messages) for char in text
    )
    assert found.facts["encoding"]["windows"]["count"] == marks
    assert {"duplicates", "near-duplicates", "labels"} <= subjects(found, "warning")
    labels = next(finding.message for finding in found.findings if finding.subject == "labels")
    assert re.match(r"86\.\d% have the label ham", labels)
    assert found.facts["overlap"]["equal"] == 0


def test_banking77_has_77_labels_and_some_of_its_test_is_in_its_training_data(
    shared_data: Path,
) -> None:
    folder = shared_data / "classification" / "banking77"
    found = inspect(
        "classification",
        folder / "train.csv",
        validation_source=str(folder / "test.csv"),
        columns={"label": "category"},
    )
    texts = []
    for name in ("train.csv", "test.csv"):
        with (folder / name).open(encoding="utf-8", newline="") as file:
            texts.append([row["text"].strip() for row in csv.DictReader(file)])
    equal = sum(text in set(texts[0]) for text in texts[1])
    assert found.facts["overlap"]["equal"] == equal
    assert found.facts["overlap"]["items"] == len(set(texts[1]))
    assert len(found.ledger["labels"]) == 77
    assert found.facts["duplicates"]["texts"] == 13_083
    assert found.facts["duplicates"]["repeated"] == 13_083 - len({*texts[0], *texts[1]})


def test_tinyshakespeare_is_latin_and_every_speech_a_passage(shared_data: Path) -> None:
    source = shared_data / "language-modelling" / "tinyshakespeare.txt"
    found = inspect("language-modelling", source)
    assert found.facts["scripts"] == {"Latin": 1.0}
    speeches = [speech.strip() for speech in source.read_text().split("\n\n")]
    long_enough = [speech for speech in speeches if len(re.findall(r"[a-zA-Z3]+", speech)) >= 5]
    duplicates = found.facts["duplicates"]
    # One more where the split has cut a speech.
    assert duplicates["texts"] - len(long_enough) in (0, 1)
    assert duplicates["repeated"] == len(long_enough) - len(set(long_enough))
    where, earlier = (int(duplicates[name].rpartition(":")[2]) for name in ("where", "earlier"))
    lines = source.read_text().split("\n")
    assert lines[where - 1 : where + 1] == lines[earlier - 1 : earlier + 1]
    assert "encoding" in subjects(found, "ok")


def test_questions_about_one_text_are_no_copies_of_each_other(shared_data: Path) -> None:
    source = shared_data / "question-answering" / "xquad.en.json"
    found = inspect("question-answering", source)
    articles = json.loads(source.read_text(encoding="utf-8"))["data"]
    contexts = {part["context"] for article in articles for part in article["paragraphs"]}
    assert found.facts["duplicates"]["texts"] == 1190
    assert found.facts["near_duplicates"]["texts"] == len(contexts)
    assert found.examples[0].parts[0].is_learnt is False
    assert sum(part.is_learnt for part in found.examples[0].parts) == 1


@pytest.mark.parametrize(("name", "script"), [("1100-en", "Latin"), ("1000-zh", "Han")])
def test_instructions_show_that_answers_alone_are_learnt(
    shared_data: Path, name: str, script: str
) -> None:
    source = shared_data / "instructions" / f"instructions-{name}.json"
    found = inspect("instruction", source)
    assert next(iter(found.facts["scripts"])) == script
    for example in found.examples:
        assert example.parts[0].text.startswith("### Instruction:")
        assert not example.parts[0].is_learnt
        assert any(part.is_learnt for part in example.parts)
