"""Plans, worked by hand: steps, tokens, epochs, time, and what is said about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptcli.config.schema import Settings
from gptcli.errors import ConfigError, DataError, ModelError
from gptcli.planning.findings import Limits, find, in_bytes, in_count, in_time
from gptcli.planning.measurement import Measurement
from gptcli.planning.plan import Plan, facts_of, make_plan
from gptcli.planning.shape import operations_per_token
from gptcli.planning.text_size import bytes_per_token


def settings_of(**sections: Any) -> Settings:
    return Settings.model_validate(
        {
            "model": {"n_layer": 2, "n_head": 2, "n_embd": 32, "context_length": 32},
            "tokenizer": {"train": {"vocab_size": 512}},
            "data": {"validation_fraction": 0.2},
            "runtime": {"device": "cpu", "precision": "fp32"},
            **sections,
        }
    )


def plan_of(settings: Settings, text_bytes: int, **options: Any) -> Plan:
    return make_plan(facts_of(settings, text_bytes), **options)


def text_of(tokens: int) -> int:
    """Return the size of a text with so many tokens of training and a quarter as many held out."""
    return round(tokens / 0.8 * bytes_per_token(512))


def test_steps_tokens_and_epochs_follow_from_max_steps() -> None:
    plan = plan_of(settings_of(training={"max_steps": 100, "batch_size": 4}), text_of(6_400))
    assert (plan.steps, plan.tokens) == (100, 100 * 4 * 32)
    assert plan.epochs == pytest.approx(2, rel=1e-3)
    assert plan.flops == 12_800 * plan.flops_per_token


def test_steps_follow_from_epochs_and_from_max_tokens() -> None:
    # 6,400 tokens are 200 sequences, 50 batches of 4.
    epochs = plan_of(settings_of(training={"epochs": 2.5, "batch_size": 4}), text_of(6_400))
    assert epochs.steps == 125
    tokens = plan_of(settings_of(training={"max_tokens": 1_000, "batch_size": 4}), text_of(6_400))
    assert tokens.steps == 8


def test_time_is_that_of_steps_and_evaluations() -> None:
    settings = settings_of(
        training={"max_steps": 10, "batch_size": 4, "micro_batch_size": 2},
        evaluation={"eval_steps": 4},
    )
    measurement = Measurement(
        micro_batch_seconds=1.0,
        micro_batch_tokens=64.0,
        update_seconds=0.5,
        evaluation_seconds=0.25,
        peak_bytes=None,
    )
    plan = plan_of(settings, text_of(6_400), measurement=measurement)
    # 10 steps of two micro-batches and an update; evaluations after steps 4, 8 and 10, each of 1,600
    # held-out tokens, 25 times as many as a micro-batch has.
    assert plan.seconds == pytest.approx(10 * 2.5 + 3 * 25 * 0.25, rel=1e-3)
    assert plan.tokens_per_second == pytest.approx(128 / 2.5)


def test_time_at_a_given_speed_is_operations_over_it() -> None:
    settings = settings_of(training={"max_steps": 10, "batch_size": 4}, evaluation={"eval_steps": 10})
    facts = facts_of(settings, text_of(6_400))
    plan = make_plan(facts, flops_per_second=1e9)
    operations = operations_per_token(facts.shape, settings, 32)
    held_out = facts.text.held_out_tokens or 0
    assert held_out == pytest.approx(1_600, abs=1)
    expected = (1_280 * operations.training + held_out * operations.forward) / 1e9
    assert plan.seconds == pytest.approx(expected)


def test_files_count_once_by_their_sizes(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("a" * 1_000)
    (tmp_path / "two.txt.gz").write_bytes(b"a" * 100)
    (tmp_path / "other.bin").write_bytes(b"a" * 100)
    source = [str(tmp_path), str(tmp_path / "one.txt")]
    text = facts_of(settings_of(data={"source": source, "validation_fraction": 0.25})).text
    assert (text.bytes, text.is_counted) == (1_300, False)
    assert text.train_tokens == round(975 / bytes_per_token(512))
    assert text.held_out_tokens == round(325 / bytes_per_token(512))


def test_text_that_is_not_there_is_refused_and_that_of_the_hub_is_not_known(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing\.txt: no such file"):
        facts_of(settings_of(data={"source": str(tmp_path / "missing.txt")}))
    plan = make_plan(facts_of(settings_of(data={"source": "wikitext"})))
    assert (plan.text.train_tokens, plan.epochs) == (None, None)
    assert any("--data-megabytes" in finding for finding in find(plan, Limits()))


def test_the_shape_of_a_named_model_comes_from_its_config(model_folder: Path) -> None:
    named = {"name": str(model_folder)}
    plan = plan_of(settings_of(model=named, task="classification"), text_of(6_400))
    facts = json.loads((model_folder / "config.json").read_text())
    assert (plan.n_layer, plan.n_embd) == (2, 32)
    assert plan.vocab_size == facts["vocab_size"]
    too_long = settings_of(model={**named, "context_length": 33})
    with pytest.raises(ConfigError, match=r"model\.context_length is 33; that of .* is 32"):
        facts_of(too_long)


def test_a_tokenizer_s_vocabulary_is_read_from_its_folder(model_folder: Path, tmp_path: Path) -> None:
    facts = json.loads((model_folder / "config.json").read_text())
    of_folder = settings_of(tokenizer=str(model_folder))
    assert facts_of(of_folder, 1_000).shape.vocab_size == facts["vocab_size"]
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1, "<|endoftext|>": 7}')
    assert facts_of(settings_of(tokenizer=str(tmp_path)), 1_000).shape.vocab_size == 8


@pytest.mark.parametrize("section", ["model", "tokenizer"])
def test_a_name_that_is_not_here_is_said_to_be_unknown(section: str) -> None:
    unknown = settings_of(**{section: {"name": "somebody/something"}})
    with pytest.raises(ModelError, match=f"{section}.name is somebody/something, which is no folder"):
        facts_of(unknown, 1_000)


def test_gpt2_is_known_without_its_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("gpt2", "openai-community/gpt2"):
        facts = facts_of(settings_of(model={"name": name}), 1_000)
        assert facts.shape.parameters == 124_439_808
    assert facts_of(settings_of(tokenizer="gpt2"), 1_000).shape.vocab_size == 50_257


def said(plan: Plan, **limits: Any) -> str:
    return " ".join(find(plan, Limits(**limits)))


def test_too_few_steps_are_answered_with_enough_of_them() -> None:
    # 43,904 parameters want 878,080 tokens, 6,860 batches of 4 x 32; the text has 400,000.
    plan = plan_of(settings_of(training={"max_steps": 100, "batch_size": 4}), text_of(400_000))
    assert plan.parameters == 512 * 32 + 32 * 32 + 2 * 12_704 + 64 == 42_880
    assert "0.3 tokens a parameter; compute-optimal is about 20" in said(plan)
    assert "--set training.max_steps=6700, which reads your text 2.1 times" in said(plan)


def test_too_little_text_is_answered_with_the_size_that_it_serves() -> None:
    small = settings_of(model="small", training={"max_steps": 100, "batch_size": 4})
    plan = plan_of(small, text_of(25_000_000))
    assert "is enough for about 5 million parameters" in said(plan)
    assert "--set model=mini" in said(plan)


def test_too_many_epochs_are_said() -> None:
    plan = plan_of(settings_of(training={"max_steps": 5_000, "batch_size": 4}), text_of(6_400))
    assert "Your text is read 100 times: up to about 4 times is nearly as good" in said(plan)
    assert "--set training.max_steps=200 is 4 times" in said(plan)
    few = plan_of(settings_of(training={"max_steps": 100, "batch_size": 4}), text_of(6_400))
    assert "Your text is read" not in said(few)


def test_a_run_of_four_passes_by_default_is_not_warned_of_them() -> None:
    # 2,016,000 tokens in steps of 32 x 128 are 492.2 steps, so the last one begins the fifth pass.
    plan = plan_of(settings_of(model={"size": "mini", "context_length": 128}), text_of(504_000))
    assert plan.epochs is not None
    assert 4 < plan.epochs < 4.05
    assert "Your text is read" not in said(plan)


def test_what_does_not_fit_is_said_first() -> None:
    plan = plan_of(settings_of(training={"max_steps": 10}), text_of(6_400), flops_per_second=1e6)
    assert plan.seconds is not None
    limits = Limits(plan.seconds / 2, plan.memory.peak - 1, plan.run_bytes - 1)
    memory, disk, hours = list(find(plan, limits))[:3]
    assert memory.startswith("It needs about ")
    assert disk.startswith("The run needs up to ")
    assert "50% of its steps" in hours
    enough = Limits(plan.seconds, plan.memory.peak, plan.run_bytes)
    assert not {memory, disk, hours} & set(find(plan, enough))


def test_evaluations_that_take_much_of_the_time_are_said() -> None:
    # 10 steps of 4 x 32 tokens; 1,600 held-out tokens at the end, a third of the work each:
    # 1,600 of 3 x 1,280 + 1,600.
    training = {"max_steps": 10, "batch_size": 4}
    plan = plan_of(settings_of(training=training), text_of(6_400), flops_per_second=1e9)
    assert "Evaluations take 29% of the time" in said(plan)


def test_fine_tuning_is_not_held_against_the_rules_of_pretraining(model_folder: Path) -> None:
    settings = settings_of(model={"name": str(model_folder)}, training={"max_steps": 10})
    assert said(plan_of(settings, text_of(6_400))) == ""


def test_numbers_are_written_for_people() -> None:
    sizes = (400_000, 960_000, 12_345_678, 999_600_000)
    assert [in_bytes(size) for size in sizes] == ["0.4 MB", "1 MB", "12 MB", "1.0 GB"]
    assert [in_count(n) for n in (1_234, 1_234_567, 2.5e9)] == ["1,230", "1.23 million", "2.5 billion"]
    assert [in_time(s) for s in (42, 119, 120, 9_000, 200_000)] == [
        "42 seconds",
        "119 seconds",
        "2.0 minutes",
        "2.5 hours",
        "2.3 days",
    ]
