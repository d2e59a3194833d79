"""Fine-tune for SQuAD, and print EM and F1 beside those of answering with the best-overlap sentence.

    python benchmarks/finetuning.py pretrain          # The model to start from: runs/english.
    python benchmarks/question_answering.py

The questions are those of SQuAD v1.1's dev set, looked for at ../shared/data, split by article: a
tenth of the articles is held out. Both sides answer the same held-out questions and are scored by the
same metric. The model is scored once, at the end: nothing is chosen by the score. The baseline learns
nothing: its answer is the sentence with the most words of the question, the shortest of several.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from finetuning import gptcli_finetune

from gptcli.config.loading import load_settings
from gptcli.data.items import read_items
from gptcli.data.questions import Question, Questions
from gptcli.evaluation.question_answering import AnswerScores, normalize_answer, score_answers

REPOSITORY = Path(__file__).parent.parent
DATA = REPOSITORY.parent / "shared" / "data" / "question-answering" / "dev-v1.1.rebuilt.json"
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def held_out_questions(run: Path) -> tuple[int, list[Question]]:
    """Return how many questions the run learnt from, and those that it held out."""
    settings = load_settings(run / "config.yaml")
    reader, share = Questions(), settings.data.validation_fraction
    items = read_items(
        settings, reader.parse, lambda progress: None, group=lambda item: reader.group(item, share)
    )
    return len(items.train), items.validation


def answer(run: Path, questions: list[Question], folder: Path) -> tuple[dict[str, str], float]:
    """Return the answers of `gptcli answer` by question id, and the questions a second."""
    rows, predictions = folder / "held-out.jsonl", folder / "predictions.json"
    with rows.open("w", encoding="utf-8") as file:
        for question in questions:
            row = {name: getattr(question, name) for name in ("id", "question", "context")}
            file.write(json.dumps(row) + "\n")
    command = [sys.executable, "-m", "gptcli", "answer", "--model", str(run)]
    started = time.perf_counter()
    subprocess.run([*command, "--input", rows, "--output", predictions], check=True)
    seconds = time.perf_counter() - started
    found: dict[str, str] = json.loads(predictions.read_text(encoding="utf-8"))
    return found, len(questions) / seconds


def best_sentence(question: Question) -> str:
    """Return the sentence that shares the most words with the question."""
    asked = set(normalize_answer(question.question).split())

    def overlap(sentence: str) -> tuple[int, int]:
        return (len(asked & set(normalize_answer(sentence).split())), -len(sentence))

    return max(SENTENCE_END.split(question.context), key=overlap)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(REPOSITORY / "runs" / "english"), help="start from it")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--run", type=Path, help="a run that is there: score it, train nothing")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    options = parser.parse_args()
    if not options.data.is_file():
        sys.exit(f"SQuAD is not at {options.data}; give --data. Nothing was measured.")
    with tempfile.TemporaryDirectory() as folder:
        run, seconds = options.run, None
        if run is None:
            run = Path(folder) / "run"
            # Scored at the end alone, so that the model is the last one and not the best on the test
            # questions.
            source = f"data.source={options.data}"
            settings = [source, "evaluation.eval_steps=1000000", *options.set]
            seconds = gptcli_finetune("question-answering.yaml", options.model, run, settings)
        learnt, questions = held_out_questions(run)
        found, speed = answer(run, questions, Path(folder))
    gold = {question.id: [text for text, _ in question.answers] for question in questions}
    took = "" if seconds is None else f"{seconds:.0f} s of training, "
    print(f"{learnt:,} questions to learn from, {len(gold):,} of other articles to answer")
    show("gptcli", score_answers(found, gold), f"{took}{speed:.0f} questions/s")
    sentences = {question.id: best_sentence(question) for question in questions}
    show("best-overlap sentence", score_answers(sentences, gold), "")


def show(side: str, scores: AnswerScores, more: Any) -> None:
    end = f", {more}" if more else ""
    print(f"  {side:22} exact match {scores.exact_match:.2f}, F1 {scores.f1:.2f}{end}", flush=True)


if __name__ == "__main__":
    main()
