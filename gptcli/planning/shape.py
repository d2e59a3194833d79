"""The shape of a GPT-2, its weights and its floating-point operations, counted part by part."""

from __future__ import annotations

from dataclasses import dataclass

from gptcli.config.schema import LoraSettings, Settings, TaskName, TrainingSettings

# The head of its own that a task puts on the model, without what depends on the labels.
_LANGUAGE_TASKS = ("language-modelling", "instruction")


@dataclass(frozen=True)
class Shape:
    """A GPT-2 with what decides its size."""

    n_layer: int
    n_head: int
    n_embd: int
    positions: int
    """Of the position embedding: the most tokens that the model can see."""
    vocab_size: int
    n_inner: int
    """Width of the feed-forward part."""
    head_weights: int = 0
    """Of a head of its own; language models use the token embedding for it."""

    @classmethod
    def of(cls, n_layer: int, n_head: int, n_embd: int, positions: int, vocab_size: int) -> Shape:
        """Return the shape of a language model with GPT-2's feed-forward part, four times as wide."""
        return cls(n_layer, n_head, n_embd, positions, vocab_size, 4 * n_embd)

    @property
    def embedding_weights(self) -> int:
        return (self.vocab_size + self.positions) * self.n_embd

    @property
    def layer_matrices(self) -> tuple[int, int, int, int]:
        """Weights of each of the four matrices of one layer."""
        width, inner = self.n_embd, self.n_inner
        return 3 * width**2, width**2, width * inner, inner * width

    @property
    def layer_matrix_weights(self) -> int:
        return sum(self.layer_matrices)

    @property
    def layer_weights(self) -> int:
        """Those of one layer: matrices, their biases, two layer norms."""
        biases = 3 * self.n_embd + self.n_embd + self.n_inner + self.n_embd
        return self.layer_matrix_weights + biases + 4 * self.n_embd

    @property
    def parameters(self) -> int:
        return sum(self.parameter_parts().values())

    def parameter_parts(self) -> dict[str, int]:
        """Return {part: weights}; embedding and language-modelling head share theirs, counted once."""
        width, inner = self.n_embd, self.n_inner
        parts = {
            "token embedding": self.vocab_size * width,
            "position embedding": self.positions * width,
            "attention": self.n_layer * (4 * width**2 + 4 * width),
            "feed-forward": self.n_layer * (2 * width * inner + inner + width),
            "layer norms": (2 * self.n_layer + 1) * 2 * width,
        }
        if self.head_weights:
            parts["head"] = self.head_weights
        return parts


def models_language(task: TaskName) -> bool:
    """Whether the task scores the whole vocabulary at each token."""
    return task in _LANGUAGE_TASKS


def trained_parameters(shape: Shape, training: TrainingSettings) -> int:
    """Return how many weights training changes."""
    if training.lora is not None:
        return shape.n_layer * _adapter_weights(shape, training.lora) + shape.head_weights
    frozen = training.freeze_layers
    if not frozen:
        return shape.parameters
    return shape.parameters - shape.embedding_weights - frozen * shape.layer_weights


def added_parameters(shape: Shape, training: TrainingSettings) -> int:
    """Return the weights of adapters, which come beside those of the model while it is trained."""
    return 0 if training.lora is None else shape.n_layer * _adapter_weights(shape, training.lora)


def _adapter_weights(shape: Shape, lora: LoraSettings) -> int:
    """Return the weights of one layer's adapters: rank * (inputs + outputs) a matrix."""
    width, inner = shape.n_embd, shape.n_inner
    sides = {
        "c_attn": width + 3 * width,
        # Both the attention's and the feed-forward's are called so.
        "c_proj": (width + width) + (inner + width),
        "c_fc": width + inner,
    }
    return lora.rank * sum(sides[target] for target in set(lora.targets))


@dataclass(frozen=True)
class Operations:
    """Floating-point operations a token, two for each weight of a matrix (multiply and add)."""

    forward: int
    training: int
    """Forward and backward."""


def operations_per_token(shape: Shape, settings: Settings, length: int) -> Operations:
    """Return those of a token in a sequence of `length`.

    Forward, a layer: 2 a matrix weight, and 4 * length * width for attention, counted over the whole
    sequence as is the custom (Chowdhery et al. 2022, appendix B), though causal attention needs half.
    The head: 2 * vocabulary * width. Backward: twice that, once for the gradients of what comes in and
    once for those of the weights; none below frozen layers, half for weights that stay.
    """
    training = settings.training
    layer = 2 * shape.layer_matrix_weights + 4 * length * shape.n_embd
    head = 2 * shape.vocab_size * shape.n_embd if models_language(settings.task) else 0
    layers = shape.n_layer - training.freeze_layers
    if training.lora is not None:
        backward = layers * layer + head
    elif training.freeze_layers:
        backward = 2 * layers * layer + head
    else:
        backward = 2 * (layers * layer + head)
    again = layers * layer if training.gradient_checkpointing else 0
    forward = shape.n_layer * layer + head
    return Operations(forward, forward + backward + again)
