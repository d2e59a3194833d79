"""Labels that are rare, missing or contradicted are named, with a place."""

from __future__ import annotations

from gptcli.data.labelled_texts import LabelledText
from gptcli.inspection.findings import Finding
from gptcli.inspection.labels import contradiction_findings, label_findings


def items(*pairs: tuple[str, str]) -> list[LabelledText]:
    return [LabelledText(f"row {n}", text, None, (label,)) for n, (text, label) in enumerate(pairs, 1)]


def findings(counts: dict[str, list[int]], *, has_validation: bool = True) -> list[Finding]:
    some = items(
        *((f"{label} {n}", label) for label, (count, _) in counts.items() for n in range(count))
    )
    return list(label_findings(counts, some, has_validation=has_validation))


def test_labels_of_like_size_are_fine() -> None:
    (finding,) = findings({"a": [10, 1], "b": [20, 2]})
    assert (finding.level, finding.message) == (
        "ok",
        "2 labels, with 10 (a) to 20 (b) training examples",
    )


def test_a_label_of_fewer_than_five_examples_is_named_with_one_of_them() -> None:
    (finding,) = findings({"a": [10, 1], "b": [4, 2], "c": [5, 1]})
    assert finding.level == "warning"
    assert finding.message == "1 label has fewer than 5 training examples: b (4)"
    assert finding.where == "row 11"


def test_a_label_without_examples_is_a_problem_in_training_and_a_warning_in_validation() -> None:
    problem, warning = findings({"a": [10, 0], "b": [0, 1], "c": [9, 1]})
    assert (problem.level, problem.message) == ("problem", "1 label has no training example: b")
    assert (warning.level, warning.message) == ("warning", "1 label has no held-out example: a")
    assert [f.level for f in findings({"a": [10, 0], "b": [9, 0]}, has_validation=False)] == ["ok"]


def test_a_label_of_nearly_all_examples_is_what_accuracy_would_hide() -> None:
    (finding,) = findings({"ham": [80, 1], "spam": [20, 1]})
    assert finding.message.startswith("80.0% have the label ham: always to say so would be right")
    assert findings({"ham": [79, 1], "spam": [21, 1]})[0].level == "ok"
    many = {str(n): [50, 1] for n in range(10)}
    (finding,) = findings({**many, "large": [211, 1], "small": [10, 1]})
    assert finding.message == "large has 211 training examples and small 10"


def test_a_text_with_two_labels_is_named_with_both_places() -> None:
    some = items(("x", "a"), ("y", "a"), ("x", "a"), ("x", "b"), ("x", "c"), ("y", "a"))
    (finding,) = contradiction_findings(some)
    assert finding.message == "50.0% of the texts (1) stand there with different labels"
    assert (finding.level, finding.where) == ("problem", "row 4 and row 1")
    (fine,) = contradiction_findings(some[:3])
    assert fine.level == "ok"
