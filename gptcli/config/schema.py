"""Every setting, with its unit, bounds, default and help.

This is the only place where a setting or a default is defined: the command reference, the resolved
`config.yaml` and the error messages are all made from it.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from gptcli.errors import ConfigError

# n_layer, n_head, n_embd, context_length. The last four are the shapes that OpenAI published.
NAMED_SIZES: dict[str, tuple[int, int, int, int]] = {
    "tiny": (2, 2, 64, 128),
    "mini": (4, 4, 256, 256),
    "small": (12, 12, 768, 1024),
    "medium": (24, 16, 1024, 1024),
    "large": (36, 20, 1280, 1024),
    "xl": (48, 25, 1600, 1024),
}
# Tokens a parameter that make the best of a given amount of compute: Hoffmann et al. 2022,
# https://arxiv.org/abs/2203.15556, for models of 70 million to 16 billion parameters and new text.
OPTIMAL_TOKENS_PER_PARAMETER = 20
# Times that a text can be read nearly as well as new text: Muennighoff et al. 2023,
# https://arxiv.org/abs/2305.16264.
USEFUL_EPOCHS = 4
# Peak learning rate of a new model of this width, the best of those tried; of others, by the root of the
# width: wider models want smaller steps.
RATE_WIDTH, RATE = 256, 4e-3
SizeName = Literal["tiny", "mini", "small", "medium", "large", "xl"]

# Largest seed that every generator involved accepts.
MAX_SEED = 2**32 - 1


TaskName = Literal["language-modelling", "classification", "question-answering", "instruction"]


class Section(BaseModel):
    """Strict: no unknown keys, no silent conversion ("3" is not 3), no infinities, no change later."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def _auto_or_positive(value: object) -> object:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError("it must be auto or a whole number of at least 1")


AutoOrPositive = Annotated[
    int | Literal["auto"],
    BeforeValidator(_auto_or_positive),
    WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1}]}),
]


def _device_name(value: object) -> object:
    if isinstance(value, str):
        kind, _, number = value.partition(":")
        if value in ("auto", "cpu", "mps", "cuda") or (kind == "cuda" and number.isdecimal()):
            return value
    raise ValueError("it must be auto, cpu, cuda, cuda:N or mps")


DeviceName = Annotated[
    str,
    BeforeValidator(_device_name),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": ["auto", "cpu", "cuda", "mps"]},
                {"type": "string", "pattern": "^cuda:[0-9]+$"},
            ]
        }
    ),
]


def _sources(value: object) -> object:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list) and value and all(isinstance(item, str) and item for item in value):
        return value
    raise ValueError("it must be a path, a glob, a data set name, or a list of them")


def _columns(value: object) -> object:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list) and len(value) >= 2 and all(isinstance(item, str) for item in value):
        return value
    raise ValueError("it must be the name of a column, or a list of two columns or more")


TrackerName = Literal["tensorboard", "wandb", "trackio"]


def _trackers(value: object) -> object:
    names = [value] if isinstance(value, str) else value
    if (
        isinstance(names, list)
        and all(name in get_args(TrackerName) for name in names)
        and len(set(names)) == len(names)
    ):
        return names
    raise ValueError(
        f"it must be one of {', '.join(get_args(TrackerName))}, or a list of them, each once"
    )


_ONE_OR_SEVERAL_TRACKERS = WithJsonSchema(
    {
        "anyOf": [
            {"enum": list(get_args(TrackerName))},
            {"type": "array", "items": {"enum": list(get_args(TrackerName))}, "uniqueItems": True},
        ]
    }
)


class ModelSettings(Section):
    """A GPT-2 to start from, or the shape of a new one: a size, explicit numbers, or a size changed."""

    name: str | None = Field(
        None,
        min_length=1,
        description="What fine-tuning starts from: a run, a model folder, a checkpoint or a hub name. "
        "Its shape and tokenizer come with it.",
    )
    size: SizeName | None = Field(
        None,
        description="Named shape; small, medium, large and xl are the published GPT-2 shapes. "
        "Without it, n_layer, n_head, n_embd and context_length are all needed.",
    )
    n_layer: int | None = Field(None, ge=1, le=1000, description="Transformer blocks.")
    n_head: int | None = Field(None, ge=1, le=1000, description="Attention heads a block.")
    n_embd: int | None = Field(
        None, ge=1, le=100_000, description="Width of the hidden states; a multiple of n_head."
    )
    context_length: int | None = Field(
        None,
        ge=2,
        le=1_000_000,
        description="Most tokens that the model sees at once; with model.name, at most what it has.",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Probability of dropping an activation.")

    @model_validator(mode="before")
    @classmethod
    def _fill_in_from_size(cls, value: object) -> object:
        if isinstance(value, str):  # `model: small` is short for `model: {size: small}`.
            value = {"size": value}
        if not isinstance(value, dict) or value.get("name") is not None:
            return value
        if value.get("size") is None and not {"n_layer", "n_head", "n_embd"} & value.keys():
            value = {**value, "size": "mini"}
        size = value.get("size")
        if isinstance(size, str) and size in NAMED_SIZES:
            names = ("n_layer", "n_head", "n_embd", "context_length")
            shape = dict(zip(names, NAMED_SIZES[size], strict=True))
            value = shape | {key: item for key, item in value.items() if item is not None}
        return value

    @model_validator(mode="after")
    def _is_a_whole_shape(self) -> Self:
        if self.name is not None:
            for key in ("size", "n_layer", "n_head", "n_embd"):
                if getattr(self, key) is not None:
                    raise ValueError(f"{key} and name exclude each other: the model has its shape")
            return self
        if self.n_layer is None or self.n_head is None or self.n_embd is None:
            raise ValueError("without model.size it must give n_layer, n_head and n_embd")
        if self.context_length is None:
            raise ValueError("without model.size it must give context_length")
        if self.n_embd % self.n_head:
            raise ValueError(
                f"n_embd {self.n_embd} is not divisible by n_head {self.n_head}: "
                "every head needs the same width"
            )
        return self


class TokenizerTraining(Section):
    """How a new tokenizer is trained."""

    vocab_size: int = Field(
        8192,
        ge=257,
        le=1_000_000,
        description="Tokens in the vocabulary, the 256 bytes and end-of-text included.",
    )
    sample_megabytes: int = Field(
        512,
        ge=1,
        description="At most this much of the training text, from its start, is learnt from: "
        "it bounds the memory.",
    )


class TokenizerSettings(Section):
    """An existing tokenizer (`tokenizer: gpt2`, or a folder), or one trained on the training text."""

    name: str | None = Field(None, min_length=1, description="Hub name or folder of a tokenizer.")
    train: TokenizerTraining | None = Field(
        None, description="Train a byte-level BPE on the training text."
    )

    @model_validator(mode="before")
    @classmethod
    def _accept_a_name(cls, value: object) -> object:
        if isinstance(value, str):  # `tokenizer: gpt2` is short for `tokenizer: {name: gpt2}`.
            return {"name": value}
        if isinstance(value, dict) and value.get("name") is None and value.get("train") is None:
            return {**value, "train": {}}
        return value

    @model_validator(mode="after")
    def _is_one_of_the_two(self) -> Self:
        if (self.name is None) == (self.train is None):
            raise ValueError("it must be a name, a folder, or train: {vocab_size: N}, not both")
        return self


class ColumnSettings(Section):
    """Which columns (or JSON keys) hold what, in CSV, TSV, JSON, JSONL, Parquet and hub data."""

    text: str = Field(
        "text", min_length=1, description="The text of language modelling and classification."
    )
    text_pair: str | None = Field(
        None, min_length=1, description="Classification: a second text, after the first."
    )
    label: Annotated[str | list[str], BeforeValidator(_columns)] = Field(
        "label",
        description="Classification: the label; a list of columns that hold 0 or 1, a label each.",
    )
    question: str = Field("question", min_length=1, description="Question answering.")
    context: str = Field(
        "context", min_length=1, description="Question answering: the text with the answer."
    )
    answers: str = Field(
        "answers",
        min_length=1,
        description="Question answering: {text: [...], answer_start: [...]}, or a list of {text, "
        "answer_start}, as in SQuAD.",
    )
    instruction: str = Field("instruction", min_length=1, description="Instructions, alpaca style.")
    input: str = Field("input", min_length=1, description="What an instruction is about; optional.")
    output: str = Field("output", min_length=1, description="The answer to an instruction.")
    prompt: str = Field("prompt", min_length=1, description="Instructions as prompt and completion.")
    completion: str = Field("completion", min_length=1, description="What should follow the prompt.")
    messages: str = Field(
        "messages", min_length=1, description="Conversations: a list of {role, content}."
    )


class DataSettings(Section):
    """Where the text comes from and which part of it is held out."""

    source: Annotated[str | list[str], BeforeValidator(_sources)] = Field(
        "builtin:python-docs",
        description="File, folder, glob, hub data set, builtin:python-docs, or a list of them.",
    )
    columns: ColumnSettings = ColumnSettings()
    column_names: list[str] | None = Field(
        None, min_length=1, description="Names for the columns of CSV and TSV files without a header."
    )
    labels: list[str] | None = Field(
        None,
        min_length=2,
        description="The labels of classification, in the order of their numbers; those in the data, "
        "sorted, if not set.",
    )
    label_separator: str = Field(
        ",", min_length=1, description="What stands between several labels in one field."
    )
    too_long: Literal["cut", "drop", "refuse"] = Field(
        "cut",
        description="What becomes of examples longer than model.context_length; counted in data.json.",
    )
    stride: int = Field(
        64, ge=0, description="Question answering: tokens that neighbouring windows of a text share."
    )
    encoding: str = Field("utf-8", min_length=1, description="Encoding of text, CSV and JSONL files.")
    encoding_errors: Literal["strict", "replace"] = Field(
        "strict", description="strict stops at an undecodable byte; replace counts it and goes on."
    )
    text_unit: Literal["file", "line"] = Field(
        "file",
        description="What is one document in a .txt or .md file: the file, or each line. "
        "A literal <|endoftext|> always ends a document.",
    )
    hub_subset: str | None = Field(None, description="Subset (configuration) of a hub data set.")
    hub_split: str = Field("train", min_length=1, description="Split of a hub data set to read.")
    validation_source: Annotated[str | list[str], BeforeValidator(_sources)] | None = Field(
        None, description="Held-out text of its own; validation_fraction is then not used."
    )
    validation_fraction: float = Field(
        0.1, ge=0, lt=1, description="Share of the text that is held out; 0 holds nothing out."
    )
    split_by: Literal["auto", "document", "position"] = Field(
        "auto",
        description="document draws whole documents by runtime.seed; position holds out the end of "
        "the text; auto takes documents unless there are too few, as in one long file.",
    )
    cache_dir: str | None = Field(
        None, min_length=1, description="Folder of the token cache; ~/.cache/gptcli if not set."
    )


class LoraSettings(Section):
    """Low-rank adaptation (Hu et al. 2021); needs `pip install gptcli[lora]`."""

    rank: int = Field(8, ge=1, le=1024, description="Width of the small matrices.")
    alpha: float = Field(16.0, gt=0, description="Their product is scaled by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on their input.")
    targets: list[Literal["c_attn", "c_proj", "c_fc"]] = Field(
        ["c_attn"], min_length=1, description="Matrices of each layer that get them."
    )


class TrainingSettings(Section):
    """The optimizer and how long it runs."""

    max_steps: int = Field(1000, ge=1, description="Optimizer steps.")
    epochs: float | None = Field(
        None, gt=0, le=10_000, description="Passes over the training data, in place of max_steps."
    )
    tokens_per_parameter: float | None = Field(
        None,
        gt=0,
        le=1_000_000,
        description="Tokens to train on for each parameter of the model, in place of max_steps, in at "
        f"most {USEFUL_EPOCHS} passes over the data; for a new language model, "
        f"{OPTIMAL_TOKENS_PER_PARAMETER}, which is compute-optimal, if none of the three is set.",
    )
    objective: Literal["auto", "single-label", "multi-label", "regression"] = Field(
        "auto",
        description="What classification learns: one label of several (auto), any number of labels, or "
        "a number.",
    )
    class_weights: Literal["none", "balanced"] | dict[str, float] = Field(
        "none",
        description="Weight of each label in the loss: balanced makes all labels count the same; or "
        "{label: weight}.",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of a target's probability that goes to all others alike."
    )
    token_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Classification: share of a text's tokens that is left out, others in each step.",
    )
    prefix_loss: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Classification: share of the loss that the beginnings of a text have, as if it "
        "ended there; the rest is that of the whole text.",
    )
    freeze_layers: int = Field(
        0,
        ge=0,
        description="The embeddings and this many layers keep their weights; 0 freezes nothing.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Compute activations twice in place of keeping them: less memory, more time."
    )
    lora: LoraSettings | None = Field(
        None, description="Train small matrices beside those of the model, which stay as they are."
    )
    max_minutes: float | None = Field(
        None, gt=0, description="End after this many minutes, over all sessions of the run."
    )
    max_tokens: int | None = Field(None, ge=1, description="End after training on this many tokens.")
    target_loss: float | None = Field(
        None, gt=0, description="End when the held-out loss is this or lower, in nats."
    )
    patience: int | None = Field(
        None, ge=1, description="End after this many evaluations in a row without a new best."
    )
    skip_bad_steps: int = Field(
        0,
        ge=0,
        description="Steps in a row that may be left out because their loss or gradient is not finite.",
    )
    batch_size: int = Field(
        32, ge=1, le=1_000_000, description="Sequences an optimizer step, over all processes."
    )
    micro_batch_size: AutoOrPositive = Field(
        "auto",
        description="Sequences that go through the model at once; changes memory and speed only.",
    )
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw",
        description="adamw for all weights, or muon for the matrices of the blocks and adamw for "
        "the rest; for a new model, muon if not set.",
    )
    learning_rate: float = Field(
        3e-4,
        gt=0,
        le=10,
        description="Peak learning rate; for a new model, 4e-3 at a width of 256 if not set, and by the "
        "root of the width: 2.3e-3 for small.",
    )
    warmup_steps: int = Field(100, ge=0, description="Steps of linear warm-up.")
    schedule: Literal["cosine", "wsd"] = Field(
        "cosine",
        description="After the warm-up: cosine falls all the way; wsd stays at the peak and then falls "
        "in a line over the last decay_ratio of the steps.",
    )
    decay_ratio: float = Field(0.4, gt=0, le=1, description="wsd: share of the steps that fall.")
    min_learning_rate_ratio: float = Field(
        0.1, ge=0, le=1, description="The last step has this share of the peak."
    )
    weight_decay: float = Field(0.1, ge=0, le=10, description="Decay of matrices; vectors have none.")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's first-moment decay.")
    adam_beta2: float = Field(0.95, ge=0, lt=1, description="AdamW's second-moment decay.")
    max_grad_norm: float = Field(
        1.0, ge=0, description="Gradients are scaled down to this global norm; 0 turns it off."
    )
    save_steps: int = Field(500, ge=1, description="Steps between checkpoints.")
    keep_checkpoints: int = Field(
        2, ge=2, description="Newest checkpoints that are kept; that of the best evaluation stays too."
    )

    @model_validator(mode="after")
    def _has_one_length(self) -> Self:
        lengths = [
            name for name in ("epochs", "tokens_per_parameter") if getattr(self, name) is not None
        ]
        if "max_steps" in self.model_fields_set:
            lengths.append("max_steps")
        if len(lengths) > 1:
            raise ValueError(f"{' and '.join(lengths)} exclude each other")
        if isinstance(self.class_weights, dict):
            for label, weight in self.class_weights.items():
                if weight <= 0:
                    raise ValueError(f"class_weights: {label} has {weight}; it must be more than 0")
        return self

    @model_validator(mode="after")
    def _micro_batch_fits_in_batch(self) -> Self:
        if self.micro_batch_size != "auto" and self.micro_batch_size > self.batch_size:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} is more than batch_size {self.batch_size}"
            )
        return self


class EvaluationSettings(Section):
    """Scores: on held-out data during training (the first three settings), and of `gptcli eval`."""

    eval_steps: int = Field(250, ge=1, description="Steps between evaluations.")
    sample_prompts: list[str] = Field(
        [],
        description="What the model writes after these is kept at each evaluation: generated as the "
        "generation section says, of 50 tokens at most if it does not. For tasks that write text.",
    )
    max_tokens: int | None = Field(
        None, ge=1, description="Score only the first tokens of the held-out text; all if not set."
    )
    context_length: int | None = Field(
        None,
        ge=2,
        description="`gptcli eval` of text: tokens of a window; all that the model takes if not set.",
    )
    stride: int | None = Field(
        None,
        ge=1,
        description="`gptcli eval` of text: tokens that the window moves on by; the others stand before "
        "each scored token. Half of the window if not set.",
    )
    separator: str | None = Field(
        None, description="What stands between documents; an end-of-text token if not set."
    )
    detokenizer: Literal["none", "wikitext"] = Field(
        "none", description="Takes away what a corpus put between words: wikitext for WikiText."
    )
    prompt: str = Field(
        "{query}",
        min_length=1,
        description="Test of multiple_choice: the text before a choice, with {column} for a value.",
    )
    choices: Annotated[str | list[str], BeforeValidator(_columns)] = Field(
        "choices",
        description="Test of multiple_choice: the column with the list of choices, or one for each.",
    )
    gold: str = Field(
        "gold",
        min_length=1,
        description="Test of multiple_choice: the column with the right one's number, letter or text.",
    )
    first_number: int = Field(
        0, ge=0, le=1, description="Test of multiple_choice: what the first choice is numbered with."
    )


class GenerationSettings(Section):
    """Defaults of `gptcli generate`. Any of temperature, top_k, top_p means sampling; none, greedy."""

    max_new_tokens: int | None = Field(
        None, ge=1, description="Most tokens after the prompt; 100 if max_length is not set either."
    )
    max_length: int | None = Field(None, ge=1, description="Most tokens, the prompt included.")
    temperature: float | None = Field(
        None, gt=0, description="Logits are divided by this; below 1 is less random."
    )
    top_k: int | None = Field(None, ge=1, description="Sample from the k likeliest tokens.")
    top_p: float | None = Field(
        None, gt=0, le=1, description="Sample from the fewest tokens whose probability reaches p."
    )
    context_end: Literal["stop", "slide", "refuse"] = Field(
        "stop",
        description="Where the model's context is full: stop there; slide, go on with the last half of "
        "it in view; or refuse, before anything is made, what might not fit.",
    )
    num_return_sequences: int = Field(1, ge=1, le=10_000, description="Continuations a prompt.")

    @field_validator("temperature", mode="before")
    @classmethod
    def _is_not_to_mean_greedy(cls, value: object) -> object:
        if value == 0 and not isinstance(value, bool):
            raise ValueError(
                "it must be more than 0. For the likeliest token each time (greedy decoding), set "
                "generation.top_k to 1 (--top-k 1)"
            )
        return value

    @model_validator(mode="after")
    def _has_one_length(self) -> Self:
        if self.max_new_tokens is not None and self.max_length is not None:
            raise ValueError(
                "max_new_tokens (after the prompt) and max_length (prompt included) exclude each other"
            )
        return self

    @model_validator(mode="after")
    def _several_sequences_are_sampled(self) -> Self:
        if self.num_return_sequences > 1 and not self.is_sampling:
            raise ValueError(
                f"num_return_sequences {self.num_return_sequences} without temperature, top_k or "
                "top_p: greedy decoding gives the same text each time"
            )
        return self

    @property
    def is_sampling(self) -> bool:
        return any(value is not None for value in (self.temperature, self.top_k, self.top_p))


class RuntimeSettings(Section):
    """Hardware and reproducibility."""

    device: DeviceName = Field(
        "auto", description="auto, cpu, cuda, cuda:N or mps; auto takes the fastest that is there."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = Field(
        "auto",
        description="Number format of matrix products. For training, weights stay in float32; int8 is "
        "for using a model on a CPU, and the fastest there.",
    )
    compile: bool | None = Field(
        None,
        description="torch.compile for training; if not set, for language modelling in low precision "
        "that is long enough to pay back the half minute that it takes, where gptcli has no compiled "
        "layers of its own.",
    )
    threads: int | None = Field(
        None, ge=1, le=4096, description="CPU threads; torch's own choice if not set."
    )
    seed: int = Field(
        42, ge=0, le=MAX_SEED, description="Decides initial weights, batches, dropout and the split."
    )

    @property
    def training_precision(self) -> Literal["auto", "fp32", "bf16", "fp16"]:
        """What to train in. Raises ConfigError for a format that nothing can be learnt in."""
        if self.precision == "int8":
            raise ConfigError(
                "runtime.precision is int8, which is for using a model, not for training one. Use auto."
            )
        return self.precision

    @property
    def given_seed(self) -> int | None:
        """The seed if somebody set it. The default is for training: what is sampled would be the same
        each time."""
        return self.seed if "seed" in self.model_fields_set else None


class LoggingSettings(Section):
    """What is written down during training."""

    log_steps: int = Field(10, ge=1, description="Steps between lines of metrics.jsonl.")
    trackers: Annotated[list[TrackerName], BeforeValidator(_trackers), _ONE_OR_SEVERAL_TRACKERS] = Field(
        [],
        description="What draws the run while it goes on: tensorboard, wandb, trackio, or a list of "
        "them; each needs `pip install gptcli[NAME]`.",
    )
    project: str | None = Field(
        None,
        min_length=1,
        description="Project of wandb and trackio that the run is filed in; gptcli if not set, or what "
        "WANDB_PROJECT says.",
    )


class Settings(Section):
    """One file for every command; a command ignores the sections that are not its own."""

    task: TaskName = Field("language-modelling", description="What the model learns.")
    model: ModelSettings = ModelSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    data: DataSettings = DataSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    generation: GenerationSettings = GenerationSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    logging: LoggingSettings = LoggingSettings()

    @model_validator(mode="before")
    @classmethod
    def _fill_in_for_a_new_model(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        width, training = _new_width(value.get("model", {})), value.get("training", {})
        if width is None or not isinstance(training, dict):
            return value
        rate = float(f"{RATE * math.sqrt(RATE_WIDTH / width):.2g}")
        recipe = {"optimizer": "muon", "learning_rate": rate}
        is_language_modelling = value.get("task", "language-modelling") == "language-modelling"
        if is_language_modelling and not training.keys() & {"max_steps", "epochs"}:
            recipe["tokens_per_parameter"] = OPTIMAL_TOKENS_PER_PARAMETER
        return {**value, "training": recipe | training}


def _new_width(model: object) -> int | None:
    """Return the width of a new model; None for one that is there, or what is no model."""
    if isinstance(model, ModelSettings):
        return model.n_embd
    if isinstance(model, str):
        model = {"size": model}
    if not isinstance(model, dict) or model.get("name") is not None:
        return None
    size = model.get("size") or "mini"
    width = model.get("n_embd") or (NAMED_SIZES[size][2] if size in NAMED_SIZES else None)
    return width if isinstance(width, int) and width > 0 else None
