"""What this machine's processor can do."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch


def cpu_capabilities() -> dict[str, Any]:
    """Return which instructions the processor has, by name."""
    # Public since torch 2.11; on older ones the CPU counts as one without.
    return getattr(torch.cpu, "get_capabilities", dict)()


@lru_cache(maxsize=1)
def multiplies_tiles() -> bool:
    """Return whether it multiplies small matrices of bfloat16 (AMX)."""
    return bool(cpu_capabilities().get("amx_bf16"))
