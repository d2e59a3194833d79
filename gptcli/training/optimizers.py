"""Optimizers, and their state as named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gptcli.config.schema import TrainingSettings
from gptcli.native.adamw import NativeAdamW, gradient_norm, has_adamw
from gptcli.native.muon import NativeMuon, has_muon

# What an optimizer keeps for a weight.
_QUANTITIES: dict[type[torch.optim.Optimizer], tuple[str, ...]] = {
    torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"),
    NativeAdamW: ("step", "exp_avg", "exp_avg_sq"),
    torch.optim.Muon: ("momentum_buffer",),
    NativeMuon: ("momentum_buffer",),
}


class Optimizers:
    """AdamW for all weights, or Muon for the matrices of the blocks and AdamW for the rest.

    Decay goes to matrices (embeddings are matrices too), never to biases and layer norms.
    """

    def __init__(self, model: nn.Module, settings: TrainingSettings) -> None:
        # named_parameters gives a weight that embedding and head share once.
        self._names = {parameter: name for name, parameter in model.named_parameters()}
        with_muon = [
            parameter
            for parameter, name in self._names.items()
            if settings.optimizer == "muon" and parameter.ndim == 2 and ".h." in name
        ]
        rest = [parameter for parameter in self._names if parameter not in set(with_muon)]
        groups: list[dict[str, Any]] = [
            {"params": [parameter for parameter in rest if parameter.ndim >= 2]},
            {"params": [parameter for parameter in rest if parameter.ndim < 2], "weight_decay": 0.0},
        ]
        is_on_cpu = all(parameter.device.type == "cpu" for parameter in self._names)
        self._is_native = is_on_cpu and has_adamw()
        adamw = NativeAdamW if self._is_native else torch.optim.AdamW
        self._optimizers: list[torch.optim.Optimizer] = [
            adamw(
                groups,
                lr=settings.learning_rate,
                betas=(settings.adam_beta1, settings.adam_beta2),
                weight_decay=settings.weight_decay,
                fused=True,
            )
        ]
        if with_muon:
            muon = NativeMuon if is_on_cpu and has_muon() else torch.optim.Muon
            self._optimizers.append(
                muon(
                    with_muon,
                    lr=settings.learning_rate,
                    weight_decay=settings.weight_decay,
                    # Scales updates to the size of AdamW's, so that one learning rate serves both
                    # (Liu et al., "Muon is scalable for LLM training", 2025).
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        self._make_state()

    def _make_state(self) -> None:
        """Make what the optimizers would make at their first step.

        Made there, it would lie in what the activations have left, in gaps between the gradients, and
        the gaps that stay would be of little use to the next step's activations.
        """
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                for parameter in filter(lambda weight: weight.requires_grad, group["params"]):
                    for quantity in _QUANTITIES[type(optimizer)]:
                        made = torch.zeros_like(parameter, requires_grad=False)
                        # Fused optimizers keep their step count on the device, in float32.
                        is_count = quantity == "step"
                        optimizer.state[parameter][quantity] = made.new_zeros(()) if is_count else made

    def gradient_norm(self) -> float:
        """Return the L2 norm of all gradients together."""
        gradients = [weight.grad for weight in self._names if weight.grad is not None]
        if self._is_native:
            return gradient_norm(gradients)
        return nn.utils.get_total_norm(gradients).item()

    def step(self, learning_rate: float, gradient_scale: float = 1.0) -> None:
        """Update the weights from their gradients times `gradient_scale`, then drop the gradients."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            if isinstance(optimizer, NativeAdamW | NativeMuon):
                optimizer.gradient_scale = gradient_scale
            elif gradient_scale != 1:
                weights = [weight for group in optimizer.param_groups for weight in group["params"]]
                gradients = [weight.grad for weight in weights if weight.grad is not None]
                torch._foreach_mul_(gradients, gradient_scale)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the state as {"<weight>/<quantity>": tensor}."""
        return {
            f"{self._names[parameter]}/{quantity}": value
            for optimizer in self._optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
            for quantity, value in optimizer.state[parameter].items()
        }

    def state_bytes(self) -> int:
        """Return what the state takes once every weight has been updated: two moments, or Muon's one."""
        return sum(
            parameter.numel() * 4 * (1 if isinstance(optimizer, torch.optim.Muon) else 2)
            for optimizer in self._optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        )

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `state_tensors` returned. Raises ValueError for the state of other weights."""
        by_weight: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            name, _, quantity = key.rpartition("/")
            by_weight.setdefault(name, {})[quantity] = value
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    name = self._names[parameter]
                    state = by_weight.pop(name, {})
                    expected = _QUANTITIES[type(optimizer)]
                    shapes = {quantity: value.shape for quantity, value in state.items()}
                    if state and shapes != {
                        quantity: torch.Size([]) if quantity == "step" else parameter.shape
                        for quantity in expected
                    }:
                        raise ValueError(f"the optimizer's state of {name} does not fit it")
                    # Fused optimizers keep their step count on the device as well.
                    optimizer.state[parameter] = {
                        quantity: value.to(parameter.device) for quantity, value in state.items()
                    }
