"""The model card: README.md of an exported folder, of what is known and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

PIPELINES = {
    "language-modelling": ("text-generation", "AutoModelForCausalLM"),
    "classification": ("text-classification", "AutoModelForSequenceClassification"),
    "question-answering": ("question-answering", "AutoModelForQuestionAnswering"),
}
"""By kind of model: what the hub calls it, and the class that opens it."""
MAX_SOURCES = 20
_HUB_NAME = re.compile(r"[\w-]+/[\w-]+")
_TRANSFORMERS = """\
from transformers import AutoTokenizer, OPENER

model = OPENER.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
"""
_CTRANSLATE2 = """\
import ctranslate2
from transformers import AutoTokenizer

generator = ctranslate2.Generator("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
tokens = tokenizer.tokenize("Once upon a time")
(found,) = generator.generate_batch([tokens], max_length=50, sampling_topk=10)
print(tokenizer.decode(found.sequences_ids[0]))
"""
_GGUF = """\
from llama_cpp import Llama

model = Llama("FOLDER/model.gguf", n_ctx=0)  # As many tokens as the model has positions for.
found = model("Once upon a time", max_tokens=50)
print(found["choices"][0]["text"])
"""
_LIMITS = """: nothing is known of its truth, bias or safety. It may repeat what it was trained on.

No licence is stated: it follows from those of the data, and of the model that training started from.
"""
_CODE = {"transformers": _TRANSFORMERS, "ctranslate2": _CTRANSLATE2, "gguf": _GGUF}


def model_card(
    name: str,
    kind: str,
    shape: Iterable[tuple[str, str]],
    run: Mapping[str, Any],
    ledger: Mapping[str, Any],
    *,
    library: str = "transformers",
) -> str:
    """Return a model card in Markdown.

    shape: named facts of the model itself. run, ledger: what is in run.json and data.json of its run;
    empty if it has none. library: that which opens the folder, transformers, ctranslate2 or gguf.
    """
    pipeline, opener = PIPELINES[kind]
    parts = [
        f"---\nlibrary_name: {library}\npipeline_tag: {pipeline}\ntags:\n- gpt2\n- gptcli\n---\n",
        f"# {_plain(name)}\n",
        _table(shape),
    ]
    scores = _part(run, "best_evaluation")
    if run:
        parts += ["## Data\n", _data(ledger)] if ledger else []
        parts += ["## Training\n", _table(_training(run))]
        if scores:
            rows = [(key, _number(value)) for key, value in scores.items() if key != "step"]
            parts += [f"## Scores\n\nOn held-out data, at step {scores.get('step')}:\n", _table(rows)]
    else:
        parts += ["## Training\n\nNot known: what was exported is not the model of a run.\n"]
    code = _CODE[library].replace("OPENER", opener)
    measured = "Only the scores above were" if scores else "Nothing was"
    parts.append(f"## Use\n\n```python\n{code}```\n\n## Limits\n\n{measured} measured{_LIMITS}")
    return "\n".join(parts)


def _data(ledger: Mapping[str, Any]) -> str:
    given = ledger.get("sources")
    sources = [
        _plain(_without_folders(str(source))) for source in (given if isinstance(given, list) else [])
    ]
    lines = [f"- {source}" for source in sources[:MAX_SOURCES]]
    if len(sources) > MAX_SOURCES:
        lines.append(f"- and {len(sources) - MAX_SOURCES} more")
    rows = []
    for part in ("train", "validation"):
        if size := _part(ledger, part):
            rows.append((part, ", ".join(f"{_number(value)} {key}" for key, value in size.items())))
    return "\n".join([*lines, "", _table(rows)])


def _part(facts: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return what stands under a key; nothing if it is not what a run writes there."""
    found = facts.get(key)
    return found if isinstance(found, Mapping) else {}


def _without_folders(name: str) -> str:
    """Return a path's last name: the others are nobody's business. OWNER/NAME on the hub stays."""
    return name if _HUB_NAME.fullmatch(name) else PurePath(name).name


def _training(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    versions, hardware, prints = (_part(run, key) for key in ("versions", "hardware", "fingerprints"))
    facts = {
        "task": run.get("task"),
        "start": _without_folders(str(run.get("start") or "")),
        "steps": run.get("step"),
        "tokens": run.get("tokens"),
        "training time, seconds": run.get("training_seconds"),
        "ended": run.get("ended"),
        "device": hardware.get("device"),
        "precision": hardware.get("precision"),
        "versions": ", ".join(f"{key} {value}" for key, value in versions.items()),
        "fingerprint of the data": prints.get("data"),
        "fingerprint of the tokenizer": prints.get("tokenizer"),
    }
    return [(key, _number(value)) for key, value in facts.items() if value not in (None, "")]


def _table(rows: Iterable[tuple[str, str]]) -> str:
    lines = [f"| {_plain(key)} | {_plain(value)} |" for key, value in rows]
    return "\n".join(["| | |", "|---|---|", *lines, ""])


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.4f}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _plain(text: str) -> str:
    """Return text on one line in which Markdown and HTML mean nothing."""
    line = " ".join(text.split())
    return "".join(f"\\{c}" if c in "\\|`*_<>[]&" else c for c in line if c.isprintable())
