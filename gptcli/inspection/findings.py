"""Findings: what an inspection has to say of the data, one line each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Level = Literal["ok", "warning", "problem"]
LEVELS: tuple[Level, ...] = get_args(Level)
"""The best first. A problem makes the model or its scores wrong; a warning is worth a look."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for, and how it is."""

    level: Level
    subject: str
    """What was looked at, in a word."""
    message: str
    """What, and how much of it."""
    where: str | None = None
    """One instance: its file and line, or row."""
    advice: str | None = None
    """What to do about it."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def line(self) -> str:
        """All of it but the level and the subject."""
        place = "" if self.where is None else f" ({self.where})"
        advice = "" if self.advice is None else f" {self.advice}"
        return f"{self.message}{place}.{advice}"


def worst_level(findings: Iterable[Finding]) -> Level:
    """Return the worst level that any of them has."""
    return max((finding.level for finding in findings), key=LEVELS.index, default="ok")


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Return them with the worst first, else as they come."""
    return sorted(findings, key=lambda finding: -LEVELS.index(finding.level))


def share(part: float, whole: float) -> str:
    """Return a share for people: 12.3%, and never 0.0% of what is there."""
    percent = 100 * part / whole if whole else 0.0
    return "under 0.1%" if 0 < percent < 0.1 else f"{percent:.1f}%"
