"""How likely a causal model finds each of some labels behind a text: classification without training.

The score of a label is its pointwise mutual information with the text, given what stands between them:

    log p(label | text, "Label:") - log p(label | "Label:")

Without the second part, a label scores by how common its words are, and by how many there are of them.
PMI_DC, of Holtzman et al. 2021, "Surface Form Competition" (https://arxiv.org/abs/2104.08315), where it
beats the plain likelihood, the likelihood per token, and the calibration of Zhao et al. 2021 for all
sizes of GPT-2 and GPT-3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from gptcli.data.tokenizing import encode_batch
from gptcli.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DEFAULT_TEMPLATE = "{text}\n\nLabel: {label}"
TEXT, LABEL = "{text}", "{label}"
# So many scores over the whole vocabulary are in memory at once.
HEAD_ROWS = 256


def check_template(template: str) -> None:
    """Raise ConfigError if `template` is not one text and, at its end, one label."""
    if template.count(TEXT) != 1 or template.count(LABEL) != 1 or not template.endswith(LABEL):
        raise ConfigError(
            f"--template is {template!r}; it must hold {TEXT} once and end in {LABEL}, such as "
            f"{DEFAULT_TEMPLATE!r}."
        )


class LabelLikelihood:
    """Scores labels behind texts."""

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerFast, labels: list[str], template: str
    ) -> None:
        """model: a GPT2LMHeadModel. Raises ConfigError for a template that leaves no room for a text."""
        check_template(template)
        self._model = model
        self._tokenizer = tokenizer
        # In float32: the few numbers that tell labels apart would be lost in bfloat16.
        self._head = model.lm_head.weight.float()
        before, after = template.removesuffix(LABEL).split(TEXT)
        self._before, self._after = before, after.rstrip()
        # GPT-2's tokens begin with a space, so that before a label is a part of it.
        space = (before + TEXT + after)[len((before + TEXT + after).rstrip()) :]
        label_ids = encode_batch(tokenizer, [space + label for label in labels])
        self._first_ids = self._tensor([ids[0] for ids in label_ids])
        # The other tokens of all labels, label after label; each is predicted from the one before.
        self._inputs = self._tensor([token for ids in label_ids for token in ids[:-1]])
        self._targets = self._tensor([token for ids in label_ids for token in ids[1:]])
        self._label_of = self._tensor([n for n, ids in enumerate(label_ids) for _ in ids[1:]])
        self._offsets = self._tensor([at for ids in label_ids for at in range(len(ids) - 1)])
        self._room = model.config.n_positions - int(max(map(len, label_ids))) + 1
        self._edges = encode_batch(tokenizer, [before.rstrip(), self._after])
        if self._room <= sum(map(len, self._edges)):
            raise ConfigError(
                f"--template and --labels leave no room for a text: the model's context is "
                f"{model.config.n_positions} tokens."
            )
        (domain_ids,) = encode_batch(tokenizer, [self._after.strip()])
        self._prior = torch.zeros(len(labels), device=model.device)
        self._prior = self.logits(
            self._tensor([domain_ids or [tokenizer.eos_token_id]]), self._tensor([len(domain_ids) or 1])
        )[0]

    @property
    def tokens_beside(self) -> int:
        """Tokens that every text takes with it through the model."""
        return len(self._inputs)

    def encode(self, texts: list[str]) -> list[tuple[list[int], bool]]:
        """Return the tokens of each text up to its label, and whether the text's end is cut off."""
        all_ids = encode_batch(self._tokenizer, [f"{self._before}{text}{self._after}" for text in texts])
        return [
            (ids, False) if len(ids) <= self._room else (self._cut(text), True)
            for ids, text in zip(all_ids, texts, strict=True)
        ]

    def _cut(self, text: str) -> list[int]:
        first, last = self._edges
        space = self._before[len(self._before.rstrip()) :]
        (ids,) = encode_batch(self._tokenizer, [space + text])
        return [*first, *ids[: self._room - len(first) - len(last)], *last]

    @torch.inference_mode()
    def logits(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Return (texts, labels) scores in float32; their softmax gives probabilities.

        input_ids: (texts, tokens) of `encode`, padded on the right with anything. lengths: (texts,).
        """
        texts, width = input_ids.shape
        rows = torch.arange(texts, device=input_ids.device)
        hidden = self._hidden_states(input_ids, lengths)
        scores = self._log_probabilities(hidden[rows, lengths - 1], self._first_ids.expand(texts, -1))
        if self.tokens_beside:
            others = self._log_probabilities(
                hidden[:, width:].flatten(0, 1), self._targets.repeat(texts)[:, None]
            )
            scores.index_add_(1, self._label_of, others.view(texts, -1))
        return scores - self._prior

    def _hidden_states(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Return (texts, tokens + tokens_beside, width) hidden states.

        A text is read once for all labels: they stand behind it side by side, each as if it were alone.
        """
        model = self._model.transformer
        if not self.tokens_beside:
            outputs = model(input_ids=input_ids, use_cache=False)
            return cast(Tensor, outputs.last_hidden_state)
        texts, width = input_ids.shape
        device = input_ids.device
        positions = torch.cat(
            [
                torch.arange(width, device=device).expand(texts, -1),
                lengths[:, None] + self._offsets,
            ],
            dim=1,
        )
        # True where a token (row) may look at another (column).
        total = width + self.tokens_beside
        mask = torch.ones(texts, total, total, dtype=torch.bool, device=device).tril()
        mask[:, width:, :width] = (torch.arange(width, device=device) < lengths[:, None])[:, None]
        mask[:, width:, width:] &= self._label_of[:, None] == self._label_of
        outputs = model(
            input_ids=torch.cat([input_ids, self._inputs.expand(texts, -1)], dim=1),
            position_ids=positions,
            attention_mask=mask[:, None],
            use_cache=False,
        )
        return cast(Tensor, outputs.last_hidden_state)

    def _log_probabilities(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Return (rows, n) log-probabilities of n next tokens for each row.

        hidden: (rows, width). tokens: (rows, n).
        """
        parts = []
        for first in range(0, len(hidden), HEAD_ROWS):
            rows = slice(first, first + HEAD_ROWS)
            logits = F.linear(hidden[rows].float(), self._head)
            parts.append(logits.gather(1, tokens[rows]) - logits.logsumexp(1, keepdim=True))
        return torch.cat(parts)

    def _tensor(self, values: Any) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._model.device)
