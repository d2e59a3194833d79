"""The loss, the spans and the scores of question answering."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2ForQuestionAnswering, PreTrainedTokenizerFast

from gptcli.config.loading import load_settings
from gptcli.config.schema import DataSettings, ModelSettings, RuntimeSettings, Settings
from gptcli.data.examples import Example, ExampleBatches, Examples
from gptcli.data.questions import Question
from gptcli.data.windows import Window
from gptcli.errors import ConfigError, DataError
from gptcli.models.architecture import model_config, new_model
from gptcli.pipelines.train import DataReport, run_training
from gptcli.tasks.question_answering import (
    MAX_ANSWER_TOKENS,
    HeldOut,
    QuestionAnswering,
    Span,
    Verdict,
    Windows,
    _sample,
    judge_question,
    judge_windows,
    place_log_probabilities,
    score_verdicts,
)
from gptcli.tasks.table import build_job
from gptcli.training.device import choose_compute
from gptcli.training.loop import accumulate_gradients
from gptcli.training.run import Evaluated

FP32 = choose_compute(RuntimeSettings(device="cpu", precision="fp32"), for_training=True)
LENGTHS = [3, 9, 5, 2, 7]
TARGETS = [(1, 1), (3, 6), (4, 4), (0, 1), (6, 6)]
CAT = "The cat sat on the mat. The owl was happy."


@pytest.fixture
def qa_model(tokenizer: PreTrainedTokenizerFast, model_settings: ModelSettings) -> Any:
    return new_model(model_config(model_settings, tokenizer), 0, GPT2ForQuestionAnswering).eval()


def examples() -> Examples:
    random = np.random.default_rng(0)
    return Examples(
        Example(random.integers(1, 299, size=length).tolist(), np.array(target), "")
        for length, target in zip(LENGTHS, TARGETS, strict=True)
    )


def task_of(made: Examples, smoothing: float = 0.0) -> QuestionAnswering:
    batches = ExampleBatches(made, batch_size=len(made), seed=0)
    return QuestionAnswering(batches, HeldOut([], [], Examples([])), FP32, smoothing)


def ids_one_by_one(made: Examples) -> list[Tensor]:
    """Return the ids of each example, (1, tokens): without padding, there is nothing to get wrong."""
    return [torch.from_numpy(made.batch([number]).input_ids) for number in range(len(made))]


def test_log_probabilities_of_a_batch_are_those_of_each_window_alone(qa_model: Any) -> None:
    made = examples()
    batch = made.batch(range(5))
    found = place_log_probabilities(
        qa_model, torch.from_numpy(batch.input_ids), torch.from_numpy(batch.lengths)
    )
    for row, ids in enumerate(ids_one_by_one(made)):
        outputs = qa_model(ids)
        length = ids.shape[1]
        for place, logits in enumerate((outputs.start_logits, outputs.end_logits)):
            torch.testing.assert_close(
                found[row, place, :length], logits[0].log_softmax(0), rtol=0, atol=1e-5
            )
        assert (found[row, :, length:] == -torch.inf).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("micro_batch_size", [5, 2, 1])
def test_loss_and_gradients_equal_those_of_hugging_face_for_any_micro_batch(
    qa_model: Any, micro_batch_size: int, smoothing: float
) -> None:
    made = examples()
    reference = copy.deepcopy(qa_model)
    expected = torch.zeros(())
    for ids, target in zip(ids_one_by_one(made), TARGETS, strict=True):
        start, end = (torch.tensor([place]) for place in target)
        outputs = reference(ids, start_positions=start, end_positions=end)
        loss = outputs.loss
        if smoothing:  # Which transformers has not.
            loss = sum(
                F.cross_entropy(logits, place, label_smoothing=smoothing) / 2
                for logits, place in ((outputs.start_logits, start), (outputs.end_logits, end))
            )
        expected = expected + loss / 5
    torch.autograd.backward(expected)

    qa_model.train()  # Without dropout, that turns on label smoothing alone.
    loss = accumulate_gradients(
        qa_model, task_of(made, smoothing), made.batch(range(5)), micro_batch_size, FP32
    )

    assert loss == pytest.approx(expected.item(), abs=1e-5)
    for (name, weight), other in zip(qa_model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, other.grad, rtol=0, atol=1e-5, msg=name)


def window(text_tokens: int, first: int = 2, blank: tuple[int, ...] = ()) -> Window:
    """Return a window on a text whose tokens are of one character each."""
    places = np.arange(text_tokens)
    is_text = ~np.isin(places, blank)
    ids = [0] * (first + text_tokens + 1)
    return Window(ids, first, places, places + 1, is_text, is_text)


def test_the_best_spans_are_those_of_a_search_through_all() -> None:
    random = torch.Generator().manual_seed(0)
    windows = [window(40), window(12, first=5, blank=(3, 4)), window(1, first=30)]
    width = max(len(w.input_ids) for w in windows)
    scores = torch.randn(3, 2, width, generator=random)
    for row, w in enumerate(windows):
        scores[row, :, len(w.input_ids) :] = -torch.inf
    text = "".join(chr(ord("a") + n % 26) for n in range(40))
    verdicts = judge_windows(scores, windows, [text, text[:12], "a"], 7)
    for row, (w, verdict) in enumerate(zip(windows, verdicts, strict=True)):
        spans = []
        for start in range(w.first, w.no_answer):
            for end in range(start, min(w.no_answer, start + MAX_ANSWER_TOKENS)):
                if not (w.can_begin[start - w.first] and w.can_end[end - w.first]):
                    continue
                score = (scores[row, 0, start] + scores[row, 1, end]).item()
                spans.append(Span(start - w.first, end - w.first + 1, score))
        spans.sort(key=lambda span: -span.score)
        assert verdict.spans == spans[:7]
        assert verdict.no_answer == scores[row, :, w.no_answer].sum().item()


def test_a_question_has_the_best_spans_of_its_windows_each_once() -> None:
    first = Verdict([Span(0, 3, -1.0), Span(4, 6, -2.5)], -0.5)
    second = Verdict([Span(4, 6, -2.0), Span(7, 8, -3.0)], -4.0)
    verdict = judge_question([first, second], 3)
    assert verdict == Verdict([Span(0, 3, -1.0), Span(4, 6, -2.0), Span(7, 8, -3.0)], -4.0)
    assert verdict.margin == -3.0  # It says so only if every window does.
    assert judge_question([second, first], 1).spans == [Span(0, 3, -1.0)]
    nowhere = judge_question([Verdict([], -0.5)], 1)
    assert nowhere.spans[0].start == nowhere.spans[0].end and math.isfinite(nowhere.margin)


def question(answers: tuple[tuple[str, int], ...], text: str = CAT) -> Question:
    return Question("row 1", "1", "", "Who sat?", text, answers)


def test_without_unanswerable_questions_all_are_answered() -> None:
    questions = [question((("The cat", 0), ("cat", 4))), question((("mat", 19),))]
    verdicts = [Verdict([Span(4, 7, -9.0)], 0.0), Verdict([Span(15, 22, -9.0)], 0.0)]
    # "the mat" is "mat": articles do not count.
    assert score_verdicts(questions, verdicts) == ({"exact_match": 1.0, "f1": 1.0}, {})


def test_the_threshold_is_found_on_the_questions() -> None:
    questions = [question((("cat", 4),)), question((("mat", 19),)), question(()), question(())]
    # Margins -2, 1, 3, 0: the threshold that leaves the third one alone is the best of all.
    verdicts = [
        Verdict([Span(4, 7, -2.0)], -4.0),
        Verdict([Span(19, 22, -2.0)], -1.0),
        Verdict([Span(4, 7, -4.0)], -1.0),
        Verdict([Span(4, 7, -1.0)], -1.0),
    ]
    scores, details = score_verdicts(questions, verdicts)
    assert scores == {"exact_match": 0.75, "f1": 0.75}
    # So is one that answers the first alone, and the lowest is taken.
    assert details == {
        "answer_threshold": -1.0,
        "answerable": {"exact_match": 0.5, "f1": 0.5, "questions": 2},
        "unanswerable": {"exact_match": 1.0, "f1": 1.0, "questions": 2},
    }


def settings_of(**data: Any) -> Settings:
    return Settings(data=DataSettings.model_validate({"stride": 4, **data}))


def test_windows_without_the_answer_learn_that_it_is_not_there(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    text = f"{CAT * 5} The dog."
    start = text.index("dog")
    asked = Question("row 1", "1", "", "ow", text, (("dog", start), ("cat", 4)))
    made = Windows(tokenizer, 32, settings_of())
    train = made.to_learn([asked])
    held_out = made.to_answer([asked])
    assert len(train) == len(held_out.windows) > 2
    answered = [
        number
        for number, (_, part) in enumerate(held_out.windows)
        if part.target(start, start + 3) is not None
    ]
    for number, (_, part) in enumerate(held_out.windows):
        places = train.targets[number].tolist()
        if number in answered:
            assert text[slice(*part.characters(places[0], places[1], text))] == "dog"
        else:
            assert places == [part.no_answer] * 2
    assert (train.targets == held_out.examples.targets).all()
    assert (made.in_several, made.answers_cut, made.limit.cut) == (2, 0, 0)


def test_an_answer_that_no_window_has_is_not_trained_on(tokenizer: PreTrainedTokenizerFast) -> None:
    made = Windows(tokenizer, 16, settings_of(stride=0))
    train = made.to_learn([question(((CAT, 0),)), question((("cat", 4),))])
    assert made.answers_cut == 1
    assert set(train.places) == {"row 1"} and len(train) > 0


@pytest.mark.parametrize(
    ("rule", "kept", "cut", "dropped"), [("cut", True, 1, 0), ("drop", False, 0, 1)]
)
def test_long_questions_are_cut_or_dropped_and_counted(
    tokenizer: PreTrainedTokenizerFast, rule: str, kept: bool, cut: int, dropped: int
) -> None:
    asked = Question("row 1", "1", "", CAT * 3, CAT, (("cat", 4),))
    made = Windows(tokenizer, 32, settings_of(too_long=rule))
    assert bool(len(made.to_learn([asked]))) == kept
    assert (made.limit.cut, made.limit.dropped) == (cut, dropped)
    with pytest.raises(DataError, match=r"row 1: the question has \d+ tokens, more than half of"):
        Windows(tokenizer, 32, settings_of(too_long="refuse")).to_learn([asked])


def test_the_example_shown_has_its_answer_marked() -> None:
    assert _sample(question((("cat", 4),))) == (
        "Who sat? | The [[cat]] sat on the mat. The owl was happy."
    )
    assert _sample(question(())) == f"Who sat? | {CAT} [[no answer]]"
    text = f"{'a ' * 100}cat{' b' * 100}"
    assert _sample(question((("cat", 200),), text)) == (
        f"Who sat? | ... {'a ' * 60}[[cat]]{' b' * 60} ..."
    )


ANIMALS = ["cat", "dog", "owl", "猫", "🦉", "cafe\u0301"]
PLACES = ["mat", "roof", "wall", "深圳", "tree", "sea"]


def few_questions(file: Path, *, with_unanswerable: bool = False) -> None:
    rows = []
    for animal, place in zip(ANIMALS, PLACES, strict=True):
        context = f"The {animal} sat on the {place}. It was happy there, and saw a {animal}."
        rows += [
            {"question": f"What sat on the {place}?", "context": context, "answers": [animal]},
            {"question": f"Where sat the {animal}?", "context": context, "answers": [place]},
        ]
        if with_unanswerable:
            rows.append({"question": "Who flew home?", "context": context, "answers": []})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


Settle = Callable[..., Settings]


@pytest.fixture
def settle(config_file: Path, tmp_path: Path) -> Settle:
    """Return the settings for question answering on tmp_path/rows.jsonl."""

    def settle(*assignments: str) -> Settings:
        return load_settings(
            config_file,
            [
                "task=question-answering",
                f"data.source={tmp_path}/rows.jsonl",
                "data.stride=8",
                *assignments,
            ],
        )

    return settle


@pytest.mark.parametrize("with_unanswerable", [False, True])
def test_a_few_questions_are_learnt_by_heart(
    settle: Settle, tmp_path: Path, with_unanswerable: bool
) -> None:
    few_questions(tmp_path / "rows.jsonl", with_unanswerable=with_unanswerable)
    events: list[Any] = []
    run_training(
        settle(
            f"data.validation_source={tmp_path}/rows.jsonl",
            "model.context_length=48",  # The texts have two windows each.
            "training.max_steps=250",
            "training.batch_size=16",
            "training.learning_rate=4e-3",
            "evaluation.eval_steps=50",
            "training.save_steps=1000",
        ),
        tmp_path / "run",
        notify=events.append,
    )
    last = [event for event in events if isinstance(event, Evaluated)][-1]
    assert (last.scores["exact_match"], last.scores["f1"]) == (1.0, 1.0)
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["architectures"] == ["GPT2ForQuestionAnswering"]
    assert ("answer_threshold" in config) == with_unanswerable
    if with_unanswerable:
        assert config["answer_threshold"] == last.details["answer_threshold"]
        assert last.details["unanswerable"] == {"exact_match": 1.0, "f1": 1.0, "questions": 6}


def test_what_is_known_of_the_data_is_told_before_training(settle: Settle, tmp_path: Path) -> None:
    few_questions(tmp_path / "rows.jsonl", with_unanswerable=True)
    row = {"question": "Who?", "context": CAT, "answers": [{"text": "owl", "answer_start": 3}]}
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.writelines(
            json.dumps({**row, "answers": answers}) + "\n"
            for answers in ([{"text": "owl", "answer_start": 3}], [{"text": "dog", "answer_start": 3}])
        )
    events: list[Any] = []
    run_training(
        settle("data.validation_fraction=0.3"), tmp_path / "run", dry_run=True, notify=events.append
    )
    facts = dict(next(event.facts for event in events if isinstance(event, DataReport)))
    assert facts["labels"] == "answerable 13 (68.4%), unanswerable 6 (31.6%)"
    assert (facts["answers repaired"], facts["questions left out"]) == ("1", "1")
    assert "[[" in facts["an example"]
    assert {"lengths", "questions in several windows"} <= facts.keys()
    assert "held out contexts trained on" not in facts


def test_an_evaluation_is_the_same_in_batches_of_any_size(settle: Settle, tmp_path: Path) -> None:
    few_questions(tmp_path / "rows.jsonl", with_unanswerable=True)
    job = build_job(settle("data.validation_fraction=0.5"), FP32, lambda progress: None)
    one, many = (job.task.evaluate(job.model, size, lambda: None) for size in (1, 7))
    assert one is not None and many is not None
    assert one.scores == pytest.approx(many.scores, abs=1e-5)
    threshold = one.details.pop("answer_threshold")
    assert threshold == pytest.approx(many.details.pop("answer_threshold"), abs=1e-5)
    assert one.details == many.details


@pytest.mark.parametrize("titled", [True, False])
def test_no_text_is_on_both_sides_of_the_split(settle: Settle, tmp_path: Path, titled: bool) -> None:
    rows = [
        {
            "question": f"{n}?",
            "context": f"{CAT} {n // 2}",
            "answers": "cat",
            **({"title": f"article {n // 6}"} if titled else {}),
        }
        for n in range(60)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = build_job(settle("data.validation_fraction=0.2"), FP32, lambda progress: None)
    assert job.ledger["split_by"] == ("title" if titled else "context")
    assert job.ledger["labels"]["answerable"] == [48, 12]
    assert job.ledger["held_out_contexts_trained_on"] == 0


def test_a_threshold_of_other_data_is_forgotten(settle: Settle, tmp_path: Path) -> None:
    few_questions(tmp_path / "rows.jsonl", with_unanswerable=True)
    run_training(settle("training.max_steps=1"), tmp_path / "run")
    config = tmp_path / "run" / "model" / "config.json"
    assert math.isfinite(json.loads(config.read_text())["answer_threshold"])
    few_questions(tmp_path / "rows.jsonl")
    text = (tmp_path / "small.yaml").read_text()
    (tmp_path / "small.yaml").write_text(
        text.replace(text.splitlines()[0], f"model: {{name: {tmp_path}/run}}")
    )
    run_training(settle("training.max_steps=1"), tmp_path / "other")
    config = tmp_path / "other" / "model" / "config.json"
    assert "answer_threshold" not in json.loads(config.read_text())


def test_a_context_that_is_too_short_for_windows_is_refused(settle: Settle, tmp_path: Path) -> None:
    few_questions(tmp_path / "rows.jsonl")
    with pytest.raises(ConfigError, match=r"context_length is 7; question answering needs 8"):
        build_job(settle("model.context_length=7"), FP32, lambda progress: None)
