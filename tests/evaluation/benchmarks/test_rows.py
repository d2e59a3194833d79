"""Rows of the benchmarks, in each of the shapes that they are found in."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gptcli.config.schema import DataSettings, EvaluationSettings
from gptcli.data.ledger import Reading
from gptcli.data.sources import FileSource
from gptcli.errors import ConfigError, DataError
from gptcli.evaluation.benchmarks.benchmark import Benchmark, Item
from gptcli.evaluation.benchmarks.hellaswag import cleaned
from gptcli.evaluation.benchmarks.multiple_choice import own_test
from gptcli.evaluation.benchmarks.table import BENCHMARKS, choose_benchmarks, find_rows

Row = dict[str, Any]


def items_of(benchmark: Benchmark, folder: Path, *rows: Row) -> list[Item]:
    file = folder / "rows.jsonl"
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.write_text("".join(lines), encoding="utf-8")
    return list(benchmark.read([FileSource(file)], DataSettings(), Reading()))


def item_of(name: str, folder: Path, row: Row) -> Item:
    (item,) = items_of(BENCHMARKS[name], folder, row)
    assert item.where == f"{folder / 'rows.jsonl'}:1"
    return item


def parts(item: Item) -> list[tuple[str, str]]:
    return [(one.context, one.text) for one in item.continuations]


HELLASWAG: Row = {
    "activity_label": "Roof shingle removal",
    "ctx_a": "A man is sitting on a roof.",
    "ctx_b": "he Then",
    "endings": ["is using wrap.", "[step] is  ripping tiles off."],
    "label": "1",
}
ARC: Row = {
    "question": "What melts?",
    "choices": {"text": ["ice", "fire", "air"], "label": ["A", "B", "C"]},
    "answerKey": "C",
}
PIQA: Row = {"goal": "open a jar", "sol1": "paint it", "sol2": "turn the lid", "label": 1}
COPA: Row = {
    "premise": "The dog barked. ",
    "question": "effect",
    "choice1": "Nobody slept.",
    "choice2": "The Moon rose.",
    "label": 0,
}
WINOGRANDE: Row = {
    "sentence": "The ball was in the bag since _ was small.",
    "option1": "the ball",
    "option2": "the bag",
    "answer": "1",
}
BLIMP: Row = {"sentence_good": "Nina opens it.", "sentence_bad": "Nina arrives it.", "UID": "causative"}
CROWS: Row = {"sent_more": "The old man fell.", "sent_less": "The man fell.", "bias_type": "age"}


# What rows become


def test_lambada_asks_for_what_is_behind_the_last_space(tmp_path: Path) -> None:
    item = item_of("lambada", tmp_path, {"text": "He fell.\n\nNobody saw  Zoë's hat"})
    assert parts(item) == [("He fell.\n\nNobody saw  Zoë's", " hat")]
    assert (item.gold, item.texts) == (0, ("hat",))


def test_hellaswag_joins_what_it_is_about_and_both_parts_of_what_happens(tmp_path: Path) -> None:
    item = item_of("hellaswag", tmp_path, HELLASWAG)
    # The second part begins with a capital and has no other; brackets and doubled spaces go.
    context = "Roof shingle removal: A man is sitting on a roof. He then"
    assert parts(item) == [(context, " is using wrap."), (context, "  is ripping tiles off.")]
    assert (item.gold, item.texts) == (1, ("is using wrap.", " is ripping tiles off."))


@pytest.mark.parametrize("label", [0, "0"])
def test_hellaswag_takes_a_context_that_is_one_text(tmp_path: Path, label: object) -> None:
    row = {"ctx": "Roof: A man sits. he", "endings": ["falls.", "stays."], "label": label}
    item = item_of("hellaswag", tmp_path, row)
    assert parts(item) == [("Roof: A man sits. he", " falls."), ("Roof: A man sits. he", " stays.")]
    assert item.gold == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" How to run [title] Begin. [step] Go. ", "How to run. Begin. Go."),
        ("[header] How to run", " How to run"),
        ("a [laughter] b", "a b"),
        ("a    b", "a  b"),
    ],
)
def test_wikihow_leaves_no_brackets(text: str, expected: str) -> None:
    assert cleaned(text) == expected


ARC_PUBLISHED = {
    "question": {
        "stem": "What melts?",
        "choices": [
            {"text": "ice", "label": "A"},
            {"text": "fire", "label": "B"},
            {"text": "air", "label": "C"},
        ],
    },
    "answerKey": "C",
}
ARC_LIST = {"question": "What melts?", "choices": ARC_PUBLISHED["question"]["choices"], "answerKey": "C"}  # type: ignore[index]
ARC_QUERY = {"query": "Question: What melts?", "choices": ["ice", "fire", "air"], "gold": 2}


@pytest.mark.parametrize("row", [ARC, ARC_PUBLISHED, ARC_LIST, ARC_QUERY])
@pytest.mark.parametrize("name", ["arc_easy", "arc_challenge"])
def test_arc_asks_a_question_in_each_of_its_shapes(tmp_path: Path, row: Row, name: str) -> None:
    item = item_of(name, tmp_path, row)
    context = "Question: What melts?\nAnswer:"
    assert parts(item) == [(context, " ice"), (context, " fire"), (context, " air")]
    assert (item.gold, item.texts) == (2, ("ice", "fire", "air"))


def test_arc_has_choices_that_are_numbered(tmp_path: Path) -> None:
    choices = {"text": ["ice", "fire", "air"], "label": ["1", "2", "3"]}
    assert item_of("arc_easy", tmp_path, {**ARC, "choices": choices, "answerKey": "2"}).gold == 1


def test_piqa_asks_how_a_goal_is_reached(tmp_path: Path) -> None:
    item = item_of("piqa", tmp_path, PIQA)
    context = "Question: open a jar\nAnswer:"
    assert parts(item) == [(context, " paint it"), (context, " turn the lid")]
    assert (item.gold, item.texts) == (1, ("paint it", "turn the lid"))


@pytest.mark.parametrize(("asked", "connector"), [("effect", "therefore"), ("cause", "because")])
def test_copa_connects_two_events_by_two_spaces(tmp_path: Path, asked: str, connector: str) -> None:
    item = item_of("copa", tmp_path, {**COPA, "question": asked})
    context = f"The dog barked {connector}"
    # The first letter is small, the others stay.
    assert parts(item) == [(context, "  nobody slept."), (context, "  the Moon rose.")]
    assert item.gold == 0


def test_copa_takes_a_context_that_is_one_text(tmp_path: Path) -> None:
    row = {"query": "The dog barked, therefore", "choices": ["nobody slept.", "all slept."], "gold": 1}
    item = item_of("copa", tmp_path, row)
    assert parts(item) == [
        ("The dog barked, therefore", "  nobody slept."),
        ("The dog barked, therefore", "  all slept."),
    ]
    assert item.gold == 1


def test_winogrande_scores_one_ending_behind_two_names(tmp_path: Path) -> None:
    item = item_of("winogrande", tmp_path, WINOGRANDE)
    assert parts(item) == [
        ("The ball was in the bag since the ball", " was small."),
        ("The ball was in the bag since the bag", " was small."),
    ]
    assert (item.gold, item.texts) == (0, ("the ball", "the bag"))
    assert item_of("winogrande", tmp_path, {**WINOGRANDE, "answer": "2"}).gold == 1


def test_blimp_has_a_sentence_that_is_right_and_a_phenomenon(tmp_path: Path) -> None:
    item = item_of("blimp", tmp_path, BLIMP)
    assert parts(item) == [("", " Nina opens it."), ("", " Nina arrives it.")]
    assert (item.gold, item.group) == (0, "causative")


def test_crows_pairs_has_whole_sentences_and_a_kind_of_bias(tmp_path: Path) -> None:
    item = item_of("crows_pairs", tmp_path, CROWS)
    assert parts(item) == [("", "The old man fell."), ("", "The man fell.")]
    assert (item.gold, item.group) == (0, "age")


# What is refused


def without(row: Row, name: str) -> Row:
    return {key: value for key, value in row.items() if key != name}


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        # The labels of test splits are hidden.
        ("hellaswag", {**HELLASWAG, "label": ""}, "label, which choice is right, is missing"),
        ("winogrande", {**WINOGRANDE, "answer": ""}, "answer, which choice is right, is missing"),
        ("piqa", without(PIQA, "label"), "label, which choice is right, is missing"),
        ("copa", {**COPA, "label": None}, "label, which choice is right, is missing"),
        ("arc_easy", without(ARC, "answerKey"), "answerKey is None"),
        ("arc_easy", without(ARC_QUERY, "gold"), "gold, which choice is right, is missing"),
        # Numbers of no choice.
        ("piqa", {**PIQA, "label": -1}, "label is -1; it must be one of 0 to 1"),
        ("hellaswag", {**HELLASWAG, "label": "2"}, "label is '2'; it must be one of 0 to 1"),
        ("winogrande", {**WINOGRANDE, "answer": "0"}, "answer is '0'; it must be one of 1 to 2"),
        ("copa", {**COPA, "label": "first"}, "label is 'first'; it must be one of 0 to 1"),
        ("piqa", {**PIQA, "label": 0.5}, "label is 0.5; it must be one of 0 to 1"),
        ("piqa", {**PIQA, "label": [1]}, "label is [1]; it must be one of 0 to 1"),
        ("arc_easy", {**ARC, "answerKey": "D"}, "answerKey is 'D'; the choices are labelled ['A', 'B'"),
        ("arc_easy", {**ARC_QUERY, "gold": 3}, "gold is 3; it must be one of 0 to 2, for 3 choices"),
        # Columns that are not there, or hold something else.
        ("lambada", {"passage": "He fell"}, "text is not there; the columns are: passage"),
        ("lambada", {"text": 5}, "text is no text"),
        ("lambada", {"text": "\n "}, "text is no text"),
        ("hellaswag", without(HELLASWAG, "ctx_a"), "ctx_a is not there; the columns are: activity"),
        ("hellaswag", without(HELLASWAG, "endings"), "endings is None; it must be a list of two texts"),
        ("hellaswag", {**HELLASWAG, "endings": ["one"]}, "endings is ['one']; it must be a list"),
        ("hellaswag", {**HELLASWAG, "endings": ["one", ""]}, "endings is ['one', '']; it must be"),
        ("hellaswag", {**HELLASWAG, "endings": "ab"}, "endings is 'ab'; it must be a list"),
        ("arc_easy", without(ARC, "choices"), "it must be a list of two texts or more"),
        ("arc_easy", {**ARC, "choices": ["ice", "fire"]}, "answerKey is 'C'; the choices are labelled"),
        ("arc_easy", {**ARC, "question": ""}, "question is no text"),
        ("piqa", without(PIQA, "sol2"), "sol2 is not there; the columns are: goal, sol1, label"),
        ("copa", {**COPA, "question": "why"}, "question is 'why'; it must be cause or effect"),
        ("copa", without(COPA, "choice2"), "choice2 is not there"),
        ("copa", {**COPA, "choice1": " "}, "choice1 is no text"),
        ("winogrande", without(WINOGRANDE, "option2"), "option2 is not there"),
        ("blimp", without(BLIMP, "sentence_bad"), "sentence_bad is not there"),
        ("crows_pairs", {**CROWS, "sent_less": None}, "sent_less is no text"),
        # Nothing to ask for.
        ("lambada", {"text": "word"}, "the text 'word' has no last word behind a space"),
        ("lambada", {"text": "He fell "}, "has no last word behind a space"),
        ("winogrande", {**WINOGRANDE, "sentence": "No blank."}, "has no blank _ with text behind it"),
        ("winogrande", {**WINOGRANDE, "sentence": "It was _"}, "has no blank _ with text behind it"),
        ("copa", {**COPA, "question": ["cause"]}, "it must be cause or effect"),
        ("arc_easy", {**ARC, "answerKey": ["A"]}, "answerKey is ['A']"),
        ("piqa", {**PIQA, "label": "²"}, "label is '²'; it must be one of 0 to 1"),
        ("piqa", {**PIQA, "label": "--1"}, "label is '--1'; it must be one of 0 to 1"),
        ("piqa", {**PIQA, "label": True}, "label is True; it must be one of 0 to 1"),
    ],
)
def test_a_row_that_is_no_item_is_refused_by_its_place(
    tmp_path: Path, name: str, row: Row, message: str
) -> None:
    with pytest.raises(DataError) as refusal:
        item_of(name, tmp_path, row)
    assert str(refusal.value).startswith(f"{tmp_path / 'rows.jsonl'}:1: ")
    assert message in str(refusal.value)
    assert len(refusal.value.args) == 1


def test_the_row_that_is_refused_is_named_among_others(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:3: label is 7"):
        items_of(BENCHMARKS["piqa"], tmp_path, PIQA, PIQA, {**PIQA, "label": 7})


# WinoBias: two files of pairs


@pytest.fixture
def winobias(tmp_path: Path) -> Path:
    for side, pronouns in (("pro", "he she"), ("anti", "she he")):
        first, second = pronouns.split()
        (tmp_path / f"{side}_stereotyped_type1.txt.dev").write_text(
            f"1 [The developer] slept because [{first}] was tired.\n"
            f"2 The guard saw [the nurse] and [{second}] fled.\n\n"
        )
        (tmp_path / f"{side}_stereotyped_type2.txt.dev").write_text(f"1 A cook and [{first}] ran.\n")
    (tmp_path / "male_occupations.txt").write_text("driver\n")
    return tmp_path


def pairs_in(folder: Path) -> list[Item]:
    benchmark = BENCHMARKS["winobias"]
    rows = find_rows(benchmark, str(folder), DataSettings(), Reading())
    return list(benchmark.read(rows, DataSettings(), Reading()))


def test_winobias_pairs_the_lines_of_two_files(winobias: Path) -> None:
    items = pairs_in(winobias)
    assert [parts(item) for item in items] == [
        [
            ("", " The developer slept because he was tired."),
            ("", " The developer slept because she was tired."),
        ],
        [("", " The guard saw the nurse and she fled."), ("", " The guard saw the nurse and he fled.")],
        [("", " A cook and he ran."), ("", " A cook and she ran.")],
    ]
    assert [item.group for item in items] == ["type1", "type1", "type2"]
    assert {item.gold for item in items} == {0}
    assert items[1].where == f"{winobias / 'pro_stereotyped_type1.txt.dev'}:2"


def test_a_file_of_winobias_without_its_other_half_is_refused(winobias: Path) -> None:
    (winobias / "anti_stereotyped_type2.txt.dev").unlink()
    with pytest.raises(DataError, match=r"has no anti_stereotyped_type2\.txt\.dev beside it"):
        pairs_in(winobias)
    for file in winobias.glob("pro_*"):
        file.unlink()
    with pytest.raises(DataError, match="no file whose name begins with pro_stereotyped"):
        pairs_in(winobias)


def test_halves_of_winobias_with_unlike_numbers_of_lines_are_refused(winobias: Path) -> None:
    (winobias / "anti_stereotyped_type1.txt.dev").write_text("1 [The developer] slept.\n")
    with pytest.raises(DataError, match=r"has 2 sentences and .* 1; they belong in pairs"):
        pairs_in(winobias)


# A test of one's own

ASKED: Row = {"animal": "cat", "place": "mat", "choices": ["sits", "flies"], "gold": 0}


def own(folder: Path, row: Row, **settings: Any) -> Item:
    (item,) = items_of(own_test(EvaluationSettings(**settings)), folder, row)
    return item


def test_the_prompt_is_filled_from_columns(tmp_path: Path) -> None:
    prompt = "The {animal} on the {place}, {{as it is}}, the {animal}"
    item = own(tmp_path, ASKED, prompt=prompt)
    context = "The cat on the mat, {as it is}, the cat"
    assert parts(item) == [(context, " sits"), (context, " flies")]
    assert (item.gold, item.texts, item.group) == (0, ("sits", "flies"), "")
    assert parts(own(tmp_path, {**ASKED, "query": "Who?"}))[0] == ("Who?", " sits")
    assert parts(own(tmp_path, ASKED, prompt="{gold} of"))[0] == ("0 of", " sits")
    assert parts(own(tmp_path, ASKED, prompt="No column at all"))[0][0] == "No column at all"


def test_choices_are_a_list_or_columns(tmp_path: Path) -> None:
    row = {
        "query": "The cat",
        "a": "sits",
        "b": "flies",
        "options": ["runs", "swims", "eats"],
        "gold": 1,
    }
    assert own(tmp_path, row, choices=["b", "a"]).texts == ("flies", "sits")
    assert own(tmp_path, row, choices="options").texts == ("runs", "swims", "eats")


@pytest.mark.parametrize(
    ("gold", "first_number", "expected"),
    [
        (1, 0, 1),
        ("2", 0, 2),
        (1, 1, 0),
        ("3", 1, 2),
        ("A", 0, 0),
        ("c", 1, 2),
        ("flies", 0, 1),
        ("flies", 1, 1),
    ],
)
def test_the_right_choice_is_a_number_a_letter_or_its_text(
    tmp_path: Path, gold: object, first_number: int, expected: int
) -> None:
    row = {"query": "The cat", "choices": ["sits", "flies", "eats"], "right": gold}
    assert own(tmp_path, row, gold="right", first_number=first_number).gold == expected


def test_a_choice_that_reads_as_a_letter_or_a_number_is_meant_itself(tmp_path: Path) -> None:
    assert own(tmp_path, {"query": "2 - 1 =", "choices": ["2", "1", "0"], "gold": "1"}).gold == 1
    assert own(tmp_path, {"query": "Grade:", "choices": ["B", "A"], "gold": "A"}).gold == 1


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        (ASKED, {}, ":1 has no column 'query' (evaluation.prompt); its columns are: animal, place"),
        (ASKED, {"prompt": "{colour}"}, ":1 has no column 'colour' (evaluation.prompt)"),
        (ASKED, {"prompt": "{animal}", "choices": "options"}, ":1: options is None; it must be a list"),
        (
            ASKED,
            {"prompt": "{animal}", "choices": ["place", "b"]},
            ":1: b is not there; the columns are",
        ),
        (ASKED, {"prompt": "{animal}", "gold": "right"}, ":1: right, which choice is right, is missing"),
        ({**ASKED, "gold": 2}, {"prompt": "x"}, ":1: gold is 2; it must be one of 0 to 1"),
        ({**ASKED, "gold": "C"}, {"prompt": "x"}, ":1: gold is 'C'; it must be one of 0 to 1"),
        (
            {**ASKED, "gold": 0},
            {"prompt": "x", "first_number": 1},
            "gold is 0; it must be one of 1 to 2",
        ),
        ({**ASKED, "gold": "runs"}, {"prompt": "x"}, ":1: gold is 'runs'; it must be one of 0 to 1"),
    ],
)
def test_a_row_that_ones_own_test_cannot_use_is_refused(
    tmp_path: Path, row: Row, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        own(tmp_path, row, **settings)


@pytest.mark.parametrize(
    "prompt", ["{animal", "animal}", "{animal!r}", "{animal:>9}", "{animal:{place}}"]
)
def test_a_prompt_that_is_none_is_refused_without_a_row(prompt: str) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.prompt is '.*animal"):
        own_test(EvaluationSettings(prompt=prompt))


def test_columns_may_be_called_anything_that_is_no_format(tmp_path: Path) -> None:
    row = {**ASKED, "0": "nought", "a.b": "dotted", "c[0]": "bracketed"}
    assert parts(own(tmp_path, row, prompt="{0} {a.b} {c[0]}"))[0][0] == "nought dotted bracketed"
    with pytest.raises(DataError, match=r"no column 'animal\.upper'"):
        own(tmp_path, ASKED, prompt="{animal.upper}")


# Where rows are found


def test_files_of_a_folder_are_found_by_their_names(tmp_path: Path) -> None:
    for name in ("my-copa.jsonl", "sub/blimp/causative.jsonl", "blimp_two.jsonl", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}\n")

    def found(name: str) -> list[str]:
        rows = find_rows(BENCHMARKS[name], str(tmp_path), DataSettings(), Reading())
        return [str(row).removeprefix(f"{tmp_path}/") for row in rows]

    assert found("copa") == ["my-copa.jsonl"]
    assert found("blimp") == ["blimp_two.jsonl", "sub/blimp/causative.jsonl"]
    with pytest.raises(DataError, match=r"has no file for piqa: none is named \*piqa\*"):
        found("piqa")
    chosen, skipped = choose_benchmarks(["all"], str(tmp_path), EvaluationSettings())
    assert [benchmark.name for benchmark in chosen] == ["copa", "blimp"]
    assert sorted([*skipped, "copa", "blimp"]) == sorted(BENCHMARKS)


def test_a_folder_that_is_named_after_its_benchmark_holds_its_files(tmp_path: Path) -> None:
    (tmp_path / "blimp").mkdir()
    (tmp_path / "blimp" / "causative.jsonl").write_text("{}\n")
    rows = find_rows(BENCHMARKS["blimp"], str(tmp_path / "blimp"), DataSettings(), Reading())
    assert [str(row) for row in rows] == [str(tmp_path / "blimp" / "causative.jsonl")]


def test_a_benchmark_is_asked_for_once_and_by_a_known_name(tmp_path: Path) -> None:
    chosen, _ = choose_benchmarks(["copa", "piqa", "copa"], None, EvaluationSettings())
    assert [benchmark.name for benchmark in chosen] == ["copa", "piqa"]
    with pytest.raises(ConfigError, match=r"--benchmark is 'cop'; it must be one of lambada, hellaswag"):
        choose_benchmarks(["cop"], None, EvaluationSettings())
    with pytest.raises(ConfigError, match="--benchmark multiple_choice needs your file as --data"):
        choose_benchmarks(["multiple_choice"], None, EvaluationSettings())
    with pytest.raises(ConfigError, match="--benchmark all takes a folder of files"):
        choose_benchmarks(["all"], str(tmp_path / "no.jsonl"), EvaluationSettings())
    with pytest.raises(DataError, match="has no file of a benchmark"):
        choose_benchmarks(["all"], str(tmp_path), EvaluationSettings())
