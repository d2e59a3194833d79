"""`gptcli generate` as a person types it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from gptcli.training.device import multiplies_int8
from tests.commands.conftest import Result, Run, refused
from tests.conftest import TIMEOUT_SECONDS, Cli
from tests.pipelines.test_train import pretrain

needs_int8 = pytest.mark.skipif(not multiplies_int8(), reason="this torch has no int8 products here")


@pytest.fixture
def generate(run: Run, model_folder: Path) -> Run:
    """Run `gptcli generate --model` with the tiny model; its context is 32 tokens.

    In float32 if nothing else is asked for: auto takes what this machine is fast in.
    """

    def generate(*arguments: str | Path, stdin: bytes = b"") -> Result:
        precision = () if "--precision" in arguments else ("--precision", "fp32")
        return run("generate", "--model", model_folder, *precision, *arguments, stdin=stdin)

    return generate


def hugging_face_greedy(model_folder: Path, prompt: str, max_new_tokens: int) -> str:
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    inputs = tokenizer(prompt, return_tensors="pt")
    output = model.generate(
        inputs.input_ids,
        attention_mask=torch.ones_like(inputs.input_ids),
        max_new_tokens=max_new_tokens,
        do_sample=False,
    )
    text: str = tokenizer.decode(output[0], skip_special_tokens=True)
    return text


def test_a_prompt_is_continued_as_hugging_face_does_and_nothing_else_is_printed(
    generate: Run, model_folder: Path
) -> None:
    result = generate("The cat", "--max-new-tokens", "8")
    assert result == (hugging_face_greedy(model_folder, "The cat", 8) + "\n", "", 0)


@pytest.mark.parametrize("name", ["run", "run/model", "run/checkpoints/step-00000006"])
def test_it_does_not_import_transformers_which_takes_as_long_as_all_the_rest(
    config_file: Path, tmp_path: Path, name: str
) -> None:
    pretrain(config_file, tmp_path / "run")
    program = (
        "import sys; from gptcli.cli import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        "large = {'transformers', 'huggingface_hub', 'datasets', 'pyarrow'}\n"
        "print('large:', *sorted(large & sys.modules.keys()), file=sys.stderr)"
    )
    model = str(tmp_path / name)
    arguments = ["generate", "The cat", "--model", model, "--precision", "fp32", "--max-new-tokens", "8"]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=True,
    )
    assert done.stderr.splitlines() == ["large:"]
    # The last evaluation was the best: the model is that of the last checkpoint.
    assert done.stdout == hugging_face_greedy(tmp_path / "run" / "model", "The cat", 8) + "\n"


def test_a_process_of_its_own_prints_the_same(
    gptcli: Cli, generate: Run, model_folder: Path, tmp_path: Path
) -> None:
    expected = generate("The 🦉", "--max-new-tokens", "8")
    command = ("generate", "-", "--model", model_folder, "--max-new-tokens", "8", "--precision", "fp32")
    result = gptcli(*command, stdin="The 🦉\n")
    assert (result.stdout, result.stderr, result.returncode) == expected


def test_temperature_alone_samples_and_the_seed_makes_it_again(generate: Run) -> None:
    command = ("The cat", "--max-length", "30", "--temperature", "0.7")
    greedy = generate(*command[:3])
    first = generate(*command, "--seed", "1")
    assert first.stdout != greedy.stdout
    assert generate(*command, "--seed", "1") == first
    assert generate(*command, "--seed", "2").stdout != first.stdout


def test_without_a_seed_samples_differ_and_the_seed_that_was_drawn_is_told(generate: Run) -> None:
    command = ("The cat", "--max-length", "30", "--top-p", "0.9")
    first, second = generate(*command), generate(*command)
    assert first.stdout != second.stdout
    seed = first.stderr.split()[1]
    assert first.stderr == f"Seed: {seed} (--seed {seed} makes this again)\n"
    assert generate(*command, "--seed", seed).stdout == first.stdout


@pytest.mark.parametrize("option", [("--top-k", "300"), ("--top-p", "1"), ("--temperature", "1")])
def test_each_of_the_three_options_samples(generate: Run, option: tuple[str, str]) -> None:
    (first,) = generate("The", *option, "--json", "--seed", "1").rows
    (second,) = generate("The", *option, "--json", "--seed", "2").rows
    assert first["completion"] != second["completion"]
    assert (first["seed"], second["seed"]) == (1, 2)


def test_greedy_is_the_same_whatever_the_seed(generate: Run) -> None:
    first, second = (generate("The", "--seed", seed, "--json") for seed in ("1", "2"))
    assert first == second
    assert first.rows[0]["seed"] is None
    # Whatever else asks for samples.
    (one_choice,) = generate("The", "--top-k", "1", "-t", "1", "--json").rows
    assert one_choice["completion"] == first.rows[0]["completion"]


def test_the_seed_of_a_config_file_is_used(generate: Run, tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    config.write_text("generation: {temperature: 1.0, max_new_tokens: 6}\nruntime: {seed: 5}\n")
    (row,) = generate("The", "--config", config, "--json").rows
    assert row["seed"] == 5
    assert row["completion_tokens"] == 6
    assert generate("The", "-t", "1", "--max-new-tokens", "6", "--seed", "5", "--json").rows == [row]
    # An option is stronger than the file, also one that excludes what the file says.
    (longer,) = generate("The", "--config", config, "--json", "--max-length", "20").rows
    assert longer["prompt_tokens"] + longer["completion_tokens"] == 20


def test_max_length_counts_the_prompt_and_max_new_tokens_does_not(
    generate: Run, model_folder: Path
) -> None:
    count = len(AutoTokenizer.from_pretrained(model_folder).encode("The small cat"))
    (row,) = generate("The small cat", "--max-length", "20", "--json").rows
    assert (row["prompt_tokens"], row["completion_tokens"]) == (count, 20 - count)
    (row,) = generate("The small cat", "--max-new-tokens", "20", "--json").rows
    assert (row["prompt_tokens"], row["completion_tokens"]) == (count, 20)
    assert row["finish_reason"] == "length"


def test_json_says_what_the_text_does(generate: Run) -> None:
    (row,) = generate("深圳 ", "--max-new-tokens", "4", "--json").rows
    assert row.keys() == {
        *("prompt", "completion", "sequence", "prompt_tokens", "completion_tokens"),
        *("finish_reason", "seed"),
    }
    assert row["prompt"] + row["completion"] + "\n" == generate("深圳 ", "--max-new-tokens", "4").stdout


def test_an_empty_prompt_starts_from_end_of_text(generate: Run, model_folder: Path) -> None:
    expected = hugging_face_greedy(model_folder, "<|endoftext|>", 6)
    assert generate("", "--max-new-tokens", "6").stdout == expected + "\n"
    (row,) = generate("", "--max-new-tokens", "6", "--json").rows
    assert (row["prompt"], row["completion"], row["prompt_tokens"]) == ("", expected, 1)


def test_a_full_context_ends_the_text_with_a_warning(generate: Run) -> None:
    result = generate("The cat")
    assert result.code == 0
    assert result.stderr == "Warning: stopped where the model's context of 32 tokens is full.\n"
    (row,) = generate("The cat", "--json").rows
    assert row["prompt_tokens"] + row["completion_tokens"] == 32
    assert row["finish_reason"] == "context"


def test_an_end_of_text_ends_the_text(run: Run, model_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "ends"))
    weights = load_file(folder / "model.safetensors")
    # All hidden states are equal to the last norm's bias, and only end-of-text agrees with it.
    weights["transformer.ln_f.weight"].zero_()
    weights["transformer.ln_f.bias"].fill_(1)
    weights["transformer.wte.weight"].fill_(0)
    weights["transformer.wte.weight"][0] = 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (row,) = run("generate", "The cat", "--model", folder, "--json").rows
    assert (row["completion"], row["completion_tokens"]) == ("", 0)
    assert row["finish_reason"] == "end_of_text"


def test_several_sequences_are_shown_apart_and_differ(generate: Run) -> None:
    command = ("The", "--max-new-tokens", "9", "-t", "1", "-n", "3", "--seed", "4")
    rows = generate(*command, "--json").rows
    assert [row["sequence"] for row in rows] == [0, 1, 2]
    assert len({row["completion"] for row in rows}) == 3
    text = generate(*command).stdout
    for row in rows:
        number = row["sequence"] + 1
        assert f"=== prompt 1, continuation {number} ===\nThe{row['completion']}\n" in text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("prompts.txt", "The cat\n\nThe 🦉\n"),
        ("prompts.jsonl", '{"prompt": "The cat"}\n{"text": "The 🦉"}\n'),
        ("-", "The cat\nThe 🦉\n"),
        ("-", '{"prompt": "The cat"}\n{"prompt": "The 🦉"}\n'),
    ],
)
def test_prompts_come_from_a_file_or_standard_input(
    generate: Run, tmp_path: Path, name: str, content: str
) -> None:
    if name != "-":
        (tmp_path / name).write_text(content, encoding="utf-8")
    result = generate("--input", name, "--max-new-tokens", "3", "--json", stdin=content.encode())
    assert result.stderr == ""
    expected = [generate(prompt, "--max-new-tokens", "3").stdout for prompt in ("The cat", "The 🦉")]
    assert [row["prompt"] + row["completion"] + "\n" for row in result.rows] == expected


def test_results_go_to_a_file_as_json_lines(generate: Run, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("The cat\nThe 区\n", encoding="utf-8")
    command = ("--input", "prompts.txt", "--max-new-tokens", "3", "-t", "1", "-n", "2", "--seed", "1")
    result = generate(*command, "--output", "texts.jsonl")
    assert (result.stdout, result.code) == ("", 0)
    written = (tmp_path / "texts.jsonl").read_text(encoding="utf-8")
    assert "区" in written
    assert [json.loads(line) for line in written.splitlines()] == generate(*command, "--json").rows


def test_the_other_prompts_of_a_file_do_not_change_a_text(generate: Run) -> None:
    command = ("--input", "-", "--max-new-tokens", "5", "-t", "1", "--seed", "1", "--json")
    first = generate(*command, stdin=b"The cat\nThe dog\n").rows
    second = generate(*command, stdin=b"An old owl\nThe dog\n").rows
    assert first[1] == second[1]


def test_a_prompt_longer_than_the_context_is_refused(generate: Run, model_folder: Path) -> None:
    # Numbers are not in the vocabulary: a byte is a token.
    line = refused(generate("1" * 32), 2)
    assert line == (
        f"The prompt has 32 tokens; the context of {model_folder} is 32, the new tokens included. "
        "Shorten the prompt, or let its end be enough: --context-end slide."
    )
    assert generate("1" * 31).code == 0


def test_a_line_of_a_file_longer_than_the_context_is_named_before_any_text(
    generate: Run, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("fine\n" + "1" * 40)
    line = refused(generate("--input", "prompts.txt", "--output", "texts.jsonl"), 3)
    assert line.startswith("prompts.txt:2: the prompt has 40 tokens;")
    assert not (tmp_path / "texts.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["x", "--temperature", "0"], "--temperature: generation.temperature is 0.0; "),
        (["x", "--temperature", "-1"], "generation.temperature is -1.0; it must be more than 0."),
        (
            ["x", "--temperature", "0"],
            "generation.temperature is 0.0; it must be more than 0. For the likeliest token each time "
            "(greedy decoding), set generation.top_k to 1 (--top-k 1).",
        ),
        (["x", "--temperature", "nan"], "it must be"),
        (["x", "--temperature", "warm"], "--temperature is 'warm'; it must be a number."),
        (["x", "--top-p", "1.5"], "generation.top_p is 1.5; it must be at most 1."),
        (["x", "--top-p", "0"], "generation.top_p is 0.0; it must be more than 0."),
        (["x", "--top-k", "0"], "generation.top_k is 0; it must be at least 1."),
        (["x", "--max-new-tokens", "0"], "it must be at least 1."),
        (["x", "--max-length", "5", "--max-new-tokens", "5"], "exclude each other"),
        (["x", "-n", "2"], "greedy decoding gives the same text each time"),
        (["x", "-n", "0", "-t", "1"], "it must be at least 1."),
        (["x", "--seed", "-1"], "runtime.seed is -1; it must be at least 0."),
        (["x", "--precision", "int4"], "runtime.precision is 'int4'; it must be"),
        (["x", "--context-end", "wrap"], "generation.context_end is 'wrap'; it must be"),
        (["x", "--context-end", "refuse"], "may get 100 new ones; the context of"),
        (["x", "--device", "tpu"], "runtime.device is 'tpu'; it must be"),
        (["1234", "--max-length", "4"], "--max-length 4 counts them"),
        (["x", "--input", "prompts.txt"], "Give a prompt or --input, not both."),
        (["x", "--output", "no/folder/texts.jsonl"], "the folder no/folder does not exist"),
        (["x", "--output", "."], "--output . is a folder; it takes a file."),
        (["caf\udce9"], "The prompt is not valid Unicode at character 4."),
        (["x", "y"], "unexpected extra argument(s) (y). See `gptcli generate --help`."),
        (["x", "--temprature", "1"], "No such option: --temprature"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_meant_is_refused_in_one_line(
    generate: Run, arguments: list[str], expected: str
) -> None:
    assert expected in refused(generate(*arguments), 2)


def test_a_model_is_needed(run: Run) -> None:
    assert "--model" in refused(run("generate", "x"), 2)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "standard input holds no prompt."),
        (b"caf\xe9\n", "standard input: byte 0xe9 at offset 3 is not UTF-8."),
        (b'{"prompt": 1}\n', "standard input:1 has no"),
        (b'{"prompt": "\\ud800"}\n', "standard input:1: the prompt is not valid Unicode"),
    ],
)
def test_standard_input_that_cannot_be_read_is_a_problem_of_the_data(
    generate: Run, content: bytes, expected: str
) -> None:
    assert expected in refused(generate("-", stdin=content), 3)


def test_a_file_of_prompts_that_is_not_there_is_named(generate: Run) -> None:
    assert refused(generate("--input", "nothing.txt"), 3) == "nothing.txt: no such file (--input)."


def test_the_file_of_prompts_is_not_overwritten(generate: Run, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "x"}\n')
    line = refused(generate("--input", "prompts.jsonl", "--output", prompts), 2)
    assert "is the --input file" in line
    assert prompts.read_text() == '{"prompt": "x"}\n'


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_named(generate: Run, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        assert "cannot be written" in refused(generate("x", "--output", "texts.jsonl"), 5)
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("./nothing", "./nothing: no such folder. --model takes a folder or a hub name such as gpt2."),
        ("empty", "empty is no model folder: config.json is missing."),
        ("file", "file is a file; --model takes a model folder, a run folder or a hub name."),
        ("", "--model is empty; it takes a folder or a hub name such as gpt2."),
    ],
)
def test_what_is_no_model_is_refused(run: Run, tmp_path: Path, name: str, expected: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    assert refused(run("generate", "x", "--model", name), 4) == expected


def test_a_hub_name_without_the_hub_is_a_problem_of_the_environment(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What HF_HUB_OFFLINE sets, which is read when the libraries are imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    line = refused(run("generate", "x", "--model", "someone/some-model"), 5)
    assert "not in the hub cache, and the hub cannot be reached" in line


def test_a_tokenizer_of_another_model_is_refused(run: Run, model_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "mixed"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<mine>"])
    tokenizer.save_pretrained(folder)
    line = refused(run("generate", "a <mine>", "--model", folder), 4)
    assert "makes token 300 of a prompt, but the model knows 300 tokens" in line


@pytest.mark.parametrize("precision", ["auto", "bf16", pytest.param("int8", marks=needs_int8)])
def test_a_precision_is_used_when_asked_for(generate: Run, precision: str) -> None:
    result = generate("The cat", "--max-new-tokens", "4", "--json", "--precision", precision)
    assert (result.code, result.stderr) == (0, "")
    assert result.rows[0]["completion_tokens"] == 4


def test_a_text_that_outgrows_the_context_slides_when_asked_to_and_says_so_once(
    generate: Run,
) -> None:
    command = ("--input", "-", "--max-new-tokens", "50", "--context-end", "slide")
    result = generate(*command, stdin=b"The cat\nThe dog\n")
    assert result.stderr == (
        "Warning: went on with the last half in view where the model's context of 32 tokens is full.\n"
    )
    rows = generate(*command, "--json", stdin=b"The cat\nThe dog\n").rows
    assert [(row["completion_tokens"], row["finish_reason"]) for row in rows] == [(50, "length")] * 2
    # Its end is in view of a prompt that is longer.
    assert generate("1" * 40, *command[2:], "--json").rows[0]["completion_tokens"] == 50


def test_what_may_not_fit_is_refused_before_anything_is_made_when_asked_to(
    generate: Run, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("1\n" + "1" * 20)
    command = ("--input", "prompts.txt", "--context-end", "refuse", "--max-new-tokens")
    line = refused(generate(*command, "13"), 3)
    assert line.startswith("prompts.txt:2: the prompt has 20 tokens and may get 13 new ones;")
    assert generate(*command, "12").code == 0


def test_a_device_that_is_not_there_is_a_problem_of_the_environment(generate: Run) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA GPU")
    assert "runtime.device is cuda, but " in refused(generate("x", "--device", "cuda"), 5)
