"""What int8 costs a model that has learnt something."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptcli.training.device import multiplies_int8
from tests.commands.conftest import Run
from tests.conftest import REPOSITORY, TEXT

pytestmark = pytest.mark.skipif(not multiplies_int8(), reason="no exact products of bytes here")


def test_in_int8_perplexity_is_less_than_a_200th_higher_than_in_float32(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text(TEXT * 20, encoding="utf-8")
    config = REPOSITORY / "configs" / "pretrain" / "ci.yaml"
    settings = ("--set", "data.source=text.txt", "--set", "training.max_steps=60")
    assert run("pretrain", "--config", config, "--output-dir", "run", *settings).code == 0
    (tmp_path / "test.txt").write_text(TEXT, encoding="utf-8")
    perplexity = {}
    for precision in ("fp32", "int8"):
        (result,) = run(
            *("eval", "--model", "run", "--data", "test.txt", "--precision", precision, "--json")
        ).rows
        assert result["precision"] == precision
        perplexity[precision] = result["tests"][0]["scores"]["perplexity"]["value"]
    # It has learnt: of a vocabulary of some hundreds, it would be that number.
    assert perplexity["fp32"] < 20
    assert perplexity["fp32"] != perplexity["int8"] < 1.005 * perplexity["fp32"]
