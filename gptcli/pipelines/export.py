"""Export: a run or a model in, and out a folder for other programs, with a card that says what it is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gptcli.errors import ConfigError, ModelError
from gptcli.files import flush_to_disk, partial_path, remove_tree, writing_to
from gptcli.generation.decoder import Decoder, NewToken, Request
from gptcli.generation.sampling import Sampling
from gptcli.models import ctranslate2_format, gguf_format
from gptcli.models.loading import FoundModel, LoadedModel, find_model, load_found
from gptcli.models.saving import check_new_folder, save_model
from gptcli.reports.model_card import model_card
from gptcli.training.device import DTYPES
from gptcli.training.run_folder import RunFolder

if TYPE_CHECKING:
    from transformers import GPT2Config

PRECISIONS = {
    "huggingface": ("fp32", "bf16", "fp16"),
    "ctranslate2": tuple(ctranslate2_format.TYPES),
    "gguf": tuple(gguf_format.TYPES),
}
"""What each format can hold."""
GGUF_FILE = "model.gguf"
COMPARED_TOKENS = 32


@dataclass(frozen=True)
class Export:
    """What was written."""

    model: str
    output: str
    format: str
    precision: str
    parameters: int
    bytes: int
    compared_tokens: int | None
    """Of the likeliest text of the model in float32; None if it was not compared: Hugging Face's format
    holds the very numbers."""
    equal_tokens: int | None
    """Of these, those that are the likeliest for the exported model too, behind the same tokens."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def export(model_name: str, output: Path, kind: str, precision: str) -> Export:
    """Write a model to the folder `output`, which is there whole afterwards, or not at all.

    kind: one of PRECISIONS, precision: one of those. Adapters are merged in a run's model. Raises
    ConfigError, ModelError, EnvironmentProblem.
    """
    if kind not in PRECISIONS:
        raise ConfigError(f"--format is {kind!r}; it must be one of {', '.join(PRECISIONS)}.")
    if precision not in PRECISIONS[kind]:
        raise ConfigError(
            f"--precision is {precision!r}; with --format {kind} it must be one of "
            f"{', '.join(PRECISIONS[kind])}."
        )
    check_new_folder(output)
    if kind == "ctranslate2":
        ctranslate2_format.import_ctranslate2()
    elif kind == "gguf":
        gguf_format.import_gguf()
    found = find_model(model_name)
    if kind != "huggingface" and found.kind != "language-modelling":
        raise ModelError(
            f"{model_name} is for {found.kind}; --format {kind} takes only language models."
        )
    if kind == "ctranslate2":
        _check_config(model_name, found, ctranslate2_format.TAKEN, "CTranslate2's converter")
    elif kind == "gguf":
        _check_config(model_name, found, gguf_format.TAKEN, "llama.cpp")
    loaded = load_found(found, torch.device("cpu"), torch.float32)
    if kind == "gguf":
        gguf_format.check_model(loaded, precision)
    parameters = sum(weight.numel() for weight in loaded.model.parameters())
    card = model_card(
        output.resolve().name,
        found.kind,
        _shape(found.config, parameters, precision),
        *_facts(model_name),
        library={"huggingface": "transformers"}.get(kind, kind),
    )
    if output.is_dir():
        output.rmdir()
    compared = equal = None
    if kind == "huggingface":
        _round(loaded, precision)
        save_model(loaded.model, loaded.tokenizer, output, {"README.md": card})
    else:
        write = _write_ctranslate2 if kind == "ctranslate2" else _write_gguf
        text = _likeliest_text(loaded)
        chosen = write(loaded, output, precision, card, text)
        compared = len(text)
        equal = sum(one == other for one, other in zip(chosen, text, strict=True))
    return Export(
        model=model_name,
        output=str(output),
        format=kind,
        precision=precision,
        parameters=parameters,
        bytes=sum(file.stat().st_size for file in output.iterdir()),
        compared_tokens=compared,
        equal_tokens=equal,
    )


def _check_config(
    name: str, found: FoundModel, taken: Mapping[str, tuple[Any, ...]], reader: str
) -> None:
    """Raise ModelError for a model that would compute something else as `reader` reads it."""
    for key, values in taken.items():
        value = getattr(found.config, key)
        if value not in values:
            raise ModelError(
                f"{name}: its config.json says {key} {value}, and {reader} takes GPT-2's {values[0]}. "
                "--format huggingface keeps it."
            )


def _shape(config: GPT2Config, parameters: int, precision: str) -> list[tuple[str, str]]:
    return [
        ("parameters", f"{parameters:,}"),
        ("layers", f"{config.n_layer}"),
        ("heads", f"{config.n_head}"),
        ("width", f"{config.n_embd}"),
        ("context, tokens", f"{config.n_positions:,}"),
        ("vocabulary, tokens", f"{config.vocab_size:,}"),
        ("number format", precision),
    ]


def _round(loaded: LoadedModel, precision: str) -> None:
    for name, weight in loaded.model.to(DTYPES[precision]).named_parameters():
        if not weight.isfinite().all():
            raise ModelError(
                f"{loaded.name}: {name} has numbers that {precision} cannot hold. Try --precision fp32."
            )


def _facts(model_name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return run.json and data.json of the run that the model is of; nothing if it is of none."""
    path = Path(model_name).expanduser()
    for folder in (path, path.resolve().parent if path.name == "model" else path):
        run = RunFolder(folder)
        if run.run.is_file():
            try:
                ledger = json.loads(run.ledger.read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError):
                ledger = {}
            return run.read_facts(), ledger if isinstance(ledger, dict) else {}
    return {}, {}


def _likeliest_text(loaded: LoadedModel) -> list[int]:
    """Return the tokens that follow the end-of-text token, where a new text begins."""
    # No token ends it: to be compared, the text may go on behind an end.
    decoder = Decoder(loaded.model, -1, torch.float32)
    request = Request([loaded.tokenizer.eos_token_id], COMPARED_TOKENS)
    events = decoder.decode([request], Sampling())
    return [event.token_id for event in events if isinstance(event, NewToken)]


@contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """Give a name for a folder to make, which is moved to `output`, or removed if that fails."""
    staging = partial_path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with writing_to(output):
        try:
            remove_tree(staging)  # What a killed process has left.
            yield staging
            for file in staging.iterdir():
                flush_to_disk(file)
            staging.rename(output)
            flush_to_disk(output.parent)
        finally:
            remove_tree(staging)


def _write_ctranslate2(
    loaded: LoadedModel, output: Path, precision: str, card: str, text: list[int]
) -> list[int]:
    """Write the folder; return what its engine finds likeliest where the tokens of the text are."""
    source = output.with_name(f".{output.name}.source")
    tokenizer = loaded.tokenizer
    with _new_folder(output) as staging:
        try:
            remove_tree(source)
            if tokenizer.unk_token is None:
                tokenizer.unk_token = tokenizer.eos_token  # As OpenAI's GPT-2 has it; no text makes it.
            save_model(loaded.model, tokenizer, source, {"README.md": card})
            ctranslate2_format.convert(source, staging, precision)
        finally:
            remove_tree(source)
        before = tokenizer.convert_ids_to_tokens([tokenizer.eos_token_id, *text[:-1]])
        return ctranslate2_format.likeliest_tokens(staging, before)


def _write_gguf(
    loaded: LoadedModel, output: Path, precision: str, card: str, text: list[int]
) -> list[int]:
    """Write the folder; return what its weights make likeliest where the tokens of the text are."""
    with _new_folder(output) as staging:
        staging.mkdir()
        (staging / "README.md").write_text(card, encoding="utf-8")
        file = staging / GGUF_FILE
        gguf_format.write(loaded, file, output.resolve().name, precision)
        before = [loaded.tokenizer.eos_token_id, *text[:-1]]
        return gguf_format.likeliest_tokens(file, loaded, before, precision)
