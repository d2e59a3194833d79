from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from gptcli.config.schema import RuntimeSettings
from gptcli.data import token_budget
from gptcli.errors import ModelError
from gptcli.evaluation import next_token
from gptcli.evaluation.benchmarks.benchmark import Continuation
from gptcli.evaluation.continuations import ContinuationScorer
from gptcli.evaluation.prefix_packing import pack
from gptcli.models.loading import LoadedModel, load_model
from gptcli.training.device import choose_compute
from tests.conftest import SENTENCES

COMPUTE = choose_compute(RuntimeSettings(device="cpu", precision="fp32"), for_training=False)


@pytest.fixture
def loaded(model_folder: Path) -> LoadedModel:
    loaded = load_model(str(model_folder), COMPUTE.device, torch.float32)
    with torch.no_grad():
        loaded.model.lm_head.weight.mul_(20)  # So that tokens differ by nats, as in a trained model.
    return loaded


@pytest.fixture
def scorer(loaded: LoadedModel) -> ContinuationScorer:
    return ContinuationScorer(loaded, COMPUTE)


def one_by_one(loaded: LoadedModel, context: list[int], text: list[int]) -> tuple[float, bool]:
    """Return the log-probability of `text`, a forward pass a token, and whether it is greedy."""
    total, is_greedy = 0.0, True
    ids = context + text
    for end in range(len(context), len(ids)):
        begin = max(0, end - loaded.model.config.n_positions)
        with torch.no_grad():
            logits = loaded.model(torch.tensor([ids[begin:end]])).logits[0, -1]
        total += logits.log_softmax(0)[ids[end]].item()
        is_greedy &= logits.argmax().item() == ids[end]
    return total, is_greedy


QUESTION = "The small cat sat on the"
CHOICES = [" mat", " roof, and it was", " wall, and it was sad.", " mat, and it was happy.", " mat"]


def test_choices_of_one_context_are_as_likely_as_each_alone(
    loaded: LoadedModel, scorer: ContinuationScorer
) -> None:
    found = scorer.score([Continuation(QUESTION, choice) for choice in CHOICES])
    encode = loaded.tokenizer.encode
    for choice, likelihood in zip(CHOICES, found, strict=True):
        expected, is_greedy = one_by_one(loaded, encode(QUESTION), encode(choice))
        assert likelihood.log_probability == pytest.approx(expected, abs=1e-4)
        assert likelihood.tokens == len(encode(choice))
        assert (likelihood.is_greedy, likelihood.is_cut) == (is_greedy, False)


def test_without_context_the_first_token_follows_end_of_text(
    loaded: LoadedModel, scorer: ContinuationScorer
) -> None:
    text = "The owl sat."
    (found,) = scorer.score([Continuation("", text)])
    ids = loaded.tokenizer.encode(text)
    expected, _ = one_by_one(loaded, [loaded.tokenizer.eos_token_id], ids)
    assert found.log_probability == pytest.approx(expected, abs=1e-4)
    assert found.tokens == len(ids)


def test_the_space_at_the_end_of_a_context_belongs_to_the_continuation(
    scorer: ContinuationScorer,
) -> None:
    left, right = scorer.score([Continuation("The cat ", "sat"), Continuation("The cat", " sat")])
    assert left.log_probability == pytest.approx(right.log_probability, abs=1e-5)


def test_the_greedy_continuation_is_known_as_such(
    loaded: LoadedModel, scorer: ContinuationScorer
) -> None:
    ids = loaded.tokenizer.encode("The old dog", return_tensors="pt")
    whole = loaded.model.generate(ids, max_new_tokens=3, do_sample=False)[0].tolist()
    text = loaded.tokenizer.decode(whole[ids.shape[1] :])
    if loaded.tokenizer.encode("The old dog" + text) != whole:
        pytest.skip("the tokens of the text are not those that were generated")
    (found,) = scorer.score([Continuation("The old dog", text)])
    assert found.is_greedy


def test_a_context_that_is_too_long_loses_its_beginning(
    loaded: LoadedModel, scorer: ContinuationScorer
) -> None:
    context = "".join(SENTENCES[:6]).rstrip()
    short, cut = scorer.score([Continuation("The", " cat"), Continuation(context, " The small cat")])
    assert (short.is_cut, cut.is_cut) == (False, True)
    text = loaded.tokenizer.encode(" The small cat")
    ids = loaded.tokenizer.encode(context)[-(32 + 1 - len(text)) :]
    with torch.no_grad():
        logits = loaded.model(torch.tensor([(ids + text)[:-1]])).logits[0].log_softmax(-1)
    expected = sum(logits[len(ids) - 1 + n, token].item() for n, token in enumerate(text))
    assert cut.log_probability == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
@pytest.mark.parametrize("head_rows", [1, 7, 1024])
def test_scores_do_not_depend_on_what_goes_through_the_model_together(
    loaded: LoadedModel, batch_tokens: int, head_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [Continuation(text[:cut], text[cut:]) for text in SENTENCES for cut in (0, 4, 13)]
    expected = [ContinuationScorer(loaded, COMPUTE).score([item])[0].log_probability for item in items]
    monkeypatch.setitem(token_budget.BATCH_TOKENS, "cpu", batch_tokens)
    monkeypatch.setattr(next_token, "HEAD_ROWS", head_rows)
    random.Random(0).shuffle(order := list(range(len(items))))
    found = ContinuationScorer(loaded, COMPUTE).score([items[n] for n in order])
    for n, likelihood in zip(order, found, strict=True):
        assert likelihood.log_probability == pytest.approx(expected[n], abs=1e-4)


def test_in_bfloat16_the_scores_stay_close_to_those_in_float32(
    model_folder: Path, scorer: ContinuationScorer
) -> None:
    compute = choose_compute(RuntimeSettings(device="cpu", precision="bf16"), for_training=False)
    half = load_model(str(model_folder), compute.device, torch.bfloat16)
    with torch.no_grad():
        half.model.lm_head.weight.mul_(20)
    items = [Continuation("", sentence) for sentence in SENTENCES]
    tokens = np.array([found.tokens for found in scorer.score(items)])
    exact = np.array([found.log_probability for found in scorer.score(items)])
    rounded = np.array(
        [found.log_probability for found in ContinuationScorer(half, compute).score(items)]
    )
    assert np.abs((rounded - exact) / tokens).max() < 0.05


def test_a_model_whose_scores_are_not_finite_is_refused(loaded: LoadedModel) -> None:
    with torch.no_grad():
        loaded.model.transformer.ln_f.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        ContinuationScorer(loaded, COMPUTE).score([Continuation("The", " cat")])


def test_what_sequences_begin_with_alike_is_packed_once() -> None:
    sequences = [[1, 2, 3, 4], [1, 2, 5], [1, 2, 3], [9]]
    (row,) = pack(sequences)
    # 1 2 3 once, then 4; 5 behind 1 2; 9 alone: six tokens for eleven.
    assert sorted(row.input_ids) == [1, 2, 3, 4, 5, 9]
    for number, sequence in enumerate(sequences):
        path = row.paths[number]
        assert [row.input_ids[place] for place in path] == sequence
        assert [row.positions[place] for place in path] == list(range(len(sequence)))
        seen = row.mask(8)[path[-1]]
        assert sorted(np.flatnonzero(seen)) == sorted(path.tolist())


def test_every_token_of_a_long_list_sees_its_own_sequence_alone() -> None:
    random_numbers = random.Random(1)
    sequences = [
        [random_numbers.randrange(3) for _ in range(random_numbers.randrange(1, 40))] for _ in range(200)
    ]
    rows = list(pack(sequences))
    assert sorted(number for row in rows for number in row.paths) == list(range(200))
    assert all(len(row.input_ids) <= 128 for row in rows)
    for row in rows:
        mask = row.mask(len(row.input_ids))
        for number, path in row.paths.items():
            assert [row.input_ids[place] for place in path] == sequences[number]
            for depth, place in enumerate(path):
                assert np.flatnonzero(mask[place]).tolist() == sorted(path[: depth + 1].tolist())
