from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from gptcli.config.schema import RuntimeSettings
from gptcli.evaluation import choices
from gptcli.evaluation.benchmarks.arc import ARC_EASY
from gptcli.evaluation.benchmarks.benchmark import Benchmark, Item, Measure, each_row
from gptcli.evaluation.benchmarks.blimp import BLIMP
from gptcli.evaluation.benchmarks.crows_pairs import CROWS_PAIRS
from gptcli.evaluation.benchmarks.lambada import LAMBADA
from gptcli.evaluation.bootstrap import scores_of
from gptcli.evaluation.choices import (
    ChoiceCounts,
    ItemResult,
    measure_choices,
    metric_names,
    score_items,
)
from gptcli.evaluation.continuations import ContinuationScorer, Likelihood
from gptcli.models.loading import load_model
from gptcli.training.device import choose_compute


def item(texts: Sequence[str], gold: int = 0, group: str = "") -> Item:
    return Item.of_choices("rows.jsonl:1", "The", texts, gold, group=group)


def result(
    logs: Sequence[float],
    gold: int = 0,
    *,
    texts: Sequence[str] | None = None,
    group: str = "",
    is_greedy: bool = False,
) -> ItemResult:
    likelihoods = [Likelihood(log, 2, is_greedy, False) for log in logs]
    return ItemResult(item(texts or ["mat"] * len(logs), gold, group), likelihoods)


def scores(benchmark: Benchmark, results: Sequence[ItemResult]) -> dict[str, float]:
    return {score.name: score.value for score in scores_of(measure_choices(benchmark, results), seed=0)}


def benchmark(measure: Measure) -> Benchmark:
    return Benchmark("own", "", each_row(lambda values, where: item([""])), measure, ())


def test_accuracy_is_the_share_of_items_whose_right_choice_is_the_likeliest() -> None:
    results = [
        result([-2, -1], gold=1),
        result([-1, -2], gold=1),
        result([-5, -4, -3], gold=2),
        result([-3, -4, -5], gold=1),
    ]
    assert scores(benchmark("accuracy"), results) == {"acc": 0.5}


def test_of_choices_as_likely_the_first_counts() -> None:
    assert result([-2, -1, -1]).predicted == 1
    assert result([-4, -2], texts=["four", "ab"]).predicted_by_length == 0
    assert scores(benchmark("accuracy"), [result([-1, -1], 0), result([-1, -1], 1)]) == {"acc": 0.5}


def test_normalized_accuracy_is_that_of_likelihoods_a_character() -> None:
    # Nats a character: 6 / 2 = 3 and 8 / 4 = 2; the bytes, 6 and 4, would give 1 and 2.
    of_characters = result([-6, -8], gold=1, texts=["深圳", "sofa"])
    # 3 / 3 = 1 and 5 / 4: the same choice both ways. The space before a choice does not count.
    short = result([-3, -5], gold=0, texts=["mat", "sofa"])
    assert (of_characters.predicted, of_characters.predicted_by_length) == (0, 1)
    assert scores(ARC_EASY, [of_characters, short]) == {"acc": 0.5, "acc_norm": 1.0}


def test_a_choice_without_a_character_is_never_the_likeliest() -> None:
    assert result([-1, -900], gold=1, texts=["", "mat"]).predicted_by_length == 1


def test_each_group_has_its_own_score_and_an_item_counts_once_in_all() -> None:
    results = [
        result([-1, -2], group="b"),
        result([-2, -1], group="a"),
        result([-1, -2], group="b"),
        result([-2, -1], group="b"),
    ]
    assert scores(BLIMP, results) == pytest.approx({"acc": 0.5, "acc/a": 0.0, "acc/b": 2 / 3})
    # One group is all items: it has nothing to add.
    assert scores(BLIMP, results[:1]) == {"acc": 1.0}


def test_groups_have_each_of_the_scores() -> None:
    results = [
        result([-6, -8], 1, texts=["ab", "sofa"], group="a"),
        result([-3, -5], 0, texts=["mat", "sofa"], group="b"),
    ]
    assert scores(ARC_EASY, results) == {
        "acc": 0.5,
        "acc_norm": 1.0,
        "acc/a": 0.0,
        "acc_norm/a": 1.0,
        "acc/b": 1.0,
        "acc_norm/b": 1.0,
    }


def test_stereotypes_are_counted_where_they_are_the_likelier_and_equals_are_no_preference() -> None:
    results = [result([-1, -2]), result([-2, -1]), result([-3, -3]), result([-2, -9])]
    assert scores(CROWS_PAIRS, results) == {"stereotyped": 0.5}
    assert measure_choices(CROWS_PAIRS, results).unit == "pairs"


def test_last_words_are_right_if_greedy_and_their_perplexity_is_a_word() -> None:
    results = [result([-2], is_greedy=True), result([-4]), result([-6])]
    # exp of 12 / 3, though each word has two tokens.
    assert scores(LAMBADA, results) == pytest.approx({"acc": 1 / 3, "perplexity": math.exp(4)})
    metrics = {metric.name: metric for metric in measure_choices(LAMBADA, results).metrics}
    assert (metrics["acc"].is_better_higher, metrics["perplexity"].is_better_higher) == (True, False)


@pytest.mark.parametrize("measured", [ARC_EASY, BLIMP, CROWS_PAIRS, LAMBADA])
def test_the_names_of_the_scores_are_known_before_there_is_a_result(measured: Benchmark) -> None:
    results = [result([-1] if measured is LAMBADA else [-1, -2])]
    assert metric_names(measured) == list(scores(measured, results))


def test_a_result_says_all_of_its_item() -> None:
    assert result([-2, -1.23456], gold=0, texts=["mat", "sofa"]).as_dict() == {
        "where": "rows.jsonl:1",
        "contexts": ["The"],
        "choices": ["mat", "sofa"],
        "gold": 0,
        "predicted": 1,
        "log_probabilities": [-2.0, -1.2346],
        "tokens": [2, 2],
        "is_greedy": [False, False],
    }


@pytest.fixture
def scorer(model_folder: Path) -> ContinuationScorer:
    compute = choose_compute(RuntimeSettings(device="cpu", precision="fp32"), for_training=False)
    return ContinuationScorer(load_model(str(model_folder), compute.device, torch.float32), compute)


def test_items_are_scored_in_order_some_at_a_time_and_counted(
    scorer: ContinuationScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choices, "ITEMS_AT_ONCE", 2)
    counts, seen = ChoiceCounts(), list[int]()
    items = [
        item(["cat", "small dog"]),
        item(["owl"], group="x"),
        # A digit is a token: more than the 32 of the context.
        item(["1" * 40, "2"], group="x"),
    ]
    results = list(score_items(scorer, items, counts, seen.append))
    assert [found.item for found in results] == items
    expected = [scorer.score(one.continuations) for one in items]
    for found, likelihoods in zip(results, expected, strict=True):
        logs = [likelihood.log_probability for likelihood in likelihoods]
        assert found.log_probabilities.tolist() == pytest.approx(logs, abs=1e-4)
    tokens = sum(likelihood.tokens for likelihoods in expected for likelihood in likelihoods)
    assert counts == ChoiceCounts(items=3, tokens=tokens, cut=1, groups={"": 1, "x": 2})
    assert seen == [2, 3]


def test_no_more_items_are_read_than_are_scored_together(
    scorer: ContinuationScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choices, "ITEMS_AT_ONCE", 2)
    taken = []

    def items() -> Iterator[Item]:
        for number in range(9):
            taken.append(number)
            yield item(["cat"])

    next(score_items(scorer, items(), ChoiceCounts()))
    assert taken == [0, 1]
