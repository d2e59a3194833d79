"""What is learnt of a conversation."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from gptcli.config.schema import RuntimeSettings
from gptcli.data.batches import IGNORED
from gptcli.data.conversations import ConversationItem
from gptcli.data.examples import ExampleBatches
from gptcli.data.items import LengthLimit
from gptcli.errors import DataError, ModelError
from gptcli.generation.conversation import ChatFormat
from gptcli.tasks.instruction import Instruction, conversation_examples, segments
from gptcli.training.device import choose_compute
from gptcli.training.loop import accumulate_gradients

FP32 = choose_compute(RuntimeSettings(device="cpu", precision="fp32"), for_training=True)
SHORT = ConversationItem("row 1", (("user", "The cat"), ("assistant", "sat")))
LONG = ConversationItem(
    "row 2",
    (
        ("system", "old"),
        ("user", "owl"),
        ("assistant", "The mat."),
        ("user", "dog"),
        ("assistant", "The wall."),
    ),
)


def test_replies_and_their_end_are_learnt_and_nothing_else(tokenizer: PreTrainedTokenizerFast) -> None:
    end = tokenizer.eos_token
    assert list(segments(LONG, ChatFormat(tokenizer, "it"), "it")) == [
        ("### System:\nold\n\n### Instruction:\nowl\n\n### Response:\n", False),
        (f"The mat.{end}", True),
        ("### Instruction:\ndog\n\n### Response:\n", False),
        (f"The wall.{end}", True),
    ]


def test_targets_are_the_next_tokens_of_the_reply(tokenizer: PreTrainedTokenizerFast) -> None:
    chat_format = ChatFormat(tokenizer, "it")
    limit = LengthLimit(100, "cut")
    batch = conversation_examples([SHORT], chat_format, "it", tokenizer, limit).batch([0])
    prompt = tokenizer.encode("### Instruction:\nThe cat\n\n### Response:\n")
    reply = [*tokenizer.encode("sat"), tokenizer.eos_token_id]
    assert batch.input_ids[0].tolist() == [*prompt, *reply[:-1]]
    assert batch.targets[0].tolist() == [IGNORED] * (len(prompt) - 1) + reply


def test_the_prompt_of_a_reply_has_the_tokens_that_chat_gives_it(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    chat_format = ChatFormat(tokenizer, "it")
    batch = conversation_examples([LONG], chat_format, "it", tokenizer, LengthLimit(500, "cut")).batch(
        [0]
    )
    last = chat_format.token_ids(LONG.as_dicts()[:-1], asks_for_reply=True)
    assert batch.input_ids[0, : len(last)].tolist() == last


@pytest.mark.parametrize(
    ("rule", "context_length", "examples", "cut", "dropped"),
    [
        ("cut", 60, 2, 1, 0),
        ("drop", 60, 1, 0, 1),
        ("cut", 5, 0, 0, 2),  # Not even a reply's first token is left.
    ],
)
def test_what_is_too_long_is_cut_or_dropped_and_counted(
    tokenizer: PreTrainedTokenizerFast,
    rule: str,
    context_length: int,
    examples: int,
    cut: int,
    dropped: int,
) -> None:
    limit = LengthLimit(context_length, rule)
    made = conversation_examples([SHORT, LONG], ChatFormat(tokenizer, "it"), "it", tokenizer, limit)
    assert (len(made), limit.cut, limit.dropped) == (examples, cut, dropped)
    assert all(length <= context_length for length in made.lengths)


def test_what_is_too_long_is_refused_with_its_row(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match=r"row 1 has \d+ tokens; model.context_length is 5"):
        conversation_examples(
            [SHORT], ChatFormat(tokenizer, "it"), "it", tokenizer, LengthLimit(5, "refuse")
        )


def test_a_template_that_rewrites_the_beginning_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    other = copy.deepcopy(tokenizer)
    other.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(ModelError, match=r"it: its chat template does not continue .*\(row 2\)"):
        list(segments(LONG, ChatFormat(other, "it"), "it"))


@pytest.mark.parametrize("micro_batch_size", [2, 1])
def test_loss_and_gradients_equal_those_of_hugging_face(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, micro_batch_size: int
) -> None:
    short = ConversationItem("row 3", (("user", "a"), ("assistant", "The old cat")))
    chat_format = ChatFormat(tokenizer, "it")
    model.transformer.wpe = torch.nn.Embedding(64, 32)
    examples = conversation_examples(
        [SHORT, short], chat_format, "it", tokenizer, LengthLimit(60, "cut")
    )
    task = Instruction(ExampleBatches(examples, batch_size=2, seed=0), examples, 1, FP32)
    batch = examples.batch([0, 1])
    reference = copy.deepcopy(model)
    # Hugging Face shifts labels itself: label t is that of input t.
    labels = torch.full((2, batch.input_ids.shape[1] + 1), IGNORED)
    labels[:, 1:] = torch.from_numpy(batch.targets)
    ids = torch.zeros_like(labels)
    ids[:, :-1] = torch.from_numpy(batch.input_ids)
    expected = reference(input_ids=ids, labels=labels).loss
    expected.backward()

    loss = accumulate_gradients(model, task, batch, micro_batch_size, FP32)

    assert loss == pytest.approx(expected.item(), abs=1e-5)
    for (name, weight), other in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, other.grad, rtol=0, atol=1e-5, msg=name)
