"""The texts of the items of a task: what is looked at in each, and what is compared."""

from __future__ import annotations

from typing import Any

from gptcli.data.conversations import ConversationItem
from gptcli.data.labelled_texts import LabelledText
from gptcli.data.questions import Question


def texts_of(item: Any) -> list[str]:
    """Return all texts of a labelled text, a question or a conversation."""
    match item:
        case LabelledText():
            return [item.text, *([] if item.text_pair is None else [item.text_pair])]
        case Question():
            return [item.question, item.context]
        case ConversationItem():
            return [content for _, content in item.messages]
    raise AssertionError(type(item))


def key_texts(item: Any) -> list[str]:
    """Return the texts of the input: two items with the same ones are the same input."""
    match item:
        case ConversationItem():
            return [content for _, content in item.key]
    return texts_of(item)


def compared_text(item: Any) -> str:
    """Return that by which two items are nearly the same, or one is known from the other.

    Many questions are about one text: it is that which counts there. Of a conversation, it is what comes
    before the first reply.
    """
    match item:
        case Question():
            return item.context
        case ConversationItem():
            return "\n".join(key_texts(item))
    return "\n".join(texts_of(item))
