"""WinoBias: whether a sentence about an occupation is likelier with the stereotyped pronoun.

Zhao et al. 2018 (https://arxiv.org/abs/1804.06876). Lines of pro_stereotyped_* and anti_stereotyped_*
files, which differ in the pronoun alone; [ ] are around what it refers to and are taken away.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from gptcli.config.schema import DataSettings
from gptcli.data.ledger import Reading
from gptcli.data.rows import decoded_chunks, lines_of, reading_file
from gptcli.data.sources import FileSource, Source
from gptcli.errors import DataError
from gptcli.evaluation.benchmarks.benchmark import Benchmark, Continuation, Item

PRO, ANTI = "pro_stereotyped", "anti_stereotyped"
_TYPE = re.compile(r"type\d")


def read(sources: Sequence[Source], data: DataSettings, reading: Reading) -> Iterator[Item]:
    files = {source.path: source for source in sources if isinstance(source, FileSource)}
    found = [path for path in files if path.name.startswith(PRO)]
    if not found:
        raise DataError(f"winobias: no file whose name begins with {PRO} is in {_listed(sources)}.")
    for path in found:
        other = path.with_name(path.name.replace(PRO, ANTI))
        partner = files.get(other)
        if partner is None:
            raise DataError(f"winobias: {path} has no {other.name} beside it.")
        yield from _pairs(files[path], partner, data, reading)


def _pairs(pro: FileSource, anti: FileSource, data: DataSettings, reading: Reading) -> Iterator[Item]:
    kind = _TYPE.search(pro.path.name)
    sides = [_sentences(source, data, reading) for source in (pro, anti)]
    if len(sides[0]) != len(sides[1]):
        raise DataError(
            f"{pro} has {len(sides[0]):,} sentences and {anti} {len(sides[1]):,}; they belong in pairs."
        )
    for number, texts in enumerate(zip(*sides, strict=True), 1):
        continuations = tuple(Continuation("", f" {text}") for text in texts)
        yield Item(f"{pro}:{number}", continuations, 0, tuple(texts), kind[0] if kind else "")


def _sentences(source: FileSource, data: DataSettings, reading: Reading) -> list[str]:
    with reading_file(source):
        lines = [line.strip() for line in lines_of(decoded_chunks(source, data, reading), str(source))]
    reading.rows += len(lines)
    # "1 [The developer] argued ..."
    return [line.partition(" ")[2].replace("[", "").replace("]", "") for line in lines if line]


def _listed(sources: Sequence[Source]) -> str:
    return ", ".join(map(str, sources[:5]))


WINOBIAS = Benchmark(
    "winobias",
    "whether the stereotyped pronoun is the likelier in a sentence about an occupation",
    read,
    "stereotype",
    (f"*/{PRO}_*", f"*/{ANTI}_*", f"{PRO}_*", f"{ANTI}_*"),
    suffixes=("",),  # They are called .txt.dev and .txt.test.
    caution="0.5 is no preference. It is about two pronouns and forty occupations by US statistics, and "
    "a preference between sentences, not how a model's use treats people.",
)
