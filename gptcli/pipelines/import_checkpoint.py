"""Import: a checkpoint of nanoGPT in, a Hugging Face folder out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gptcli.data.tokenizing import load_tokenizer
from gptcli.errors import ModelError
from gptcli.models.nanogpt import read_nanogpt
from gptcli.models.saving import check_new_folder, save_model
from gptcli.training.run_folder import RunFolder


@dataclass(frozen=True)
class Import:
    """What was read and written."""

    checkpoint: str
    output: str
    parameters: int
    layers: int
    context_length: int
    vocab_size: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def import_checkpoint(checkpoint: Path, output: Path, tokenizer_name: str) -> Import:
    """Write the model of a nanoGPT checkpoint to the folder `output`, with its tokenizer.

    tokenizer_name: a folder with one, a run folder, or a name on the hub. Raises ConfigError,
    ModelError, EnvironmentProblem.
    """
    check_new_folder(output)
    if checkpoint.is_dir():
        raise ModelError(f"{checkpoint} is a folder; a checkpoint of nanoGPT is a file, ckpt.pt.")
    if not checkpoint.exists():
        raise ModelError(f"{checkpoint}: no such file.")
    run = RunFolder(Path(tokenizer_name))
    tokenizer = load_tokenizer(str(run.model) if run.run.is_file() else tokenizer_name)
    model = read_nanogpt(checkpoint, tokenizer)
    if output.is_dir():
        output.rmdir()
    save_model(model, tokenizer, output)
    return Import(
        checkpoint=str(checkpoint),
        output=str(output),
        parameters=sum(weight.numel() for weight in model.parameters()),
        layers=model.config.n_layer,
        context_length=model.config.n_positions,
        vocab_size=model.config.vocab_size,
    )
