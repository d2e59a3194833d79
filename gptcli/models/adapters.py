"""Low-rank adapters (LoRA, Hu et al. 2021, https://arxiv.org/abs/2106.09685), made by peft."""

from __future__ import annotations

import copy
from typing import Any

from gptcli.config.schema import LoraSettings
from gptcli.errors import ConfigError
from gptcli.models.loading import HEADS
from gptcli.training.job import ADAPTER_MARK


def add_adapters(model: Any, settings: LoraSettings) -> None:
    """Put small matrices beside those of the model's layers, and leave only them and a head to train.

    Raises ConfigError if peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ConfigError('training.lora needs the package peft: pip install "gptcli[lora]".') from None
    inject_adapter_in_model(
        LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=list(settings.targets),
            fan_in_fan_out=True,  # GPT-2 keeps its matrices transposed.
        ),
        model,
    )
    for name, parameter in model.named_parameters():
        if name.startswith(HEADS):  # It may be new: there is nothing to adapt in it.
            parameter.requires_grad_(True)


def without_adapters(model: Any) -> Any:
    """Return the model with what its adapters have learnt added to its matrices: a plain GPT-2.

    The model itself is returned if it has none, and never changed.
    """
    if not any(ADAPTER_MARK in name for name, _ in model.named_parameters()):
        return model
    from peft.tuners.tuners_utils import BaseTunerLayer

    merged = copy.deepcopy(model)
    for name, module in list(merged.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            merged.set_submodule(name, module.get_base_layer())
    return merged
