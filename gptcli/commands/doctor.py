"""`gptcli doctor`: does gptcli work here?"""

from __future__ import annotations

from dataclasses import asdict

import typer

from gptcli import console
from gptcli.errors import EnvironmentProblem


def doctor(
    as_json: bool = typer.Option(False, "--json", help="Print the diagnosis as one JSON object."),
) -> None:
    """Show what there is to work with, and check that gptcli works on it.

    Offline, in about half a minute: a tokenizer, a short pretraining, one that is killed and resumed,
    and generation. Exit code 5 if a check fails.

    Examples:
      gptcli doctor
      gptcli doctor --json
    """
    with console.working("Loading"):
        from gptcli.hub import quiet_libraries
        from gptcli.pipelines.doctor import examine

        quiet_libraries()
    checks, coming = [], examine()
    while True:
        with console.working("Checking"):
            check = next(coming, None)
        if check is None:
            break
        checks.append(check)
        line = f"{'ok  ' if check.is_fine else 'FAIL'}  {check.name:<16} {check.detail}"
        if as_json:
            console.say(line)
        else:
            console.write_result(line)
    failed = [check.name for check in checks if not check.is_fine]
    if as_json:
        console.write_json(
            {"ok": not failed, "checks": [asdict(check) for check in checks], "failed": failed}
        )
    if failed:
        raise EnvironmentProblem(f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}.")
    console.say("Everything works.")
