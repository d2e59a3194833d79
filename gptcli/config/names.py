"""Names of settings: as the schema nests them, as variables of the environment, as others call them."""

from __future__ import annotations

import difflib

from pydantic import BaseModel

from gptcli.config.schema import Settings
from gptcli.config.yaml_reading import KeyPath

VARIABLE_PREFIX = "GPTCLI_"

# What Hugging Face, nanoGPT and others call our settings, or what to set in place of theirs.
FOREIGN_NAMES = {
    "per_device_train_batch_size": "training.batch_size",
    "train_batch_size": "training.batch_size",
    "global_batch_size": "training.batch_size",
    "per_device_eval_batch_size": "training.micro_batch_size",
    "gradient_accumulation_steps": "training.micro_batch_size",
    "auto_find_batch_size": "training.micro_batch_size",
    "num_train_epochs": "training.epochs",
    "num_epochs": "training.epochs",
    "max_iters": "training.max_steps",
    "num_steps": "training.max_steps",
    "lr": "training.learning_rate",
    "min_lr": "training.min_learning_rate_ratio",
    "lr_scheduler_type": "training.schedule",
    "lr_decay_iters": "training.max_steps",
    "optim": "training.optimizer",
    "beta1": "training.adam_beta1",
    "beta2": "training.adam_beta2",
    "warmup_ratio": "training.warmup_steps",
    "warmup_iters": "training.warmup_steps",
    "lr_warmup_steps": "training.warmup_steps",
    "max_time": "training.max_minutes",
    "early_stopping_patience": "training.patience",
    "activation_checkpointing": "training.gradient_checkpointing",
    "grad_clip": "training.max_grad_norm",
    "max_norm": "training.max_grad_norm",
    "save_total_limit": "training.keep_checkpoints",
    "save_strategy": "training.save_steps",
    "save_interval": "training.save_steps",
    "logging_steps": "logging.log_steps",
    "logging_strategy": "logging.log_steps",
    "log_interval": "logging.log_steps",
    "report_to": "logging.trackers",
    "logger_name": "logging.trackers",
    "wandb_log": "logging.trackers",
    "wandb_project": "logging.project",
    "run_name": "--output-dir",
    "wandb_run_name": "--output-dir",
    "eval_interval": "evaluation.eval_steps",
    "eval_strategy": "evaluation.eval_steps",
    "eval_iters": "evaluation.max_tokens",
    "max_eval_samples": "evaluation.max_tokens",
    "doc_to_text": "evaluation.prompt",
    "doc_to_choice": "evaluation.choices",
    "doc_to_target": "evaluation.gold",
    "bf16": "runtime.precision",
    "fp16": "runtime.precision",
    "dtype": "runtime.precision",
    "torch_dtype": "runtime.precision",
    "tf32": "runtime.precision",
    "torch_compile": "runtime.compile",
    "use_cpu": "runtime.device",
    "no_cuda": "runtime.device",
    "data_seed": "runtime.seed",
    "block_size": "model.context_length",
    "max_seq_length": "model.context_length",
    "cutoff_len": "model.context_length",
    "n_positions": "model.context_length",
    "n_ctx": "model.context_length",
    "model_name_or_path": "model.name",
    "init_from": "model.name",
    "initial_checkpoint_dir": "model.name",
    "checkpoint_dir": "model.name",
    "lora_r": "training.lora.rank",
    "lora_rank": "training.lora.rank",
    "lora_alpha": "training.lora.alpha",
    "lora_dropout": "training.lora.dropout",
    "lora_target": "training.lora.targets",
    "label_smoothing_factor": "training.label_smoothing",
    "problem_type": "training.objective",
    "text_column_name": "data.columns.text",
    "label_column_name": "data.columns.label",
    "doc_stride": "data.stride",
    "hidden_size": "model.n_embd",
    "num_hidden_layers": "model.n_layer",
    "num_attention_heads": "model.n_head",
    "resid_pdrop": "model.dropout",
    "embd_pdrop": "model.dropout",
    "attn_pdrop": "model.dropout",
    "tokenizer_name": "tokenizer.name",
    "tokenizer_dir": "tokenizer.name",
    "train_file": "data.source",
    "train_data_path": "data.source",
    "json_path": "data.source",
    "dataset": "data.source",
    "dataset_name": "data.source",
    "dataset_config_name": "data.hub_subset",
    "dataset_dir": "data.source",
    "validation_file": "data.validation_source",
    "val_data_path": "data.validation_source",
    "val_split_fraction": "data.validation_fraction",
    "validation_split_percentage": "data.validation_fraction",
    "do_sample": "generation.temperature",
    "num_samples": "generation.num_return_sequences",
    "output_dir": "--output-dir",
    "out_dir": "--output-dir",
    "overwrite_output_dir": "--overwrite",
    "resume_from_checkpoint": "--resume",
}


def setting_names(model: type[BaseModel] = Settings, prefix: str = "") -> list[str]:
    """Return the dotted name of every setting, in the order of the schema."""
    names = []
    for key, field in model.model_fields.items():
        section = section_type(field.annotation)
        if section is not None:
            names += setting_names(section, f"{prefix}{key}.")
        else:
            names.append(prefix + key)
    return names


def section_type(annotation: object) -> type[BaseModel] | None:
    """Return the section that a field's annotation names (also `Section | None`), or None."""
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def variable_name(setting: str) -> str:
    """Return the variable that sets it: GPTCLI_TRAINING__LORA__RANK for training.lora.rank."""
    return VARIABLE_PREFIX + setting.replace(".", "__").upper()


def setting_of_variable(variable: str) -> KeyPath | None:
    """Return what a variable of the environment is to set, right or wrong; None if that is no setting.

    Settings are a section alone (or `task`), and what has two underscores after a section, or after what
    is nearly the name of one.
    """
    if not variable.startswith(VARIABLE_PREFIX):
        return None
    section, *keys = variable.removeprefix(VARIABLE_PREFIX).lower().split("__")
    is_section = section in Settings.model_fields
    if not is_section and keys:
        is_section = bool(difflib.get_close_matches(section, Settings.model_fields, cutoff=0.75))
    return (section, *keys) if is_section else None


def nearest_setting(path: KeyPath) -> str | None:
    """Return the setting, section or option that was probably meant; None if none is."""
    last = path[-1]
    if last in FOREIGN_NAMES:
        return FOREIGN_NAMES[last]
    names = setting_names()
    sections = {name.rpartition(".")[0] for name in names} - {""}
    names += sorted(sections)
    same_key = [name for name in names if name.rpartition(".")[2] == last]
    close = difflib.get_close_matches(".".join(path), names, n=1, cutoff=0.75)
    if not close:
        by_key = {name.rpartition(".")[2]: name for name in reversed(names)}
        close = [by_key[key] for key in difflib.get_close_matches(last, by_key, n=1, cutoff=0.75)]
    best = (same_key or close)[:1]
    return best[0] if best else None
