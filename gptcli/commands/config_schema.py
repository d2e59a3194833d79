"""`gptcli config schema`: what editors complete and check configs by."""

from __future__ import annotations

import typer

from gptcli import console


def schema(
    as_json: bool = typer.Option(False, "--json", help="Print it on one line."),
) -> None:
    """Print the JSON Schema of a config, by which editors complete and check what is written.

    An editor with yaml-language-server, such as VS Code's YAML extension, finds it by a first line such
    as `# yaml-language-server: $schema=gptcli.schema.json`.

    Examples:
      gptcli config schema > gptcli.schema.json
      gptcli config schema --json
    """
    from gptcli.config.json_schema import json_schema, schema_text

    if as_json:
        console.write_json(json_schema())
    else:
        console.write_result(schema_text(), end="")
