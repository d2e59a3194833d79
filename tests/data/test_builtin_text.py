"""The embedded text is the documentation that comes with Python, on every machine."""

from __future__ import annotations

import argparse
import inspect
import json.decoder
import sys
from pydoc_data.topics import topics

import pytest
import transformers

from gptcli.config.schema import DataSettings
from gptcli.data.builtin_text import python_docs, standard_library_docstrings
from gptcli.data.documents import read_documents
from gptcli.data.ledger import Reading
from gptcli.data.sources import find_sources


def test_reading_the_library_imports_none_of_it() -> None:
    python_docs.cache_clear()
    before = set(sys.modules)
    assert len(python_docs()) > 300
    assert set(sys.modules) == before


def test_every_help_topic_is_a_document() -> None:
    expected = [topics[name].strip() + "\n" for name in sorted(topics)]
    assert list(python_docs()[: len(topics)]) == expected
    assert len(topics) > 50


def test_the_docstrings_are_those_that_python_shows_of_its_own_library_only() -> None:
    text = "\n".join(python_docs())
    for described in (json.decoder.JSONDecoder, inspect, argparse.ArgumentParser):
        assert (inspect.getdoc(described) or "?").strip() in text
    for third_party in (pytest.fixture, transformers.AutoTokenizer):
        assert (inspect.getdoc(third_party) or "").strip().splitlines()[0] not in text


def test_docstrings_come_with_the_module_that_they_belong_to() -> None:
    module, docstrings = next(
        (module, docstrings)
        for module, docstrings in standard_library_docstrings()
        if inspect.getdoc(argparse) in docstrings
    )
    assert module == "argparse"
    assert inspect.getdoc(argparse.ArgumentParser) in docstrings


def test_the_text_is_read_as_a_source_without_loss() -> None:
    data, reading = DataSettings(), Reading()
    pieces = list(read_documents(find_sources("builtin:python-docs", data, reading), data, reading))
    assert [text for text, _ in pieces] == list(python_docs())
    assert reading.bytes == sum(len(text.encode()) for text in python_docs()) > 1_500_000
    assert reading.documents == len(python_docs())
