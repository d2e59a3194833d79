"""What was left out or changed while the data was read."""

from __future__ import annotations

from collections.abc import Iterator

from gptcli.data.ledger import Reading
from gptcli.inspection.findings import Finding


def reading_findings(reading: Reading) -> Iterator[Finding]:
    """Yield what is to be said of the reading, at least one finding."""
    empty, left_out = reading.empty_documents_dropped, reading.files_left_out
    if empty:
        yield Finding(
            "warning",
            "reading",
            f"rows or documents without text, or without a part that is needed, are left out: {empty:,}",
            advice="Look whether data.columns names the right columns.",
        )
    if left_out:
        yield Finding(
            "warning",
            "reading",
            f"files of other types are not read: {len(left_out):,}, such as {left_out[0]}",
            advice="What they hold must be text, or rows; a .json file is read if it is named itself.",
        )
    if not empty and not left_out:
        yield Finding("ok", "reading", "no document, row or file is left out")
