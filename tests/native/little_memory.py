"""Calls compiled code in a process that gets no more memory, and prints what each call raises."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gptcli.models.activation import fuse_activation
from gptcli.models.decoding_forward import DecodingForward
from gptcli.models.native_forward import NativeForward
from gptcli.native import attention, layer, product
from gptcli.native.adamw import gradient_norm
from gptcli.native.muon import NativeMuon

# As `keep_freed_memory` has it, but for the addresses that it keeps for later: what a call takes and
# frees on one thread is there again, and on many it takes much more.
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
THREADS, TOKENS, WIDTH = 32, 4096, 64
# Now and then no gap of the heap is large enough for tensors that a call makes itself, before compiled
# code is asked; then it is set up anew.
NOT_REACHED, ATTEMPTS = "not reached", 10

Call = Callable[[], object]


def main() -> None:
    raised = {}
    torch.set_num_threads(THREADS)
    gradient_norm([torch.ones(10)])  # Makes the threads, which memory is taken for, too.
    for name, (before, call) in calls().items():
        for _ in range(ATTEMPTS):
            taken = take_all()
            torch.set_num_threads(1)
            before()
            torch.set_num_threads(THREADS)
            with no_more_memory():
                raised[name] = what_is_raised(call)
            del taken
            if raised[name] != NOT_REACHED:
                break
    print(json.dumps(raised))


@contextmanager
def no_more_memory() -> Iterator[None]:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    unlimited = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize(), unlimited[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, unlimited)


def take_all() -> list[torch.Tensor]:
    """Return tensors for which all that this process has freed is used."""
    taken = []
    with no_more_memory(), suppress(RuntimeError):
        while True:
            taken.append(torch.empty(2**18, dtype=torch.uint8))
    return taken


def what_is_raised(call: Call) -> str | None:
    try:
        call()
    except RuntimeError as error:
        return NOT_REACHED if "DefaultCPUAllocator" in str(error) else type(error).__name__
    return None


def calls() -> dict[str, tuple[Call, Call]]:
    """Return by name what is called before, and what wants more memory than there is then."""
    found: dict[str, tuple[Call, Call]] = {
        "forward": (partial(new_tokens(), 1), partial(new_tokens(), TOKENS))
    }
    for name, call in (
        ("product", product_of_matrices()),
        *(zip(("attention", "attention backward"), attention_passes(), strict=True)),
        *(zip(("layer", "layer backward"), layer_passes(), strict=True)),
        ("muon", step_of_muon()),
    ):
        found[name] = (call, call)
    return found


def new_tokens() -> Callable[[int], object]:
    sizes = {"n_embd": 256, "n_head": 2, "n_layer": 1, "n_positions": TOKENS, "vocab_size": 64}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()
    fuse_activation(model)
    decoding = DecodingForward(model, torch.bfloat16)
    forward = decoding._forward
    assert isinstance(forward, NativeForward)
    embedded = torch.randn(TOKENS, 256)
    kept = decoding.new_keys_and_values(1, TOKENS).parts
    return lambda count: forward.hidden_states(embedded[:count], [count], [0], kept)


def product_of_matrices() -> Call:
    left, outputs = torch.randn(TOKENS, 32).bfloat16(), torch.empty(TOKENS, TOKENS)
    return partial(product.multiply, left, left.T, outputs)


def attention_passes() -> tuple[Call, Call]:
    query, key, value = torch.randn(3, 1, 1, TOKENS, WIDTH).bfloat16()
    attended, logarithms = attention.attend(query, key, value, 0.1)
    backward = partial(attention.attend_backward, attended, query, key, value, attended, logarithms, 0.1)
    return partial(attention.attend, query, key, value, 0.1), backward


def layer_passes() -> tuple[Call, Call]:
    inputs, norm = torch.randn(1, TOKENS, WIDTH), [torch.ones(WIDTH), torch.zeros(WIDTH)]

    def linear(inputs: int, outputs: int) -> list[torch.Tensor]:
        return [torch.randn(inputs, outputs) / 10, torch.zeros(outputs)]

    of_attention = [*linear(WIDTH, 3 * WIDTH), *linear(WIDTH, WIDTH)]
    of_mlp = [*linear(WIDTH, 4 * WIDTH), *linear(4 * WIDTH, WIDTH)]
    weights, sizes = [*norm, *of_attention, *norm, *of_mlp], layer.Sizes(1, 1e-5, 0.1)
    outputs, kept = layer.forward(inputs, weights, sizes)
    forward = partial(layer.forward, inputs, weights, sizes)
    of_weights = [torch.zeros_like(weight) for weight in weights]
    backward = partial(layer.backward, outputs, inputs, weights, sizes, kept, of_weights, adds=True)
    return forward, backward


def step_of_muon() -> Call:
    weights = [torch.nn.Parameter(torch.randn(256, 512)) for _ in range(THREADS)]
    for weight in weights:
        weight.grad = torch.randn(256, 512)
    return NativeMuon(weights, lr=0.01, adjust_lr_fn="match_rms_adamw").step


if __name__ == "__main__":
    assert os.environ.items() >= MALLOC.items()
    main()
