"""Where memory is short, compiled code says so as torch does, and the process lives on."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.conftest import (
    REPOSITORY,
    TIMEOUT_SECONDS,
    environment,
    skip_without_compiled_code,
    skip_without_native_products,
)
from tests.native.little_memory import MALLOC


def test_lack_of_memory_is_raised() -> None:
    skip_without_native_products()
    for name in ("adamw", "attention", "forward", "layer", "muon"):
        skip_without_compiled_code(name)
    done = subprocess.run(
        [sys.executable, "-m", "tests.native.little_memory"],
        cwd=REPOSITORY,
        env=environment(**MALLOC),
        check=True,
        stdout=subprocess.PIPE,
        timeout=TIMEOUT_SECONDS,
    )
    raised = json.loads(done.stdout)
    assert len(raised) == 7
    assert set(raised.values()) == {"OutOfMemoryError"}, raised
