"""Run nanoGPT's train.py with one line changed: autocast on a CPU too, in place of no context.

As it comes, train.py computes in float32 on a CPU whatever --dtype says. Runs in the folder of a
checkout, with the arguments of train.py; the checkout is left as it is.
"""

from __future__ import annotations

import sys
from pathlib import Path

BEFORE = "ctx = nullcontext() if device_type == 'cpu' else "
AFTER = "ctx = "

if __name__ == "__main__":
    program = Path("train.py").read_text(encoding="utf-8")
    if program.count(BEFORE) != 1:
        sys.exit("train.py has another line for its context; this change does not fit it.")
    sys.path.insert(0, str(Path.cwd()))
    exec(compile(program.replace(BEFORE, AFTER), "train.py", "exec"), {"__name__": "__main__"})
