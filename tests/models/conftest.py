"""A saved model that a test may change."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    """A copy of the saved model."""
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def change_config(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
