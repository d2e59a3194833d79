"""Attention as a page: one HTML file with its weights and its script, which loads nothing."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Sequence
from importlib import resources

import torch
from torch import Tensor

from gptcli.data.token_names import TokenName
from gptcli.errors import ConfigError

MAX_BYTES = 20_000_000
"""Of the weights in a page, as they are written."""
STEPS = 255
"""Of the square root of a weight: one byte, with finer steps for small weights."""


def check_size(tokens: int, layers: int, heads: int) -> None:
    """Raise ConfigError if the weights of this many would make a page larger than browsers like."""
    size = layers * heads * tokens * (tokens + 1) // 2 * 4 // 3
    if size > MAX_BYTES:
        raise ConfigError(
            f"--html would make a page of {size / 1e6:,.0f} MB: {tokens:,} tokens, {layers} layers, "
            f"{heads} heads. At most {MAX_BYTES / 1e6:.0f} MB are written; shorten the text."
        )


def attention_page(
    model: str,
    tokens: Sequence[TokenName],
    weights: Tensor,
    *,
    layer: int,
    head: int | None,
    token: int,
    next_tokens: Sequence[tuple[TokenName, float]] | None = None,
) -> str:
    """Return the page as HTML.

    weights: (layers, heads, tokens, tokens). layer, head (None: the mean), token: what is shown at
    first. next_tokens: with their probabilities.
    """
    layers, heads = weights.shape[:2]
    data = {
        "layers": layers,
        "heads": heads,
        "layer": layer,
        "head": head,
        "token": token,
        "tokens": [{"name": name.visible, "lines": name.text.count("\n")} for name in tokens],
        "next": None
        if next_tokens is None
        else [{"name": name.visible, "probability": value} for name, value in next_tokens],
        "roots": base64.b64encode(square_roots(weights)).decode("ascii"),
    }
    values = {
        "__TITLE__": html.escape(f"Attention of {model}"),
        # In JSON, "<" is in strings alone; written so, none of them can end the script element.
        "__DATA__": json.dumps(data).replace("<", "\\u003c"),
    }
    template = resources.files("gptcli.reports").joinpath("attention_page.html").read_text("utf-8")
    # All at once: what is put in is not looked through again.
    return re.sub("__TITLE__|__DATA__", lambda match: values[match[0]], template)


def square_roots(weights: Tensor) -> bytes:
    """Return a byte a weight, the square root in STEPS; of each head row by row, up to the diagonal."""
    rows, columns = torch.tril_indices(*weights.shape[-2:])
    packed = weights[:, :, rows, columns].sqrt().mul(STEPS).round().to(torch.uint8)
    return packed.numpy().tobytes()
