"""How a conversation becomes a prompt, what is dropped when it outgrows the context, what is shown."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from gptcli.errors import DataError, ModelError
from gptcli.generation.conversation import (
    DEFAULT_CHAT_TEMPLATE,
    HEADINGS,
    ChatFormat,
    Conversation,
    Message,
    ReplyStream,
)

# Any text that can be encoded: no half of a surrogate pair.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
# Whitespace, line feeds, headings and end-of-text where they could do harm.
NASTY = st.lists(
    st.sampled_from(["\n", "\n\n", " ", "\t", "\u2028", "\x1c", "#", "### Response:", "a", "1", "é"]),
    max_size=6,
).map("".join)


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def with_template(tokenizer: PreTrainedTokenizerFast, template: Any) -> ChatFormat:
    """Return the format of a model whose tokenizer brings this template."""
    own = copy.deepcopy(tokenizer)
    own.chat_template = template
    return ChatFormat(own, "a-model")


@pytest.fixture(scope="module")
def default(tokenizer: PreTrainedTokenizerFast) -> ChatFormat:
    return ChatFormat(tokenizer, "a-model")


# The default template


def test_the_default_template_writes_headings_and_ends_every_reply_with_end_of_text(
    default: ChatFormat,
) -> None:
    messages = [
        {"role": "system", "content": "Be kind."},
        user("Hello"),
        assistant("Hi there."),
        user("Bye"),
    ]
    said = (
        "### System:\nBe kind.\n\n"
        "### Instruction:\nHello\n\n"
        "### Response:\nHi there.<|endoftext|>"
        "### Instruction:\nBye\n\n"
    )
    assert default.text(messages, asks_for_reply=False) == said
    assert default.text(messages, asks_for_reply=True) == said + "### Response:\n"


def test_a_model_that_saved_the_default_template_writes_the_same(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, default: ChatFormat
) -> None:
    own = copy.deepcopy(tokenizer)
    own.chat_template = DEFAULT_CHAT_TEMPLATE
    own.save_pretrained(tmp_path)
    saved = ChatFormat(AutoTokenizer.from_pretrained(tmp_path), "a-model")
    messages = [{"role": "system", "content": " x "}, user("a\n"), assistant(" b"), user("c")]
    assert (saved.is_own, default.is_own) == (True, False)
    assert saved.stops == default.stops == HEADINGS
    assert saved.text(messages, asks_for_reply=True) == default.text(messages, asks_for_reply=True)


@settings(deadline=None)
@given(asked=st.one_of(TEXTS, NASTY), answered=st.one_of(TEXTS, NASTY))
def test_a_prompt_is_how_the_conversation_with_its_reply_begins_in_text_and_in_tokens(
    asked: str, answered: str, tokenizer: PreTrainedTokenizerFast, default: ChatFormat
) -> None:
    prompt, whole = [user(asked)], [user(asked), assistant(answered)]
    text = default.text(whole, asks_for_reply=False)
    assert text == default.text(prompt, asks_for_reply=True) + answered.strip() + "<|endoftext|>"
    # The reply's own tokens stand between, as a model makes them, then end-of-text.
    assert default.token_ids(whole, asks_for_reply=False) == [
        *default.token_ids(prompt, asks_for_reply=True),
        *tokenizer.encode(answered.strip(), add_special_tokens=False),
        tokenizer.eos_token_id,
    ]


@settings(deadline=None)
@given(texts=st.lists(NASTY, min_size=4, max_size=4))
def test_the_tokens_of_an_exchange_are_the_same_wherever_it_stands(
    texts: list[str], default: ChatFormat
) -> None:
    first = [user(texts[0]), assistant(texts[1])]
    second = [user(texts[2]), assistant(texts[3])]
    ids = [
        default.token_ids(messages, asks_for_reply=False) for messages in (first, second, first + second)
    ]
    assert ids[0] + ids[1] == ids[2]


def test_a_role_that_the_default_template_does_not_know_is_an_error(default: ChatFormat) -> None:
    with pytest.raises(ModelError, match=r"The role of a message is system, user or assistant\."):
        default.text([{"role": "tool", "content": "x"}], asks_for_reply=True)


# Templates of models


def test_the_template_of_the_tokenizer_is_used(tokenizer: PreTrainedTokenizerFast) -> None:
    chat_format = with_template(
        tokenizer,
        "{% for m in messages %}{{ m.role[0] }}={{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}a={% endif %}",
    )
    assert chat_format.is_own
    assert chat_format.stops == ()
    ids = chat_format.token_ids([user("1"), assistant("2"), user("3")], asks_for_reply=True)
    assert tokenizer.decode(ids) == "u=1<|endoftext|>a=2<|endoftext|>u=3<|endoftext|>a="
    assert ids.count(tokenizer.eos_token_id) == 3


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% for", "its chat template cannot be used: "),
        ("{{ raise_exception('Only\nGerman.') }}", "cannot be used: Only"),
        ("{{ messages[7].content }}", "cannot be used: "),
        ("{{ nothing() }}", "'nothing' is undefined"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "cannot be used: "),
        ("{{ messages.append(1) }}", "cannot be used: "),
        ("{% for i in range(10**9) %}x{% endfor %}", "cannot be used: Range too big"),
        ("{{ '\\ud800' }}", "cannot be used: "),
        ("{# nothing #}", "its chat template writes nothing."),
        ({"tool_use": "x"}, "cannot be used: "),
        (5, "cannot be used: "),
    ],
)
def test_a_template_that_fails_is_said_in_one_line(
    tokenizer: PreTrainedTokenizerFast, template: Any, expected: str
) -> None:
    with pytest.raises(ModelError) as caught:
        with_template(tokenizer, template).token_ids([user("x")], asks_for_reply=True)
    line = str(caught.value)
    assert line.startswith("a-model: its chat template ")
    assert expected in line
    assert "\n" not in line


# Room in the context


@pytest.fixture(scope="module")
def plain(tokenizer: PreTrainedTokenizerFast) -> ChatFormat:
    """A format in which a message of n digits is n + 1 tokens: digits are not merged, then the end."""
    return with_template(tokenizer, "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}")


def prompt_text(
    conversation: Conversation, text: str, chat_format: ChatFormat, tokenizer: Any, context_length: int
) -> tuple[str, int]:
    """Return the prompt as text, a space for each end of a message, and what was dropped for it."""
    prompt = conversation.prompt(text, chat_format, context_length=context_length, max_new_tokens=10)
    assert len(prompt.ids) + 10 <= context_length
    return tokenizer.decode(prompt.ids).replace("<|endoftext|>", " "), prompt.dropped_messages


def test_the_oldest_exchanges_are_dropped_when_the_context_is_full_and_each_cut_is_told_once(
    plain: ChatFormat, tokenizer: PreTrainedTokenizerFast
) -> None:
    conversation = Conversation()
    conversation.add("111", "222")  # 4 + 4 tokens
    conversation.add("333", "444")
    # 8 + 8 + 4 for the new message, and 10 for the reply: 30 fit exactly.
    assert prompt_text(conversation, "555", plain, tokenizer, 30) == ("111 222 333 444 555 ", 0)
    assert prompt_text(conversation, "5555", plain, tokenizer, 30) == ("333 444 5555 ", 2)
    assert prompt_text(conversation, "5555", plain, tokenizer, 30) == ("333 444 5555 ", 0)
    # What is gone stays gone, also for a message with which it would fit.
    assert prompt_text(conversation, "5", plain, tokenizer, 30) == ("333 444 5 ", 0)
    conversation.add("5", "6")
    assert prompt_text(conversation, "7777", plain, tokenizer, 30) == ("333 444 5 6 7777 ", 0)
    assert prompt_text(conversation, "7" * 19, plain, tokenizer, 30) == ("7" * 19 + " ", 4)
    # All of it is still there to be saved.
    contents = [message["content"] for message in conversation.messages]
    assert contents == ["111", "222", "333", "444", "5", "6"]


def test_the_system_message_is_never_dropped(
    plain: ChatFormat, tokenizer: PreTrainedTokenizerFast
) -> None:
    conversation = Conversation("99")
    conversation.add("111", "222")
    conversation.add("333", "444")
    # 3 for the system message, 2 for the new one, 10 for the reply: 15 of 30.
    assert prompt_text(conversation, "5", plain, tokenizer, 30) == ("99 333 444 5 ", 2)
    assert prompt_text(conversation, "5", plain, tokenizer, 15) == ("99 5 ", 2)
    conversation.reset()
    assert conversation.is_empty
    assert conversation.messages == [{"role": "system", "content": "99"}]
    assert prompt_text(conversation, "5", plain, tokenizer, 15) == ("99 5 ", 0)


@pytest.mark.parametrize(
    ("system", "where", "expected"),
    [
        (
            None,
            "The message",
            "The message has 21 tokens, with what the chat template adds; the context is 30, 10 of them "
            "for the reply. Shorten it, or lower --max-new-tokens.",
        ),
        (
            "99",
            "standard input:3: the message",
            "standard input:3: the message has 24 tokens, with the system message and what the chat "
            "template adds; the context is 30, 10 of them for the reply. Shorten it, or lower "
            "--max-new-tokens.",
        ),
    ],
)
def test_a_message_that_does_not_fit_alone_is_an_error_and_drops_nothing(
    plain: ChatFormat,
    tokenizer: PreTrainedTokenizerFast,
    system: str | None,
    where: str,
    expected: str,
) -> None:
    conversation = Conversation(system)
    conversation.add("111", "222")
    with pytest.raises(DataError) as caught:
        conversation.prompt("5" * 20, plain, context_length=30, max_new_tokens=10, where=where)
    assert str(caught.value) == expected
    before = "" if system is None else "99 "
    assert prompt_text(conversation, "5", plain, tokenizer, 30) == (f"{before}111 222 5 ", 0)


# What is shown of a reply


def pieces(text: str, stops: tuple[str, ...], *, is_whole: bool = True) -> tuple[list[str], bool]:
    """Pass a text on character by character; return what was shown for each, and if it was stopped."""
    stream = ReplyStream(stops)
    shown = []
    for character in text:
        shown.append(stream.add(character))
        if stream.is_stopped:
            break
    shown.append(stream.finish(is_whole=is_whole))
    assert "".join(shown) == stream.text
    return shown, stream.is_stopped


def test_text_is_shown_at_once_but_for_whitespace_around_it() -> None:
    shown = ["", "a", "", "", " \nb", "", ""]
    assert pieces(" a \nb ", ()) == (shown, False)


def test_a_heading_ends_the_reply_and_nothing_of_it_is_ever_shown() -> None:
    text = "Yes.\n\n### Instruction:\nMore"
    shown, is_stopped = pieces(text, HEADINGS)
    # Four characters, then 18 held back: two line feeds and the heading.
    assert shown == ["Y", "e", "s", ".", *[""] * 18, ""]
    assert is_stopped


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("### Response:\nx", ""),
        ("a ### System: b", "a"),
        ("a####### Instruction: b", "a####"),
        ("### Instructions are: b ### ", "### Instructions are: b ###"),
        ("C# and C##", "C# and C##"),
        ("  \n ", ""),
        ("", ""),
        # The first one counts, whichever it is.
        ("a ### Response: ### Instruction:", "a"),
    ],
)
def test_what_only_looks_like_a_heading_is_text(text: str, expected: str) -> None:
    assert "".join(pieces(text, HEADINGS)[0]) == expected
    stream = ReplyStream(HEADINGS)
    assert stream.add(text) + stream.finish(is_whole=True) == expected


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("Yes.\n\n### Instr", "Yes."),
        ("Yes.\n\n###", "Yes."),
        ("I like C#", "I like C#"),
        ("I like C++", "I like C++"),
    ],
)
def test_of_a_reply_that_was_cut_half_a_heading_is_not_shown(text: str, cut: str) -> None:
    assert "".join(pieces(text, HEADINGS, is_whole=False)[0]) == cut
    assert "".join(pieces(text, HEADINGS, is_whole=True)[0]) == text


@settings(deadline=None)
@given(text=st.one_of(TEXTS, NASTY), sizes=st.lists(st.integers(1, 9), min_size=1))
def test_how_the_text_is_split_changes_nothing(text: str, sizes: list[int]) -> None:
    whole = ReplyStream(HEADINGS)
    expected = whole.add(text) + whole.finish(is_whole=True)
    stream, shown, start = ReplyStream(HEADINGS), "", 0
    while start < len(text) and not stream.is_stopped:
        size = sizes[start % len(sizes)]
        shown += stream.add(text[start : start + size])
        start += size
    assert shown + stream.finish(is_whole=True) == expected == expected.strip()
    assert not [heading for heading in HEADINGS if heading in expected]
