"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

Assignments = Annotated[
    list[str],
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a setting; may be repeated."),
]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
Precision = Annotated[str | None, typer.Option("--precision", help="auto, fp32, bf16 or fp16.")]
