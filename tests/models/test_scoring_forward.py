from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from gptcli.models import scoring_forward
from gptcli.models.loading import load_model
from gptcli.models.scoring_forward import ScoringForward, attention_in_parts

CPU = torch.device("cpu")
INPUTS = torch.randint(0, 200, (3, 30), generator=torch.Generator().manual_seed(0))
ALL = torch.arange(INPUTS.numel())


def hidden_states_of_transformers(
    folder: Path, dtype: torch.dtype, positions: torch.Tensor | None, seen: torch.Tensor | None
) -> torch.Tensor:
    model = load_model(str(folder), CPU, dtype).model.transformer
    with torch.no_grad():
        outputs = model(
            input_ids=INPUTS,
            position_ids=positions,
            attention_mask=None if seen is None else seen[:, None],
            use_cache=False,
        )
    found: torch.Tensor = outputs.last_hidden_state.flatten(0, 1)
    return found


def two_texts_in_a_row() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the positions of two texts of 15 tokens in each row, and what their tokens look at."""
    text_of = torch.arange(30) // 15
    seen = (text_of[:, None] == text_of).tril()
    return (torch.arange(30) % 15).expand(3, -1), seen.expand(3, -1, -1)


@pytest.mark.parametrize("is_packed", [False, True])
def test_hidden_states_are_those_of_transformers(model_folder: Path, is_packed: bool) -> None:
    positions, seen = two_texts_in_a_row() if is_packed else (None, None)
    expected = hidden_states_of_transformers(model_folder, torch.float32, positions, seen)
    forward = ScoringForward(load_model(str(model_folder), CPU, torch.float32).model)
    torch.testing.assert_close(
        forward.hidden_states(INPUTS, ALL, positions, seen), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("is_packed", [False, True])
def test_in_bfloat16_hidden_states_are_as_near_to_float32_as_those_of_transformers(
    model_folder: Path, is_packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring_forward, "QUERIES_AT_ONCE", 7)
    positions, seen = two_texts_in_a_row() if is_packed else (None, None)
    exact = hidden_states_of_transformers(model_folder, torch.float32, positions, seen)
    theirs = hidden_states_of_transformers(model_folder, torch.bfloat16, positions, seen)
    forward = ScoringForward(load_model(str(model_folder), CPU, torch.bfloat16).model)
    ours = forward.hidden_states(INPUTS, ALL, positions, seen)
    assert (ours - exact).abs().mean() < 1.2 * (theirs - exact).abs().mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_tokens_that_are_asked_for_are_returned(model_folder: Path, dtype: torch.dtype) -> None:
    forward = ScoringForward(load_model(str(model_folder), CPU, dtype).model)
    kept = torch.tensor([3, 31, 89])
    torch.testing.assert_close(
        forward.hidden_states(INPUTS, kept), forward.hidden_states(INPUTS, ALL)[kept]
    )


@pytest.mark.parametrize("queries_at_once", [1, 7, 128])
def test_attention_in_parts_is_attention(queries_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring_forward, "QUERIES_AT_ONCE", queries_at_once)
    generator = torch.Generator().manual_seed(1)
    query, key, value = torch.randn(3, 2, 4, 20, 8, generator=generator)
    expected = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3)
    torch.testing.assert_close(attention_in_parts(query, key, value, 0.3, None), expected)
    mask = torch.full((2, 1, 20, 20), -torch.inf).triu(1)
    mask[0, 0, 5:, :5] = -torch.inf
    torch.testing.assert_close(
        attention_in_parts(query, key, value, 0.3, mask),
        nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=0.3),
    )


def test_queries_may_be_the_last_of_more_keys() -> None:
    generator = torch.Generator().manual_seed(3)
    query, key, value = torch.randn(3, 1, 2, 20, 8, generator=generator)
    whole = attention_in_parts(query, key, value, 0.3, None)
    torch.testing.assert_close(
        attention_in_parts(query[:, :, 15:], key, value, 0.3, None), whole[:, :, 15:]
    )
