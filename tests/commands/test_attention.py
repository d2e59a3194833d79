"""`gptcli attention` as a person types it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2ForSequenceClassification

from gptcli.config.schema import ModelSettings
from gptcli.models.architecture import model_config, new_model
from gptcli.models.saving import save_model
from tests.commands.conftest import Result, Run, refused
from tests.test_cli import run_main
from tests.test_console import shown_on_a_terminal

TEXT = "The small cat sat"


@pytest.fixture
def attention(run: Run, model_folder: Path) -> Run:
    """Run `gptcli attention --model` with the tiny model: 2 layers, 2 heads, a context of 32."""

    def attention(*arguments: str | Path, stdin: bytes = b"") -> Result:
        return run("attention", *arguments, "--model", model_folder, stdin=stdin)

    return attention


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    folder = tmp_path_factory.mktemp("classifier") / "model"
    shape = ModelSettings(n_layer=2, n_head=2, n_embd=32, context_length=32)
    save_model(
        new_model(model_config(shape, tokenizer), seed=0, kind=GPT2ForSequenceClassification),
        tokenizer,
        folder,
    )
    return folder


def hugging_face(folder: Path, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (layers, heads, tokens, tokens) and the probabilities of what is next."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    inputs = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    with torch.inference_mode():
        found = model(**inputs, output_attentions=True)
    return torch.stack(found.attentions)[:, 0], found.logits[0, -1].softmax(-1)


def table(lines: list[str]) -> list[tuple[int, float, str]]:
    """Return number, value and name of the lines of a table, without its heading."""
    rows = [re.fullmatch(r" *(\d+)  ([\d.]+)  █* *(\S+)", line) for line in lines]
    assert all(rows), lines
    return [(int(row[1]), float(row[2]), row[3]) for row in rows if row]


def test_the_table_is_the_mean_of_the_last_layers_heads_where_the_last_token_looks(
    attention: Run, model_folder: Path
) -> None:
    result = attention(TEXT)
    assert (result.code, result.stderr) == (0, "")
    title, heading, *lines = result.stdout.splitlines()
    weights, _ = hugging_face(model_folder, TEXT)
    rows = table(lines)
    last = len(rows) - 1
    assert title == f"Layer 1 of 0 to 1, mean of heads 0 to 1: token {last} ({rows[-1][2]}) looks at"
    assert heading == "token  weight"
    assert [number for number, _, _ in rows] == list(range(last + 1))
    assert "".join(name for _, _, name in rows) == TEXT.replace(" ", "·")
    expected = weights[1].mean(0)[-1]
    assert [value for _, value, _ in rows] == pytest.approx(expected.tolist(), abs=6e-5)


def test_layer_head_and_token_are_counted_from_0(attention: Run, model_folder: Path) -> None:
    result = attention(TEXT, "--layer", "0", "--head", "1", "--token", "2")
    title, _, *lines = result.stdout.splitlines()
    weights, _ = hugging_face(model_folder, TEXT)
    assert title.startswith("Layer 0 of 0 to 1, head 1 of 0 to 1: token 2 (")
    assert [value for _, value, _ in table(lines)] == pytest.approx(
        weights[0, 1, 2, :3].tolist(), abs=6e-5
    )
    assert attention(TEXT, "--layer", "0", "--head", "1", "--token", "2") == result
    count = weights.shape[-1]
    assert attention(TEXT, "--token", "-1") == attention(TEXT, "--token", str(count - 1))


def test_json_has_all_weights_as_hugging_face_gives_them(attention: Run, model_folder: Path) -> None:
    (facts,) = attention(TEXT, "--json").rows
    weights, _ = hugging_face(model_folder, TEXT)
    found = torch.tensor(facts["attentions"])
    torch.testing.assert_close(found, weights, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]), rtol=0, atol=1e-5)
    assert (facts["layers"], facts["heads"]) == ([0, 1], [0, 1])
    assert (facts["layer"], facts["head"], facts["token"]) == (1, None, found.shape[-1] - 1)
    assert facts["weights"] == pytest.approx(found[1].mean(0)[-1].tolist(), abs=1e-6)
    tokens = AutoTokenizer.from_pretrained(model_folder)
    ids = tokens.encode(TEXT)
    assert [token["id"] for token in facts["tokens"]] == ids
    assert [token["token"] for token in facts["tokens"]] == tokens.convert_ids_to_tokens(ids)
    assert "".join(token["text"] for token in facts["tokens"]) == TEXT
    assert "next" not in facts


@pytest.mark.parametrize(
    ("options", "layers", "heads"),
    [
        (["--layer", "0"], [0], [0, 1]),
        (["--head", "0"], [1], [0]),
        (["--layer", "0", "--head", "1"], [0], [1]),
    ],
)
def test_json_has_the_weights_that_are_asked_for_also_beside_a_page(
    attention: Run, model_folder: Path, options: list[str], layers: list[int], heads: list[int]
) -> None:
    weights, _ = hugging_face(model_folder, TEXT)
    for more in ([], ["--html", "page.html"]):
        (facts,) = attention(TEXT, "--json", *options, *more).rows
        assert (facts["layers"], facts["heads"]) == (layers, heads)
        torch.testing.assert_close(
            torch.tensor(facts["attentions"]), weights[layers][:, heads], rtol=0, atol=1e-6
        )


def test_next_shows_the_likeliest_tokens(attention: Run, model_folder: Path) -> None:
    _, probabilities = hugging_face(model_folder, TEXT)
    top = probabilities.topk(3)
    _, _, after = attention(TEXT, "--next", "--top-k", "3").stdout.partition("\n\n")
    title, heading, *lines = after.splitlines()
    last = AutoTokenizer.from_pretrained(model_folder).tokenize(TEXT)[-1].replace("Ġ", "·")
    assert (title, heading) == (f"Likeliest after the last token ({last})", " rank   prob.")
    assert [value for _, value, _ in table(lines)] == pytest.approx(top.values.tolist(), abs=6e-5)
    (facts,) = attention(TEXT, "--next", "--json").rows
    assert len(facts["next"]) == 10
    assert [found["id"] for found in facts["next"][:3]] == top.indices.tolist()
    assert facts["next"][0]["probability"] == pytest.approx(top.values[0].item(), abs=1e-6)
    (all_of_them,) = attention(TEXT, "--next", "--top-k", "999999", "--json").rows
    assert sum(found["probability"] for found in all_of_them["next"]) == pytest.approx(1, abs=1e-4)


def test_standard_input_is_read_without_the_line_end_of_echo(attention: Run) -> None:
    expected = attention(TEXT, "--json")
    assert attention("-", "--json", stdin=f"{TEXT}\n".encode()) == expected
    assert attention("--json", stdin=f"{TEXT}\r\n".encode()) == expected
    (facts,) = attention("-", "--json", stdin=b"\n\n").rows
    assert [token["text"] for token in facts["tokens"]] == ["\n"]


def test_parts_of_characters_and_control_characters_are_written_out(attention: Run) -> None:
    result = attention("深\x1b[31m\n a")
    names = [name for _, _, name in table(result.stdout.splitlines()[2:])]
    assert "".join(names) == "\\xe6\\xb7\\xb1\\x1b[31m\\n·a"


def test_a_page_is_written_and_told(attention: Run, tmp_path: Path) -> None:
    result = attention(TEXT, "--html", "page.html", "--head", "1", "--next")
    assert result.stdout == attention(TEXT, "--head", "1", "--next").stdout
    html = (tmp_path / "page.html").read_text()
    size = f"{len(html) / 1000:.0f} kB"
    assert result.notes == [f"Wrote page.html ({size}): open it in a browser."]
    found = re.search(r'id="data">(.*?)</script>', html)
    assert found is not None
    data = json.loads(found[1])
    assert (data["layers"], data["heads"], data["layer"], data["head"]) == (2, 2, 1, 1)
    assert len(data["next"]) == 10


def test_a_classifier_has_attention_but_no_next_token(run: Run, classifier: Path) -> None:
    (facts,) = run("attention", TEXT, "--model", classifier, "--json").rows
    assert torch.tensor(facts["attentions"]).shape[:2] == (2, 2)
    line = refused(run("attention", TEXT, "--model", classifier, "--next"), 4)
    assert line == f"{classifier} is a model for classification; it makes no next token (--next)."


def test_what_there_is_not_is_refused(attention: Run, model_folder: Path) -> None:
    layers = f"the layers of {model_folder} are numbered from 0 to 1."
    assert refused(attention(TEXT, "--layer", "2"), 2) == f"--layer is 2; {layers}"
    assert refused(attention(TEXT, "--layer", "-1"), 2) == f"--layer is -1; {layers}"
    assert refused(attention(TEXT, "--head", "2"), 2).startswith("--head is 2; the heads of ")
    count = len(AutoTokenizer.from_pretrained(model_folder).encode(TEXT))
    for token in (count, -count - 1):
        assert refused(attention(TEXT, "--token", str(token)), 2) == (
            f"--token is {token}; the tokens of the text are numbered from 0 to {count - 1}."
        )


def test_a_text_that_is_no_text_or_too_long_is_refused(attention: Run, model_folder: Path) -> None:
    what_to_do = 'Give a text, such as "The cat sat on the mat".'
    assert refused(attention(""), 2) == f"The text is empty. {what_to_do}"
    assert refused(attention("-", stdin=b"\n"), 3).startswith("standard input is empty")
    assert refused(attention("a\udce4"), 2).startswith("The text is not valid Unicode")
    long = "深" * 11  # 33 tokens, a byte each.
    assert refused(attention(long), 2) == (
        f"The text has 33 tokens; the context of {model_folder} is 32. Shorten the text."
    )
    assert refused(attention("-", stdin=long.encode()), 3).startswith("standard input has 33 tokens")
    assert attention("深" * 10 + "ab").code == 0


def test_bytes_are_no_precision_to_look_at_attention_in(attention: Run) -> None:
    assert "attention is looked at in fp32" in refused(attention("The cat", "--precision", "int8"), 2)


def test_a_page_is_refused_where_it_cannot_be_written(attention: Run, tmp_path: Path) -> None:
    line = refused(attention(TEXT, "--html", tmp_path), 2)
    assert line == f"--html {tmp_path} is a folder; it takes a file."
    assert "does not exist" in refused(attention(TEXT, "--html", "no/page.html"), 2)


def test_more_weights_than_json_can_hold_are_refused(
    attention: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptcli.pipelines.attention.MAX_NUMBERS", 12**2)
    assert refused(attention("深" * 4, "--json"), 2) == (
        "--json would hold 4 matrices of 12 x 12 weights; at most 144 weights fit. Choose with --layer "
        "and --head, or shorten the text."
    )
    assert attention("深" * 4, "--json", "--head", "0").code == 0
    assert attention("深" * 4).code == 0


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, model_folder: Path, text: str) -> str:
    def show() -> None:
        assert run_main(monkeypatch, "attention", text, "--model", str(model_folder)) == 0

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("COLORTERM", raising=False)
    return shown_on_a_terminal(monkeypatch, "stdout", show)


def test_a_terminal_shows_the_text_shaded_and_the_largest_weights(
    monkeypatch: pytest.MonkeyPatch, model_folder: Path
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = on_a_terminal(monkeypatch, model_folder, "深深深深\x1b[2J\n a")
    assert re.search(r"\x1b\[[0-9;]*48;5;\d+m", shown)  # A background of 256 colours.
    assert "\x1b[2J" not in shown
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown).replace("\r\n", "\n")
    _, text, rest, heading, *lines = plain.splitlines()
    # The line end is written out, and then made.
    assert (text, rest) == ("\\xe6\\xb7\\xb1" * 4 + "\\x1b[2J\\n", "·a")
    assert heading == "token  weight"
    values = [value for _, value, _ in table(lines)]
    assert len(values) == 10
    assert values == sorted(values, reverse=True)


def test_a_terminal_without_colour_shows_the_table_alone(
    monkeypatch: pytest.MonkeyPatch, attention: Run, model_folder: Path
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    shown = on_a_terminal(monkeypatch, model_folder, TEXT)
    assert shown.replace("\r\n", "\n") == attention(TEXT).stdout
