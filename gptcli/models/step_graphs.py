"""Steps of a decoder on a CUDA GPU, recorded as CUDA graphs and replayed.

A step is some hundred operators with little to do, and Python takes longer to ask for one than a GPU to
do it. A CUDA graph asks for all of them at once, always of the same shapes and at the same addresses:

1. A step is done in one of a few sizes: rows, tokens and the places that are looked at are rounded up.
2. What differs from step to step, ids and places, is copied to where the graph reads them.
3. A size is recorded when it has come some times: until then its steps are done directly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor], Tensor]
"""Returns (rows, tokens, width) hidden states, and adds keys and values of the new tokens.

Of (2, rows, tokens), ids and their places, and of keys and values (layers, 2, rows, heads, end, size).
"""

# To record a step takes about as long as to do some directly.
DIRECT_STEPS = 4
# Of a row that has several new ones: more than any draft and the token before it. It reads the weights
# as often as a single one.
DRAFT_TOKENS = 16
# Places are looked at up to a multiple of this, or of an eighth of the room: there are 8 ends at most.
# Where a mask's rows are no multiples of 8 numbers, fused attention copies it.
SMALLEST_END, ENDS = 128, 8


@dataclass(frozen=True)
class StepSize:
    """What is recorded once: `tokens` new ones of each row, which look at places up to `end`."""

    rows: int
    tokens: int
    end: int


class StepGraphs:
    """The steps over some keys and values. It ends with these: graphs hold their address."""

    def __init__(self, step: Step, parts: Tensor) -> None:
        """parts: keys and values (layers, 2, rows, heads, capacity, size)."""
        self._step, self._parts = step, parts
        self._seen: Counter[StepSize] = Counter()
        self._recorder: _Recorder | None = None
        self._graphs: dict[StepSize, _Graph] = {}

    def size_of(self, lengths: Sequence[int], starts: Sequence[int]) -> StepSize | None:
        """Return that of a step; None if there is none: of long texts, or where there is no room.

        lengths: how many new tokens each row has. starts: the place of the first.
        """
        room, capacity = self._parts.shape[2], self._parts.shape[4]
        tokens = 1 if max(lengths) == 1 else DRAFT_TOKENS
        end = max(starts) + tokens
        if not min(lengths) == max(lengths) <= tokens or end > capacity:
            return None
        rows = 1 << (len(lengths) - 1).bit_length()
        unit = -(-capacity // (ENDS * SMALLEST_END)) * SMALLEST_END
        return StepSize(min(rows, room), tokens, min(-(-end // unit) * unit, capacity))

    def hidden_states(
        self, size: StepSize, new_ids: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> Tensor:
        """Return (n, width) of the new tokens of the first rows, row after row.

        new_ids: of each row, as many. What lies behind them, in these rows and up to the next size of
        rows, may be written over.
        """
        # Behind a draft stands what comes later, which it never looks at. Rows that are not in use look
        # at their first place alone, so that what they make is finite.
        ids = [[*of_row, *[0] * (size.tokens - len(of_row))] for of_row in new_ids]
        places = [[*range(start, start + size.tokens)] for start in starts]
        unused = [[0] * size.tokens] * (size.rows - len(ids))
        hidden = self._of_size(size, torch.tensor([ids + unused, places + unused]))
        # A copy: the next replay writes its own in the same place.
        return hidden[: len(ids), : len(new_ids[0])].clone().flatten(0, 1)

    def _of_size(self, size: StepSize, inputs: Tensor) -> Tensor:
        """Return (rows, tokens, width) of (2, rows, tokens) on the CPU."""
        if size not in self._graphs:
            parts = self._parts[:, :, : size.rows, :, : size.end]
            on_device = inputs.to(parts.device)
            self._seen[size] += 1
            if not parts.is_cuda or self._seen[size] <= DIRECT_STEPS:
                return self._step(on_device, parts)
            self._recorder = self._recorder or _Recorder(parts.device)
            self._graphs[size] = _Graph(self._recorder, self._step, on_device, parts)
        return self._graphs[size].replay(inputs)


class _Recorder:
    """Where the graphs over some keys and values are recorded, and what they share.

    Not with others: when one of a stream's graphs ends, some versions of torch free what cuBLAS has set
    aside for all of them; and a pool whose graphs have all ended takes no new one.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.pool = torch.cuda.graph_pool_handle()


class _Graph:
    """The recorded steps of one size."""

    def __init__(self, recorder: _Recorder, step: Step, inputs: Tensor, parts: Tensor) -> None:
        """inputs, parts: as for Step, on the GPU; the step is done once with them, and they are kept."""
        self._inputs = inputs
        self._graph = torch.cuda.CUDAGraph()
        # What a stream's first products set aside for cuBLAS must not lie among what is recorded.
        current = torch.cuda.current_stream(parts.device)
        recorder.stream.wait_stream(current)
        with torch.cuda.stream(recorder.stream):
            step(inputs, parts)
        current.wait_stream(recorder.stream)
        # Of this thread alone: others may go on allocating.
        with torch.cuda.graph(
            self._graph, recorder.pool, recorder.stream, capture_error_mode="thread_local"
        ):
            self._hidden = step(inputs, parts)

    def replay(self, inputs: Tensor) -> Tensor:
        """Return (rows, tokens, width), which the next replay overwrites. inputs: on the CPU."""
        self._inputs.copy_(inputs, non_blocking=True)
        self._graph.replay()
        return self._hidden
