"""Fine-tune for instructions; print how the held-out loss falls, and how many answers end by themselves.

    python benchmarks/finetuning.py pretrain          # The model to start from: runs/english.
    python benchmarks/instructions.py

The 1,100 instructions are looked for at ../shared/data; a tenth is held out. Each held-out instruction
is asked as `gptcli chat` asks it, sampled as it samples, in a conversation of its own. An answer ends by
itself if the model says so, with end-of-text, before it has used up its tokens.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from finetuning import gptcli_finetune

from gptcli.config.loading import load_settings
from gptcli.config.schema import GenerationSettings, RuntimeSettings
from gptcli.data.conversations import parse_conversations
from gptcli.data.items import read_items
from gptcli.hub import quiet_libraries
from gptcli.pipelines.chat import Chat

REPOSITORY = Path(__file__).parent.parent
DATA = REPOSITORY.parent / "shared" / "data" / "instructions" / "instructions-1100-en.json"


def held_out_questions(run: Path) -> list[str]:
    """Return the instructions that the run did not learn from."""
    items = read_items(
        load_settings(run / "config.yaml"), parse_conversations, lambda progress: None
    ).validation
    return [content for item in items for role, content in item.messages if role == "user"]


def ask(run: Path, questions: list[str], max_new_tokens: int) -> list[dict[str, Any]]:
    quiet_libraries()
    chat = Chat(str(run), GenerationSettings(max_new_tokens=max_new_tokens), RuntimeSettings(), seed=1)
    replies = []
    for question in questions:
        chat.conversation.reset()
        replies.append(chat.reply(question).as_dict())
    return replies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(REPOSITORY / "runs" / "english"), help="start from it")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    options = parser.parse_args()
    if not options.data.is_file():
        sys.exit(f"The instructions are not at {options.data}; give --data. Nothing was measured.")
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        settings = [f"data.source={options.data}", *options.set]
        seconds = gptcli_finetune("instruction.yaml", options.model, run, settings)
        entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        replies = ask(run, held_out_questions(run), options.max_new_tokens)
    losses = [entry["loss"] for entry in entries if "split" in entry]
    reasons = Counter(reply["finish_reason"] for reply in replies)
    for reply in replies[:5]:
        print(f"  {' '.join(reply['user'].split())!r:.100} -> {reply['assistant']!r:.100}")
    print(
        f"held-out loss {losses[0]:.3f} before, {min(losses):.3f} at best, {seconds:.0f} s; "
        f"{reasons['end_of_text']} of {len(replies)} answers end by themselves "
        f"({reasons['end_of_text'] / len(replies):.1%}; 95% is wanted), {dict(reasons)}"
    )


if __name__ == "__main__":
    main()
