"""How likely a causal model finds each of some labels behind a text: classification without training.

The score of a label is its pointwise mutual information with the text, given what stands between them:

    log p(label | text, "Label:") - log p(label | "Label:")

Without the second part, a label scores by how common its words are, and by how many there are of them.
PMI_DC, of Holtzman et al. 2021, "Surface Form Competition" (https://arxiv.org/abs/2104.08315), where it
beats the plain likelihood, the likelihood per token, and the calibration of Zhao et al. 2021 for all
sizes of GPT-2 and GPT-3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gptcli.data.tokenizing import encode_batch
from gptcli.errors import ConfigError
from gptcli.evaluation.next_token import NextTokenHead
from gptcli.models.scoring_forward import ScoringForward

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DEFAULT_TEMPLATE = "{text}\n\nLabel: {label}"
TEXT, LABEL = "{text}", "{label}"


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
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerFast,
        labels: list[str],
        template: str,
        *,
        is_int8: bool = False,
    ) -> None:
        """model: a GPT2LMHeadModel. is_int8: products with its weights as bytes, of a model in float32.

        Raises ConfigError for a template that leaves no room for a text.
        """
        check_template(template)
        self._device = model.device
        self._forward = ScoringForward(model, is_int8=is_int8)
        self._tokenizer = tokenizer
        self._head = NextTokenHead(model, is_int8=is_int8)
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
        self._prior = torch.zeros(len(labels), device=self._device)
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
        texts, labels = len(input_ids), len(self._first_ids)
        hidden = self._hidden_states(input_ids, lengths)
        # Of each text: from its last token the first of every label, from each token beside the next.
        asked = torch.zeros(labels + self.tokens_beside, dtype=torch.long, device=self._device)
        asked[labels:] = torch.arange(1, hidden.shape[1], device=self._device)
        begins = hidden.shape[1] * torch.arange(texts, device=self._device)[:, None]
        found, _ = self._head.log_probabilities(
            hidden.flatten(0, 1),
            (begins + asked).flatten(),
            torch.cat([self._first_ids, self._targets]).repeat(texts),
        )
        log_probabilities = found.view(texts, -1)
        scores = log_probabilities[:, :labels].contiguous()
        scores.index_add_(1, self._label_of, log_probabilities[:, labels:])
        return scores - self._prior

    def _hidden_states(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Return (texts, 1 + tokens_beside, width) hidden states: of a text's last token, and of labels.

        A text is read once for all labels: they stand behind it side by side, each as if it were alone.
        """
        texts, width = input_ids.shape
        total = width + self.tokens_beside
        begins = total * torch.arange(texts, device=self._device)[:, None]
        places = torch.arange(total, device=self._device)
        kept = torch.cat([begins + lengths[:, None] - 1, begins + places[width:]], dim=1).flatten()
        if not self.tokens_beside:
            return self._forward.hidden_states(input_ids, kept)[:, None]
        positions = torch.cat(
            [places[:width].expand(texts, -1), lengths[:, None] + self._offsets], dim=1
        )
        # True where a token (row) may look at another (column).
        seen = torch.ones(texts, total, total, dtype=torch.bool, device=self._device).tril()
        seen[:, width:, :width] = (places[:width] < lengths[:, None])[:, None]
        seen[:, width:, width:] &= self._label_of[:, None] == self._label_of
        ids = torch.cat([input_ids, self._inputs.expand(texts, -1)], dim=1)
        return self._forward.hidden_states(ids, kept, positions, seen).view(
            texts, len(kept) // texts, -1
        )

    def _tensor(self, values: Any) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._device)
