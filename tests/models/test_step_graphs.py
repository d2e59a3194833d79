"""Steps of fixed sizes are GPT-2's, for rows of any length, and so are those that a GPU replays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import GPT2Config, GPT2LMHeadModel

from gptcli.generation.decoder import Decoder, NewToken, Request
from gptcli.generation.prompt_lookup import MOST_DRAFTED
from gptcli.generation.sampling import Sampling
from gptcli.models import decoding_forward, step_graphs
from gptcli.models.decoding_forward import DecodingForward, KeysAndValues
from gptcli.models.step_graphs import DRAFT_TOKENS, StepGraphs, StepSize

CONTEXT_LENGTH, VOCABULARY = 64, 300
NOT_A_TOKEN = -1
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")


@pytest.fixture
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps in fixed sizes on this device, too, with some ends in a short context."""
    monkeypatch.setattr(decoding_forward, "_RECORDED_ON", ("cpu", "cuda"))
    monkeypatch.setattr(step_graphs, "SMALLEST_END", 8)


def varied_model() -> GPT2LMHeadModel:
    """Return a model whose greedy text does not repeat one token for ever."""
    torch.manual_seed(7)
    sizes = {"n_embd": 64, "n_head": 2, "n_layer": 3, "vocab_size": VOCABULARY}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(**sizes, **ends, n_positions=CONTEXT_LENGTH)).eval()
    for weight in model.parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=0.3)
    return model


def some_ids(*lengths: int) -> list[list[int]]:
    numbers = torch.Generator().manual_seed(3)
    return [torch.randint(VOCABULARY, (length,), generator=numbers).tolist() for length in lengths]


def read(
    forward: DecodingForward, prompts: list[list[int]], rows: int, capacity: int = CONTEXT_LENGTH
) -> KeysAndValues:
    """Return room for so many rows, the first of them filled with what the prompts leave."""
    room = forward.new_keys_and_values(rows, capacity)
    for row, prompt in enumerate(prompts):
        alone = forward.new_keys_and_values(1, len(prompt))
        forward.hidden_states([prompt], [0], alone)
        room.fill_row(row, alone, 0, len(prompt))
    return room


def logits_of(model: GPT2LMHeadModel, ids: list[int]) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(torch.tensor([ids])).logits[0]
    return logits


@pytest.mark.usefixtures("small_sizes")
@pytest.mark.parametrize(
    ("lengths", "rows"),
    [
        ([1], 1),
        ([8], 4),  # The first place of the second end.
        ([63], 1),  # The last place of the room.
        ([5, 5], 2),
        ([3, 20, 9], 3),  # Fewer than the next power of two, and no room for it.
        ([40, 2, 17], 6),
        ([1, 7, 8, 9, 62], 12),
    ],
)
def test_a_token_of_each_row_has_the_logits_of_hugging_face(lengths: list[int], rows: int) -> None:
    model = varied_model()
    forward = DecodingForward(model, torch.float32)
    prompts, new = some_ids(*lengths), some_ids(*[1] * len(lengths))
    room = read(forward, prompts, rows)
    assert room.graphs is not None
    assert room.graphs.size_of([1] * len(new), lengths) is not None
    # Rows that are not in use may hold anything finite of what stood there before.
    room.parts[:, :, len(lengths) :] = 7.0
    before = room.parts.clone()
    hidden = forward.hidden_states(new, lengths, room)
    expected = [logits_of(model, prompt + ids)[-1] for prompt, ids in zip(prompts, new, strict=True)]
    torch.testing.assert_close(forward.logits(hidden), torch.stack(expected), rtol=1e-4, atol=1e-4)
    # Nothing of a row that is in use changes but the place of its new token.
    changed = (room.parts != before).any(-1).any(3).flatten(0, 1).any(0)  # (rows, capacity).
    for row, length in enumerate(lengths):
        assert changed[row].nonzero()[:, 0].tolist() == [length]
    assert room.parts.isfinite().all()


@pytest.mark.usefixtures("small_sizes")
@pytest.mark.parametrize(("start", "tokens"), [(1, 2), (10, 9), (47, 5), (48, 16)])
def test_several_tokens_of_a_row_have_the_logits_of_hugging_face(start: int, tokens: int) -> None:
    model = varied_model()
    forward = DecodingForward(model, torch.float32)
    prompts, new = some_ids(start), some_ids(tokens)
    room = read(forward, prompts, 2)
    assert room.graphs is not None
    size = room.graphs.size_of([tokens], [start])
    assert size is not None
    assert size.tokens == DRAFT_TOKENS
    found = forward.logits(forward.hidden_states(new, [start], room))
    expected = logits_of(model, prompts[0] + new[0])[start:]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    # What was written behind them is not seen by what follows: half of them were right.
    kept = new[0][: tokens // 2]
    after = forward.logits(forward.hidden_states([[9]], [start + len(kept)], room))
    expected = logits_of(model, [*prompts[0], *kept, 9])[-1:]
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("capacity", "lengths", "starts", "expected"),
    [
        (1024, [1], [0], StepSize(1, 1, 128)),
        (1024, [1], [127], StepSize(1, 1, 128)),
        (1024, [1], [128], StepSize(1, 1, 256)),
        (1024, [1] * 3, [5, 600, 0], StepSize(4, 1, 640)),
        (1024, [1] * 12, [5] * 12, StepSize(12, 1, 128)),  # Room for 12 rows, and not for 16.
        (1000, [1], [999], StepSize(1, 1, 1000)),
        (192, [1], [150], StepSize(1, 1, 192)),
        (4096, [1], [3], StepSize(1, 1, 512)),
        (4096, [1], [4000], StepSize(1, 1, 4096)),
        (192, [9], [100], StepSize(1, 16, 128)),
        (192, [2], [120], StepSize(1, 16, 192)),  # With what is behind it, up to 136.
        (192, [2], [177], None),  # There is no room for what is behind it.
        (192, [17], [0], None),
        (192, [3, 4], [7, 7], None),
    ],
)
def test_sizes_are_few(
    capacity: int, lengths: list[int], starts: list[int], expected: StepSize | None
) -> None:
    graphs = StepGraphs(lambda inputs, parts: inputs, torch.zeros(1, 2, 12, 1, capacity, 1))
    assert graphs.size_of(lengths, starts) == expected


def test_a_draft_and_the_token_before_it_have_a_size() -> None:
    assert MOST_DRAFTED + 1 <= DRAFT_TOKENS


# What a graph repeats, told without a GPU: the operators of one step, with the numbers of another.


@pytest.mark.parametrize("tokens", [1, DRAFT_TOKENS])
def test_a_step_that_is_recorded_serves_for_other_ids_and_places(tokens: int) -> None:
    forward = DecodingForward(varied_model(), torch.float32)
    room = read(forward, some_ids(40, 30, 20), 4).parts
    ids = torch.tensor(some_ids(*[tokens] * 8)).view(2, 4, tokens)
    starts = torch.tensor([[3, 0, 17, 0], [40, 30, 20, 0]])
    places = starts[..., None] + torch.arange(tokens)
    first, second = torch.stack([ids, places], 1)
    recorded = make_fx(lambda *given: forward._step(*given))(first, room.clone())
    replayed, direct = room.clone(), room.clone()
    with torch.no_grad():
        found, expected = recorded(second, replayed), forward._step(second, direct)
    assert torch.equal(found, expected)
    assert torch.equal(replayed, direct)
    assert not torch.equal(replayed, room)


class OnOneDevice(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails with the first operator that takes or makes a tensor of another device than "meta"."""

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = operator(*args, **(kwargs or {}))
        for one in tree_leaves((args, kwargs, result)):
            assert not isinstance(one, Tensor) or one.is_meta, operator
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_reads_no_number_and_takes_nothing_from_the_cpu(dtype: torch.dtype) -> None:
    # A device without numbers: reading one raises.
    forward = DecodingForward(varied_model().to("meta"), dtype)
    room = forward.new_keys_and_values(4, CONTEXT_LENGTH)
    inputs = torch.zeros(2, 4, 1, dtype=torch.long, device="meta")
    with torch.no_grad(), OnOneDevice():  # type: ignore[no-untyped-call]
        hidden = forward._step(inputs, room.parts)
    assert (hidden.dtype, hidden.shape) == (dtype, (4, 1, 64))


# Replayed.


def replays(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Count the steps that are replayed from here on."""
    count, replay = 0, step_graphs._Graph.replay

    def counted(*arguments: Any) -> Tensor:
        nonlocal count
        count += 1
        return replay(*arguments)

    monkeypatch.setattr(step_graphs._Graph, "replay", counted)
    return lambda: count


def texts_of(model: GPT2LMHeadModel, requests: list[Request], *, slides: bool) -> list[list[int]]:
    made: list[list[int]] = [[] for _ in requests]
    decoder = Decoder(model, NOT_A_TOKEN, torch.float32)
    for event in decoder.decode(requests, Sampling(), slides=slides):
        if isinstance(event, NewToken):
            made[event.request].append(event.token_id)
    return made


@needs_cuda
@pytest.mark.parametrize("slides", [False, True])
@pytest.mark.parametrize("count", [1, 3, 20])
def test_replayed_steps_give_the_texts_of_direct_ones(
    count: int, slides: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_graphs, "SMALLEST_END", 16)
    monkeypatch.setattr("gptcli.generation.decoder.MAX_ROWS", 6)
    model = varied_model().to("cuda")
    lengths = [1 + 7 * number % 23 for number in range(count)]
    requests = [
        Request(ids, (90 if slides else 40) - number % 5)
        for number, ids in enumerate(some_ids(*lengths))
    ]
    replayed = replays(monkeypatch)
    found = texts_of(model, requests, slides=slides)
    assert replayed() > 20
    monkeypatch.setattr(step_graphs, "DIRECT_STEPS", 10**9)
    before = replayed()
    assert found == texts_of(model, requests, slides=slides)
    assert replayed() == before
    if slides:
        return
    for request, ids in zip(requests, found, strict=True):
        prompt = torch.tensor([request.prompt_ids], device="cuda")
        expected = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=request.max_new_tokens,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert ids == expected[0, prompt.shape[1] :].tolist()


@needs_cuda
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replayed_steps_have_the_scores_of_direct_ones(
    dtype: torch.dtype, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_graphs, "SMALLEST_END", 16)
    forward = DecodingForward(varied_model().to("cuda"), dtype)
    prompts = some_ids(*[3 + 5 * row for row in range(rows)])
    # One by one, and of a single row a draft at the end.
    steps = [some_ids(*[1] * rows) for _ in range(30)] + [some_ids(9)] * (rows == 1)

    def scores() -> Tensor:
        room, starts, found = read(forward, prompts, rows), [len(ids) for ids in prompts], []
        for new in steps:
            found.append(forward.hidden_states(new, starts, room))
            starts = [start + len(new[0]) for start in starts]
        # All at last: no step may change what an earlier one has given.
        return forward.logits(torch.cat(found)).float()

    replayed = replays(monkeypatch)
    found = scores()
    assert replayed() > 10
    monkeypatch.setattr(step_graphs, "DIRECT_STEPS", 10**9)
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(found, scores(), rtol=tolerance, atol=tolerance)
