"""How long text takes to become tokens that training can start from.

    python benchmarks/preparation.py --peers-python DIR/bin/python    # 5 minutes; has tiktoken

Three ways for the same 20 MB of novels with GPT-2's vocabulary, each in a process of its own that has
imported what it needs: from the files on the disk to tokens that can be trained on.

gptcli     `prepare_text` in an empty cache: documents checked and counted, tokenized, written
datasets   as transformers' run_clm.py does: `load_dataset("text")`, `map` over the tokenizer, `map` over
           `group_texts` into blocks of 1,024 tokens, with the number of processes that is fastest
tiktoken   `encode_ordinary_batch` with the number of threads that is fastest, written to a file

Before, all three are compared token by token: gptcli with tiktoken on the books, datasets, which reads
lines, with tiktoken on the lines. Then they take turns; medians count. At last `gptcli pretrain
--dry-run` starts a second time, from the cache, beside a process that only imports the same modules.

The novels and GPT-2's vocabulary are looked for in ../shared/data or where `--data` says.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent
DATA = REPOSITORY.parent / "shared" / "data"
PEERS_PYTHON = REPOSITORY / ".venv-tiktoken" / "bin" / "python"
MEGABYTES = 20
END_OF_TEXT_ID = 50256
BLOCK_SIZE = 1024
PROCESSES = (1, 2, 4)
THREADS = (1, 2, 4, 8)
WANTED = {"datasets": 3.0, "tiktoken": 1.0}
WANTED_SECOND_START = 1.0

# What a side gives: the seconds, and its tokens without end-of-text for the comparison.
Found = tuple[float, Callable[[], Iterable[list[int]]]]


def gptcli_side(texts: Path, vocabulary: Path, folder: Path, at_once: int) -> Found:
    """Prepare the texts as `gptcli pretrain` does; `at_once` is its own choice."""
    from gptcli.config.schema import Settings
    from gptcli.data.preparation import prepare_text
    from gptcli.hub import quiet_libraries

    quiet_libraries()
    import_lazy_modules()
    settings = Settings.model_validate(gptcli_settings(texts, vocabulary, folder))
    started = time.perf_counter()
    prepared = prepare_text(settings)
    seconds = time.perf_counter() - started
    assert not prepared.was_cached
    train = prepared.train

    def tokens() -> Iterable[list[int]]:
        begin = 0
        for end in train.document_ends.tolist():
            yield train.read_circular(begin, end - begin)[:-1].tolist()
            begin = end

    return seconds, tokens


def datasets_side(texts: Path, vocabulary: Path, folder: Path, at_once: int) -> Found:
    """Prepare the texts as transformers' examples/pytorch/language-modeling/run_clm.py does."""
    os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
    import datasets
    from transformers import GPT2TokenizerFast
    from transformers.utils import logging

    logging.set_verbosity_error()  # Of texts that are longer than the model's context.
    datasets.disable_progress_bars()
    options: dict[str, Any] = {"batched": True, "num_proc": at_once if at_once > 1 else None}
    started = time.perf_counter()
    tokenizer = GPT2TokenizerFast(
        vocab=str(vocabulary / "vocab.json"), merges=str(vocabulary / "merges.txt")
    )
    files = [str(file) for file in sorted(texts.iterdir())]
    raw = datasets.load_dataset("text", data_files={"train": files}, keep_linebreaks=True)

    def tokenize(rows: dict[str, Any]) -> Any:
        return tokenizer(rows["text"])

    def group_texts(rows: dict[str, Any]) -> dict[str, Any]:
        joined = {key: list(chain(*rows[key])) for key in rows}
        length = len(joined[next(iter(rows))]) // BLOCK_SIZE * BLOCK_SIZE
        result = {
            key: [ids[begin : begin + BLOCK_SIZE] for begin in range(0, length, BLOCK_SIZE)]
            for key, ids in joined.items()
        }
        result["labels"] = result["input_ids"].copy()
        return result

    tokenized = raw.map(tokenize, remove_columns=["text"], **options)
    tokenized.map(group_texts, **options)
    seconds = time.perf_counter() - started
    return seconds, lambda: (row["input_ids"] for row in tokenized["train"])


def tiktoken_side(texts: Path, vocabulary: Path, folder: Path, at_once: int) -> Found:
    """Tokenize whole books at once, as nanoGPT's data scripts do, and write the tokens."""
    encoding = tiktoken_encoding(vocabulary)
    files = sorted(texts.iterdir())
    started = time.perf_counter()
    books = [file.read_text(encoding="utf-8") for file in files]
    found = encoding.encode_ordinary_batch(books, num_threads=at_once)
    with (folder / "train.bin").open("wb") as file:
        for ids in found:
            array("H", [*ids, END_OF_TEXT_ID]).tofile(file)
    return time.perf_counter() - started, lambda: found


def tiktoken_lines_side(texts: Path, vocabulary: Path, folder: Path, at_once: int) -> Found:
    """Tokenize line by line, to compare with."""
    encoding = tiktoken_encoding(vocabulary)
    lines = [
        line
        for file in sorted(texts.iterdir())
        for line in file.read_text(encoding="utf-8").splitlines(keepends=True)
    ]
    return 0.0, lambda: encoding.encode_ordinary_batch(lines, num_threads=at_once)


def tiktoken_encoding(vocabulary: Path) -> Any:
    """Return GPT-2's encoding from OpenAI's two files, as tiktoken itself makes it of them.

    Making it is not part of the measured time.
    """
    os.environ["TIKTOKEN_CACHE_DIR"] = ""
    import tiktoken
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks
    from tiktoken_ext import openai_public

    return tiktoken.Encoding(
        "gpt2",
        pat_str=openai_public.r50k_pat_str,
        mergeable_ranks=data_gym_to_mergeable_bpe_ranks(
            vocab_bpe_file=str(vocabulary / "merges.txt"),
            encoder_json_file=str(vocabulary / "vocab.json"),
        ),
        special_tokens={"<|endoftext|>": END_OF_TEXT_ID},
        explicit_n_vocab=END_OF_TEXT_ID + 1,
    )


SIDES: dict[str, Callable[[Path, Path, Path, int], Found]] = {
    "gptcli": gptcli_side,
    "datasets": datasets_side,
    "tiktoken": tiktoken_side,
    "tiktoken-lines": tiktoken_lines_side,
}


def gptcli_settings(texts: Path, vocabulary: Path, folder: Path) -> dict[str, Any]:
    return {
        "tokenizer": {"name": str(vocabulary)},
        "data": {
            "source": str(texts),
            "cache_dir": str(folder / "cache"),
            "validation_fraction": 0.0,
        },
    }


def import_lazy_modules() -> None:
    """Import what preparing imports when it comes to it."""
    from transformers import AutoConfig, AutoTokenizer, GPT2TokenizerFast  # noqa: F401


# What starts them.


class Comparison:
    """The texts, and the sides in processes of their own."""

    def __init__(self, texts: Path, vocabulary: Path, peers_python: Path) -> None:
        self._texts = texts
        self._vocabulary = vocabulary
        self._peers_python = peers_python

    def run(self, side: str, at_once: int, *, check: bool = False) -> tuple[float, str]:
        """Return the seconds that a side took and, to check, a hash of its tokens."""
        python = str(self._peers_python) if side.startswith("tiktoken") else sys.executable
        job = [side, str(self._texts), str(self._vocabulary), at_once, check]
        done = subprocess.run(
            [python, __file__, "--job", json.dumps(job)],
            check=True,
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )
        seconds, digest = json.loads(done.stdout.splitlines()[-1])
        return seconds, digest

    def fastest(self, side: str, choices: tuple[int, ...]) -> int:
        """Return the choice with which a side is fastest, each tried twice, in turn."""
        tried = [(self.run(side, at_once)[0], at_once) for at_once in (*choices, *choices)]
        return min(tried)[1]

    def second_start(self, rounds: int) -> tuple[float, float]:
        """Return the seconds of `gptcli pretrain --dry-run` from the cache, and of its imports alone."""
        with tempfile.TemporaryDirectory() as name:
            config = Path(name) / "config.yaml"
            settings = gptcli_settings(self._texts, self._vocabulary, Path(name))
            config.write_text(json.dumps(settings))
            arguments = ["gptcli", "pretrain", "--config", str(config), "--dry-run"]
            modules = str(Path(name) / "modules")
            # The first start, which fills the cache, lists what a start imports.
            first = [sys.executable, __file__, "--job", json.dumps(["modules", modules, arguments])]
            measure(first)
            imports = [sys.executable, __file__, "--job", json.dumps(["imports", modules])]
            times: dict[str, list[float]] = {"command": [], "imports": []}
            for _ in range(rounds):
                times["command"].append(measure([sys.executable, "-m", *arguments]))
                times["imports"].append(measure(imports))
        return statistics.median(times["command"]), statistics.median(times["imports"])


def measure(command: list[str]) -> float:
    """Return the wall time of a whole process, in seconds."""
    started = time.perf_counter()
    subprocess.run(
        command, check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return time.perf_counter() - started


def do_job(job: Any) -> None:
    """Do in this process what `job` says; of a side, print what `Comparison.run` returns."""
    if job[0] == "modules":
        _, file, sys.argv = job
        with contextlib.suppress(SystemExit):
            runpy.run_module("gptcli", run_name="__main__", alter_sys=True)
        Path(file).write_text("\n".join(sys.modules))
        return
    if job[0] == "imports":
        for name in Path(job[1]).read_text().splitlines():
            with contextlib.suppress(Exception):  # Some are made, not imported.
                importlib.import_module(name)
        return
    side, texts, vocabulary, at_once, check = job
    with tempfile.TemporaryDirectory() as name:
        seconds, tokens = SIDES[side](Path(texts), Path(vocabulary), Path(name), at_once)
        digest = hashlib.sha256()
        if check:
            for ids in tokens():
                digest.update(array("H", ids).tobytes())
    print(json.dumps([seconds, digest.hexdigest()]))


def write_texts(novels: Path, folder: Path) -> int:
    """Write the first novels, about MEGABYTES of them, and return their bytes.

    Without the mark at their start and with LF, which gptcli would make of them and the others not.
    """
    size = 0
    for file in sorted(novels.glob("*.txt")):
        text = file.read_text(encoding="utf-8-sig")  # With CRLF as LF.
        (folder / file.name).write_text(text, encoding="utf-8")
        size += len(text.encode())
        if size >= MEGABYTES * 1_000_000:
            return size
    sys.exit(f"{novels} holds less than {MEGABYTES} MB of text. Nothing was measured.")


def compare(comparison: Comparison, size: int, rounds: int) -> list[str]:
    """Return the lines of the report."""
    at_once = {
        "gptcli": 1,
        "datasets": comparison.fastest("datasets", PROCESSES),
        "tiktoken": comparison.fastest("tiktoken", THREADS),
    }
    books = {comparison.run(side, at_once[side], check=True)[1] for side in ("gptcli", "tiktoken")}
    lines = {
        comparison.run("datasets", at_once["datasets"], check=True)[1],
        comparison.run("tiktoken-lines", at_once["tiktoken"], check=True)[1],
    }
    same = len(books) == len(lines) == 1
    times: dict[str, list[float]] = {side: [] for side in at_once}
    for number in range(rounds):
        # None always comes first.
        for side in list(times)[:: 1 if number % 2 else -1]:
            times[side].append(comparison.run(side, at_once[side])[0])
    medians = {side: statistics.median(seconds) for side, seconds in times.items()}
    what = {
        "gptcli": "gptcli",
        "datasets": f"run_clm.py's `datasets.map`, {at_once['datasets']} processes",
        "tiktoken": f"tiktoken, {at_once['tiktoken']} threads",
    }
    rows = [
        f"| {what[side]} | {medians[side]:.2f} s ({min(seconds):.2f} to {max(seconds):.2f}) "
        f"| {size / medians[side] / 1e6:.1f} MB/s |"
        for side, seconds in times.items()
    ]
    ratios = [
        f"gptcli is {seconds / medians['gptcli']:.2f} times as fast as {side} ({WANTED[side]:g} wanted)."
        for side, seconds in medians.items()
        if side in WANTED
    ]
    command, imports = comparison.second_start(rounds)
    return [
        f"{size / 1e6:.1f} MB of novels, GPT-2's vocabulary; medians of {rounds} in turn.",
        "",
        "| | time | text |",
        "|---|---|---|",
        *rows,
        "",
        *ratios,
        f"The tokens of all three are {'the same' if same else 'NOT THE SAME'}.",
        f"The second start of `gptcli pretrain --dry-run` takes {command:.2f} s, "
        f"{command - imports:.2f} s more than its imports (at most {WANTED_SECOND_START:g} s wanted).",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--peers-python", type=Path, default=PEERS_PYTHON, help="one with tiktoken")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        do_job(json.loads(options.job))
        return
    novels = options.data / "language-modelling" / "novels"
    vocabulary = options.data / "gpt2-tokenizer"
    for path in (novels, vocabulary, options.peers_python):
        if not path.exists():
            sys.exit(f"{path} is not there; see the top of {__file__}. Nothing was measured.")
    from results import RESULTS, write_section  # Imports torch, which tiktoken's environment lacks.

    with tempfile.TemporaryDirectory() as name:
        size = write_texts(novels, Path(name))
        comparison = Comparison(Path(name), vocabulary.resolve(), options.peers_python.absolute())
        lines = compare(comparison, size, options.rounds)
    print("\n".join(lines), flush=True)
    write_section("Preparation: text to tokens", lines, file=options.results or RESULTS)


if __name__ == "__main__":
    main()
