"""`gptcli chat` as a person types it, and as a program feeds it."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GPT2LMHeadModel, PreTrainedTokenizerFast

from gptcli.config.schema import GenerationSettings, ModelSettings, RuntimeSettings, TokenizerTraining
from gptcli.data.tokenizing import train_tokenizer
from gptcli.generation.conversation import DEFAULT_CHAT_TEMPLATE
from gptcli.models.architecture import model_config, new_model
from gptcli.models.saving import save_model
from gptcli.pipelines.chat import Chat
from tests.commands.conftest import Result, Run
from tests.conftest import TEXT, command, environment
from tests.test_cli import run_main

# The end of each message is end-of-text, and nothing else is added.
PLAIN_TEMPLATE = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
NOTE = (
    "Note: {} has no chat template: it was not tuned for conversation, and continues text rather than "
    "answers."
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Words and headings are a token each; digits and most letters, too."""
    text = " ### System: ### Instruction: ### Response: Yes No. la la\n" * 20
    return train_tokenizer(iter([text + TEXT]), TokenizerTraining(vocab_size=400))


MakeModel = Callable[..., Path]


@pytest.fixture(scope="module")
def make_model(
    tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> MakeModel:
    def make_model(
        *, says: str | None, ends: bool = True, context_length: int = 128, template: str | None = None
    ) -> Path:
        """Save a model that says `says` behind the last token of a prompt, then end-of-text or the last
        of it again and again; None for random weights."""
        settings = ModelSettings(n_layer=1, n_head=2, n_embd=64, context_length=context_length)
        config = model_config(settings, tokenizer)
        config.tie_word_embeddings = False
        model = new_model(config, seed=0)
        end = tokenizer.eos_token_id
        if says is None:
            # As large as those of a trained model: the text does not repeat one token for ever.
            with torch.no_grad():
                for weights in model.parameters():
                    weights.mul_(10 if weights.dim() == 2 else 1)
        else:
            ids = tokenizer.encode(says)
            last_of_prompt = end if template == PLAIN_TEMPLATE else tokenizer.encode("\n")[0]
            make_chain(model, [last_of_prompt, *ids, end if ends else ids[-1]])
        folder = tmp_path_factory.mktemp("chat") / "model"
        tokenizer.chat_template = template
        save_model(model, tokenizer, folder)
        return folder

    return make_model


def make_chain(model: GPT2LMHeadModel, ids: list[int]) -> None:
    """Let each of the tokens be followed by the next one."""
    assert len(set(ids[:-1])) == len(ids) - 1 <= 64
    with torch.no_grad():
        for name, weights in model.named_parameters():
            weights.fill_(1 if name.endswith("ln_f.weight") else 0)
        # A token has a direction of its own, which only its follower answers to.
        for direction, (token_id, following) in enumerate(pairwise(ids)):
            model.transformer.wte.weight[token_id, direction] = 1
            model.lm_head.weight[following, direction] = 1


@pytest.fixture(scope="module")
def says_yes(make_model: MakeModel) -> Path:
    return make_model(says="Yes No.")


@pytest.fixture(scope="module")
def random_model(make_model: MakeModel) -> Path:
    return make_model(says=None, context_length=256)


@pytest.fixture
def piped(run: Run) -> Run:
    """Run `gptcli chat` with a model, with standard input from a pipe."""

    def piped(model: Path, *options: str | Path, stdin: str | bytes = "") -> Result:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        return run("chat", "--model", model, "--seed", "1", *options, stdin=data)

    return piped


@pytest.fixture
def terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Run]:
    """Run `gptcli chat` in this process, with standard input from a terminal."""
    monkeypatch.chdir(tmp_path)
    keyboard, side = pty.openpty()

    def terminal(model: Path, *options: str | Path, typed: str) -> Result:
        os.write(keyboard, typed.encode())
        code = run_main(monkeypatch, "chat", "--model", str(model), "--seed", "1", *map(str, options))
        captured = capsys.readouterr()
        return Result(captured.out, captured.err, code)

    with os.fdopen(side, encoding="utf-8") as file, monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", file)
        yield terminal
    os.close(keyboard)


def row(user: str, assistant: str, finish_reason: str, dropped_messages: int = 0) -> dict[str, Any]:
    return {
        "user": user,
        "assistant": assistant,
        "finish_reason": finish_reason,
        "dropped_messages": dropped_messages,
    }


def messages(*contents: str) -> list[dict[str, str]]:
    roles = ("user", "assistant") * len(contents)
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]


# From a pipe


def test_each_line_is_a_message_and_only_the_replies_are_printed(piped: Run, says_yes: Path) -> None:
    result = piped(says_yes, stdin="Hello\n\n  \n/help\r\nBye")
    assert result == ("Yes No.\n" * 3, NOTE.format(says_yes) + "\n", 0)


def test_json_is_one_object_a_reply(piped: Run, says_yes: Path) -> None:
    result = piped(says_yes, "--json", stdin="Hello\n\n 深圳 \n")
    assert result.rows == [
        row("Hello", "Yes No.", "end_of_text"),
        row(" 深圳 ", "Yes No.", "end_of_text"),
    ]
    assert (result.notes, result.code) == ([NOTE.format(says_yes)], 0)


def test_a_reply_comes_before_the_next_line_is_there(
    monkeypatch: pytest.MonkeyPatch, says_yes: Path
) -> None:
    (lines_read, lines_written), (replies_read, replies_written) = os.pipe(), os.pipe()
    replies = []

    def talk() -> None:
        with os.fdopen(lines_written, "w") as lines, os.fdopen(replies_read) as answers:
            for line in ("Hello\n", "Bye\n"):
                lines.write(line)
                lines.flush()
                replies.append(answers.readline())

    other = threading.Thread(target=talk)
    with os.fdopen(lines_read) as stdin, os.fdopen(replies_written, "w") as stdout:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys, "stdout", stdout)
        other.start()
        # A reply that waited for more lines would wait for ever.
        guard = threading.Timer(60, lambda: os.kill(os.getpid(), signal.SIGINT))
        guard.start()
        assert run_main(monkeypatch, "chat", "--model", str(says_yes)) == 0
        guard.cancel()
    other.join()
    assert replies == ["Yes No.\n"] * 2


def hugging_face_reply(folder: Path, prompt: str, max_new_tokens: int) -> str:
    """Return what `generate` of Hugging Face says greedily behind a prompt."""
    model = GPT2LMHeadModel.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(prompt, return_tensors="pt").input_ids
    output = model.generate(
        inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=max_new_tokens, do_sample=False
    )
    text: str = tokenizer.decode(output[0, inputs.shape[1] :], skip_special_tokens=True)
    return text.strip()


def test_the_model_sees_the_system_message_and_all_that_was_said(piped: Run, random_model: Path) -> None:
    options = ("--system", "Be kind.", "--top-k", "1", "--max-new-tokens", "12", "--json")
    first, second = piped(random_model, *options, stdin="Hello\nBye\n").rows
    prompt = "### System:\nBe kind.\n\n### Instruction:\nHello\n\n### Response:\n"
    assert first["assistant"] == hugging_face_reply(random_model, prompt, 12)
    assert len(set(first["assistant"])) > 3
    prompt += first["assistant"] + "<|endoftext|>### Instruction:\nBye\n\n### Response:\n"
    assert second["assistant"] == hugging_face_reply(random_model, prompt, 12)
    assert first["assistant"] != second["assistant"]


def test_a_reply_ends_where_the_model_begins_the_next_message(piped: Run, make_model: MakeModel) -> None:
    folder = make_model(says="Yes No. ### Instruction: la", ends=False)
    assert piped(folder, "--json", stdin="Hello\n").rows == [row("Hello", "Yes No.", "next_turn")]
    assert piped(folder, stdin="Hello\n").stdout == "Yes No.\n"
    # So does that of a model which was tuned with this template; others may write what they like.
    tuned = make_model(says="Yes ### Instruction:", template=DEFAULT_CHAT_TEMPLATE)
    assert piped(tuned, stdin="Hello\n") == ("Yes\n", "", 0)
    other = make_model(says="Yes ### Instruction:", template=PLAIN_TEMPLATE)
    assert piped(other, stdin="Hello\n") == ("Yes ### Instruction:\n", "", 0)


@pytest.mark.parametrize(
    ("context_length", "options", "tokens"),
    [(128, (), 64), (1024, (), 200), (128, ("--max-new-tokens", "7"), 7)],
)
def test_a_reply_has_at_most_200_tokens_or_half_the_context(
    piped: Run,
    make_model: MakeModel,
    context_length: int,
    options: tuple[str, ...],
    tokens: int,
) -> None:
    folder = make_model(says=" la", ends=False, context_length=context_length)
    (reply,) = piped(folder, *options, "--json", stdin="Hello\n").rows
    assert reply == row("Hello", " ".join(["la"] * tokens), "length")


def test_the_oldest_messages_are_dropped_where_the_context_is_full(
    piped: Run, make_model: MakeModel
) -> None:
    folder = make_model(says="Yes", template=PLAIN_TEMPLATE, context_length=20)
    # A message of n digits is n + 1 tokens, a reply 2. Before a reply, 20 - 10 = 10 are left:
    # 4; 4+2+4 = 10; 4+2+4+2+2 = 14, so 4+2+2 = 8; 8+2+2 = 12, so 2+2+2 = 6; 10 alone.
    lines = ["111", "222", "3", "4", "5" * 9]
    options = ("--max-new-tokens", "10")
    stdin = "\n".join(lines)
    replies = piped(folder, *options, "--json", stdin=stdin).rows
    assert [reply["dropped_messages"] for reply in replies] == [0, 0, 2, 2, 4]
    said = piped(folder, *options, stdin=stdin)
    assert said.stdout == "Yes\n" * 5
    told = "[the context of 20 tokens is full: the model no longer sees the {} oldest of the messages "
    told += "it saw before]"
    assert said.notes == [told.format(2), told.format(2), told.format(4)]


def test_a_message_that_is_too_long_ends_a_pipe_and_names_its_line(
    piped: Run, make_model: MakeModel
) -> None:
    folder = make_model(says="Yes", template=PLAIN_TEMPLATE, context_length=20)
    result = piped(folder, stdin="111\n" + "2" * 20 + "\n333\n")
    assert (result.stdout, result.code) == ("Yes\n", 3)
    assert result.stderr == (
        "Error: standard input:2: the message has 21 tokens, with what the chat template adds; the "
        "context is 20, 10 of them for the reply. Shorten it, or lower --max-new-tokens.\n"
    )


def test_sampling_is_what_is_documented_and_a_seed_makes_it_again(
    piped: Run, random_model: Path, tmp_path: Path
) -> None:
    def talk(*options: str | Path) -> str:
        return piped(random_model, "--max-new-tokens", "20", *options, stdin="Hello\nHello\n").stdout

    default = talk()
    assert default == talk() == talk("-t", "0.7", "--top-p", "0.9")
    different = [talk("-t", "1.5"), talk("--top-p", "1"), talk("--top-k", "2"), talk("--seed", "2")]
    assert len({default, *different}) == 5
    config = tmp_path / "a.yaml"
    config.write_text("generation: {temperature: 1.5, max_length: 9}\nruntime: {seed: 1}\n")
    assert talk("--config", config) == different[0]
    assert talk("--config", config, "--set", "generation.temperature=0.7") == default


def test_a_seed_that_was_drawn_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], random_model: Path, piped: Run
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Hello\n")))
    assert run_main(monkeypatch, "chat", "--model", str(random_model)) == 0
    out, err = capsys.readouterr()
    seed = err.splitlines()[-1].split()[1]
    assert err.endswith(f"\nSeed: {seed} (--seed {seed} makes this again)\n")
    assert piped(random_model, "--seed", seed, stdin="Hello\n").stdout == out


def test_no_lines_are_no_conversation(
    piped: Run, says_yes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert piped(says_yes, stdin="\n \n") == ("", NOTE.format(says_yes) + "\n", 0)
    monkeypatch.setattr(sys, "stdin", None)
    assert run_main(monkeypatch, "chat", "--model", str(says_yes)) == 0


@pytest.mark.parametrize(
    ("options", "stdin", "code", "expected"),
    [
        (
            ["--temperature", "0"],
            b"",
            2,
            "generation.temperature is 0.0; it must be more than 0. For the likeliest token each time "
            "(greedy decoding), set generation.top_k to 1 (--top-k 1).",
        ),
        (["--max-new-tokens", "0"], b"", 2, "it must be at least 1."),
        (["--device", "tpu"], b"", 2, "runtime.device is 'tpu'; it must be"),
        (["Hello"], b"", 2, "unexpected extra argument"),
        (["--system", "caf\udce9"], b"", 2, "--system is not valid Unicode at character 4."),
        (["--max-new-tokens", "128"], b"", 2, "too few for the shortest message ("),
        (["--system", "1" * 99], b"", 2, "too few for the shortest message with --system ("),
        ([], b"caf\xe9\n", 3, "standard input:1: byte 0xe9 is not UTF-8."),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(
    piped: Run, says_yes: Path, options: list[str], stdin: bytes, code: int, expected: str
) -> None:
    result = piped(says_yes, *options, stdin=stdin)
    assert (result.stdout, result.code) == ("", code)
    errors = [line for line in result.notes if not line.startswith("Note: ")]
    assert len(errors) == 1
    assert errors[0].startswith("Error: ")
    assert expected in errors[0]


def test_a_template_that_fails_is_said_before_anybody_types(piped: Run, make_model: MakeModel) -> None:
    folder = make_model(says="Yes", template="{{ raise_exception('Only\nGerman.') }}")
    expected = f"Error: {folder}: its chat template cannot be used: Only\n"
    assert piped(folder, stdin="Hello\n") == ("", expected, 4)


def test_a_tokenizer_of_another_model_is_refused(piped: Run, says_yes: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(says_yes, tmp_path / "mixed"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<mine>"])
    tokenizer.save_pretrained(folder)
    result = piped(folder, stdin="a <mine>\n")
    assert (result.stdout, result.code) == ("", 4)
    size = len(tokenizer) - 1
    assert f"its tokenizer makes token {size} of a message, but the model knows {size}" in result.stderr


def test_half_a_heading_is_never_streamed(make_model: MakeModel) -> None:
    chat = Chat(
        str(make_model(says="Yes No. ### Instruction: la", ends=False)),
        GenerationSettings(top_k=1),
        RuntimeSettings(device="cpu"),
    )
    shown: list[str] = []
    reply = chat.reply("Hello", shown.append)
    assert shown == ["Yes", " No", "."]
    assert reply.assistant == "Yes No."
    # Nor if the reply ends in the middle of it: behind " ###".
    chat.max_new_tokens = 4
    shown.clear()
    assert chat.reply("Hello", shown.append).finish_reason == "length"
    assert shown == ["Yes", " No", "."]


# On a terminal


def test_a_conversation_is_saved_once_and_ends_with_ctrl_d(
    terminal: Run, says_yes: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    result = terminal(
        says_yes,
        *("--system", "Be kind."),
        typed="/save a.jsonl\nHello\n\n  深圳\n/save a b.jsonl\n/save a b.jsonl\n/save link\n"
        "/save no/folder\n/save\n/reset\n/save c\nBye\n/save c\n\x04",
    )
    assert (result.stdout, result.code) == ("Yes No.\n" * 3, 0)
    assert result.notes == [
        NOTE.format(says_yes),
        "Type a message. /help lists the commands, Ctrl-D ends.",
        "Error: Nothing has been said yet.",
        "Saved a b.jsonl.",
        "Error: a b.jsonl exists and is not overwritten. Choose another name.",
        "Error: link exists and is not overwritten. Choose another name.",
        "Error: no/folder cannot be written: No such file or directory. Make room, or choose another "
        "folder.",
        "Error: /save is no command. There are: /help, /reset, /save FILE, /exit.",
        "The conversation starts anew.",
        "Error: Nothing has been said yet.",
        "Saved c.",
        "",
    ]
    system = {"role": "system", "content": "Be kind."}
    saved = (tmp_path / "a b.jsonl").read_text(encoding="utf-8")
    assert "深圳" in saved
    assert saved.endswith("}\n") and saved.count("\n") == 1
    expected = [system, *messages("Hello", "Yes No.", "深圳", "Yes No.")]
    assert json.loads(saved) == {"messages": expected}
    assert json.loads((tmp_path / "c").read_text()) == {
        "messages": [system, *messages("Bye", "Yes No.")]
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a b.jsonl", "c", "link"]


def test_commands_are_listed_and_exit_ends(terminal: Run, says_yes: Path) -> None:
    result = terminal(says_yes, typed="/help\n/halp me\n/exit\nHello\n")
    assert (result.stdout, result.code) == ("", 0)
    assert result.notes[2:] == [
        "Commands",
        "  /help       show this",
        "  /reset      forget what was said, except the system message",
        '  /save FILE  write the conversation to a new file, as a line of JSON: {"messages": [...]}',
        "  /exit       end, as Ctrl-D does; Ctrl-C ends a reply",
        "Error: /halp me is no command. There are: /help, /reset, /save FILE, /exit.",
    ]


def test_after_a_message_that_is_too_long_the_conversation_goes_on(
    terminal: Run, make_model: MakeModel
) -> None:
    folder = make_model(says="Yes", template=PLAIN_TEMPLATE, context_length=20)
    result = terminal(folder, "--json", typed=f"{'2' * 20}\nHi\n/exit\n")
    assert result.rows == [row("Hi", "Yes", "end_of_text")]
    assert result.notes[1].startswith("Error: The message has 21 tokens, ")


def test_a_reply_that_is_cut_says_so(terminal: Run, make_model: MakeModel) -> None:
    folder = make_model(says=" la", ends=False)
    result = terminal(folder, "--max-new-tokens", "3", typed="Hello\n\x04")
    assert result.stdout == "la la la\n"
    assert result.notes[2:] == ["[ended after --max-new-tokens 3]", ""]


class PressesCtrlC(io.StringIO):
    """Sends Ctrl-C to this process when a word is written for the first time."""

    def __init__(self, word: str, times: int) -> None:
        super().__init__()
        self.word, self.times = word, times

    def write(self, text: str) -> int:
        if self.word in text:
            self.word = "\0"
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)
        return super().write(text)


def test_ctrl_c_ends_the_reply_and_what_was_said_by_then_counts(
    terminal: Run, says_yes: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stdout = PressesCtrlC(" No", times=1)
    monkeypatch.setattr(sys, "stdout", stdout)
    result = terminal(says_yes, typed="Hello\nBye\n/save a\n/exit\n")
    assert result.code == 0
    assert stdout.getvalue() == "Yes No\nYes No.\n"
    expected = messages("Hello", "Yes No", "Bye", "Yes No.")
    assert json.loads((tmp_path / "a").read_text()) == {"messages": expected}
    # It is a KeyboardInterrupt again afterwards.
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_twice_ends_with_130(
    terminal: Run, says_yes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", PressesCtrlC(" No", times=2))
    result = terminal(says_yes, typed="Hello\n")
    assert (result.notes[-1], result.code) == ("Interrupted.", 130)


def test_ctrl_c_ends_a_pipe_with_130(
    piped: Run, says_yes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", PressesCtrlC(" No", times=1))
    result = piped(says_yes, stdin="Hello\nBye\n")
    assert (result.notes[-1], result.code) == ("Interrupted.", 130)


def test_a_message_whose_reply_is_ended_before_it_begins_was_not_said(says_yes: Path) -> None:
    chat = Chat(str(says_yes), GenerationSettings(), RuntimeSettings(device="cpu"))
    reply = chat.reply("Hello", is_stopped=lambda: True)
    assert reply.as_dict() == row("Hello", "", "interrupted")
    assert chat.conversation.is_empty


class Terminal:
    """A terminal, all of it, that `gptcli chat` runs on in a process of its own."""

    def __init__(self, *arguments: str | Path) -> None:
        self._screen, side = pty.openpty()
        self.process = subprocess.Popen(
            command("chat", *arguments),
            stdin=side,
            stdout=side,
            stderr=side,
            # No escape sequences for its prompt, please.
            env=environment(TERM="dumb"),
            start_new_session=True,
            # Ctrl-C goes to the processes that this is the terminal of.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(side)
        self.shown = ""
        self._read = 0

    def read_until(self, text: str) -> None:
        """Wait until the text is shown, behind all that was waited for before."""
        deadline = time.monotonic() + 120
        while (place := self.shown.find(text, self._read)) < 0:
            ready, _, _ = select.select([self._screen], [], [], deadline - time.monotonic())
            assert ready, f"{text!r} is not in {self.shown[self._read :]!r}"
            self.shown += os.read(self._screen, 65536).decode()
        self._read = place + len(text)

    def type(self, text: str) -> None:
        os.write(self._screen, text.encode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._screen)


def test_a_person_talks_stops_a_reply_and_leaves(make_model: MakeModel) -> None:
    # Reading and pressing a key takes a moment; this reply takes minutes.
    folder = make_model(says=" la", ends=False, context_length=50_000)
    screen = Terminal("--model", folder, "--max-new-tokens", "40000")
    try:
        screen.read_until("\n> ")
        screen.type("Hello\n")
        screen.read_until(" la la la")
        screen.type("\x03")
        screen.read_until("\n> ")
        screen.type("/help\n")
        screen.read_until("  /exit ")
        screen.read_until("\n> ")
        time.sleep(0.5)
        for _ in range(3):
            # One that comes between the prompt and the wait for a key is seen with the next key only.
            screen.type("\x03")
            try:
                screen.process.wait(20)
                break
            except subprocess.TimeoutExpired:
                continue
        assert screen.process.returncode == 130
        assert "Traceback" not in screen.shown
    finally:
        screen.close()
