"""What training starts from: a GPT-2 that is there, or a new one; and which weights it changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gptcli.config.schema import Settings, TrainingSettings
from gptcli.errors import ConfigError
from gptcli.models.adapters import add_adapters
from gptcli.models.architecture import model_config, new_model
from gptcli.models.loading import Kind, find_model, load_for_training, model_class, set_labels

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class TrainableModel:
    """A model as training begins with it."""

    model: Any
    """In float32 on the CPU, with the weights that training changes marked so."""
    origin: str
    """What it is, for people."""
    is_new: bool
    """Whether it, or its head, has learnt nothing yet: its scores say nothing."""


class StartingModel:
    """The model of `model.name`, or a new one of the shape in `model`. Its weights are loaded last."""

    def __init__(self, settings: Settings) -> None:
        """Raises ModelError or EnvironmentProblem for a model that is not there or cannot be used."""
        model = settings.model
        self._settings = settings
        self._found = None if model.name is None else find_model(model.name)
        context_length = model.context_length
        if self._found is not None:
            longest = int(self._found.config.n_positions)
            context_length = context_length or longest
            if context_length > longest:
                raise ConfigError(
                    f"model.context_length is {context_length}; that of {model.name} is {longest}."
                )
        assert context_length is not None  # For a new model, the schema fills it in.
        self.context_length = context_length
        """Most tokens of a sequence."""

    def tokenizer(self) -> PreTrainedTokenizerFast | None:
        """Return the tokenizer that belongs to the model; None for a new one, which takes any."""
        return None if self._found is None else self._found.tokenizer()

    def load(
        self, kind: Kind, tokenizer: PreTrainedTokenizerFast, labels: list[str] | None = None
    ) -> TrainableModel:
        """Return the model. labels: those that a classifier is to tell apart."""
        settings, seed = self._settings, self._settings.runtime.seed
        if self._found is None:
            config = model_config(settings.model, tokenizer)
            if labels is not None:
                set_labels(config, labels)
            model = new_model(config, seed, model_class(kind))
            origin, is_new = "a new GPT-2", True
        else:
            dropout = settings.model.dropout
            model, is_new = load_for_training(
                self._found, kind, seed=seed, dropout=dropout, labels=labels
            )
            origin = f"{settings.model.name}{', with a new head' if is_new else ''}"
        _choose_weights(model, settings.training)
        return TrainableModel(model, origin, is_new)


def _choose_weights(model: Any, training: TrainingSettings) -> None:
    """Freeze what training is not to change."""
    layers = model.transformer.h
    if training.freeze_layers > len(layers):
        raise ConfigError(
            f"training.freeze_layers is {training.freeze_layers}; the model has {len(layers)} layers."
        )
    if training.freeze_layers:
        embeddings = [model.transformer.wte, model.transformer.wpe]
        for part in (*embeddings, *layers[: training.freeze_layers]):
            part.requires_grad_(False)
    if training.lora is not None:
        if training.freeze_layers:
            raise ConfigError(
                "training.lora and training.freeze_layers exclude each other: with lora, all is frozen."
            )
        add_adapters(model, training.lora)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("training.freeze_layers leaves no weight to train.")
    if training.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
