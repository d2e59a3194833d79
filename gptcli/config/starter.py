"""A config to start from: what decides a training, set and explained, and what else it offers."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gptcli.config.describing import choices
from gptcli.config.json_schema import SCHEMA_FILE
from gptcli.config.loading import dump_value
from gptcli.config.names import section_type
from gptcli.config.schema import Settings, TaskName

WIDTH = 105
_NO_BREAK = "\0"  # Between a sign and its number, while lines are broken.


@dataclass(frozen=True)
class Starter:
    """What a config for one task sets, and what it only mentions."""

    title: str
    commands: tuple[str, ...]
    """FILE is the config's own name."""
    values: dict[str, Any]
    mentioned: tuple[str, ...] = ()


# Mentioned in every config, commented out.
_MENTIONED = (
    "model.name",
    "model.dropout",
    "tokenizer.name",
    "data.validation_source",
    "training.max_minutes",
    "training.patience",
    "training.micro_batch_size",
    "training.weight_decay",
    "runtime.threads",
    "runtime.seed",
)

# Shown, commented out, for settings that have no default.
_EXAMPLES: dict[str, Any] = {
    "model.name": "runs/english",
    "tokenizer.name": "gpt2",
    "data.validation_source": "held-out",
    "data.labels": ["bad", "good"],
    "data.columns.text_pair": "text_2",
    "training.epochs": 3,
    "training.max_minutes": 30,
    "training.patience": 5,
    "evaluation.max_tokens": 100_000,
    "generation.max_new_tokens": 100,
    "generation.temperature": 0.8,
    "generation.top_p": 0.95,
    "runtime.threads": 4,
}

# As in configs/, which says what comes of them.
STARTERS: dict[TaskName, Starter] = {
    "language-modelling": Starter(
        "A GPT-2 that writes like your text: a new one, or one that there is.",
        ("pretrain --config FILE", "finetune --config FILE --model MODEL"),
        {
            "model.size": "mini",
            "model.context_length": 128,
            "tokenizer.train.vocab_size": 4096,
            "data.source": "builtin:python-docs",
            "data.validation_fraction": 0.1,
            "training.max_steps": 160,
            "training.batch_size": 16,
            "training.optimizer": "muon",
            "training.learning_rate": 4e-3,
            "training.warmup_steps": 30,
            "training.save_steps": 80,
            "evaluation.eval_steps": 80,
        },
        (
            "data.text_unit",
            "data.encoding",
            "training.epochs",
            "evaluation.max_tokens",
            "generation.max_new_tokens",
            "generation.temperature",
            "generation.top_p",
        ),
    ),
    "classification": Starter(
        "Tell what kind of text a text is: sentiment, spam, topics, intents.",
        ("finetune --config FILE", "finetune --config FILE --model MODEL"),
        {
            "model.n_layer": 2,
            "model.n_head": 4,
            "model.n_embd": 128,
            "model.context_length": 64,
            "model.dropout": 0.1,
            "tokenizer.train.vocab_size": 4096,
            "data.source": "builtin:docstrings",
            "data.columns.text": "text",
            "data.columns.label": "label",
            "data.validation_fraction": 0.2,
            "training.epochs": 8,
            "training.batch_size": 32,
            "training.optimizer": "muon",
            "training.learning_rate": 2e-3,
            "training.warmup_steps": 50,
            "training.save_steps": 200,
            "evaluation.eval_steps": 200,
        },
        (
            "data.columns.text_pair",
            "data.labels",
            "training.objective",
            "training.class_weights",
            "training.label_smoothing",
            "training.token_dropout",
            "training.prefix_loss",
        ),
    ),
    "question-answering": Starter(
        "Find the answers to questions in texts.",
        ("finetune --config FILE --model MODEL",),
        {
            "model.size": "mini",
            "model.context_length": 128,
            "model.dropout": 0.1,
            "tokenizer.train.vocab_size": 4096,
            "data.source": "questions.json",
            "data.validation_fraction": 0.1,
            "data.stride": 64,
            "training.epochs": 2,
            "training.batch_size": 32,
            "training.optimizer": "muon",
            "training.learning_rate": 1e-3,
            "training.warmup_steps": 50,
            "training.save_steps": 100,
            "evaluation.eval_steps": 100,
        },
        (
            "data.columns.question",
            "data.columns.context",
            "data.columns.answers",
            "training.freeze_layers",
        ),
    ),
    "instruction": Starter(
        "Answer what is asked: the model learns the answers alone, and to end them.",
        ("finetune --config FILE --model MODEL",),
        {
            "model.size": "mini",
            "model.context_length": 128,
            "tokenizer.train.vocab_size": 4096,
            "data.source": "instructions.json",
            "data.validation_fraction": 0.1,
            "training.epochs": 5,
            "training.batch_size": 16,
            "training.learning_rate": 5e-4,
            "training.warmup_steps": 20,
            "training.save_steps": 100,
            "evaluation.eval_steps": 50,
        },
        (
            "data.columns.instruction",
            "data.columns.input",
            "data.columns.output",
            "data.columns.messages",
            "data.too_long",
            "training.optimizer",
            "generation.max_new_tokens",
            "generation.temperature",
            "generation.top_p",
        ),
    ),
}

# What is said of a setting in place of its description.
_COMMENTS = {
    "language-modelling": {"data.source": "Yours: files, folders, globs, or a hub data set."},
    "classification": {
        "data.source": "Yours: .csv, .tsv, .json, .jsonl, .parquet; or a folder with one for each label."
    },
    "question-answering": {"data.source": "Yours: .json as SQuAD has it, or rows."},
    "instruction": {"data.source": "Yours: instruction and output, prompt and completion, or messages."},
}


def starter_config(task: TaskName, file: str, machine: dict[str, tuple[str, str]]) -> str:
    """Return the text of a config for `task`, to be saved as `file`.

    machine: {"device": (value, reason), "precision": (value, reason)} of the machine it is for.
    """
    starter = STARTERS[task]
    page = _Page(task, {"task": task, **starter.values}, {*_MENTIONED, *starter.mentioned})
    for key, (value, reason) in machine.items():
        page.values[f"runtime.{key}"] = value
        page.comments[f"runtime.{key}"] = f"Here: {reason}. auto is for any machine."
    lines = [
        f"# yaml-language-server: $schema={SCHEMA_FILE}",
        f"# {starter.title}",
        "#",
        *(f"#   gptcli {command.replace('FILE', file)}" for command in starter.commands),
        "#",
        "# MODEL is a run, a model folder or a hub name; its shape and tokenizer come with it. Settings",
        "# after a # are not set: they show the default, or an example. Editors complete and check this",
        f"# file by the schema in the first line; `gptcli config schema > {SCHEMA_FILE}` writes it.",
        "",
        f"task: {task}",
    ]
    for name, field in Settings.model_fields.items():
        section = section_type(field.annotation)
        if section is not None and (rows := list(page.rows(section, name))):
            lines += ["", f"{name}:", *_aligned(rows)]
    return "\n".join(lines) + "\n"


class _Page:
    """The settings of a config, as lines of YAML with their comments."""

    def __init__(self, task: TaskName, values: dict[str, Any], mentioned: set[str]) -> None:
        self.values = values
        self.comments = dict(_COMMENTS[task])
        self._mentioned = mentioned
        self._task = task.replace("-", " ").capitalize()

    def rows(self, section: type[BaseModel], prefix: str, depth: int = 1) -> Iterator[tuple[str, str]]:
        """Yield (line, comment) of each setting in `section` that is set or mentioned."""
        for key, field in section.model_fields.items():
            name = f"{prefix}.{key}"
            inner = section_type(field.annotation)
            if inner is not None:
                if below := list(self.rows(inner, name, depth + 1)):
                    is_set = any(other.startswith(f"{name}.") for other in self.values)
                    yield _line(f"{key}:", depth, is_set=is_set), ""
                    yield from below
            elif name in self.values or name in self._mentioned:
                is_set = name in self.values
                value = self.values[name] if is_set else _EXAMPLES.get(name, field.default)
                default = None if value == field.default else field.default
                comment = self.comments.get(name) or self._comment(field, default)
                yield _line(f"{key}: {dump_value(value)}", depth, is_set=is_set), comment

    def _comment(self, field: FieldInfo, default: object) -> str:
        """Return the first sentence of a description, what is allowed, and the default if given."""
        sentence = str(field.description).partition(". ")[0].rstrip(".")
        if sentence.startswith(f"{self._task}: "):
            sentence = sentence.removeprefix(f"{self._task}: ")
            sentence = sentence[0].upper() + sentence[1:]
        facts = [_allowed(field)]
        if default is not None:
            facts.append(f"default {dump_value(default)}")
        known = "; ".join(filter(None, facts))
        return f"{sentence} ({known})." if known else f"{sentence}."


def _line(text: str, depth: int, *, is_set: bool) -> str:
    # What is not set has its mark where the section begins; without the mark, it is in place.
    return f"{'  ' * depth}{text}" if is_set else f"  # {'  ' * (depth - 1)}{text}"


def _allowed(field: FieldInfo) -> str:
    found = choices(field.annotation)
    if found:
        takes_numbers = int in getattr(field.annotation, "__args__", ())
        return ", ".join(found) + (" or a number" if takes_numbers else "")
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    return ", ".join(
        f"{sign}{_NO_BREAK}{getattr(item, attribute):,}"
        for attribute, sign in signs.items()
        for item in field.metadata
        if hasattr(item, attribute)
    )


def _aligned(rows: list[tuple[str, str]]) -> Iterator[str]:
    """Yield lines with their comments in one column, as many lines as these need."""
    column = max(len(line) for line, _ in rows) + 3
    for line, comment in rows:
        for part in textwrap.wrap(comment, WIDTH - column - 2) or [""]:
            yield f"{line:<{column}}# {part.replace(_NO_BREAK, ' ')}" if part else line
            line = ""
