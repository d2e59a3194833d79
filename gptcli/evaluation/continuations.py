"""How likely a model finds continuations of contexts: what all benchmarks of choices are made of.

1. A context and its continuation are tokenized together, as they would stand in a text, and parted at
   the context's own number of tokens. White space at the context's end belongs to the continuation,
   since GPT-2's tokens begin with their space.
2. Without context, the first token is predicted from end-of-text.
3. What is longer than the model's context loses its beginning, and is counted.
4. `prefix_packing` lays them out; `next_token` scores the continuations' tokens, and no others.

Rules 1 to 3 are those of EleutherAI's lm-evaluation-harness, so that scores are comparable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gptcli.data.token_budget import TokenBudget
from gptcli.data.tokenizing import encode_batch
from gptcli.errors import ModelError
from gptcli.evaluation.benchmarks.benchmark import Continuation
from gptcli.evaluation.next_token import NextTokenHead
from gptcli.evaluation.prefix_packing import ROW_TOKENS, PackedRow, pack
from gptcli.models.loading import LoadedModel
from gptcli.models.scoring_forward import ScoringForward
from gptcli.training.device import Compute


@dataclass(frozen=True)
class Likelihood:
    """What the model says of a continuation."""

    log_probability: float
    """Of all its tokens together, in nats."""
    tokens: int
    is_greedy: bool
    """Whether each of its tokens is the likeliest there."""
    is_cut: bool
    """Whether the beginning of its context was left out."""


class ContinuationScorer:
    """Scores continuations with a loaded causal model."""

    def __init__(self, loaded: LoadedModel, compute: Compute) -> None:
        self._loaded = loaded
        self._device = compute.device
        self._forward = ScoringForward(loaded.model, is_int8=compute.is_int8)
        self._head = NextTokenHead(loaded.model, is_int8=compute.is_int8)
        self.context_length = int(loaded.model.config.n_positions)
        longest = max(ROW_TOKENS, self.context_length)
        self._budget = TokenBudget.of_device(compute.device.type, longest)

    def score(self, continuations: Sequence[Continuation]) -> list[Likelihood]:
        """Return what the model says of each. Raises ModelError for scores that are not finite.

        The more at once, the more of their beginnings are shared.
        """
        return self.score_tokens(self._tokenized(continuations))

    def score_tokens(self, parted: Sequence[tuple[list[int], list[int]]]) -> list[Likelihood]:
        """Return what the model says of continuations that are tokens: (context, continuation), each of
        one token or more. Raises as `score` does.
        """
        room = self.context_length + 1
        sequences, first_scored = [], []
        for context, text in parted:
            ids = context + text
            extra = max(0, len(ids) - room)
            sequences.append(ids[extra:])
            # Of a continuation longer than the context, what is left is scored from its second token on.
            first_scored.append(max(1, len(context) - extra))
        self._loaded.check_token(max((max(ids) for ids in sequences), default=0), "a text")
        # The last token is predicted, and predicts nothing.
        found = self._score_tokens([ids[:-1] for ids in sequences], sequences, first_scored)
        return [
            Likelihood(float(logs.sum()), len(logs), bool(tops.all()), len(context) + len(text) > room)
            for logs, tops, (context, text) in zip(*found, parted, strict=True)
        ]

    def _tokenized(self, continuations: Sequence[Continuation]) -> list[tuple[list[int], list[int]]]:
        """Return the tokens of each context and of its continuation."""
        tokenizer = self._loaded.tokenizer
        contexts = list({item.context.rstrip(): None for item in continuations})
        lengths = dict(zip(contexts, map(len, encode_batch(tokenizer, contexts)), strict=True))
        wholes = encode_batch(tokenizer, [item.context + item.text for item in continuations])
        parted = []
        for item, ids in zip(continuations, wholes, strict=True):
            # A token across the border is scored whole.
            before = min(lengths[item.context.rstrip()], len(ids) - 1)
            parted.append((ids[:before] or [tokenizer.eos_token_id], ids[before:]))
        return parted

    @torch.inference_mode()
    def _score_tokens(
        self, inputs: list[list[int]], sequences: list[list[int]], first_scored: list[int]
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return (scored tokens,) of each sequence: log-probabilities, and which are the likeliest."""
        logs: list[np.ndarray] = [np.zeros(0)] * len(sequences)
        tops: list[np.ndarray] = [np.zeros(0)] * len(sequences)
        rows = list(pack(inputs))
        lengths = np.array([len(row.input_ids) for row in rows], dtype=np.int64)
        for numbers, width in self._budget.batches(lengths):
            some = [rows[number] for number in numbers]
            spans, nodes, tokens = [], [], []
            for number, row in enumerate(some):
                for sequence, path in row.paths.items():
                    first = first_scored[sequence]
                    # The token before predicts.
                    nodes.append(path[first - 1 :] + number * width)
                    tokens.append(np.array(sequences[sequence][first:]))
                    spans.append((sequence, len(tokens[-1])))
            found = self._predictions(some, width, np.concatenate(nodes), np.concatenate(tokens))
            begin = 0
            for sequence, count in spans:
                part = slice(begin, begin + count)
                logs[sequence], tops[sequence] = found[0][part], found[1][part]
                begin += count
        return logs, tops

    def _predictions(
        self, rows: Sequence[PackedRow], width: int, nodes: np.ndarray, tokens: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the log-probability of each token behind its node, and whether it is the likeliest.

        nodes: (k,), numbers of tokens, counted through rows of `width`, to which they are padded.
        """
        asked, predictors = np.unique(nodes, return_inverse=True)
        order = np.argsort(predictors, kind="stable")
        scores, likeliest = self._head.log_probabilities(
            self._hidden_states(rows, width, asked),
            self._tensor(predictors[order]),
            self._tensor(tokens[order]),
        )
        if not scores.isfinite().all():
            raise ModelError(
                f"{self._loaded.name}: its scores are not finite. Its weights are damaged, or too large "
                "for this --precision; try --precision fp32."
            )
        back = np.argsort(order, kind="stable")
        return scores.double().cpu().numpy()[back], likeliest.cpu().numpy()[back]

    def _hidden_states(self, rows: Sequence[PackedRow], width: int, asked: np.ndarray) -> torch.Tensor:
        """Return the hidden states of the nodes `asked`, behind the last layer norm."""
        input_ids = np.zeros((len(rows), width), np.int64)
        positions = np.zeros((len(rows), width), np.int64)
        for number, row in enumerate(rows):
            input_ids[number, : len(row.input_ids)] = row.input_ids
            positions[number, : len(row.positions)] = row.positions
        return self._forward.hidden_states(
            self._tensor(input_ids),
            self._tensor(asked),
            self._tensor(positions),
            self._tensor(np.stack([row.mask(width) for row in rows])),
        )

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(self._device)
