"""YAML as people expect it: numbers, words, lines, and what is refused."""

from __future__ import annotations

import math

import pytest

from gptcli.config.yaml_reading import MAX_BYTES, YamlProblem, parse_scalar, parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-7", -7),
        ("+7", 7),
        ("1_000_000", 1_000_000),
        ("1e-4", 0.0001),
        ("1E3", 1000.0),
        ("6e-4", 0.0006),
        (".5", 0.5),
        ("5.", 5.0),
        ("-2.5e+3", -2500.0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        (".inf", math.inf),
        ("-.inf", -math.inf),
    ],
)
def test_plain_scalars_are_numbers_booleans_and_null(text: str, value: object) -> None:
    parsed = parse_scalar(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "no",
        "on",
        "yes",
        "1_",
        "1__0",
        "1_.5",
        "_1",
        "e5",
        ".",
        "1.2.3",
        "0x10",
        "12:30",
        "2024-01-31",
        "9" * 200,
    ],
)
def test_everything_else_is_text(text: str) -> None:
    assert parse_scalar(text) == text


def test_quotes_make_text_of_a_number() -> None:
    assert parse_yaml("a: '1e-4'\nb: \"true\"\nc: 1e-4")[0] == {"a": "1e-4", "b": "true", "c": 1e-4}


def test_the_line_of_every_key_is_known() -> None:
    text = "# a comment\nmodel: small\ntraining:\n  max_steps: 5\n\n  batch_size: 2\n"
    assert parse_yaml(text)[1] == {
        ("model",): 2,
        ("training",): 3,
        ("training", "max_steps"): 4,
        ("training", "batch_size"): 6,
    }


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n"])
def test_an_empty_document_is_none(text: str) -> None:
    assert parse_yaml(text) == (None, {})


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\nb: 2\na: 3", 3, "a is set twice, first on line 1"),
        ("a:\n  b: 1\n  c: 2\n  b: 3", 4, "a.b is set twice, first on line 2"),
        ("x: {y: 1, 'y': 2}", 1, "x.y is set twice, first on line 1"),
        ("a: 1\nb: &anchor 2", 2, "anchors and aliases"),
        ("a: 1\nb: *anchor", 2, "anchors and aliases"),
        ("\na: !!python/object/apply:os.system [true]", 2, "the tag tag:yaml.org,2002:python"),
        ("a: !mine 1", 1, "the tag !mine is not allowed"),
        ("a: 1\n? [x]\n: 2", 2, "a key must be a word"),
        ("a: 1\n---\nb: 2", 2, "it is not valid YAML"),
        ("a: 1\n\tb: 2", 2, "it is not valid YAML"),
        ('a: "open', 1, "it is not valid YAML"),
        ("a: [1, 2", 1, "it is not valid YAML"),
        ("a: 1\nb: c: d", 2, "it is not valid YAML"),
        ("a: \x07", 1, "it is not valid YAML"),
        ('a: "\\UFFFFFFFF"', 1, "it is not valid YAML"),
        ('a: "\\U00110000"', 1, "it is not valid YAML"),
        (f"%YAML {'9' * 5000}.1\n---\na: 1", 1, "it is not valid YAML"),
        ('a: 1\nb: "x\\0"', 2, "it holds NUL"),
        ('a: 1\n"\\ud800": 2', 2, "it holds NUL or half a surrogate pair"),
        ("a: " + "[" * 1000, 1, "nested more than 20 levels"),
        ("#" * (MAX_BYTES + 1), 1, "too many for a config"),
    ],
)
def test_what_no_config_needs_is_refused_with_its_line(text: str, line: int, message: str) -> None:
    with pytest.raises(YamlProblem) as problem:
        parse_yaml(text)
    assert message in problem.value.message
    assert problem.value.line == line
