from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import Cli


def test_the_doctor_finds_what_is_broken_and_that_all_else_works(gptcli: Cli, tmp_path: Path) -> None:
    (tmp_path / "no-folder").touch()
    environment = {
        "XDG_CACHE_HOME": str(tmp_path / "no-folder"),
        # Settings of the user's runs, which would break those of the doctor.
        "GPTCLI_TRAINING__MAX_STEPS": "3",
    }
    done = gptcli("doctor", "--json", variables=environment)
    diagnosis = json.loads(done.stdout)
    assert diagnosis["failed"] == ["token cache"], diagnosis
    assert not diagnosis["ok"]
    assert [check["name"] for check in diagnosis["checks"]] == [
        "versions",
        "devices",
        "precision",
        "compiled code",
        "token cache",
        "this folder",
        "tokenizer",
        "pretraining",
        "kill and resume",
        "generation",
    ]
    assert done.returncode == 5
    assert done.stderr.splitlines()[-1] == "Error: 1 of 10 checks failed: token cache."
