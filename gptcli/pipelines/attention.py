"""Attention: a text in, and out which earlier tokens each token looks at, and what may come next."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from gptcli.config.schema import RuntimeSettings
from gptcli.data.input_rows import check_unicode
from gptcli.data.token_names import TokenName, token_names
from gptcli.errors import ConfigError, DataError, ModelError
from gptcli.models.attention_weights import attention_weights
from gptcli.models.loading import LoadedModel, find_model, load_found
from gptcli.reports.attention_page import attention_page, check_size
from gptcli.training.device import choose_compute

MAX_NUMBERS = 2**24
"""Weights in the matrices that `as_dict` returns: about 100 MB of JSON."""
DECIMALS = 7
"""To which `as_dict` rounds weights and probabilities."""


@dataclass(frozen=True)
class View:
    """What is asked for. Layers, heads and tokens are counted from 0, as transformers does."""

    layer: int | None = None
    """None: the last."""
    head: int | None = None
    """None: the mean of all."""
    token: int = -1
    """The one that looks; below 0: counted from the end."""

    @property
    def names_some(self) -> bool:
        """Whether this is about one layer; else about all, of which the last is shown."""
        return self.layer is not None or self.head is not None


@dataclass(frozen=True)
class NextToken:
    """A token that may come next."""

    name: TokenName
    probability: float


@dataclass(frozen=True)
class Attention:
    """The weights of a text: those of every layer, or of the one that is asked for."""

    model: str
    tokens: list[TokenName]
    view: View
    weights: Tensor
    """(layers, heads, tokens, tokens): a row for each token that looks, which sums to 1."""
    layer_count: int
    next_tokens: list[NextToken] | None

    @property
    def layer(self) -> int:
        return self.layer_count - 1 if self.view.layer is None else self.view.layer

    @property
    def token(self) -> int:
        return self.view.token % len(self.tokens)

    @property
    def head_count(self) -> int:
        return self.weights.shape[1]

    @property
    def row(self) -> list[float]:
        """The weights with which the token looks at each one before it, and at last at itself."""
        heads = self.weights[self.layer if len(self.weights) > 1 else 0]
        matrix = heads.mean(0) if self.view.head is None else heads[self.view.head]
        row: list[float] = matrix[self.token, : self.token + 1].tolist()
        return row

    def as_dict(self) -> dict[str, Any]:
        """Return the row, and the matrices: those of all layers and heads unless the view names some."""
        view, matrices = self.view, self.weights
        layers, heads = list(range(self.layer_count)), list(range(self.head_count))
        if view.names_some:
            layers = [self.layer]
            matrices = matrices[layers if len(matrices) > 1 else [0]]
        if view.head is not None:
            heads = [view.head]
            matrices = matrices[:, heads]
        assert len(matrices) == len(layers), "look() was not asked for these matrices"
        result: dict[str, Any] = {
            "model": self.model,
            "tokens": [asdict(name) for name in self.tokens],
            "layer": self.layer,
            "head": view.head,
            "token": self.token,
            "weights": _rounded(self.row),
            "layers": layers,
            "heads": heads,
            "attentions": _rounded(matrices.tolist()),
        }
        if self.next_tokens is not None:
            result["next"] = [
                {**asdict(found.name), "probability": _rounded(found.probability)}
                for found in self.next_tokens
            ]
        return result

    def as_page(self) -> str:
        """Return an interactive page of all layers and heads, as HTML."""
        assert len(self.weights) == self.layer_count, "look() was not asked for a page"
        following = self.next_tokens
        return attention_page(
            self.model,
            self.tokens,
            self.weights,
            layer=self.layer,
            head=self.view.head,
            token=self.token,
            next_tokens=None
            if following is None
            else [(new.name, new.probability) for new in following],
        )


def look(
    model_name: str,
    text: str,
    origin: str | None,
    runtime: RuntimeSettings,
    view: View,
    *,
    for_dict: bool,
    for_page: bool,
    next_count: int | None,
) -> Attention:
    """Return the weights of a text in a model of any kind, in float32 unless `runtime` says otherwise.

    origin: what messages call the place that the text comes from; None for an argument. for_dict,
    for_page: whether `as_dict` and `as_page` will be called. next_count: how many of the likeliest next
    tokens are wanted, which only a model of language has; None for none.
    Raises ConfigError (DataError for a text with an origin) for a text that is empty or too long,
    ConfigError for a view of what there is not or for too many weights, ModelError, EnvironmentProblem.
    """
    error = ConfigError if origin is None else DataError
    where = origin or "The text"
    check_unicode(text, error, where)
    if runtime.precision == "int8":
        raise ConfigError("--precision int8: attention is looked at in fp32, bf16 or fp16.")
    if runtime.precision == "auto":  # As they are, not as the nearest numbers of bfloat16.
        runtime = runtime.model_copy(update={"precision": "fp32"})
    found = find_model(model_name)
    if next_count is not None and found.kind != "language-modelling":
        raise ModelError(f"{model_name} is a model for {found.kind}; it makes no next token (--next).")
    if view.layer is not None:
        _check_number("--layer", view.layer, 0, found.config.n_layer, f"layers of {model_name}")
    if view.head is not None:
        _check_number("--head", view.head, 0, found.config.n_head, f"heads of {model_name}")
    compute = choose_compute(runtime, for_training=False)
    loaded = load_found(found, compute.device, compute.dtype)
    ids = loaded.tokenizer.encode(text, add_special_tokens=False)
    if not ids:
        raise error(f'{where} is empty. Give a text, such as "The cat sat on the mat".')
    if len(ids) > found.config.n_positions:
        raise error(
            f"{where} has {len(ids):,} tokens; the context of {model_name} is "
            f"{found.config.n_positions:,}. Shorten the text."
        )
    _check_number("--token", view.token, -len(ids), len(ids), "tokens of the text")
    loaded.check_token(max(ids), "the text")
    if for_page:
        check_size(len(ids), found.config.n_layer, found.config.n_head)
    if for_dict:
        _check_numbers(len(ids), found.config.n_layer, found.config.n_head, view)
    last = found.config.n_layer - 1
    shows_all = for_page or (for_dict and not view.names_some)
    layers = range(last + 1) if shows_all else [last if view.layer is None else view.layer]
    weights, hidden = attention_weights(loaded.model.transformer, ids, layers)
    if not weights.isfinite().all() or not hidden.isfinite().all():
        raise ModelError(
            f"{model_name}: what it computes is not finite: its weights are damaged, or too large for "
            "this --precision. Try --precision fp32."
        )
    return Attention(
        model=model_name,
        tokens=token_names(loaded.tokenizer, ids),
        view=view,
        weights=weights,
        layer_count=last + 1,
        next_tokens=None if next_count is None else _likeliest(loaded, hidden, next_count),
    )


def _likeliest(loaded: LoadedModel, hidden: Tensor, count: int) -> list[NextToken]:
    """Return the likeliest tokens behind the last one. hidden: (tokens, width)."""
    with torch.inference_mode():
        probabilities = loaded.model.lm_head(hidden[-1]).float().softmax(-1)
    top = probabilities.topk(min(count, len(probabilities)))
    names = token_names(loaded.tokenizer, top.indices.tolist())
    return [NextToken(*pair) for pair in zip(names, top.values.tolist(), strict=True)]


def _check_number(option: str, number: int, first: int, end: int, what: str) -> None:
    if not first <= number < end:
        raise ConfigError(f"{option} is {number}; the {what} are numbered from 0 to {end - 1}.")


def _check_numbers(tokens: int, layers: int, heads: int, view: View) -> None:
    matrices = (1 if view.names_some else layers) * (heads if view.head is None else 1)
    if matrices * tokens**2 > MAX_NUMBERS:
        raise ConfigError(
            f"--json would hold {matrices:,} matrices of {tokens:,} x {tokens:,} weights; at most "
            f"{MAX_NUMBERS:,} weights fit. Choose with --layer and --head, or shorten the text."
        )


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, DECIMALS)
