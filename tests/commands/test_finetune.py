"""`gptcli finetune` as people use it: their files in, a model of the kind they want out, or one line."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gptcli.models.loading import label_names, load_model
from tests.commands.conftest import Run, refused
from tests.conftest import SENTENCES
from tests.test_cli import run_main

DATA, CONFIG, MODEL = 3, 2, 4
CPU = torch.device("cpu")

Finetune = Callable[..., tuple[int, str, str]]

SETTINGS = """\
task: {task}
tokenizer: {{train: {{vocab_size: 300}}}}
data: {{source: {source}, validation_fraction: 0.2}}
training: {{max_steps: 6, batch_size: 4, learning_rate: 1e-3, warmup_steps: 2, save_steps: 3}}
evaluation: {{eval_steps: 3}}
runtime: {{device: cpu, precision: fp32}}
"""
SHAPE = "model: {n_layer: 2, n_head: 2, n_embd: 32, context_length: 64}\n"


@pytest.fixture
def finetune(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Finetune:
    """Run `gptcli finetune` for a task on a file; return its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(task: str, source: str, *arguments: str | Path) -> tuple[int, str, str]:
        shape = "" if "--model" in arguments else SHAPE
        Path("config.yaml").write_text(shape + SETTINGS.format(task=task, source=source))
        options = ["--config", "config.yaml", "--output-dir", "run", *map(str, arguments)]
        return run_main(monkeypatch, "finetune", *options), *capsys.readouterr()

    return run


def animal(sentence: str) -> str:
    return sentence.split()[2]


def write_csv(file: Path, rows: list[list[str]]) -> None:
    with file.open("w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows(rows)


@pytest.fixture
def texts(tmp_path: Path) -> str:
    """Sentences, and the animal that each is about."""
    rows = [["text", "label"], *([sentence, animal(sentence)] for sentence in SENTENCES)]
    write_csv(tmp_path / "texts.csv", rows)
    return "texts.csv"


# What comes out


def test_a_classifier_knows_its_labels_and_names_what_it_learnt_from(
    finetune: Finetune, texts: str
) -> None:
    code, out, err = finetune("classification", texts, "--json")
    assert code == 0, err
    # 81 sentences, 27 about each animal; of each, a fifth is held out, rounded down.
    assert re.search(r"training data +66 examples", err)
    assert "cat 27 (33.3%), dog 27 (33.3%), owl 27 (33.3%)" in err
    lengths = r"shortest \d+, median \d+, 90% \d+, 99% \d+, longest \d+ tokens; context 64: 0 cut"
    assert re.search(rf"lengths +{lengths}", err)
    assert re.search(r"an example +The .* -> \[\[(cat|dog|owl)\]\]", err)
    assert err.count("Step 3: validation loss ") == 1
    assert re.search(r"label +precision +recall +F1 +examples +as cat +as dog +as owl", err)
    assert 'gptcli classify "A text of yours" --model run/model' in err
    result = json.loads(out)
    assert result["train"]["examples"] == 66
    assert result["validation"]["examples"] == 15
    assert {"step", "loss", "accuracy", "macro_f1"} <= result["evaluation"].keys()
    model = load_model("run", CPU, torch.float32, "classification").model
    assert label_names(model.config) == ["cat", "dog", "owl"]
    assert model.config.problem_type == "single_label_classification"
    ledger = json.loads(Path("run/data.json").read_text())
    assert ledger["labels"]["owl"] == [22, 5]


def test_own_text_is_learnt_from_the_model_of_a_run_with_its_tokenizer(
    finetune: Finetune, model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("The small cat sat on the wall, and it was glad.\n" * 40)
    code, out, err = finetune("language-modelling", "text.txt", "--model", model_folder, "--json")
    assert code == 0, err
    assert re.search(rf"start +{re.escape(str(model_folder))}\n", err)
    result = json.loads(out)
    tuned = load_model("run", CPU, torch.float32)
    before = load_model(str(model_folder), CPU, torch.float32)
    assert tuned.tokenizer.get_vocab() == before.tokenizer.get_vocab()
    evaluations = [
        json.loads(line)["loss"]
        for line in Path("run/metrics.jsonl").read_text().splitlines()
        if '"split"' in line
    ]
    # Before the first step, after the third and after the last.
    assert len(evaluations) == 3
    assert result["evaluation"]["loss"] == min(evaluations) < evaluations[0]


@pytest.mark.parametrize("start", ["run", "run/model", "run/checkpoints/step-00000003"])
def test_it_starts_from_a_run_its_model_or_a_checkpoint(
    finetune: Finetune, texts: str, tmp_path: Path, start: str
) -> None:
    assert finetune("language-modelling", texts)[0] == 0
    Path("run").rename("first")
    first = start.replace("run", "first", 1)
    code, _, err = finetune("classification", texts, "--model", first, "--dry-run")
    assert code == 0, err
    assert re.search(rf"start +{re.escape(first)}, with a new head\n", err)
    assert not Path("run").exists()


def test_label_columns_make_a_multi_label_classifier(finetune: Finetune, tmp_path: Path) -> None:
    rows = [
        {"text": s, "cat": int("cat" in s), "happy": int("happy" in s), "mat": int("mat" in s)}
        for s in SENTENCES
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    columns = "data.columns.label=[cat, happy, mat]"
    code, out, err = finetune("classification", "rows.json", "--set", columns, "--json")
    assert code == 0, err
    assert {"exact_match", "micro_f1", "macro_f1"} <= json.loads(out)["evaluation"].keys()
    config = load_model("run", CPU, torch.float32, "classification").model.config
    assert config.problem_type == "multi_label_classification"
    assert label_names(config) == ["cat", "happy", "mat"]


def test_numbers_are_predicted_by_regression(finetune: Finetune, tmp_path: Path) -> None:
    rows = [["text", "stars"], *([s, str(len(s) / 10)] for s in SENTENCES)]
    write_csv(tmp_path / "stars.csv", rows)
    options = [
        item
        for setting in ("data.columns.label=stars", "training.objective=regression")
        for item in ("--set", setting)
    ]
    code, out, err = finetune("classification", "stars.csv", *options, "--json")
    assert code == 0, err
    assert {"mean_squared_error", "pearson", "spearman"} <= json.loads(out)["evaluation"].keys()
    config = load_model("run", CPU, torch.float32, "classification").model.config
    assert (config.problem_type, config.num_labels) == ("regression", 1)


def test_what_is_repeated_contradicts_or_is_on_both_sides_is_said_before_training(
    finetune: Finetune, texts: str, tmp_path: Path
) -> None:
    rows = [["text", "label"], *([s, animal(s)] for s in SENTENCES[:12])]
    rows += [[SENTENCES[0], "cat"], [SENTENCES[1], "dog"], [SENTENCES[1], "owl"]]
    write_csv(tmp_path / "train.csv", rows)
    held_out = f"data.validation_source={texts}"
    code, _, err = finetune("classification", "train.csv", "--set", held_out, "--dry-run")
    assert code == 0, err
    assert re.search(r"repeated +3 training examples have the input of another", err)
    assert re.search(r"overlap +12 held-out examples are trained on: scores are too good", err)
    assert re.search(r"repeated with other labels +1\n", err)


def test_adapters_are_trained_alone_and_the_model_has_what_they_learnt(
    finetune: Finetune, texts: str, model_folder: Path
) -> None:
    lora = ["--set", "training.lora.rank=4", "--set", "training.learning_rate=0.01"]
    code, out, err = finetune("classification", texts, "--model", model_folder, *lora, "--json")
    assert code == 0, err
    result, facts = json.loads(out), json.loads(Path("run/run.json").read_text())
    plain = load_file("run/model/model.safetensors")
    parameters = sum(weight.numel() for weight in plain.values())
    for counted in (result, facts):
        # Rank 4 beside c_attn (32 x 96) of 2 layers, and the head of three labels.
        assert (counted["parameters"], counted["trained_parameters"]) == (parameters, 1_120)
    assert f"Training 1,120 parameters (the model has {parameters:,}) up to step " in err
    assert re.search(rf"parameters +{parameters:,}; 1,120 trained\n", err)
    assert f"{parameters:,}<small>1,120 trained</small>" in Path("run/report.html").read_text()
    tuned = load_model("run", CPU, torch.float32, "classification").model
    base = load_model(str(model_folder), CPU, torch.float32).model
    for name, weight in base.transformer.named_parameters():
        is_adapted = name.endswith("attn.c_attn.weight")
        same = torch.equal(tuned.transformer.get_parameter(name), weight)
        assert same is not is_adapted, name


def test_frozen_layers_keep_their_weights(finetune: Finetune, texts: str, model_folder: Path) -> None:
    freeze = ["--set", "training.freeze_layers=1"]
    assert finetune("classification", texts, "--model", model_folder, *freeze)[0] == 0
    tuned = load_model("run", CPU, torch.float32, "classification").model.transformer
    base = load_model(str(model_folder), CPU, torch.float32).model.transformer
    changed = {n for n, w in base.named_parameters() if not torch.equal(tuned.get_parameter(n), w)}
    assert {name.partition(".attn")[0].partition(".mlp")[0] for name in changed} >= {"h.1"}
    assert not [name for name in changed if name.startswith(("wte", "wpe", "h.0."))]


# What is refused


def refuse(result: tuple[int, str, str], code: int = DATA) -> str:
    """Return the one line of a refusal that came before any training."""
    assert result[0] == code, result
    assert result[1] == ""
    *notes, last = result[2].splitlines()
    assert last.startswith("Error: ")
    assert not [line for line in notes if re.match(r"Error|Traceback|Training \d|Step", line)]
    assert not Path("run/model").exists()
    return last.removeprefix("Error: ")


GOOD = "text,label\nA fine day,good\nAn awful day,bad\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "review,stars\nA fine day,5\n",
            "texts.csv has no column 'text'; its columns are: review, stars. Set data.columns.text.",
        ),
        (GOOD + "A day,\n", "texts.csv:4: the label is blank. Give it one, or leave the row out."),
        (
            "text,label\n" + "".join(f"Day {n},good\n" for n in range(20)),
            "all examples have the label 'good'; there must be",
        ),
        (GOOD + "A day,good,really\n", "texts.csv:4 has 3 fields, but the header has 2 columns."),
        (GOOD + '"A day,good\n', "texts.csv:4 is not valid CSV: unexpected end of data."),
        ("text,text,label\na,b,c\n", "texts.csv has two columns 'text'; rename one of them."),
        ("text,label\n", "texts.csv: there is no example to learn from."),
        ("", "texts.csv"),
    ],
)
def test_a_table_that_cannot_be_learnt_from_is_refused_with_its_line(
    finetune: Finetune, tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "texts.csv").write_text(content)
    error = refuse(finetune("classification", "texts.csv"))
    assert message in error, error
    assert error.count("\n") == 0


def test_a_label_of_the_held_out_data_that_was_not_trained_on_is_refused(
    finetune: Finetune, texts: str, tmp_path: Path
) -> None:
    (tmp_path / "held-out.csv").write_text("text,label\nA small cat,cat\nA small cow,cow\n")
    held_out = "data.validation_source=held-out.csv"
    error = refuse(finetune("classification", texts, "--set", held_out))
    assert error == (
        "held-out.csv:3: the label 'cow' is not among the labels of the training data (cat, dog, owl)."
    )


def test_a_damaged_line_of_json_is_named(finetune: Finetune, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "a", "label": "b"}\n{"text": "c", \n')
    assert refuse(finetune("classification", "texts.jsonl")).startswith("texts.jsonl:2 is not JSON: ")


def test_another_encoding_is_named_with_its_place_and_the_setting(
    finetune: Finetune, tmp_path: Path
) -> None:
    (tmp_path / "texts.csv").write_bytes(GOOD.encode() + "Ein schöner Tag,good\n".encode("latin-1"))
    error = refuse(finetune("classification", "texts.csv"))
    # 44 bytes are before "Ein sch", which has 7.
    assert error.startswith(f"texts.csv: byte 0xf6 at offset {len(GOOD) + 7} is not UTF-8.")
    assert "data.encoding" in error
    latin = ["--set", "data.encoding=latin-1", "--set", "data.validation_fraction=0", "--dry-run"]
    assert finetune("classification", "texts.csv", *latin)[0] == 0


def test_a_conversation_without_a_reply_is_refused_with_its_line(
    finetune: Finetune, tmp_path: Path
) -> None:
    turns: list[Any] = [{"messages": [{"role": "user", "content": "Hello"}]}]
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(turn) + "\n" for turn in turns))
    error = refuse(finetune("instruction", "talk.jsonl"))
    assert error.startswith("talk.jsonl:1: ")
    assert "assistant" in error


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["training.class_weights={cow: 2}"], "training.class_weights names 'cow'; the labels are cat,"),
        (["data.labels=[cat, dog]"], "the label 'owl' is not among data.labels (cat, dog)"),
        (["training.freeze_layers=9"], "training.freeze_layers is 9; the model has 2 layers."),
    ],
)
def test_a_setting_that_does_not_fit_the_data_or_the_model_is_refused(
    finetune: Finetune, texts: str, settings: list[str], message: str
) -> None:
    options = [item for setting in settings for item in ("--set", setting)]
    result = finetune("classification", texts, *options)
    assert message in refuse(result, DATA if "data.labels" in settings[0] else CONFIG)


def test_a_model_that_is_not_there_is_named_before_the_data_is_read(
    finetune: Finetune, tmp_path: Path
) -> None:
    error = refuse(finetune("classification", "no-such.csv", "--model", "./nowhere"), MODEL)
    assert error == "./nowhere: no such folder. --model takes a folder or a hub name such as gpt2."


def test_a_classifier_does_not_generate(finetune: Finetune, texts: str, run: Run) -> None:
    assert finetune("classification", texts, "--set", "training.max_steps=3")[0] == 0
    error = refused(run("generate", "Hello", "--model", "run"), MODEL)
    assert error == "run is a classifier; use it with `gptcli classify`."


def test_pretraining_is_for_new_models_of_text(
    texts: str, run: Run, tmp_path: Path, model_folder: Path
) -> None:
    (tmp_path / "config.yaml").write_text(SETTINGS.format(task="classification", source=texts))
    result = run("pretrain", "--config", "config.yaml")
    assert result.code == CONFIG
    assert "gptcli finetune" in result.stderr
