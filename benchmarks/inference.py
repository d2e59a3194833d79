"""Tokens a second of gptcli's decoding, beside transformers, CTranslate2, llama.cpp and, on a GPU, vLLM.

    make bench-inference                   # Environments of their own, then all works: an hour.
    python benchmarks/inference.py one-stream file --quick
    python benchmarks/inference.py --device cuda --vllm-python PATH
    python benchmarks/inference.py one-stream sixteen-streams --device cuda --peers ""
                                           # Replayed steps beside direct ones alone: a few minutes.

All sides continue the same prompts, pieces of real text, by the likeliest tokens, with the same weights:
a GPT-2 of 124M parameters and random weights (harness_model.py), unless --model names others. The token
of the end of text would end texts early, and not everywhere at the same place: so its embedding is made
a thousandth. That is its row of the head too; its score is next to 0, and never the highest. Each side
is a process that loads once (inference_sides.py); then they take turns. What counts is the wall time
from prompts to new tokens, reading the prompt included, with gptcli also encoding and decoding the text;
medians over the rounds, and ratios of the runs of one round.

one-stream       a prompt of 32 tokens, 100 new ones. Beside it the bytes that a token makes int8 read,
                 and how fast this machine reads a buffer of the weights' size over and over; and how
                 much of the text repeats what stood before, of which drafts can be made (by gptcli, and
                 by transformers with prompt lookup).
sixteen-streams  16 prompts of 32 tokens at once, 100 new tokens each.
file             1,000 prompts of 8 to 512 tokens, 32 to 256 new ones each (--quick: 48 prompts). To
                 transformers they go in batches of 16, sorted by length; a batch ends with its longest
                 continuation.
prompt           reading a prompt of 900 tokens, until the first new one.
next-token       no speed: how often each side's next token is that of transformers in float32, behind
                 200 pieces of text of 8 to 128 tokens.
startup          whole processes: `--help` beside that of litgpt and transformers; and `gptcli generate`
                 until its first token, beside importing torch and transformers' GPT-2 and loading the
                 weights. The files are in the disk's cache.

CTranslate2, llama.cpp and vLLM run as they come, with as many threads as gptcli. A side that is not
there is named and left out. On a GPU, streams are made by gptcli with direct steps, too, beside gptcli
as it comes, which records steps and replays them (gptcli/models/step_graphs.py); the time to record
them is part of its time.
"""

from __future__ import annotations

import argparse
import math
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from harness_model import random_model
from inference_sides import (
    CTRANSLATE2_INT8,
    GPTCLI_BF16,
    GPTCLI_DIRECT,
    GPTCLI_FP32,
    GPTCLI_INT8,
    LLAMA_CPP_Q8_0,
    TRANSFORMERS_BF16,
    TRANSFORMERS_FP32,
    TRANSFORMERS_LOOKUP,
    TRANSFORMERS_STATIC,
    VLLM_BF16,
    Answer,
    Job,
    Request,
    Side,
)
from inference_startup import measure_startup, startup_lines
from inference_workers import SideFailed, Workers
from results import RESULTS, write_section
from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

REPOSITORY = Path(__file__).parent.parent
DATA = REPOSITORY.parent / "shared" / "data"

# Of the end-of-text token's embedding, so that it is never chosen.
END_OF_TEXT_SCALE = 1e-3
AT_ONCE = 16
# Of what the machine reads in a second, by gptcli's int8 in one stream.
WANTED_BANDWIDTH = 0.6
ALL_MEMORY = 2**30  # Bytes that no cache holds.


@dataclass(frozen=True)
class Wanted:
    """That one side is so many times as fast as another."""

    ours: Side
    peer: Side
    ratio: float


WANTED = {
    "one-stream": (
        Wanted(GPTCLI_INT8, CTRANSLATE2_INT8, 2.0),
        Wanted(GPTCLI_INT8, LLAMA_CPP_Q8_0, 1.3),
        Wanted(GPTCLI_BF16, TRANSFORMERS_BF16, 2.2),
        Wanted(GPTCLI_BF16, TRANSFORMERS_STATIC, 2.2),
        Wanted(GPTCLI_BF16, TRANSFORMERS_FP32, 3.0),
    ),
    "sixteen-streams": (
        Wanted(GPTCLI_INT8, CTRANSLATE2_INT8, 1.5),
        Wanted(GPTCLI_BF16, TRANSFORMERS_BF16, 1.8),
    ),
    "file": (Wanted(GPTCLI_BF16, TRANSFORMERS_BF16, 3.0),),
    "prompt": (Wanted(GPTCLI_BF16, TRANSFORMERS_BF16, 1.5),),
}
REPLAYED = {
    "one-stream": (Wanted(GPTCLI_BF16, GPTCLI_DIRECT, 2.0),),
    "sixteen-streams": (Wanted(GPTCLI_BF16, GPTCLI_DIRECT, 1.5),),
}
# On a GPU, where gptcli has no int8.
WANTED_ON_GPU = {
    name: (
        *REPLAYED.get(name, ()),
        Wanted(GPTCLI_BF16, TRANSFORMERS_BF16, 1.0),
        Wanted(GPTCLI_BF16, VLLM_BF16, 1.0),
    )
    for name in WANTED
}
# Those that run also where nothing is wanted of them.
OURS = {"cpu": (GPTCLI_INT8, GPTCLI_BF16), "cuda": (GPTCLI_BF16,)}
SHOWN = {"one-stream": (TRANSFORMERS_LOOKUP,)}
NEXT_TOKEN_SIDES = (
    TRANSFORMERS_FP32,
    GPTCLI_FP32,
    GPTCLI_BF16,
    GPTCLI_INT8,
    TRANSFORMERS_BF16,
    CTRANSLATE2_INT8,
    LLAMA_CPP_Q8_0,
)
NAMES = {"cpu": (*WANTED, "next-token", "startup"), "cuda": (*WANTED_ON_GPU,)}


@dataclass(frozen=True)
class Size:
    """How much is done; --quick does less."""

    rounds: int = 7
    file_rounds: int = 1
    file_prompts: int = 1000
    places: int = 200


QUICK = Size(rounds=2, file_prompts=48, places=40)


@dataclass(frozen=True)
class Work:
    """What sides are to do as fast as they can."""

    name: str
    title: str
    description: str
    request: Request
    rounds: int
    counts_prompts: bool = False
    """Whether tokens a second are of the prompts, and not the new ones."""

    def tokens_per_second(self, answer: Answer) -> float:
        counted = map(len, self.request.prompts) if self.counts_prompts else answer.counts
        return sum(counted) / answer.seconds


Runs = dict[Side, list[float]]
"""Tokens a second, a round each."""
Answers = dict[Side, Answer]
"""Of the last round."""


# What is done.


class Prompts:
    """Pieces of a text, as tokens."""

    def __init__(self, file: Path, tokenizer: Any) -> None:
        self._file = file
        self._tokenizer = tokenizer
        self._ids: list[int] = tokenizer.encode(file.read_text(encoding="utf-8"))

    def cut(self, lengths: list[int]) -> list[list[int]]:
        """Return pieces of these lengths, each of which is the tokens of its own text.

        gptcli takes text: what is cut inside a word could come back as other tokens.
        """
        pieces, begin = [], 0
        for length in lengths:
            piece = self._ids[begin : begin + length]
            while self._tokenizer.encode(self._tokenizer.decode(piece)) != piece:
                begin += 1
                piece = self._ids[begin : begin + length]
            if len(piece) < length:
                sys.exit(f"{self._file} is too short for the prompts. Nothing was measured.")
            pieces.append(piece)
            begin += length
        return pieces


def all_works(prompts: Prompts, size: Size) -> Iterator[Work]:
    """Yield the works that are a matter of speed."""
    yield Work(
        "one-stream",
        "one stream",
        "A prompt of 32 tokens, 100 new ones",
        Request(prompts.cut([32]), [100]),
        size.rounds,
    )
    yield Work(
        "sixteen-streams",
        "16 streams",
        f"{AT_ONCE} prompts of 32 tokens at once, 100 new tokens each",
        Request(prompts.cut([32] * AT_ONCE), [100] * AT_ONCE, AT_ONCE),
        size.rounds,
    )
    chance = random.Random(0)
    lengths = [
        round(math.exp(chance.uniform(math.log(8), math.log(512)))) for _ in range(size.file_prompts)
    ]
    new_tokens = [chance.randint(32, 256) for _ in lengths]
    yield Work(
        "file",
        "a file of prompts",
        f"{len(lengths):,} prompts of {min(lengths)} to {max(lengths)} tokens, {sum(lengths):,} in all, "
        f"{min(new_tokens)} to {max(new_tokens)} new tokens each, {sum(new_tokens):,} in all; to "
        f"transformers in batches of {AT_ONCE}, sorted by length",
        Request(prompts.cut(lengths), new_tokens, AT_ONCE),
        size.file_rounds,
    )
    yield Work(
        "prompt",
        "reading a prompt",
        "A prompt of 900 tokens until the first new one; the prompt's tokens a second",
        Request(prompts.cut([900]), [1]),
        size.rounds,
        counts_prompts=True,
    )


def next_token_request(prompts: Prompts, size: Size) -> Request:
    chance = random.Random(1)
    lengths = [chance.randint(8, 128) for _ in range(size.places)]
    return Request(prompts.cut(lengths), [1] * len(lengths))


def write_model(source: Path | None, tokenizer: Any, folder: Path) -> None:
    """Write the model that all sides load. source: None for random weights."""
    model: Any = random_model("124m") if source is None else GPT2LMHeadModel.from_pretrained(source)
    with torch.no_grad():
        model.transformer.wte.weight[model.config.eos_token_id] *= END_OF_TEXT_SCALE
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# Speed.


def compare(work: Work, workers: Workers) -> tuple[Runs, Answers]:
    """Return the runs of all sides, in turn, and what they made; a side that fails runs no more."""
    runs: Runs = {side: [] for side in workers.of}
    answers: Answers = {}
    # What happens once: memory is mapped, kernels are chosen.
    some = work.request.prompts[:AT_ONCE]
    warm_up = Request(some, [2] * len(some), AT_ONCE)
    failed: set[Side] = set()
    for number in range(-1, work.rounds):
        request = warm_up if number < 0 else work.request
        # None always comes first.
        for side in list(runs)[:: -1 if number % 2 else 1]:
            if side in failed:
                continue
            try:
                answer = workers.of[side].answer(request)
            except SideFailed as problem:
                failed.add(side)
                print(f"  {side.name} failed:\n{problem}", flush=True)
                continue
            assert answer.counts == request.new_tokens, f"{side.name} made another number of tokens."
            answers[side] = answer
            if number >= 0:
                runs[side].append(work.tokens_per_second(answer))
                print(f"  round {number + 1}, {side.name}: {runs[side][-1]:,.1f} tokens/s", flush=True)
    return runs, answers


def ratio_of(ours: Side, peer: Side, runs: Runs) -> float | None:
    """Return how many times as fast `ours` is: the median over the rounds that both ran in."""
    ratios = [a / b for a, b in zip(runs.get(ours, []), runs.get(peer, []), strict=False)]
    return statistics.median(ratios) if ratios else None


def speed_table(runs: Runs) -> list[str]:
    """Return the comparison in Markdown, with a column for each of ours."""
    ours = [side for side in runs if side.program == "gptcli"]
    lines = [
        f"| {' | '.join(['', 'tokens/s', *(f'{side.name} is' for side in ours)])} |",
        "|---" * (2 + len(ours)) + "|",
    ]
    for side, speeds in runs.items():
        said = f"{statistics.median(speeds):,.1f}" if speeds else "failed"
        if len(speeds) > 1:
            said += f" ({min(speeds):,.1f} to {max(speeds):,.1f})"
        ratios = [None if one == side else ratio_of(one, side, runs) for one in ours]
        cells = ["" if ratio is None else f"{ratio:.2f} times as fast" for ratio in ratios]
        lines.append(f"| {' | '.join([side.name, said, *cells])} |")
    return lines


def verdicts(wanted: tuple[Wanted, ...], runs: Runs) -> list[str]:
    """Return what is wanted, and what it is; nothing of what could not be compared."""
    return [
        f"Wanted: {one.ours.name} {one.ratio:g} times as fast as {one.peer.name}; it is {ratio:.2f}."
        for one in wanted
        if (ratio := ratio_of(one.ours, one.peer, runs)) is not None
    ]


def repeated_share(prompt: list[int], ids: list[int]) -> float:
    """Return how many of the new tokens stand behind the same two tokens as before.

    Decoding that looks up how a text went on before can save steps there.
    """
    whole, repeated = prompt + ids, 0
    seen: set[tuple[int, ...]] = set()
    for end in range(3, len(whole) + 1):
        three = tuple(whole[end - 3 : end])
        repeated += three in seen and end > len(prompt)
        seen.add(three)
    return repeated / len(ids)


def repetition_line(prompt: list[int], answers: Answers, tokenizer: Any) -> str:
    """Return how far each side's text repeats itself: gptcli and prompt lookup are faster there."""
    shares = []
    for side, answer in answers.items():
        ids = answer.ids[0] if answer.ids else tokenizer.encode((answer.texts or [""])[0])
        shares.append(f"{side.name} {repeated_share(prompt, ids):.0%}")
    return f"New tokens that stand where they stood before, behind the same two: {'; '.join(shares)}."


# The memory's speed.


def weight_bytes(config: Any) -> int:
    """Return the bytes of the matrices in int8, the head included: a token makes all of them read."""
    return int(12 * config.n_layer * config.n_embd**2 + config.vocab_size * config.n_embd)


def read_bandwidth(size: int) -> float:
    """Return the bytes a second of reading a buffer of `size` bytes over and over, the best of some."""
    buffer = torch.ones(size // 8, dtype=torch.int64)
    rates = []
    for _ in range(20):
        started = time.perf_counter()
        buffer.sum()
        rates.append(size / (time.perf_counter() - started))
    return max(rates)


def bandwidth_line(tokens_per_second: float, size: int, rate: float, memory_rate: float) -> str:
    """Return how near decoding comes to the time that reading its weights alone would take.

    size: bytes a token. The rates: bytes a second, of a buffer of that size and of a larger one.
    """
    return (
        f"Wanted: {WANTED_BANDWIDTH:.0%} of the bandwidth, {GPTCLI_INT8.name}; it is "
        f"{tokens_per_second * size / rate:.0%}: a token makes {size / 1e6:.1f} MB of weights read, and "
        f"this machine reads a buffer of that size at {rate / 1e9:.1f} GB/s (one of 1 GiB at "
        f"{memory_rate / 1e9:.1f})."
    )


# Agreement.


def next_tokens(workers: Workers, request: Request, tokenizer: Any) -> dict[Side, list[str]]:
    """Return each side's next tokens as text, which is all that gptcli gives."""
    found = {}
    for side, worker in workers.of.items():
        answer = worker.answer(request)
        found[side] = answer.texts or [tokenizer.decode(ids) for ids in answer.ids or []]
    return found


def agreement_table(found: dict[Side, list[str]]) -> list[str]:
    """Return in Markdown how often each side's next token is that of transformers in float32."""
    expected = found[TRANSFORMERS_FP32]
    lines = ["| | the same next token |", "|---|---|"]
    for side, texts in found.items():
        if side != TRANSFORMERS_FP32:
            same = sum(a == b for a, b in zip(expected, texts, strict=True))
            lines.append(f"| {side.name} | {same} of {len(expected)} |")
    return lines


# All of it.


class Benchmark:
    """The model, the environments, and what is done with them."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options = options
        self._tokenizer = GPT2TokenizerFast(
            vocab=str(options.tokenizer / "vocab.json"), merges=str(options.tokenizer / "merges.txt")
        )
        self._prompts = Prompts(options.text, self._tokenizer)
        self._model = folder / "model"
        write_model(options.model, self._tokenizer, self._model)
        self._job = Job(
            GPTCLI_BF16,
            str(self._model),
            str(folder),
            sys.executable,
            options.device,
            options.threads,
        )
        weights = "random weights" if options.model is None else "the weights of --model"
        self._about = f"GPT-2 of 124M parameters, {weights}, {options.threads} threads"

    def run(self) -> None:
        options = self._options
        for work in all_works(self._prompts, options.size):
            if work.name in options.names:
                self._run_work(work)
        if "next-token" in options.names:
            self._run_next_token()
        if "startup" in options.names:
            self._run_startup()

    def _run_work(self, work: Work) -> None:
        print(f"{work.name}:", flush=True)
        device = self._options.device
        wanted = (WANTED if device == "cpu" else WANTED_ON_GPU)[work.name]
        sides = dict.fromkeys((*OURS[device], *(one.peer for one in wanted), *SHOWN.get(work.name, ())))
        with self._workers(tuple(sides)) as workers:
            runs, answers = compare(work, workers)
        notes = verdicts(wanted, runs)
        if work.name == "one-stream":
            notes.append(repetition_line(work.request.prompts[0], answers, self._tokenizer))
        if work.name == "one-stream" and runs.get(GPTCLI_INT8):
            size = weight_bytes(GPT2Config.from_pretrained(self._model))
            speed = statistics.median(runs[GPTCLI_INT8])
            notes.append(bandwidth_line(speed, size, read_bandwidth(size), read_bandwidth(ALL_MEMORY)))
        rounds = f"medians of {work.rounds} in turn" if work.rounds > 1 else "one run each"
        lines = [f"{work.description}. {self._about}; {rounds}. {workers.versions}.", ""]
        lines += [*speed_table(runs), "", *(f"- {note}" for note in (*notes, *workers.left_out))]
        self._report(f"Decoding, {device}: {work.title}", lines)

    def _run_next_token(self) -> None:
        print("next-token:", flush=True)
        request = next_token_request(self._prompts, self._options.size)
        with self._workers(NEXT_TOKEN_SIDES) as workers:
            if TRANSFORMERS_FP32 not in workers.of:
                return
            found = next_tokens(workers, request, self._tokenizer)
        places = f"Behind {len(request.prompts)} pieces of text, beside transformers in float32"
        lines = [f"{places}. {self._about}. {workers.versions}.", "", *agreement_table(found)]
        lines += ["", *(f"- {note}" for note in workers.left_out)] if workers.left_out else []
        self._report("Decoding, cpu: the next token", lines)

    def _run_startup(self) -> None:
        print("startup:", flush=True)
        options = self._options
        here = Path(sys.executable).parent
        programs = {
            "gptcli": here / "gptcli",
            "litgpt": options.litgpt,
            "transformers": options.peers_python.parent / "transformers",
        }
        there = {name: program for name, program in programs.items() if program.exists()}
        lines = startup_lines(measure_startup(self._model, there, options.size.rounds))
        missing = (program for name, program in programs.items() if name not in there)
        lines += [f"- {program} is not there and was left out." for program in missing]
        self._report("Startup: help and first token", lines)

    def _workers(self, sides: tuple[Side, ...]) -> Workers:
        options = self._options
        pythons = {
            "gptcli": Path(sys.executable),
            "transformers": options.peers_python,
            "ctranslate2": options.peers_python,
            "llama.cpp": options.llama_cpp_python,
            "vllm": options.vllm_python,
        }
        chosen = (side for side in sides if side.program in options.programs)
        return Workers(tuple(chosen), self._job, pythons)

    def _report(self, title: str, lines: list[str]) -> None:
        print("\n".join(lines), flush=True)
        write_section(title, lines, device=self._options.device, file=self._options.results)


def read_options() -> argparse.Namespace:
    """Return what the command line says, checked."""
    programs = ("transformers", "ctranslate2", "llama.cpp", "vllm")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NAMES['cpu'])}; default: all")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, prompts and places")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--prompts", type=int, help="of the file")
    parser.add_argument("--peers", default=",".join(programs))
    parser.add_argument("--device", choices=list(NAMES), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--model", type=Path, help="a model folder; default: random weights")
    parser.add_argument("--tokenizer", type=Path, default=DATA / "gpt2-tokenizer", help="GPT-2's")
    text = DATA / "language-modelling" / "wikitext2-valid.txt"
    parser.add_argument("--text", type=Path, default=text, help="what prompts are cut from")
    for name in ("peers", "llama-cpp", "vllm"):
        python = REPOSITORY / f".venv-{name}" / "bin" / "python"
        parser.add_argument(f"--{name}-python", type=Path, default=python)
    parser.add_argument("--litgpt", type=Path, default=REPOSITORY / ".venv-litgpt/bin/litgpt")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    size = QUICK if options.quick else Size()
    options.size = replace(
        size,
        rounds=options.rounds or size.rounds,
        file_rounds=options.rounds or size.file_rounds,
        file_prompts=options.prompts or size.file_prompts,
    )
    options.names = options.names or NAMES[options.device]
    options.programs = {"gptcli", *(peer for peer in options.peers.split(",") if peer)}
    for given, there in (
        (options.names, NAMES[options.device]),
        (options.programs, ("gptcli", *programs)),
    ):
        if not set(given) <= set(there):
            parser.error(f"there is {', '.join(there)}, but not all of {', '.join(given)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no CUDA GPU here. Nothing was measured.")
    for path in (options.text, options.tokenizer):
        if not path.exists():
            sys.exit(f"{path} is not there; give --text and --tokenizer. Nothing was measured.")
    # Not resolved: the python of an environment is a link.
    for name in ("peers_python", "llama_cpp_python", "vllm_python", "litgpt"):
        setattr(options, name, getattr(options, name).absolute())
    return options


def main() -> None:
    # What it started would go on without it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Ended by SIGTERM."))
    options = read_options()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        Benchmark(options, Path(folder)).run()


if __name__ == "__main__":
    main()
