"""Write the generated pages of docs/ and the schema of configs/: `make docs`. A test compares them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
sys.path.insert(0, str(REPOSITORY))  # Another gptcli may be installed.

from gptcli.cli import command_paths  # noqa: E402
from gptcli.config.describing import describe_settings  # noqa: E402
from gptcli.config.json_schema import schema_text  # noqa: E402


def describe_commands() -> str:
    """Return a Markdown page with the help of every command."""
    parts = ["# Commands\n"]
    for command in ((), *command_paths()):
        shown = " ".join(("gptcli", *command, "--help"))
        # The width is fixed: help is wrapped to the terminal.
        result = subprocess.run(
            [sys.executable, "-m", "gptcli", *command, "--help"],
            capture_output=True,
            text=True,
            check=True,
            env={"TERMINAL_WIDTH": "100", "COLUMNS": "100", "PATH": "", "PYTHONPATH": str(REPOSITORY)},
        )
        lines = [line.rstrip() for line in result.stdout.splitlines()]
        parts.append(f"## `{shown}`\n\n```text\n" + "\n".join(lines).strip("\n") + "\n```\n")
    return "\n".join(parts) + EXIT_CODES


EXIT_CODES = """
## Exit codes

| code | meaning |
|---|---|
| 0 | done |
| 1 | a bug in gptcli |
| 2 | usage or config |
| 3 | data |
| 4 | model or checkpoint |
| 5 | environment: device, disk, network, folder |
| 6 | diverged: a loss or gradient that is not finite |
| 7 | a score is worse than `--fail-under` allows, or a finding as `--fail-on` names it |
| 75 | stopped by a signal, with all saved: `--resume` continues |
| 130 | the same, by Ctrl-C |
"""


def pages() -> dict[str, str]:
    """Return {path from here: content} of what is generated."""
    return {
        "configuration.md": describe_settings(),
        "commands.md": describe_commands(),
        "../configs/schema.json": schema_text(),
    }


if __name__ == "__main__":
    for name, content in pages().items():
        (Path(__file__).parent / name).write_text(content, encoding="utf-8")
