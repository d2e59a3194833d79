"""What a test and the training text share, and what a model copies from its training text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from gptcli.data.batches import mix
from gptcli.errors import ConfigError
from gptcli.evaluation.overlap import CopiedSpan, CopiedSpans, ItemGrams, Leaks
from gptcli.generation.decoder import Decoder, NewToken, Request
from gptcli.generation.sampling import Sampling
from gptcli.pipelines.evaluate import Evaluator, OnProgress

# Items of the test, and generated texts, that are listed.
LISTED = 10
SHOWN_CHARACTERS = 200
SAMPLE_TOKENS = 256
SAMPLES_AT_ONCE = 32


@dataclass(frozen=True)
class Overlap:
    """What was found in one pass over the training text."""

    leaks: Leaks | None
    leaked: list[tuple[float, str]]
    """The items that stand there most: (share of their n-grams, text)."""
    copied: list[CopiedSpan] | None
    """Of each generated text, the longest span first."""
    generated_characters: int

    def as_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self.leaks is not None:
            found["leaks"] = {
                "items": self.leaks.items,
                "too_short": self.leaks.too_short,
                "touched": self.leaks.touched,
                "near_duplicates": self.leaks.near_duplicates,
                "worst": [{"overlap": share, "text": text} for share, text in self.leaked],
            }
        if self.copied is not None:
            found["copied"] = {
                "texts": len(self.copied),
                "characters_generated": self.generated_characters,
                "longest_spans": [asdict(span) for span in self.copied[:LISTED]],
            }
        return found


def check_overlap(evaluator: Evaluator, train_data: str | None, *, samples: int | None) -> None:
    """Raise ConfigError or DataError for what `look_for_overlap` could not do."""
    if samples and evaluator.found.kind != "language-modelling":
        raise ConfigError(f"--copied is for models that generate text; {evaluator.model} does not.")
    evaluator.data.check_training(train_data)


def look_for_overlap(
    evaluator: Evaluator,
    train_data: str | None,
    *,
    leaks: bool,
    samples: int | None,
    progress: OnProgress,
) -> Overlap:
    """Return what the test's items and `samples` generated texts share with the training text.

    train_data: a source of text; None: what the run was trained on. Raises ConfigError, DataError.
    """
    texts = list(_generated(evaluator, samples, progress)) if samples else []
    grams = ItemGrams(evaluator.item_texts()) if leaks else None
    spans = CopiedSpans(texts) if samples else None
    done, total = 0, evaluator.data.training_bytes(train_data)
    for piece in evaluator.data.trained_on(train_data):
        for looking in (grams, spans):
            if looking is not None:
                looking.look_in([piece])
        done += len(piece.text.encode())
        progress("training text", done, total, "bytes")
    found = None if grams is None else grams.result()
    return Overlap(
        found,
        [] if found is None else list(_worst(evaluator, found)),
        None
        if spans is None
        else sorted(spans.result(), key=lambda span: span.characters, reverse=True),
        sum(map(len, texts)),
    )


def _worst(evaluator: Evaluator, leaks: Leaks) -> Iterator[tuple[float, str]]:
    """Yield the items that stand in the training text most, from a second reading of the test."""
    wanted = set(leaks.worst[:LISTED])
    texts = {number: text for number, text in enumerate(evaluator.item_texts()) if number in wanted}
    for number in leaks.worst[:LISTED]:
        text = " ".join(texts[number].split())
        yield round(float(leaks.overlap[number]), 4), text[:SHOWN_CHARACTERS]


def _generated(evaluator: Evaluator, count: int, progress: OnProgress) -> Iterator[str]:
    """Yield texts that the model makes of nothing, drawn from its own distribution."""
    loaded = evaluator.load()
    end_of_text = loaded.tokenizer.eos_token_id
    decoder = Decoder.of(loaded, evaluator.compute)
    seed = evaluator.seed
    for first in range(0, count, SAMPLES_AT_ONCE):
        some = min(SAMPLES_AT_ONCE, count - first)
        ids: list[list[int]] = [[] for _ in range(some)]
        request = Request([end_of_text], SAMPLE_TOKENS, some, seed=mix(seed, first))
        for event in decoder.decode([request], Sampling(1.0, None, None)):
            if isinstance(event, NewToken):
                ids[event.sequence].append(event.token_id)
        for of_one in ids:
            yield str(loaded.tokenizer.decode(of_one, clean_up_tokenization_spaces=False))
        progress("generating", first + some, count, "texts")
