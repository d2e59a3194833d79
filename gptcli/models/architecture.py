"""A new GPT-2 from its shape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gptcli.config.schema import ModelSettings
from gptcli.models.activation import fuse_activation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def model_config(settings: ModelSettings, tokenizer: PreTrainedTokenizerFast) -> GPT2Config:
    """Return the configuration of a GPT-2 of this shape for this tokenizer."""
    return gpt2_config(
        settings.dropout,
        tokenizer.eos_token_id,
        vocab_size=max(len(tokenizer), max(tokenizer.get_vocab().values()) + 1),
        n_positions=settings.context_length,
        n_embd=settings.n_embd,
        n_layer=settings.n_layer,
        n_head=settings.n_head,
    )


def gpt2_config(dropout: float, end_of_text_id: int, **sizes: int | None) -> GPT2Config:
    """Return the configuration of a new GPT-2 of these sizes, named as GPT2Config names them."""
    return GPT2Config(
        **sizes,
        embd_pdrop=dropout,
        resid_pdrop=dropout,
        attn_pdrop=dropout,
        # The same function as GPT-2's gelu_new, in one kernel instead of many.
        activation_function="gelu_pytorch_tanh",
        # Not left to GPT2Config: it would say 50256 whatever the vocabulary.
        bos_token_id=end_of_text_id,
        eos_token_id=end_of_text_id,
        pad_token_id=end_of_text_id,
    )


def new_model(config: GPT2Config, seed: int, kind: Any = GPT2LMHeadModel) -> Any:
    """Return a GPT-2 of this class in float32 on the CPU; its weights are decided by `seed`."""
    torch.manual_seed(seed)
    model = kind(config)
    fuse_activation(model)
    return model
