from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from gptcli.config.loading import load_settings
from gptcli.errors import ConfigError, DataError, Diverged, GptcliError, ModelError
from gptcli.pipelines.train import Event, TrainingResult, run_training
from gptcli.training.loop import StepDone
from gptcli.training.run import Evaluated, Note, Saved, Started, Working
from tests.conftest import REPOSITORY, SENTENCES, TEXT


def pretrain(
    config: Path,
    run: Path,
    *assignments: str,
    events: list[Event] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
) -> TrainingResult:
    return run_training(
        load_settings(config, assignments),
        run,
        resume=resume,
        overwrite=overwrite,
        dry_run=dry_run,
        notify=(lambda event: None) if events is None else events.append,
    )


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def metrics_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def untimed_metrics_of(run: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in entry.items() if key != "tokens_per_second"}
        for entry in metrics_of(run)
    ]


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "model.safetensors"))


def assert_same_weights(one: Path, other: Path) -> None:
    ones, others = weights_in(one), weights_in(other)
    shared = ones.keys() & others.keys()
    assert len(shared) == 28  # 2 blocks of 12 weights, two embeddings, the last layer norm.
    for name in shared:
        assert torch.equal(ones[name], others[name]), name


def content_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_run_leaves_the_documented_folder(config_file: Path, tmp_path: Path) -> None:
    run, events = tmp_path / "runs" / "small", list[Event]()
    result = pretrain(config_file, run, events=events)

    assert sorted(path.name for path in run.iterdir()) == [
        ".lock",
        "checkpoints",
        "config.yaml",
        "data.json",
        "metrics.jsonl",
        "model",
        "report.html",
        "run.json",
    ]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "step-00000003",
        "step-00000006",
    ]
    assert not [name for name in content_of(run) if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
    # With what was left to the run to decide.
    assert load_settings(run / "config.yaml") == load_settings(config_file, ["runtime.compile=false"])
    _check_metrics(run, result)
    _check_ledger(run, result)
    _check_facts(run, result)
    _check_model(run)

    assert [event.text for event in events if isinstance(event, Note)] == [
        "Device: cpu (as set), fp32 (as set).",
        "torch.compile: no, in fp32 it gains next to nothing.",
    ]
    assert [event.step for event in events if isinstance(event, StepDone)] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in events if isinstance(event, Evaluated)] == [3, 6]
    assert [event.path.name for event in events if isinstance(event, Saved)] == [
        "step-00000003",
        "step-00000006",
    ]
    # How long an evaluation is, the first one says.
    evaluating = [event for event in events if isinstance(event, Working) and event.what == "evaluating"]
    count = len(evaluating) // 2
    assert [(event.done, event.total) for event in evaluating] == [
        (done, total) for total in (None, count) for done in range(count)
    ]


def _check_metrics(run: Path, result: TrainingResult) -> None:
    entries = metrics_of(run)
    steps = [entry for entry in entries if "split" not in entry]
    evaluations = [entry for entry in entries if entry.get("split") == "validation"]
    assert [entry["step"] for entry in steps] == [1, 2, 3, 4, 5, 6]
    for entry in steps:
        assert entry.keys() == {"step", "tokens", "loss", "lr", "grad_norm", "tokens_per_second"}
    # Peak 1e-3 after two steps of warm-up, and a tenth of it at the end.
    assert [steps[i]["lr"] for i in (0, 1, 5)] == pytest.approx([5e-4, 1e-3, 1e-4])
    # Four sequences of 32 tokens a step, where none is the epoch's short one.
    assert all(0 < after["tokens"] - before["tokens"] <= 128 for before, after in pairwise(steps))
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert [entry["step"] for entry in evaluations] == [3, 6]
    for entry in evaluations:
        assert entry.keys() == {"step", "tokens", "loss", "perplexity", "bits_per_byte", "split"}
    best = min(evaluations, key=lambda entry: float(entry["loss"]))
    assert result.evaluation == {
        key: best[key] for key in ("step", "loss", "perplexity", "bits_per_byte")
    }


def _check_ledger(run: Path, result: TrainingResult) -> None:
    ledger = read_json(run / "data.json")
    assert ledger["reading"]["files"] == 1
    assert ledger["reading"]["documents"] == 1
    assert ledger["reading"]["bytes"] == len(TEXT.encode())
    assert ledger["reading"]["undecodable_bytes_replaced"] == 0
    # One file is cut by position: the last tenth is held out.
    assert ledger["split_by"] == "position"
    assert ledger["train"]["bytes"] == int(len(TEXT) * 0.9)
    assert ledger["train"]["bytes"] + ledger["validation"]["bytes"] == len(TEXT)
    assert ledger["train"]["tokens"] == result.train.tokens
    assert ledger["validation"]["tokens"] == result.validation.tokens
    epoch = ledger["epoch"]
    assert epoch["tokens_lost"] == 0
    assert epoch["sequences"] * 32 - epoch["padding_tokens"] == result.train.tokens
    assert 0 <= epoch["padding_tokens"] < 32
    assert result.epochs == pytest.approx(6 * 4 / epoch["sequences"])


def _check_facts(run: Path, result: TrainingResult) -> None:
    facts = read_json(run / "run.json")
    assert facts["ended"] == result.ended == "finished: training.max_steps"
    assert facts["step"] == result.step == 6
    assert facts["command"] == sys.argv
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["hardware"]["device"] == "cpu"
    assert facts["hardware"]["precision"] == "fp32"
    assert facts["best_evaluation"] == result.evaluation
    assert facts["training_seconds"] == pytest.approx(result.training_seconds, abs=1e-3)
    assert set(facts["fingerprints"]) == {"data", "tokenizer"}
    assert facts["tokenizer"]["end_of_text"] == "<|endoftext|>"
    # Vocabulary and positions, two blocks of 12 n^2 + 13 n, the last layer norm; n = 32.
    vocab_size = facts["tokenizer"]["vocab_size"]
    expected = (vocab_size + 32) * 32 + 2 * (12 * 32 * 32 + 13 * 32) + 2 * 32
    assert facts["parameters"] == result.parameters == expected


def _check_model(run: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    assert model.config.model_type == "gpt2"
    assert tokenizer.decode(tokenizer(SENTENCES[0])["input_ids"]) == SENTENCES[0]
    end_of_text_id = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert model.config.eos_token_id == model.config.bos_token_id == end_of_text_id
    # The evaluation that the run reports is that of this model, on the held-out text as it is.
    held_out = TEXT.encode()[int(len(TEXT) * 0.9) :].decode()
    ids = [end_of_text_id, *tokenizer(held_out)["input_ids"], end_of_text_id]
    total = 0.0
    with torch.no_grad():
        for begin in range(0, len(ids) - 1, 32):
            window = torch.tensor([ids[begin : begin + 33]])
            logits = model(window[:, :-1]).logits
            total += torch.nn.functional.cross_entropy(logits[0], window[0, 1:], reduction="sum").item()
    best = read_json(run / "run.json")["best_evaluation"]
    assert best["loss"] == pytest.approx(total / (len(ids) - 1), abs=1e-5)
    bits = total / torch.log(torch.tensor(2.0)).item()
    assert best["bits_per_byte"] == pytest.approx(bits / len(held_out.encode()), rel=1e-5)


def test_the_written_config_repeats_the_run_to_the_same_weights(
    config_file: Path, tmp_path: Path
) -> None:
    pretrain(config_file, tmp_path / "one", "model.dropout=0.1", "runtime.seed=7")
    pretrain(tmp_path / "one" / "config.yaml", tmp_path / "two")
    assert_same_weights(tmp_path / "one" / "model", tmp_path / "two" / "model")
    assert untimed_metrics_of(tmp_path / "one") == untimed_metrics_of(tmp_path / "two")


KILL_ITSELF_AFTER_STEP = """
import os, signal, sys
from pathlib import Path
from gptcli.config.loading import load_settings
from gptcli.pipelines.train import run_training
from gptcli.training.loop import StepDone

def die(event):
    if isinstance(event, StepDone) and event.step == 6:
        os.kill(os.getpid(), signal.SIGKILL)

config, run, *assignments = sys.argv[1:]
run_training(load_settings(Path(config), assignments), Path(run), notify=die)
"""


def test_a_killed_run_that_is_resumed_equals_one_that_was_not_bit_for_bit(
    config_file: Path, tmp_path: Path
) -> None:
    # Muon has AdamW beside it, for all but the matrices of the blocks.
    settings = ["training.max_steps=8", "training.optimizer=muon", "model.dropout=0.1"]
    settings += ["evaluation.eval_steps=2", "runtime.threads=1"]
    killed = subprocess.run(
        [sys.executable, "-c", KILL_ITSELF_AFTER_STEP, config_file, tmp_path / "killed", *settings],
        cwd=REPOSITORY,
        check=False,
    )
    assert killed.returncode == -9
    assert [entry["step"] for entry in metrics_of(tmp_path / "killed") if "lr" in entry] == [
        1,
        2,
        3,
        4,
        5,
    ]
    assert read_json(tmp_path / "killed" / "run.json")["ended"] == "running"

    events: list[Event] = []
    pretrain(config_file, tmp_path / "killed", *settings, resume=True, events=events)
    pretrain(config_file, tmp_path / "whole", *settings)

    assert [event.step for event in events if isinstance(event, Started)] == [3]
    assert untimed_metrics_of(tmp_path / "killed") == untimed_metrics_of(tmp_path / "whole")
    for folder in ("model", "checkpoints/step-00000008"):
        assert_same_weights(tmp_path / "killed" / folder, tmp_path / "whole" / folder)
    assert (tmp_path / "killed" / "checkpoints/step-00000008/optimizer.safetensors").read_bytes() == (
        tmp_path / "whole" / "checkpoints/step-00000008/optimizer.safetensors"
    ).read_bytes()


def test_resuming_a_damaged_newest_checkpoint_warns_and_goes_on_from_the_one_before(
    config_file: Path, tmp_path: Path
) -> None:
    pretrain(config_file, tmp_path / "run")
    before = untimed_metrics_of(tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-00000006" / "optimizer.safetensors").unlink()
    events: list[Event] = []
    pretrain(config_file, tmp_path / "run", resume=True, events=events)
    warnings = [event.text for event in events if isinstance(event, Note) and event.is_warning]
    assert len(warnings) == 1
    assert "step-00000006 is passed over: optimizer.safetensors is missing" in warnings[0]
    assert [event.step for event in events if isinstance(event, Started)] == [3]
    assert untimed_metrics_of(tmp_path / "run") == before


def test_resuming_a_finished_run_changes_nothing_and_more_steps_continue_it(
    config_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    pretrain(config_file, run)
    before = content_of(run)
    result = pretrain(config_file, run, resume=True)
    assert (result.ended, result.step) == ("already finished: training.max_steps", 6)
    assert content_of(run) == before

    result = pretrain(config_file, run, "training.max_steps=9", resume=True)
    assert (result.ended, result.step) == ("finished: training.max_steps", 9)
    assert [entry["step"] for entry in metrics_of(run) if "lr" in entry] == list(range(1, 10))
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "step-00000006",
        "step-00000009",
    ]
    assert read_json(run / "run.json")["started_at_step"] == 6


def test_a_run_that_stopped_before_its_first_evaluation_has_a_model_when_it_ends(
    config_file: Path, tmp_path: Path
) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, Saved):
            raise KeyboardInterrupt

    settings = load_settings(config_file, ["evaluation.eval_steps=100"])
    with pytest.raises(KeyboardInterrupt):
        run_training(settings, tmp_path / "run", notify=stop)
    assert read_json(tmp_path / "run" / "run.json")["ended"] == "stopped: KeyboardInterrupt"
    settings = load_settings(config_file, ["evaluation.eval_steps=100", "training.max_steps=3"])
    assert run_training(settings, tmp_path / "run", resume=True).ended == "finished: training.max_steps"
    assert_same_weights(tmp_path / "run" / "model", tmp_path / "run" / "checkpoints/step-00000003")


def test_resuming_with_what_would_make_it_another_run_is_refused(
    config_file: Path, text_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    pretrain(config_file, run, "training.max_steps=3")
    before = content_of(run)
    with pytest.raises(ConfigError) as usage:
        pretrain(config_file, run, "training.learning_rate=2e-3", "runtime.seed=1", resume=True)
    assert usage.value.exit_code == 2
    seed, rate = sorted(str(usage.value).splitlines())
    assert "was trained with runtime.seed 42; it is now 1." in seed
    assert "was trained with training.learning_rate 0.001; it is now 0.002." in rate

    moved = text_file.rename(tmp_path / "moved.txt")
    result = pretrain(config_file, run, "training.max_steps=3", f"data.source={moved}", resume=True)
    assert result.ended == "already finished: training.max_steps"

    text_file.write_text(TEXT.replace("owl", "elk"))
    with pytest.raises(ModelError, match="the data is not what it was trained on") as model:
        pretrain(config_file, run, resume=True)
    assert model.value.exit_code == 4
    assert content_of(run) == before


def test_what_changes_no_step_may_be_changed_on_resume(config_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    pretrain(config_file, run, "training.max_steps=3", "model.dropout=0.1")
    harmless = ["training.micro_batch_size=3", "training.save_steps=1", "logging.log_steps=2"]
    harmless += ["evaluation.eval_steps=1", "generation.top_k=5", "runtime.threads=2"]
    result = pretrain(config_file, run, "model.dropout=0.1", *harmless, resume=True)
    assert (result.ended, result.step) == ("finished: training.max_steps", 6)


def test_the_model_is_the_best_by_evaluation(config_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = pretrain(
        config_file,
        run,
        *("training.learning_rate=0.3", "training.min_learning_rate_ratio=1", "training.warmup_steps=0"),
        *("training.save_steps=1", "training.keep_checkpoints=6", "evaluation.eval_steps=1"),
    )
    losses = {entry["step"]: entry["loss"] for entry in metrics_of(run) if "split" in entry}
    best = min(losses, key=lambda step: float(losses[step]))
    assert best < 6, "the last model is the best: nothing is tested"
    assert result.evaluation is not None
    assert result.evaluation["step"] == best
    assert_same_weights(run / "model", run / "checkpoints" / f"step-{best:08d}")


def test_a_model_that_training_only_makes_worse_is_kept_as_it_was(
    config_file: Path, tmp_path: Path
) -> None:
    pretrain(config_file, tmp_path / "first")
    start = f"model.name={tmp_path / 'first'}"
    # Steps so large that they undo what was learnt.
    result = pretrain(
        config_file, tmp_path / "second", start, "training.learning_rate=2", "training.warmup_steps=0"
    )
    before, *after = [entry for entry in metrics_of(tmp_path / "second") if "split" in entry]
    assert before["step"] == 0
    assert [entry["step"] for entry in after] == [3, 6]
    assert all(entry["loss"] > before["loss"] for entry in after)
    assert result.evaluation is not None
    assert result.evaluation["loss"] == before["loss"]
    assert_same_weights(tmp_path / "first" / "model", tmp_path / "second" / "model")


def test_with_nothing_held_out_the_model_is_the_last(config_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = pretrain(config_file, run, "data.validation_fraction=0")
    assert result.evaluation is None
    assert result.validation.tokens == 0
    assert not [entry for entry in metrics_of(run) if "split" in entry]
    assert_same_weights(run / "model", run / "checkpoints" / "step-00000006")
    ledger = read_json(run / "data.json")
    assert ledger["split_by"] == "none"
    assert ledger["train"]["bytes"] == len(TEXT)


def test_evaluation_of_the_first_tokens_counts_their_bytes(config_file: Path, tmp_path: Path) -> None:
    pretrain(config_file, tmp_path / "run", "evaluation.max_tokens=20", "training.max_steps=3")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    held_out = TEXT.encode()[int(len(TEXT) * 0.9) :].decode()
    text = tokenizer.decode(tokenizer(held_out)["input_ids"][:20])
    (entry,) = [entry for entry in metrics_of(tmp_path / "run") if "split" in entry]
    bits = entry["loss"] * 20 / 0.6931471805599453
    assert entry["bits_per_byte"] == pytest.approx(bits / len(text.encode()))


def test_a_dry_run_checks_everything_and_writes_no_run(config_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "dry"
    result = pretrain(config_file, run, dry_run=True)
    assert (result.ended, result.model, result.step) == ("dry run", None, 0)
    assert result.train.tokens > result.validation.tokens > 0
    assert not run.parent.exists()
    with pytest.raises(DataError, match=r"less than one sequence of model\.context_length 5000"):
        pretrain(config_file, run, "model.context_length=5000", dry_run=True)


def test_an_automatic_micro_batch_is_the_batch_where_that_fits(
    config_file: Path, tmp_path: Path
) -> None:
    pretrain(config_file, tmp_path / "run", "training.max_steps=1")
    assert read_json(tmp_path / "run" / "run.json")["micro_batch_size"] == 4


def test_an_automatic_micro_batch_bounds_the_memory_of_a_large_batch(
    config_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shape = ("model.n_layer=1", "model.n_head=1", "model.n_embd=32", "model.context_length=512")
    pretrain(config_file, run, *shape, "training.max_steps=1", "training.batch_size=600")
    facts = read_json(run / "run.json")
    # 2^27 numbers: of each of 512 positions, 16 times the width; so many weights are not kept. That is
    # 512 sequences, so the batch goes through in two halves.
    assert facts["micro_batch_size"] == 300


def test_overwriting_replaces_the_run_and_keeps_other_files(config_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    pretrain(config_file, run, "training.max_steps=3", "runtime.seed=1")
    (run / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        pretrain(config_file, run)
    result = pretrain(config_file, run, overwrite=True)
    assert result.ended == "finished: training.max_steps"
    assert [entry["step"] for entry in metrics_of(run) if "lr" in entry] == [1, 2, 3, 4, 5, 6]
    assert (run / "notes.txt").read_text() == "mine"


def test_a_run_that_diverges_ends_with_its_own_error_and_saves_no_useless_model(
    config_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(Diverged, match=r"after step 2 .* training\.learning_rate") as caught:
        pretrain(
            config_file,
            run,
            *("training.learning_rate=10", "training.warmup_steps=0", "training.max_steps=50"),
            *("training.save_steps=1", "evaluation.eval_steps=2"),
        )
    assert caught.value.exit_code == 6
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000001"]
    assert not (run / "model").exists()
    assert [entry["step"] for entry in metrics_of(run)] == [1, 2]
    assert read_json(run / "run.json")["ended"] == "stopped: Diverged"


@pytest.mark.parametrize(
    ("assignments", "exit_code", "part"),
    [
        (["model.context_length=5000"], 3, "Add text, or lower context_length."),
        (["data.source=absent.txt"], 3, "absent.txt"),
        (["runtime.precision=fp16"], 5, "which needs a GPU"),
    ],
)
def test_a_mistake_ends_before_training_and_leaves_the_folder_free(
    config_file: Path, tmp_path: Path, assignments: list[str], exit_code: int, part: str
) -> None:
    run = tmp_path / "run"
    with pytest.raises(GptcliError) as caught:
        pretrain(config_file, run, *assignments)
    assert caught.value.exit_code == exit_code
    assert part in str(caught.value)
    assert [path.name for path in run.iterdir()] == [".lock"]
    assert pretrain(config_file, run, "training.max_steps=1").ended == "finished: training.max_steps"
