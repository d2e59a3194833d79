"""How long `gptcli --help` takes, beside importing its two libraries: in turn, medians, the ratio."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

PAIRS = 15
OURS = [sys.executable, "-m", "gptcli", "--help"]
FLOOR = [sys.executable, "-c", "import typer, rich"]


def measure(command: list[str]) -> float:
    """Return the wall time of a whole process, in seconds."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    measure(OURS), measure(FLOOR)  # Warm the disk cache.
    pairs = [(measure(OURS), measure(FLOOR)) for _ in range(PAIRS)]
    ours = statistics.median(pair[0] for pair in pairs)
    floor = statistics.median(pair[1] for pair in pairs)
    ratio = statistics.median(pair[0] / pair[1] for pair in pairs)
    print(f"gptcli --help                 {ours * 1000:6.1f} ms (median of {PAIRS})")
    print(f"python -c 'import typer, rich'{floor * 1000:6.1f} ms")
    print(f"ratio, pair by pair           {ratio:6.2f} (at most 2 is wanted)")


if __name__ == "__main__":
    main()
