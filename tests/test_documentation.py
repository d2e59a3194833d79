"""Every command that the documentation shows runs, and the generated pages are up to date."""

from __future__ import annotations

import io
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from contextlib import ExitStack, redirect_stdout
from glob import glob
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast
from typer.main import get_command

from gptcli.cli import app, command_paths, main
from gptcli.config.loading import load_settings
from gptcli.config.schema import ModelSettings
from gptcli.models.architecture import model_config, new_model
from gptcli.models.saving import save_model
from tests.conftest import REPOSITORY, SENTENCES, TEXT
from tests.nanogpt_checkpoints import nanogpt_weights, write_checkpoint

# That of classification is run by tests/commands/test_classify.py.
PAGES = [
    REPOSITORY / "docs" / f"{task}.md"
    for task in (
        "data",
        "language-modelling",
        "question-answering",
        "instruction",
        "evaluation",
        "planning",
        "attention",
        "export",
        "runs",
        "from-nanogpt",
        "from-trainer",
        "from-litgpt",
    )
]
# What a page takes for granted: runs that other pages make.
RUN_MINE = (
    "gptcli pretrain --config configs/pretrain/demo.yaml --set data.source=my-text/ "
    "--output-dir runs/mine"
)
BEFORE = {
    "evaluation": [
        RUN_MINE,
        "gptcli finetune --config configs/finetune/classification.yaml --model runs/english "
        "--set data.source=texts.csv --output-dir runs/reviews",
        "gptcli finetune --config configs/finetune/question-answering.yaml --model runs/english",
    ],
    "export": [RUN_MINE],
    "from-nanogpt": [RUN_MINE],
}
CONFIGS = sorted((REPOSITORY / "configs").rglob("*.yaml"))

# The commands are run as they are shown, on less work: the last --set wins.
NEW_MODEL = ["model=tiny", "model.context_length=32", "tokenizer.train.vocab_size=300"]
LESS_WORK = [
    "training.batch_size=2",
    "training.warmup_steps=1",
    "evaluation.eval_steps=4",
    "evaluation.max_tokens=500",
    "runtime.device=cpu",
]


def shell_commands(markdown: str) -> list[str]:
    """Return the lines of the ```sh blocks that call gptcli."""
    blocks = re.findall(r"```sh\n(.*?)```", markdown, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if "gptcli" in line]


def with_less_work(command: str) -> list[str]:
    arguments = shlex.split(command)
    if arguments[1] not in ("pretrain", "finetune"):
        return arguments
    steps = 6 if any("max_steps" in argument for argument in arguments) else 4
    has_model = "--model" in arguments or any("model.name" in argument for argument in arguments)
    shape = [] if has_model else NEW_MODEL
    for setting in [*shape, *LESS_WORK, f"training.max_steps={steps}"]:
        arguments += ["--set", setting]
    return arguments


@pytest.fixture(scope="session")
def english_model(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """What is at runs/english: a model with room for an instruction and its answer."""
    folder = tmp_path_factory.mktemp("english") / "model"
    shape = ModelSettings(n_layer=2, n_head=2, n_embd=32, context_length=128)
    save_model(new_model(model_config(shape, tokenizer), seed=0), tokenizer, folder)
    return folder


def run_command(command: str, monkeypatch: pytest.MonkeyPatch, english_model: Path) -> None:
    """Run a command as a shell would, with VARIABLE=value before it, a pipe, * or > FILE."""
    if "--model runs/english" in command:  # As if that config had been run.
        shutil.copytree(english_model, "runs/english", dirs_exist_ok=True)
    before, _, command = command.rpartition("|")
    stdin = subprocess.check_output(shlex.split(before)) if before else b""
    command, _, target = command.strip().partition(" > ")
    with ExitStack() as stack:
        patch = stack.enter_context(monkeypatch.context())
        while "=" in (first := command.split(" ")[0]):
            patch.setenv(*first.split("="))
            command = command.removeprefix(first).lstrip()
        words = [sorted(glob(word)) or [word] for word in with_less_work(command)]
        patch.setattr(sys, "argv", [word for found in words for word in found])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        if target:
            file = stack.enter_context(Path(target).open("w", encoding="utf-8"))
            stack.enter_context(redirect_stdout(file))
        ended = stack.enter_context(pytest.raises(SystemExit))
        main()
    # What a real model is to reach, one of a few steps need not.
    accepted = (0, 7) if "--fail-" in command else (0,)
    assert ended.value.code in accepted, command


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all of these tests, so that Python's own documentation is read and tokenized once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Path:
    """A folder as the documentation assumes it: the configs, texts, labels, and so on."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    shutil.copytree(REPOSITORY / "configs", tmp_path / "configs")
    (tmp_path / "my-text").mkdir()
    (tmp_path / "my-text" / "one.txt").write_text(TEXT)
    (tmp_path / "tinyshakespeare.txt").write_text(TEXT)
    (tmp_path / "novels").mkdir()
    (tmp_path / "novels" / "one.txt").write_text(TEXT * 4)
    (tmp_path / "wikitext2-train.txt").write_text(TEXT[::-1])
    labelled = [f'"{text.strip()}",{"cat" if "cat" in text else "other"}\n' for text in SENTENCES]
    (tmp_path / "texts.csv").write_text("text,label\n" + "".join(labelled))
    conversations = [{"instruction": text.strip(), "output": "Yes."} for text in SENTENCES]
    (tmp_path / "instructions.json").write_text(json.dumps(conversations))
    questions = [
        {"question": "What sat?", "context": text, "answers": [text.split()[2]]} for text in SENTENCES
    ]
    (tmp_path / "questions.json").write_text(json.dumps(questions))
    (tmp_path / "article.txt").write_text(TEXT)
    (tmp_path / "prompts.txt").write_text("The small cat\nThe old owl\n")
    shutil.copy(tmp_path / "texts.csv", tmp_path / "new-reviews.csv")
    write_checkpoint(tmp_path / "ckpt.pt", nanogpt_weights(320, bias=True))
    (tmp_path / "quiz.csv").write_text("question,a,b,answer\nWhat sat?,a cat,a mat,1\n")
    _write_benchmarks(tmp_path / "benchmarks")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    return tmp_path


def _write_benchmarks(folder: Path) -> None:
    (folder / "blimp").mkdir(parents=True)
    copa = {"query": "The cat sat, therefore", "choices": ["it was happy.", "it ran."], "gold": 0}
    (folder / "copa.jsonl").write_text(json.dumps(copa))
    for phenomenon in ("agreement", "word_order"):
        pair = {"sentence_good": "The cat sat.", "sentence_bad": "Cat the sat.", "UID": phenomenon}
        (folder / "blimp" / f"{phenomenon}.jsonl").write_text(json.dumps(pair))


def test_every_command_of_the_readme_and_of_make_demo_runs(
    workplace: Path, english_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    demo = re.findall(r"^\t\$\(BIN\)/(gptcli .*)$", makefile, re.MULTILINE)
    shown = shell_commands((REPOSITORY / "README.md").read_text())
    assert len(demo) == 2
    assert len(shown) >= 8
    for command in demo + shown:
        run_command(command, monkeypatch, english_model)
    assert len((workplace / "texts.jsonl").read_text().splitlines()) == 2


def examples() -> list[str]:
    """Return the commands that the help of each command ends with, in the order of the help."""
    found = []
    for path in command_paths():
        command = get_command(app)
        for name in path:
            command = command.commands[name]  # type: ignore[attr-defined]
        shown = (command.epilog or "").splitlines()
        assert len(shown) == 2, f"gptcli {' '.join(path)}: two examples are wanted in its help"
        assert all(f"gptcli {' '.join(path)} " in f"{line} " for line in shown)
        found += shown
    return found


def test_every_example_of_the_help_runs(
    workplace: Path, english_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Models that the examples take for granted.
    run_command(
        "gptcli finetune --config configs/finetune/question-answering.yaml --model runs/english",
        monkeypatch,
        english_model,
    )
    for command in examples():
        if "gptcli doctor" not in command:  # Half a minute; tests/commands/test_doctor.py runs it.
            run_command(command, monkeypatch, english_model)
    assert (workplace / "runs" / "mine" / "model").is_dir()
    assert json.loads((workplace / "gptcli.schema.json").read_text())["type"] == "object"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_is_valid_and_its_command_runs(
    config: Path, workplace: Path, english_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_settings(config)
    commands = re.findall(r"^#   (gptcli .*)$", config.read_text(), re.MULTILINE)
    assert len(commands) == 1
    run_command(commands[0], monkeypatch, english_model)
    assert (workplace / "runs" / config.stem / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_every_command_of_a_guide_runs(
    page: Path, workplace: Path, english_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = shell_commands(page.read_text())
    assert len(shown) >= 3
    # "Rows, such as `capitals.jsonl`:", and then the rows; so with configs.
    files = re.findall(r"`(\S+\.(jsonl|yaml))`:\n\n```\2\n(.*?)```", page.read_text(), re.DOTALL)
    for name, _, content in files:
        Path(name).write_text(content)
    for command in BEFORE.get(page.stem, []) + shown:
        run_command(command, monkeypatch, english_model)


def test_the_generated_pages_are_up_to_date() -> None:
    pages = runpy.run_path(str(REPOSITORY / "docs" / "generate.py"))["pages"]()
    for name, content in pages.items():
        assert (REPOSITORY / "docs" / name).read_text() == content, f"docs/{name}: run `make docs`"


def test_links_of_the_documentation_lead_somewhere() -> None:
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            is_here = "://" not in target
            assert not is_here or (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_proof_that_the_documentation_names_is_there() -> None:
    page = (REPOSITORY / "docs" / "reliability.md").read_text()
    proofs = re.findall(r"`pytest ([^`]*)`", page)
    assert len(proofs) >= 10
    for path in {word for proof in proofs for word in proof.split() if word.startswith("tests/")}:
        assert (REPOSITORY / path).exists(), path
