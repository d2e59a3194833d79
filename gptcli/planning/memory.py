"""What a training step holds in memory, tensor by tensor.

`layer_activations`, `_outside_of_layers` and `_head_loss` mirror what the training's code keeps: when
that changes, `benchmarks/planning.py` shows how far they are off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gptcli.config.schema import Settings
from gptcli.planning.shape import Shape, added_parameters, models_language, trained_parameters

Device = Literal["cpu", "cuda", "mps"]
Precision = Literal["fp32", "bf16", "fp16"]

# Python, torch and transformers: 395 MB after their imports, 455 MB once they have computed something.
LIBRARIES = {"cpu": 455_000_000, "cuda": 500_000_000, "mps": 455_000_000}
# Freed memory stays with the process (training/device.py), some of it in pieces that are too small for
# what comes next: this share of what a step takes and frees, measured by benchmarks/planning.py.
LEFT_IN_PIECES = {"fp32": 0.35, "bf16": 0.4, "fp16": 0.4}
# Up to these lengths a CPU attends by plain products, and keeps the weights (models/attention.py).
PLAIN_ATTENTION_TOKENS, KEPT_WEIGHTS_TOKENS = 2048, 256
# Rows whose scores over the vocabulary are there at once, and on a CPU, scores that are in float32 at
# once and words of a slice of the vocabulary (training/loss.py).
HEAD_ROWS = {"cpu": 2048, "cuda": 4096, "mps": 4096}
SCORES_AT_ONCE = 2**20
WORDS_AT_ONCE = 2**13
# micro_batch_size: auto keeps what a step holds on to below this many numbers on a CPU, but for so many
# tokens: fewer would not be worth the copies of the weights and the sums of gradients that each
# micro-batch takes (GPT-2 124M is 15 to 38% faster so). On a GPU it starts from the whole batch and is
# halved until it fits.
AUTO_NUMBERS = 2**27
AUTO_TOKENS = 4096


# From so many weights on, compiled code (native/product.py) multiplies with a matrix where a CPU has it:
# it makes no copies in low precision, and keeps nothing of what the activation function gives. Whole
# layers (native/layer.py) are for heads, and an MLP, of multiples of these sizes.
NATIVE_WEIGHTS = 2**17
NATIVE_MULTIPLE = 32


@dataclass(frozen=True)
class Kept:
    """One tensor of a layer that the backward pass needs."""

    name: str
    numbers: int
    """A token."""
    bytes_each: int

    @property
    def bytes(self) -> int:
        return self.numbers * self.bytes_each


def layer_activations(
    shape: Shape,
    length: int,
    precision: Precision,
    device: Device,
    dropout: bool,
    is_native: bool = False,
    is_whole_native: bool = False,
) -> list[Kept]:
    """Return what one layer keeps of each token of a sequence of `length`.

    is_native: compiled code makes the products with large matrices, and attends. is_whole_native: and
    all else.
    """
    width, inner, heads = shape.n_embd, shape.n_inner, shape.n_head
    product = 4 if precision == "fp32" else 2  # What matrix products take and give.
    if is_whole_native:
        return [
            Kept("residual stream into the first layer norm", width, 4),
            Kept("queries, keys and values", 3 * width, product),
            Kept("attended values, into c_proj", width, product),
            Kept("normalizers of attention weights", heads, 4),
            Kept("residual stream into the second layer norm", width, 4),
            Kept("what the activation function takes", inner, product),
        ]
    is_plain = device == "cpu" and length <= PLAIN_ATTENTION_TOKENS
    kept = [
        Kept("residual stream into the first layer norm", width, 4),
        Kept("its output, into c_attn", width, product),
        Kept("queries, keys and values", 3 * width, product),
        Kept("attended values, into c_proj", width, product),
        Kept("residual stream into the second layer norm", width, 4),
        Kept("its output, into c_fc", width, product),
        Kept("what the activation function takes", inner, product),
        Kept("mean and deviation of both layer norms", 4, 4),
    ]
    if not _is_native(width * inner, is_native):
        kept.append(Kept("what it gives, into c_proj", inner, product))
    attends_natively = is_native and not dropout and width % (NATIVE_MULTIPLE * heads) == 0
    is_short = device == "cpu" and length <= KEPT_WEIGHTS_TOKENS and not attends_natively
    if is_short:
        kept.append(Kept("attention weights", heads * length, product))
    elif attends_natively or not is_plain:
        kept.append(Kept("normalizers of attention weights", heads, 4))
    if dropout:
        # A GPU keeps a byte a number. What attention drops is drawn again, but for short texts.
        kept.append(Kept("dropout masks of both outputs", 2 * width, product if device == "cpu" else 1))
        if is_short:
            kept.append(Kept("dropout mask of attention weights", heads * length, product))
    return kept


@dataclass(frozen=True)
class Memory:
    """Bytes of a training process (on a GPU: of its memory) at its peak, and of its parts."""

    libraries: int
    weights: int
    """In float32."""
    gradients: int
    optimizer: int
    copies: int
    """Of the layers' matrices in the precision of matrix products."""
    activations: int
    logits: int
    """Scores over the vocabulary of some rows, their gradients, and the gradient of the head."""
    in_pieces: int
    """Freed, but too small for what comes next."""
    peak: int
    """The most that is there at once; gradients come as activations go."""


def training_memory(
    shape: Shape,
    settings: Settings,
    length: int,
    micro_batch_size: int,
    device: Device,
    precision: Precision,
    is_native: bool = False,
) -> Memory:
    """Return what a step takes with micro-batches of so many sequences of `length` tokens.

    is_native: compiled code makes the products with large matrices, and computes the layers that it is
    for.
    """
    training = settings.training
    tokens = micro_batch_size * length
    trained = trained_parameters(shape, training)
    is_whole = training.lora is None and not training.freeze_layers  # The embeddings learn too.
    product = 4 if precision == "fp32" else 2
    weights = 4 * (shape.parameters + added_parameters(shape, training))
    gradients = 4 * trained
    optimizer = optimizer_bytes(shape, settings)
    is_whole_native = is_native and _has_native_layers(shape, settings)
    copied = sum(size for size in shape.layer_matrices if not _is_native(size, is_native))
    copies = 0 if precision == "fp32" or is_whole_native else 2 * shape.n_layer * copied

    kept_layers = shape.n_layer - training.freeze_layers
    layer = sum(
        kept.bytes
        for kept in layer_activations(
            shape, length, precision, device, settings.model.dropout > 0, is_native, is_whole_native
        )
    )
    if training.gradient_checkpointing:  # The stream at each layer, and one layer at a time.
        activations = tokens * (kept_layers * 4 * shape.n_embd + layer)
    else:
        activations = tokens * kept_layers * layer
    activations += tokens * _outside_of_layers(shape, product)
    embedding = 4 * shape.vocab_size * shape.n_embd
    head = (
        _head_loss(shape, tokens, product, device, is_whole, is_native)
        if models_language(settings.task)
        else 0
    )
    head_gradient = embedding if is_whole and models_language(settings.task) else 0

    accumulated = gradients if micro_batch_size < training.batch_size else 0
    always = LIBRARIES[device] + weights + optimizer
    # At the loss: all activations, and the head's scores.
    space = _space_of_layers(shape, tokens) if is_whole_native else 0  # It stays there.
    activations += space
    at_loss = accumulated + copies + activations + head + head_gradient
    # At the end of the backward pass: the embedding's gradient comes from both of its ends.
    at_end = gradients + head_gradient + (embedding if is_whole and accumulated else 0) + space
    in_pieces = round(LEFT_IN_PIECES[precision] * max(at_loss, at_end))
    return Memory(
        libraries=LIBRARIES[device],
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        copies=copies,
        activations=activations,
        logits=head + head_gradient,
        in_pieces=in_pieces,
        peak=always + max(at_loss, at_end) + in_pieces,
    )


def _is_native(weights: int, is_there: bool) -> bool:
    """Return whether compiled code, where it is there, multiplies with a matrix of so many weights."""
    return is_there and weights >= NATIVE_WEIGHTS


def _has_native_layers(shape: Shape, settings: Settings) -> bool:
    """Return whether compiled code, where it is there, computes whole layers (models/layer.py)."""
    has_sizes = shape.n_embd % (NATIVE_MULTIPLE * shape.n_head) == shape.n_inner % NATIVE_MULTIPLE == 0
    is_plain = not settings.model.dropout and settings.training.lora is None
    return has_sizes and is_plain and settings.runtime.compile is not True


def _space_of_layers(shape: Shape, tokens: int) -> int:
    """Return the bytes that the backward pass of a native layer takes for itself (native/layer.cpp)."""
    width, inner = shape.n_embd, shape.n_inner
    # In bfloat16 what a layer norm gives and two gradients, in float32 two; what goes through the
    # activation function; and where the products with the MLP's second matrix are laid out.
    made = tokens * (3 * 2 * width + 2 * 4 * width + 2 * max(inner, 3 * width))
    return made + 2 * (tokens * (inner + width) + inner * width)


def _outside_of_layers(shape: Shape, product: int) -> int:
    """Return the bytes a token of the last layer norm (in and out), the head's input, its gradient."""
    return shape.n_embd * (4 + 4 + 4 + (0 if product == 4 else product))


def _head_loss(
    shape: Shape, tokens: int, product: int, device: Device, is_whole: bool, is_native: bool
) -> int:
    """Return the bytes of the head's loss beside the gradient of its weights (training/loss.py)."""
    rows = min(tokens, HEAD_ROWS[device])
    numbers = rows * shape.vocab_size
    at_once = min(numbers, SCORES_AT_ONCE) if device == "cpu" else numbers
    half = 0 if product == 4 else product
    matrix = shape.vocab_size * shape.n_embd
    copied = 0 if _is_native(matrix, is_native) else matrix
    words = min(shape.vocab_size, WORDS_AT_ONCE if device == "cpu" else shape.vocab_size)
    # Scores, whose gradient takes their place. Beside them, in float32, their logarithms and a copy, and
    # then the gradient of a slice of the head.
    of_part = max((8 + half) * at_once, product * words * shape.n_embd if is_whole else 0)
    return half * copied + product * numbers + of_part


def optimizer_bytes(shape: Shape, settings: Settings) -> int:
    """Return what the optimizer keeps: two numbers a weight for AdamW, one for matrices with Muon."""
    training = settings.training
    trained = trained_parameters(shape, training)
    with_muon = 0
    if training.optimizer == "muon":
        with_muon = (
            added_parameters(shape, training)
            if training.lora is not None
            else (shape.n_layer - training.freeze_layers) * shape.layer_matrix_weights
        )
    return 4 * (2 * trained - with_muon)


def checkpoint_bytes(shape: Shape, settings: Settings) -> int:
    """Return what one checkpoint takes on disk."""
    weights = 4 * (shape.parameters + added_parameters(shape, settings.training))
    return weights + optimizer_bytes(shape, settings) + 100_000


def run_bytes(shape: Shape, settings: Settings) -> int:
    """Return the most that a run's checkpoints and models take on disk, one of each being written."""
    kept = settings.training.keep_checkpoints + 1  # That of the best evaluation.
    return (kept + 1) * checkpoint_bytes(shape, settings) + 2 * 4 * shape.parameters


def automatic_micro_batch_size(shape: Shape, batch_size: int, length: int, device: Device) -> int:
    """Return what micro_batch_size: auto begins with."""
    if device == "cuda":
        return batch_size
    # What is kept for the backward pass, about; the head keeps nothing.
    weights = shape.n_head * length if length <= KEPT_WEIGHTS_TOKENS else 0
    numbers = shape.n_layer * (16 * shape.n_embd + weights)
    most = max(1, AUTO_NUMBERS // (numbers * length), AUTO_TOKENS // length)
    # Of the same size each, as far as that goes.
    return -(-batch_size // -(-batch_size // most))
