"""The sides of benchmarks/inference.py: processes that have loaded their model and wait for prompts."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

from inference_sides import Answer, Job, Request, Side

REPOSITORY = Path(__file__).parent.parent
PROGRAM = Path(__file__).parent / "inference_sides.py"
GIVE_UP_SECONDS = 3600
LAST_LINES = 5


class SideFailed(Exception):
    """A side that is not there or did not answer, and why."""


class Worker:
    """A process of inference_sides.py."""

    def __init__(self, python: Path, job: Job) -> None:
        """python: of the environment of the side's program. Raises SideFailed if it cannot load."""
        if not python.exists():
            raise SideFailed(f"{python} is not there.")
        self._log = Path(job.folder) / f"{job.side.name}.log"
        threads = str(job.threads)
        environment = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),  # gptcli as it is here, wherever it is installed from.
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "false",
        }
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(python), str(PROGRAM), json.dumps(asdict(job))],
                cwd=job.folder,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        try:
            said = self._read()
            if "problem" in said:
                raise SideFailed(said["problem"])
        except SideFailed:
            self.close()
            raise
        self.version: str = said["ready"]

    def answer(self, request: Request) -> Answer:
        """Return what it makes of a request. Raises SideFailed."""
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(asdict(request)) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise SideFailed(self._last_words()) from None
        return Answer(**self._read())

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream
            stream.close()

    def _read(self) -> Any:
        assert self._process.stdout
        timer = threading.Timer(GIVE_UP_SECONDS, self._process.kill)
        timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        if not line:
            raise SideFailed(self._last_words())
        return json.loads(line)

    def _last_words(self) -> str:
        code = self._process.wait()
        words = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return "\n".join(words[-LAST_LINES:]) or f"It said nothing, and ended with code {code}."


class Workers:
    """The sides that could be loaded, and why others could not."""

    def __init__(self, sides: tuple[Side, ...], job: Job, pythons: dict[str, Path]) -> None:
        """job: of any side. pythons: of the environment of each program."""
        self.of: dict[Side, Worker] = {}
        self.left_out: list[str] = []
        for side in sides:
            try:
                self.of[side] = Worker(pythons[side.program], replace(job, side=side))
            except SideFailed as problem:
                reason = str(problem).strip().splitlines()[0]
                self.left_out.append(f"{side.name} was left out: {reason}")
                print(f"  {self.left_out[-1]}", flush=True)

    @property
    def versions(self) -> str:
        return ", ".join(dict.fromkeys(worker.version for worker in self.of.values()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.of.values():
            worker.close()
