"""The model card says what the run has written down, and that nothing else is known."""

from __future__ import annotations

from typing import Any

import yaml

from gptcli.reports.model_card import model_card

RUN: dict[str, Any] = {
    "task": "language-modelling",
    "start": "a new GPT-2",
    "step": 3000,
    "tokens": 12287754,
    "training_seconds": 4591.585,
    "ended": "finished: training.max_steps",
    "versions": {"gptcli": "0.1.0", "torch": "2.13.0"},
    "hardware": {"device": "cpu", "precision": "bf16"},
    "fingerprints": {"data": "ef54", "tokenizer": "2b08"},
    "best_evaluation": {"step": 2500, "loss": 4.32854, "bits_per_byte": 1.68454},
}
LEDGER = {
    "sources": ["/home/me/secret/a|b.txt", "novels/emma.txt"],
    "train": {"documents": 25, "bytes": 40494364},
    "validation": {"documents": 1, "bytes": 409034},
}
SHAPE = [("layers", "4")]


def card(run: dict[str, Any] = RUN, ledger: dict[str, Any] = LEDGER, **options: Any) -> str:
    return model_card("mine", "language-modelling", SHAPE, run, ledger, **options)


def test_the_card_has_the_facts_of_the_run() -> None:
    text = card()
    for line in (
        "| layers | 4 |",
        "| train | 25 documents, 40,494,364 bytes |",
        "| steps | 3,000 |",
        "| tokens | 12,287,754 |",
        "| training time, seconds | 4,592 |",
        "| ended | finished: training.max\\_steps |",
        "| versions | gptcli 0.1.0, torch 2.13.0 |",
        "On held-out data, at step 2500:",
        "| bits\\_per\\_byte | 1.6845 |",
        "Only the scores above were measured",
    ):
        assert line in text


def test_sources_are_named_without_their_folders() -> None:
    assert "\n- a\\|b.txt\n- emma.txt\n" in card()
    assert "secret" not in card()
    assert "\n- stanfordnlp/sst2\n" in card(ledger={"sources": ["stanfordnlp/sst2"]})
    assert "| start | base, with a new head |" in card(
        run={"start": "/home/me/secret/base, with a new head"}
    )
    many = card(ledger={"sources": [f"{n}.txt" for n in range(30)]})
    assert "- 19.txt\n- and 10 more\n" in many


def test_the_head_of_the_card_is_what_the_hub_reads() -> None:
    _, head, _ = card().split("---\n", 2)
    assert yaml.safe_load(head) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["gpt2", "gptcli"],
    }


def test_of_a_model_without_a_run_nothing_is_said_but_its_shape() -> None:
    text = card(run={}, ledger={})
    assert "Not known: what was exported is not the model of a run." in text
    assert "Nothing was measured" in text
    assert "## Scores" not in text
    assert "## Data" not in text


def test_the_card_says_which_library_opens_the_folder() -> None:
    text = card(library="ctranslate2")
    assert "library_name: ctranslate2\n" in text
    assert 'ctranslate2.Generator("FOLDER")' in text
    assert 'Llama("FOLDER/model.gguf"' in card(library="gguf")
    assert 'AutoModelForCausalLM.from_pretrained("FOLDER")' in card()


def test_what_no_run_has_written_is_left_out() -> None:
    damaged = card(run={"versions": 3, "step": 4}, ledger={"sources": 5, "train": [6]})
    assert "| steps | 4 |" in damaged
    assert "versions" not in damaged


def test_names_cannot_make_markup() -> None:
    text = model_card("<b>[x](y)`\x1b\n# z", "classification", SHAPE, {}, {})
    assert "# \\<b\\>\\[x\\](y)\\` # z\n" in text
    assert "AutoModelForSequenceClassification" in text
