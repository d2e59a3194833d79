"""Damage made from a seed, so that any failure can be made again from its number."""

from __future__ import annotations

import contextlib
import json
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

HANG_SECONDS = 10
MEMORY_BYTES = 1_500_000_000

# What parsers have tripped over: escapes, signs, ends of things, text that is none.
FRAGMENTS = [
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\r",
    b"\n",
    b"\n\n---\n",
    b'"',
    b'"""',
    b"'",
    b"\\",
    b"\\ud800",
    b"\\u0000",
    b"<|endoftext|>",
    b"{",
    b"}",
    b"[" * 2000,
    b'{"a":' * 2000,
    b"- " * 500,
    b": ",
    b"? ",
    b"!!python/object/apply:os.abort []",
    b"&a ",
    b"*a",
    b"<<: ",
    b"%YAML 1.1\n",
    b"\x1b[2J",
    b"9" * 5000,
    b"-1",
    b"1e400",
    b"-1e400",
    b"NaN",
    b"-Infinity",
    b".nan",
    b"null",
    b"true",
    b"[]",
    b"{}",
    b"0",
    b"18446744073709551616",
    b"\xe2\x80\xa8",
    b"\xc2\x85",
    b"\x1f\x8b\x08",
    b"PAR1",
    b",",
    b"#",
]

# In place of a value in JSON.
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    2**64,
    10**400,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "x" * 100_000,
    "\ud800",
    "\x00",
    "\x1b]0;title\x07",
    "../../../etc/passwd",
    [],
    {},
    [[]],
    [None],
    ["x", 1],
    {"x": None},
    {"": {}},
]


def mutate_bytes(draw: random.Random, data: bytes, near: int | None = None) -> bytes:
    """Return `data` after one to four changes; near: all of them before this offset."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        end = min(len(changed), near or len(changed))
        at = draw.randint(0, end)
        width = draw.choice([1, 1, 2, 8, 64, 1000])
        match draw.randrange(7):
            case 0 if at < len(changed):
                changed[at] ^= 1 << draw.randrange(8)
            case 1:
                changed[at : at + width] = draw.randbytes(width)
            case 2:
                changed[at:at] = draw.choice(FRAGMENTS)
            case 3:
                fragment = draw.choice(FRAGMENTS)
                changed[at : at + len(fragment)] = fragment
            case 4:
                del changed[at : at + width]
            case 5:
                other = draw.randint(0, end)
                changed[at:at] = changed[other : other + width] * draw.choice([1, 1, 50])
            case _:
                del changed[at:]
    return bytes(changed)


def mutate_json(draw: random.Random, value: Any) -> Any:
    """Return a copy of `value` with one to three of its parts changed, taken away, or added."""
    value = json.loads(json.dumps(value))
    for _ in range(draw.randint(1, 3)):
        value = _changed(draw, value)
    return value


def _changed(draw: random.Random, value: Any) -> Any:
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        match draw.randrange(8):
            case 0:
                del value[key]
            case 1:
                value[draw.choice(["", "x", "\x00", key + "s"])] = value.pop(key)
            case 2:
                value[draw.choice(["x", *value])] = value[draw.choice(list(value))]
            case _:
                value[key] = _changed(draw, value[key])
        return value
    if isinstance(value, list) and value and draw.random() < 0.9:
        at = draw.randrange(len(value))
        match draw.randrange(4):
            case 0:
                del value[at]
            case 1:
                value.insert(at, draw.choice(VALUES))
            case _:
                value[at] = _changed(draw, value[at])
        return value
    if isinstance(value, int) and draw.random() < 0.3:
        return value + draw.choice([-1, 1, 1000, 10**7, -(10**7)])
    return draw.choice(VALUES)


def mutate_json_file(draw: random.Random, file: Path) -> None:
    """Change a JSON file in what it says, or in its bytes."""
    data = file.read_bytes()
    if draw.random() < 0.3:
        file.write_bytes(mutate_bytes(draw, data))
    else:
        file.write_text(json.dumps(mutate_json(draw, json.loads(data))))


@contextlib.contextmanager
def hang_guard(what: str) -> Iterator[None]:
    """Fail the test if the block is still running after HANG_SECONDS."""

    def fail(number: int, frame: FrameType | None) -> None:
        pytest.fail(f"{what}: still running after {HANG_SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(HANG_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def memory_guard() -> Iterator[None]:
    """Fail the test if the block ever holds MEMORY_BYTES more than at its start, where Linux says so."""
    status, refs = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def kilobytes(field: str) -> int:
        return next(int(x.split()[1]) for x in status.read_text().splitlines() if x.startswith(field))

    try:
        refs.write_text("5")  # Sets VmHWM, the most memory held, back to what is held now.
        begin = kilobytes("VmRSS:")
    except (OSError, StopIteration):
        yield
        return
    yield
    assert (kilobytes("VmHWM:") - begin) * 1024 < MEMORY_BYTES
