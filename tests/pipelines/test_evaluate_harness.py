"""Tasks of lm-evaluation-harness: the same results as its own model gives. Without network."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from gptcli.config.schema import ModelSettings, RuntimeSettings
from gptcli.errors import ConfigError, DataError, EnvironmentProblem
from gptcli.models.architecture import model_config, new_model
from gptcli.models.saving import save_model
from gptcli.pipelines.evaluate_harness import run_harness_tasks
from tests.conftest import SENTENCES, TEXT

lm_eval = pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

FP32 = RuntimeSettings(device="cpu", precision="fp32")

# Each kind of request that there is: choices, whole texts, and greedy text up to a stop.
CHOICES = """\
task: own_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{query}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
WHOLE = """\
task: own_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity}}, {{metric: bits_per_byte}}]
"""
GREEDY = """\
task: own_answers
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{query}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n", "e"], max_gen_toks: 8, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""
TASKS = {"own_choices": CHOICES, "own_text": WHOLE, "own_answers": GREEDY}


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights that finds some choices likelier than others."""
    settings = ModelSettings(n_layer=2, n_head=2, n_embd=32, context_length=64)
    model = new_model(model_config(settings, tokenizer), seed=0)
    for parameter in model.parameters():
        parameter.data.mul_(5)
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_model(model, tokenizer, folder)
    return folder


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> Path:
    """A folder of tasks, each with its rows; `datasets` keeps what it reads below it."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows: list[dict[str, Any]] = []
    for number, sentence in enumerate(SENTENCES[:20]):
        begun, _, end = sentence.strip().partition(" sat on ")
        choices = [end, " ".join(reversed(end.split()))]
        rows.append({"query": f"{begun} sat on", "choices": choices, "gold": number % 2})
    _write(tmp_path / "own_choices.jsonl", rows)
    # Of more tokens than the context has, and of a few.
    _write(tmp_path / "own_text.jsonl", [{"text": TEXT[:400]}, {"text": SENTENCES[3]}])
    answers = [greedy(model, row["query"]) for row in rows]
    right = [answer if number % 2 else "another" for number, answer in enumerate(answers)]
    asked = [{**row, "answer": answer} for row, answer in zip(rows, right, strict=True)]
    _write(tmp_path / "own_answers.jsonl", asked)
    for name, task in TASKS.items():
        (tmp_path / f"{name}.yaml").write_text(task.format(rows=tmp_path / f"{name}.jsonl"))
    return tmp_path


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def greedy(folder: Path, prompt: str) -> str:
    """Return what transformers' own model goes on with, up to the first e or line feed."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    whole = model.generate(ids, max_new_tokens=8, do_sample=False)[0]
    text = str(tokenizer.decode(whole[ids.shape[1] :], skip_special_tokens=True))
    return text.partition("\n")[0].partition("e")[0]


def of_the_harness(model: Path, tasks: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Return the results with the harness's own model."""
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    found = lm_eval.simple_evaluate(
        model=HFLM(pretrained=str(model), device="cpu", dtype="float32", batch_size=4),
        tasks=names,
        task_manager=TaskManager(include_path=str(tasks)),
        bootstrap_iters=0,
    )
    results: dict[str, dict[str, Any]] = found["results"]
    return results


@pytest.mark.parametrize("name", TASKS)
def test_a_task_has_the_result_of_the_harnesss_own_model(name: str, model: Path, tasks: Path) -> None:
    result = run_harness_tasks(str(model), FP32, [name], tasks, None)
    assert (result["model"], result["precision"]) == (str(model), "fp32")
    assert result["versions"]["lm_eval"] == lm_eval.__version__
    found = result["tasks"][name]
    expected = of_the_harness(model, tasks, [name])[name]
    scores = [key for key, value in expected.items() if isinstance(value, float) and "std" not in key]
    assert scores
    for key in scores:
        assert found[key] == pytest.approx(expected[key], rel=1e-4), key
    if name == "own_answers":
        assert found["exact_match,none"] == 0.5


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("own_choices", ("scoring", 0, 40, "requests")),  # Two choices each.
        ("own_text", ("scoring", 1, 2, "texts")),
        ("own_answers", ("generating", 20, 20, "texts")),
    ],
)
def test_how_far_a_task_is_is_told(
    name: str, told: tuple[str, int, int, str], model: Path, tasks: Path
) -> None:
    seen: list[tuple[str, int, int | None, str]] = []
    run_harness_tasks(str(model), FP32, [name], tasks, None, lambda *event: seen.append(event))
    assert seen[-1] == told
    # What comes before takes its time too, and its end is not known.
    assert seen[:3] == [
        ("indexing the harness's tasks", 0, None, "tasks"),
        ("loading the model", 0, None, "models"),
        ("reading the tasks' rows", 0, None, "rows"),
    ]


def test_texts_of_several_tasks_made_together_are_those_of_their_prompts(
    model: Path, tasks: Path
) -> None:
    # Sampled among the likeliest one alone; and the harness knows several names for the same number.
    other = GREEDY.replace("own_answers", "likeliest").replace("max_gen_toks", "max_new_tokens")
    other = other.replace("do_sample: false", "do_sample: true, temperature: 2.0, top_k: 1")
    (tasks / "likeliest.yaml").write_text(other.format(rows=tasks / "own_answers.jsonl"))
    result = run_harness_tasks(str(model), FP32, ["own_answers", "likeliest"], tasks, None)
    assert [scores["exact_match,none"] for scores in result["tasks"].values()] == [0.5, 0.5]


def test_the_harness_draws_no_bars_of_its_own(
    model: Path, tasks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_harness_tasks(str(model), FP32, ["own_choices", "own_answers"], tasks, None)
    assert "it/s" not in capsys.readouterr().err
    assert not tqdm([], file=io.StringIO()).disable


def test_only_the_first_rows_are_scored_if_asked_for(model: Path, tasks: Path) -> None:
    result = run_harness_tasks(str(model), FP32, ["own_choices"], tasks, 4)
    # Of 4 items, quarters.
    assert result["tasks"]["own_choices"]["acc,none"] * 4 % 1 == 0
    assert result["tasks"]["own_choices"]["sample_len"] == 4


def test_a_task_that_there_is_not_is_refused(model: Path, tasks: Path) -> None:
    with pytest.raises(ConfigError, match="--tasks own_task: the harness has no task of that name"):
        run_harness_tasks(str(model), FP32, ["own_choices", "own_task"], tasks, None)


def test_a_task_whose_rows_are_not_there_is_refused(model: Path, tasks: Path) -> None:
    (tasks / "own_choices.jsonl").unlink()
    with pytest.raises(DataError, match="--tasks own_choices: "):
        run_harness_tasks(str(model), FP32, ["own_choices"], tasks, None)


def test_rows_of_the_hub_that_cannot_be_had_are_an_environment_problem(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(EnvironmentProblem, match="--tasks piqa: the hub cannot be reached"):
        run_harness_tasks(str(model), FP32, ["piqa"], None, None)
