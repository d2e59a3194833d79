"""Pages from templates: each one file that loads nothing, in which all that comes from data is text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gptcli import __version__
from gptcli.reports.curves import PARTS, Panel


@dataclass(frozen=True)
class Table:
    """Rows under a head, as text."""

    head: list[str]
    rows: list[list[str]]
    texts: frozenset[int] = frozenset({0})
    """Numbers of the columns that hold text; the others hold numbers, and stand to the right."""
    marked: int | None = None
    """Number of the row that stands out."""
    note: str = ""
    shares: list[list[float]] = field(default_factory=list)
    """0 to 1, a cell each but those of the first column: how strongly it is shaded."""


def render(template: str, panels: Sequence[Panel], **values: Any) -> str:
    """Return the page that a template of this package makes of panels and values."""
    environment = Environment(
        loader=PackageLoader("gptcli.reports", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    is_thinned = any(curve.is_thinned for panel in panels for curve in panel.curves)
    return environment.get_template(template).render(
        panels=[panel.as_dict() for panel in panels],
        thinned_parts=PARTS if is_thinned else None,
        gptcli_version=__version__,
        plot_style=_own_file("uplot/uPlot.min.css"),
        plot_library=_own_file("uplot/uPlot.iife.min.js"),
        plot_script=_own_file("curves.js"),
        **values,
    )


def _own_file(name: str) -> Markup:
    """Return a file of this package for use in a page as it is."""
    text = resources.files("gptcli.reports").joinpath(name).read_text("utf-8")
    return Markup(text)  # noqa: S704  (ours, and none of it from data)
