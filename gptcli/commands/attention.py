"""`gptcli attention`: which earlier tokens a token looks at."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from gptcli import console
from gptcli.commands.options import Device, Precision
from gptcli.errors import ConfigError

if TYPE_CHECKING:
    from gptcli.data.token_names import TokenName
    from gptcli.pipelines.attention import Attention

SHOWN_BESIDE_COLOUR = 10
BAR_WIDTH = 24
NAME_WIDTH = 40


def attention(
    text: str | None = typer.Argument(None, help="Text to look into; - reads standard input."),
    model: str = typer.Option(..., "--model", "-m", help="Model folder, run folder or hub name."),
    layer: int | None = typer.Option(
        None, "--layer", help="Layer, counted from 0 as in transformers [default: the last]."
    ),
    head: int | None = typer.Option(
        None, "--head", help="Head, counted from 0 [default: the mean of the layer's heads]."
    ),
    token: int = typer.Option(
        -1, "--token", help="The token that looks, counted from 0; -1 is the last."
    ),
    html_file: Path | None = typer.Option(
        None, "--html", metavar="FILE", help="Write an interactive page of all layers and heads as well."
    ),
    shows_next: bool = typer.Option(
        False, "--next", help="Show the likeliest next tokens with their probabilities as well."
    ),
    top_k: int = typer.Option(10, "--top-k", min=1, help="With --next: how many."),
    device: Device = None,
    precision: Precision = None,
    as_json: bool = typer.Option(
        False,
        "--json",
        help="Print one JSON object, with the weights of all layers and heads, or of those chosen.",
    ),
) -> None:
    """Show which earlier tokens a token looks at: softmax(Q K^T / sqrt(d_k)) of a layer's heads.

    On a terminal, the text is shaded by weight (square root, relative to the largest) above the ten
    largest; elsewhere a table has every token. Weights are those of Hugging Face's output_attentions.

    Examples:
      gptcli attention "The cat sat on the mat" --model runs/mine --next
      gptcli attention "The cat sat on the mat" --model runs/mine --html attention.html
    """
    from gptcli.config.loading import load_settings
    from gptcli.data.input_rows import STANDARD_INPUT, read_whole
    from gptcli.data.output_rows import OutputFile, check_output

    settings = load_settings(None, [], {"runtime": {"device": device, "precision": precision}})
    origin = None
    if text is None and (sys.stdin is None or sys.stdin.isatty()):
        raise ConfigError('Give a text, such as "The cat sat on the mat", or - for standard input.')
    if text is None or text == STANDARD_INPUT:
        origin, text = read_whole(STANDARD_INPUT, "-")
        # That of `echo`; more line ends belong to the text.
        text = text.removesuffix("\n").removesuffix("\r")
    if html_file is not None:
        check_output(html_file, None, "--html")

    with console.working("Looking"):
        from gptcli.hub import quiet_libraries
        from gptcli.pipelines.attention import View, look

        quiet_libraries()
        found = look(
            model,
            text,
            origin,
            settings.runtime,
            View(layer, head, token),
            for_dict=as_json,
            for_page=html_file is not None,
            next_count=top_k if shows_next else None,
        )
    if html_file is not None:
        page = found.as_page()
        with OutputFile(html_file) as file:
            file.write(page)
        console.say(f"Wrote {html_file} ({len(page) / 1000:,.0f} kB): open it in a browser.")
    if as_json:
        console.write_json(found.as_dict())
    else:
        _print(found)


def _print(found: Attention) -> None:
    heads = f"mean of heads 0 to {found.head_count - 1}"
    if found.view.head is not None:
        heads = f"head {found.view.head} of 0 to {found.head_count - 1}"
    console.write_result(
        f"Layer {found.layer} of 0 to {found.layer_count - 1}, {heads}: "
        f"token {found.token} ({_short(found.tokens[found.token])}) looks at"
    )
    row = found.row
    shown = list(range(len(row)))
    if console.can_shade():
        largest = max(row)
        shades = [sqrt(weight / largest) for weight in row]
        later = [None] * (len(found.tokens) - len(row))
        names = [name.visible + "\n" * name.text.count("\n") for name in found.tokens]
        console.write_shaded(zip(names, [*shades, *later], strict=True), found.token)
        shown = sorted(shown, key=lambda number: -row[number])[:SHOWN_BESIDE_COLOUR]
    _print_table("token", "weight", shown, [row[n] for n in shown], [found.tokens[n] for n in shown])
    if found.next_tokens is not None:
        console.write_result(f"\nLikeliest after the last token ({_short(found.tokens[-1])})")
        numbers = range(1, len(found.next_tokens) + 1)
        probabilities = [new.probability for new in found.next_tokens]
        _print_table("rank", "prob.", numbers, probabilities, [new.name for new in found.next_tokens])


def _print_table(
    first: str, second: str, numbers: Sequence[int], values: Sequence[float], names: Sequence[TokenName]
) -> None:
    console.write_result(f"{first:>5}  {second:>6}")
    largest = max(values)
    for number, value, name in zip(numbers, values, names, strict=True):
        bar = "█" * round(BAR_WIDTH * value / largest)
        console.write_result(f"{number:>5}  {value:6.4f}  {bar:<{BAR_WIDTH}}  {_short(name)}")


def _short(name: TokenName) -> str:
    text = name.visible
    return text if len(text) <= NAME_WIDTH else text[: NAME_WIDTH - 1] + "…"
