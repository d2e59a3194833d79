"""The page of attention weights: what is in it, what cannot get in, and what a browser makes of it."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from gptcli.data.token_names import TokenName
from gptcli.errors import ConfigError
from gptcli.reports.attention_page import attention_page, check_size, square_roots

HOSTILE = "</script><script>document.title='owned'</script>"
# A dot for a space is made when the page is; \n and \x1b are to be written out.
TEXTS = ["The", " cat", "\n", "<b>&amp;", HOSTILE, "\x1b[31m", "深", "\\xe6"]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def names(texts: list[str]) -> list[TokenName]:
    return [TokenName(number, text, text) for number, text in enumerate(texts)]


def some_weights(layers: int = 2, heads: int = 3, tokens: int = len(TEXTS)) -> torch.Tensor:
    torch.manual_seed(0)
    scores = torch.randn(layers, heads, tokens, tokens) * 3
    return scores.masked_fill(torch.ones(tokens, tokens).triu(1) == 1, -torch.inf).softmax(-1)


def page(**options: Any) -> str:
    facts: dict[str, Any] = {"layer": 1, "head": None, "token": 4, **options}
    return attention_page("runs/<mine>", names(TEXTS), some_weights(), **facts)


def data_of(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_a_weight_is_a_byte_its_square_root_in_255_steps() -> None:
    # Rows: 1 | 0.25 0.75 | 0.5 0.1 0.4. Square roots: 1 | 0.5 0.8660 | 0.7071 0.3162 0.6325.
    matrix = torch.tensor([[1.0, 0, 0], [0.25, 0.75, 0], [0.5, 0.1, 0.4]])
    expected = [255, 128, 221, 180, 81, 161]
    assert list(square_roots(matrix.view(1, 1, 3, 3))) == expected


def test_the_page_holds_every_weight_to_the_rounding_that_it_tells() -> None:
    weights, count = some_weights(), len(TEXTS)
    data = data_of(page())
    roots = base64.b64decode(data["roots"])
    assert len(roots) == 2 * 3 * count * (count + 1) // 2
    at, furthest = 0, 0.0
    for layer in range(2):
        for head in range(3):
            for query in range(count):
                for key in range(query + 1):
                    weight = weights[layer, head, query, key].item()
                    furthest = max(furthest, abs((roots[at] / 255) ** 2 - weight))
                    at += 1
    assert furthest < 0.004
    assert "exact to 0.4 percentage points" in " ".join(page().split())


def test_the_page_says_what_is_shown_first_and_how_tokens_read() -> None:
    data = data_of(page(next_tokens=[(TokenName(1, "Ġcat", " cat"), 0.75)]))
    assert {key: data[key] for key in ("layers", "heads", "layer", "head", "token")} == {
        "layers": 2,
        "heads": 3,
        "layer": 1,
        "head": None,
        "token": 4,
    }
    assert [token["name"] for token in data["tokens"][:3]] == ["The", "·cat", "\\n"]
    assert [token["lines"] for token in data["tokens"][:3]] == [0, 0, 1]
    assert data["next"] == [{"name": "·cat", "probability": 0.75}]
    assert data_of(page())["next"] is None


def test_no_text_gets_out_of_its_place() -> None:
    html = page()
    assert HOSTILE not in html
    assert data_of(html)["tokens"][4]["name"] == HOSTILE
    assert "<title>Attention of runs/&lt;mine&gt;</title>" in html
    assert "\x1b" not in html
    assert data_of(html)["tokens"][5]["name"] == "\\x1b[31m"


def test_a_name_that_looks_like_a_place_in_the_template_stays_a_name() -> None:
    html = attention_page(
        "__DATA__", names(["__TITLE__"]), some_weights(tokens=1), layer=0, head=0, token=0
    )
    assert "<h1>Attention of __DATA__</h1>" in html
    assert data_of(html)["tokens"][0]["name"] == "__TITLE__"


def test_the_page_loads_nothing() -> None:
    found: list[str] = []

    class Links(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.extend(f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "action"))

    Links().feed(page())
    assert found == []
    assert "://" not in page()
    assert "default-src 'none'" in page()


def test_a_page_of_200_tokens_of_gpt_2_stays_below_five_megabytes() -> None:
    check_size(200, 12, 12)
    weights = some_weights(12, 12, 200)
    html = attention_page("gpt2", names(["a"] * 200), weights, layer=11, head=None, token=199)
    assert len(html) < 5_000_000


def test_a_page_that_is_too_large_is_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigError) as error:
        check_size(1024, 12, 12)
    # 144 x 1024 x 1025 / 2 bytes, and a third more in base64.
    assert str(error.value) == (
        "--html would make a page of 101 MB: 1,024 tokens, 12 layers, 12 heads. "
        "At most 20 MB are written; shorten the text."
    )


def in_a_browser(folder: Path, html: str, script: str) -> str:
    """Return what `script` puts into the page's title once the page has run."""
    assert CHROMIUM is not None
    file = folder / "page.html"
    file.write_text(html.replace("</body>", f"<script>document.title = {script}</script></body>"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile"]
    shown = subprocess.run(
        [CHROMIUM, *options, "--virtual-time-budget=5000", "--dump-dom", file.as_uri()],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    found = re.search(r"<title>(.*?)</title>", shown.stdout, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_a_browser_shows_where_a_token_looks_by_click_and_by_key(tmp_path: Path) -> None:
    script = """(() => {
      const said = [];
      const note = () => said.push([
        document.querySelector("#seen caption").textContent,
        document.querySelectorAll("#seen tbody tr").length,
        document.querySelector("#seen tbody tr").textContent,
        getComputedStyle(document.querySelector("#text button")).backgroundColor,
      ].join("|"));
      const press = (key) => document.activeElement.dispatchEvent(
        new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
      note();
      document.querySelectorAll("#text button")[1].click(); note();
      document.querySelectorAll("#text button")[1].focus(); press("ArrowRight"); note();
      document.querySelector("#head").value = 0;
      document.querySelector("#head").dispatchEvent(new Event("change")); note();
      document.querySelectorAll("#grid button")[1].click(); note();
      document.querySelectorAll("#grid button")[1].focus(); press("ArrowDown"); note();
      said.push(document.querySelectorAll("#grid canvas").length);
      return said.join(" ; ");
    })()"""
    weights = torch.zeros(2, 2, 3, 3)
    weights[..., 0, 0] = 1
    weights[1, 0, 1:] = torch.tensor([[0.64, 0.36, 0], [0.16, 0.64, 0.2]])
    weights[1, 1, 1:] = torch.tensor([[0.04, 0.96, 0], [0.25, 0.11, 0.64]])
    weights[0, :, 1:] = torch.tensor([[1.0, 0, 0], [0, 0, 1]])
    html = attention_page("m", names(["The", " cat", HOSTILE]), weights, layer=1, head=None, token=2)
    said = in_a_browser(tmp_path, html, script).split(" ; ")
    shown = HOSTILE.replace("<", "&lt;").replace(">", "&gt;")
    assert [part.rsplit("|", 1)[0] for part in said[:-1]] == [
        # Token 2 has the largest mean, (0.2 + 0.64) / 2.
        f"Layer 1, mean of its heads: token 2 ({shown}) looks at|3|242%{shown}",
        "Layer 1, mean of its heads: token 1 (·cat) looks at|2|166%·cat",
        f"Layer 1, mean of its heads: token 2 ({shown}) looks at|3|242%{shown}",
        f"Layer 1, head 0: token 2 ({shown}) looks at|3|164%·cat",
        f"Layer 0, head 1: token 2 ({shown}) looks at|3|2100%{shown}",
        f"Layer 1, head 1: token 2 ({shown}) looks at|3|264%{shown}",
    ]
    assert said[-1] == "6"  # Of each layer two heads and their mean.
    # Head 0 of layer 1: the first token has 0.16, the largest is 0.64, and the root of a quarter a half.
    assert said[3].rsplit("|", 1)[1] == "rgba(245, 140, 40, 0.5)"
