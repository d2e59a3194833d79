"""Reports in a real browser: no error in a script, nothing that a phone must scroll sideways for."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptcli.pipelines.runs import compare_runs, write_comparison
from gptcli.reports.run_page import run_page
from gptcli.training.run_record import RunRecord
from tests.reports.run_folders import classification_lines, pretraining_lines, write_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")

PHONE, DESKTOP = 375, 1280

# Stands first in the page: notes what goes wrong in it, and tells the page around it in the end.
PROBE = """<script>
const problems = [];
addEventListener("error", (event) => problems.push(event.message));
addEventListener("securitypolicyviolation", (event) => problems.push(event.violatedDirective));
addEventListener("load", () => setTimeout(() => {
  const root = document.documentElement;
  const drawn = [...document.querySelectorAll("canvas")].map((canvas) =>
    new Set(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data).size > 2);
  parent.postMessage({
    problems, title: document.title, width: root.clientWidth, needs: root.scrollWidth, drawn,
    paper: getComputedStyle(document.body).backgroundColor,
    legend: document.querySelector(".u-legend")?.textContent ?? "",
  }, "*");
}, 300));
</script>"""
# A window may not be made as narrow as a phone; a frame may.
FRAME = """<!doctype html><meta charset="utf-8">
<iframe width="{width}" height="800" srcdoc="{page}"></iframe>
<pre id="found"></pre><script>addEventListener("message", (event) => {{
  document.getElementById("found").textContent = JSON.stringify(event.data);
}});</script>"""

Look = Callable[..., dict[str, Any]]


@pytest.fixture
def look(tmp_path: Path) -> Look:
    """Open a page in a browser, as wide as given, and return what is seen of it."""

    def look(page: str, *, width: int, is_dark: bool = False) -> dict[str, Any]:
        probed = page.replace("<head>", f"<head>{PROBE}", 1)
        file = tmp_path / "frame.html"
        file.write_text(FRAME.format(width=width, page=html.escape(probed)), encoding="utf-8")
        assert CHROMIUM is not None
        shown = subprocess.run(
            [
                CHROMIUM,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                f"--user-data-dir={tmp_path / 'profile'}",
                "--window-size=1400,1000",
                "--virtual-time-budget=4000",
                *(["--blink-settings=preferredColorScheme=0"] if is_dark else []),
                "--dump-dom",
                file.as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        found = re.search(r'<pre id="found">(.+?)</pre>', shown.stdout)
        assert found, shown.stderr
        result: dict[str, Any] = json.loads(html.unescape(found[1]))
        return result

    return look


def check(seen: dict[str, Any], *, panels: int, title: str) -> None:
    assert seen["problems"] == []
    assert seen["title"] == title
    assert seen["needs"] <= seen["width"]
    assert seen["drawn"] == [True] * panels


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_the_report_of_a_pretraining_is_drawn_and_fits(tmp_path: Path, look: Look, width: int) -> None:
    lines = pretraining_lines(prompt="a-very-long-word-" * 30)
    command = ["gptcli", "pretrain", "--config", "long/" * 60]
    facts: dict[str, Any] = {"command": command, "start": "x" * 400}
    run = write_run(tmp_path / ("a-run-with-a-long-name" * 5), lines=lines, **facts)
    seen = look(run_page(RunRecord(run)), width=width)
    check(seen, panels=5, title=run.name)


def test_the_report_of_a_classification_is_drawn_and_fits_a_phone(tmp_path: Path, look: Look) -> None:
    labels = {f"a label of some length {n}": [n + m for m in range(20)] for n in range(20)}
    run = write_run(tmp_path / "run", lines=classification_lines(labels))
    check(look(run_page(RunRecord(run)), width=PHONE), panels=5, title="run")


def test_the_report_is_dark_where_people_want_it_so(tmp_path: Path, look: Look) -> None:
    page = run_page(RunRecord(write_run(tmp_path / "run")))
    light, dark = look(page, width=DESKTOP), look(page, width=DESKTOP, is_dark=True)
    assert (light["paper"], dark["paper"]) == ("rgb(255, 255, 255)", "rgb(20, 20, 20)")
    check(dark, panels=5, title="run")


def test_a_comparison_is_drawn_and_fits_a_phone(tmp_path: Path, look: Look) -> None:
    runs = [write_run(tmp_path / name) for name in ("one", "two", "three")]
    page = write_comparison(compare_runs([str(run) for run in runs]), tmp_path / "page.html")
    seen = look(page.read_text(encoding="utf-8"), width=PHONE)
    check(seen, panels=6, title="one · two · three")
    for name in ("one", "two", "three"):
        assert name in seen["legend"]
