"""Settings from three layers: defaults < the YAML file < `--set section.key=value`."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from gptcli.config.schema import Settings
from gptcli.config.yaml_reading import MAX_BYTES, KeyPath, YamlProblem, parse_scalar, parse_yaml
from gptcli.errors import ConfigError

# What Hugging Face, nanoGPT and others call our settings, or what to set in place of theirs.
FOREIGN_NAMES = {
    "per_device_train_batch_size": "training.batch_size",
    "train_batch_size": "training.batch_size",
    "per_device_eval_batch_size": "training.micro_batch_size",
    "gradient_accumulation_steps": "training.micro_batch_size",
    "num_train_epochs": "training.epochs",
    "num_epochs": "training.epochs",
    "max_iters": "training.max_steps",
    "num_steps": "training.max_steps",
    "lr": "training.learning_rate",
    "min_lr": "training.min_learning_rate_ratio",
    "lr_scheduler_type": "training.min_learning_rate_ratio",
    "lr_decay_iters": "training.max_steps",
    "optim": "training.optimizer",
    "beta1": "training.adam_beta1",
    "beta2": "training.adam_beta2",
    "warmup_ratio": "training.warmup_steps",
    "warmup_iters": "training.warmup_steps",
    "grad_clip": "training.max_grad_norm",
    "save_total_limit": "training.keep_checkpoints",
    "save_strategy": "training.save_steps",
    "logging_steps": "logging.log_steps",
    "log_interval": "logging.log_steps",
    "eval_interval": "evaluation.eval_steps",
    "eval_strategy": "evaluation.eval_steps",
    "eval_iters": "evaluation.max_tokens",
    "doc_to_text": "evaluation.prompt",
    "doc_to_choice": "evaluation.choices",
    "doc_to_target": "evaluation.gold",
    "bf16": "runtime.precision",
    "fp16": "runtime.precision",
    "dtype": "runtime.precision",
    "torch_dtype": "runtime.precision",
    "use_cpu": "runtime.device",
    "no_cuda": "runtime.device",
    "data_seed": "runtime.seed",
    "block_size": "model.context_length",
    "max_seq_length": "model.context_length",
    "cutoff_len": "model.context_length",
    "n_positions": "model.context_length",
    "n_ctx": "model.context_length",
    "model_name_or_path": "model.name",
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
    "train_file": "data.source",
    "dataset": "data.source",
    "dataset_name": "data.source",
    "dataset_config_name": "data.hub_subset",
    "dataset_dir": "data.source",
    "validation_file": "data.validation_source",
    "validation_split_percentage": "data.validation_fraction",
    "do_sample": "generation.temperature",
    "output_dir": "--output-dir",
    "out_dir": "--output-dir",
    "overwrite_output_dir": "--overwrite",
    "resume_from_checkpoint": "--resume",
}

# Settings that leave no room for others: set by a stronger layer, they drop those of the weaker ones.
_DROPS: dict[KeyPath, tuple[str, ...]] = {
    ("tokenizer", "name"): ("train",),
    ("tokenizer", "train"): ("name",),
    ("model", "name"): ("size", "n_layer", "n_head", "n_embd"),
    ("model", "size"): ("name", "n_layer", "n_head", "n_embd", "context_length"),
    ("training", "epochs"): ("max_steps",),
    ("training", "max_steps"): ("epochs",),
    ("generation", "max_new_tokens"): ("max_length",),
    ("generation", "max_length"): ("max_new_tokens",),
}

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "finite_number": "a finite number",
    "string_too_short": "text that is not empty",
}


class _Dumper(yaml.SafeDumper):
    """Quotes text that would not read back: 1e3, a number to our reader only, and control characters."""


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    is_plain = isinstance(parse_scalar(text), str) and text.isprintable()
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, None if is_plain else '"')


_Dumper.add_representer(str, _represent_text)


def load_settings(
    config: Path | None, assignments: Sequence[str] = (), sections: dict[str, Any] | None = None
) -> Settings:
    """Return the settings of `config` (defaults if None), changed by each `section.key=value`.

    sections: values of a command's own options, as nested mappings; they win over all others, but None,
    an option that was not given, over none.
    Raises ConfigError with one line for every problem found.
    """
    values: dict[str, Any] = {}
    origins: dict[KeyPath, str] = {}
    if config is not None:
        values, lines = _read_file(config)
        origins = {path: f"{config}:{line}" for path, line in lines.items()}
    for assignment in assignments:
        _assign(values, assignment, origins)
    for section, given in (sections or {}).items():
        options = {key: value for key, value in given.items() if value is not None}
        weaker = _long_form(section, values.get(section, {}))
        if not isinstance(weaker, dict):
            continue  # The file has no section here, which the schema refuses.
        dropped = {name for key in options for name in _DROPS.get((section, key), ())}
        values[section] = {key: weaker[key] for key in weaker if key not in dropped} | options
        for key in options:
            origins[section, key] = "--" + key.replace("_", "-")
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        fallback = str(config) if config else "settings"
        problems = [_describe(problem, origins, fallback) for problem in error.errors()]
        raise ConfigError(*dict.fromkeys(problems)) from error


def dump_settings(settings: Settings) -> str:
    """Return `settings` as YAML that `load_settings` reads back to the same settings."""
    values = settings.model_dump(mode="json")
    if settings.training.epochs is not None:
        del values["training"]["max_steps"]  # The default, which the two together would refuse.
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


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


def _read_file(config: Path) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    try:
        with config.open("rb") as file:
            data = file.read(MAX_BYTES + 1)  # Not all of /dev/zero.
        if len(data) > MAX_BYTES:
            raise ConfigError(f"{config}: it has over {MAX_BYTES:,} bytes, too many for a config.")
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{config}: no such config file.") from None
    except IsADirectoryError:
        raise ConfigError(f"{config} is a folder; --config takes a YAML file.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{config} is not a text file: byte {error.start} is not UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{config} cannot be read: {error.strerror}.") from None
    try:
        values, lines = parse_yaml(text)
    except YamlProblem as problem:
        raise ConfigError(f"{config}:{problem.line}: {problem.message}.") from problem
    if values is None:
        return {}, {}
    if not isinstance(values, dict):
        raise ConfigError(f"{config}:1: a config is a mapping of sections, such as `training:`.")
    # A section whose settings are all commented out is an empty one.
    return {key: {} if value is None else value for key, value in values.items()}, lines


def _assign(values: dict[str, Any], assignment: str, origins: dict[KeyPath, str]) -> None:
    name, equals, text = assignment.partition("=")
    path = tuple(name.strip().split("."))
    if not equals or not all(path):
        raise ConfigError(f"--set {assignment}: write it as section.key=value.")
    try:
        value, _ = parse_yaml(text)
    except YamlProblem as problem:
        raise ConfigError(f"--set {assignment}: {problem.message}.") from problem
    target = values
    for key in path[:-1]:
        # `model: small` in the file and --set model.dropout=0.1: the short form gives way to the long.
        if key in target:
            target[key] = _long_form(key, target[key])
        if not isinstance(target.get(key), dict):
            target[key] = {}
        target = target[key]
    if value is not None:
        for name in _DROPS.get(path[:2], ()):
            values[path[0]].pop(name, None)
    target[path[-1]] = value
    origins[path] = f"--set {assignment}"
    for length in range(1, len(path)):
        origins.setdefault(path[:length], origins[path])


def _long_form(section: str, value: Any) -> Any:
    """Return {"size": "small"} for `model: small`; what is no short form, as it is."""
    if isinstance(value, str):
        return {{"model": "size", "tokenizer": "name"}.get(section, section): value}
    return value


def _describe(problem: ErrorDetails, origins: dict[KeyPath, str], fallback: str) -> str:
    """Return one line for a pydantic error: where, the setting, its value, what it must be."""
    path = tuple(str(part) for part in problem["loc"])
    name = ".".join(path)
    where = next((origins[path[:n]] for n in range(len(path), 0, -1) if path[:n] in origins), fallback)
    if problem["type"] == "extra_forbidden":
        return f"{where}: {name} is not a setting.{_suggestion(path)}"
    value = problem["input"]
    context = problem.get("ctx", {})
    match problem["type"]:
        case "value_error" if isinstance(value, dict):
            return f"{where}: {name}: {context['error']}."
        case "value_error":
            expected = str(context["error"])
            return f"{where}: {name} is {_shown(value)}; {expected}."
        case "literal_error":
            return f"{where}: {name} is {_shown(value)}; it must be {context['expected']}."
        case "greater_than":
            expected = f"more than {context['gt']:,.10g}"
        case "greater_than_equal":
            expected = f"at least {context['ge']:,.10g}"
        case "less_than":
            expected = f"less than {context['lt']:,.10g}"
        case "less_than_equal":
            expected = f"at most {context['le']:,.10g}"
        case "model_type" | "model_attributes_type" | "dict_type":
            expected = "a section with settings under it"
        case kind:
            expected = _EXPECTED.get(kind, problem["msg"])
    return f"{where}: {name} is {_shown(value)}; it must be {expected}."


def _shown(value: object) -> str:
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    text = f"{value!r}"
    return text if len(text) <= 60 else text[:57] + "..."


def _suggestion(path: KeyPath) -> str:
    names = setting_names()
    last = path[-1]
    if last in FOREIGN_NAMES:
        return f" Use {FOREIGN_NAMES[last]} instead."
    sections = {name.rpartition(".")[0] for name in names} - {""}
    names += sorted(sections)
    same_key = [name for name in names if name.rpartition(".")[2] == last]
    close = difflib.get_close_matches(".".join(path), names, n=1, cutoff=0.75)
    if not close:
        by_key = {name.rpartition(".")[2]: name for name in reversed(names)}
        close = [by_key[key] for key in difflib.get_close_matches(last, by_key, n=1, cutoff=0.75)]
    best = (same_key or close)[:1]
    return f" Did you mean {best[0]}?" if best else " `docs/configuration.md` lists them all."
