"""Models and data sets by name: from a stand-in for the hub, from its cache, and from neither."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from transformers import AutoTokenizer

from gptcli.hub import first_line, hub_problem, is_network_failure
from tests.conftest import SENTENCES, Cli
from tests.hub_stand_in import HubStandIn, running_hub

MODEL, DATA_SET = "someone/tiny-gpt2", "someone/tiny-text"


@pytest.fixture
def hub(tmp_path: Path, model_folder: Path) -> Iterator[HubStandIn]:
    for split, sentences in (("train", SENTENCES), ("test", ["Not to be read."])):
        table = pyarrow.table({"id": range(len(sentences)), "text": sentences})
        pyarrow.parquet.write_table(table, tmp_path / f"{split}.parquet")
    with running_hub(tmp_path / "hub") as hub:
        hub.add("models", MODEL, model_folder.iterdir())
        hub.add("datasets", DATA_SET, tmp_path.glob("*.parquet"))
        yield hub


@pytest.fixture
def closed_hub(tmp_path: Path) -> dict[str, str]:
    """The environment of a process whose hub does not answer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    return HubStandIn(tmp_path, address).environment(tmp_path / "cache")


def test_a_model_is_fetched_from_the_hub_once_and_then_read_from_its_cache(
    hub: HubStandIn, gptcli: Cli, model_folder: Path, tmp_path: Path, closed_hub: dict[str, str]
) -> None:
    command = ("generate", "The cat", "--model", MODEL, "--max-new-tokens", "5")
    environment = hub.environment(tmp_path / "cache")
    fetched = gptcli(*command, variables=environment)
    assert (fetched.returncode, fetched.stderr) == (0, "")
    assert fetched.stdout.startswith("The cat")
    assert any("model.safetensors" in request for request in hub.requests)

    hub.requests.clear()
    offline = gptcli(*command, variables=environment | {"HF_HUB_OFFLINE": "1"})
    assert not hub.requests
    unreachable = gptcli(*command, variables=closed_hub)
    for result in (offline, unreachable):
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout == fetched.stdout


def test_a_model_and_rows_of_the_hub_make_a_classifier(
    hub: HubStandIn, gptcli: Cli, tmp_path: Path
) -> None:
    rows = pyarrow.table({"text": SENTENCES, "label": [text.split()[2] for text in SENTENCES]})
    pyarrow.parquet.write_table(rows, tmp_path / "train.parquet")
    hub.add("datasets", "someone/animals", [tmp_path / "train.parquet"])
    (tmp_path / "config.yaml").write_text(
        "task: classification\ndata: {source: someone/animals}\n"
        "training: {max_steps: 2, batch_size: 4}\nruntime: {device: cpu, precision: fp32}\n"
    )
    result = gptcli(
        *("finetune", "--config", "config.yaml", "--model", MODEL, "--output-dir", "run", "--json"),
        variables=hub.environment(tmp_path / "cache"),
    )
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["train"]["examples"] + facts["validation"]["examples"] == len(SENTENCES)
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "cat", "1": "dog", "2": "owl"}


def test_a_model_that_the_hub_does_not_have_is_refused_in_one_line(
    hub: HubStandIn, gptcli: Cli, tmp_path: Path
) -> None:
    result = gptcli(
        "generate", "x", "--model", "someone/nothing", variables=hub.environment(tmp_path / "cache")
    )
    assert (result.returncode, result.stdout) == (4, "")
    assert result.stderr == (
        "Error: someone/nothing is no folder here, and the hub has no model of that name that is open "
        "to you. Check it; for a private or gated one, log in with `hf auth login`.\n"
    )


def test_every_row_of_a_data_set_is_trained_on(
    hub: HubStandIn, gptcli: Cli, config_file: Path, tmp_path: Path
) -> None:
    result = gptcli(
        *("pretrain", "--config", config_file, "--set", f"data.source={DATA_SET}"),
        *("--set", "training.max_steps=2", "--output-dir", "run", "--json"),
        variables=hub.environment(tmp_path / "cache"),
    )
    assert result.returncode == 0, result.stderr
    # Neither bars nor advice of the libraries.
    assert "%|" not in result.stderr
    assert "examples/s" not in result.stderr
    assert "[transformers]" not in result.stderr
    facts = json.loads(result.stdout)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    # A sentence is a document, and every document ends with an end-of-text.
    expected = sum(len(tokenizer.encode(sentence)) + 1 for sentence in SENTENCES)
    assert facts["train"]["tokens"] + facts["validation"]["tokens"] == expected


def test_a_data_set_that_the_hub_does_not_have_is_refused_in_one_line(
    hub: HubStandIn, gptcli: Cli, config_file: Path, tmp_path: Path
) -> None:
    result = gptcli(
        *("pretrain", "--config", config_file, "--set", "data.source=someone/nothing"),
        variables=hub.environment(tmp_path / "cache"),
    )
    assert result.returncode == 3
    (error,) = [line for line in result.stderr.splitlines() if not line.startswith("Device: ")]
    assert error.startswith("Error: someone/nothing is no file or folder here, and as a hub data set: ")


def test_a_model_is_not_looked_for_again_and_again_at_a_hub_that_does_not_answer(
    gptcli: Cli, closed_hub: dict[str, str]
) -> None:
    result = gptcli("generate", "x", "--model", MODEL, variables=closed_hub)
    assert (result.returncode, result.stdout) == (5, "")
    # One line: every repetition would be another.
    assert result.stderr == (
        f"Error: {MODEL} is no folder here and not in the hub cache, and the hub cannot be reached for "
        "its model. Check the path or the network.\n"
    )


def test_a_data_set_is_not_looked_for_again_and_again_at_a_hub_that_does_not_answer(
    gptcli: Cli, config_file: Path, closed_hub: dict[str, str]
) -> None:
    result = gptcli(
        *("pretrain", "--config", config_file, "--set", f"data.source={DATA_SET}"),
        variables=closed_hub,
    )
    assert result.returncode == 5
    (error,) = [line for line in result.stderr.splitlines() if not line.startswith("Device: ")]
    assert error.startswith(
        f"Error: {DATA_SET} is no file or folder here, and the hub cannot be reached"
    )


def test_a_failure_of_the_network_is_found_behind_other_errors() -> None:
    error = OSError("We could not load the files.")
    assert not is_network_failure(error)
    assert hub_problem("model", "someone/some-model", error).exit_code == 4
    error.__cause__ = RuntimeError("no answer")
    error.__cause__.__context__ = TimeoutError("read timed out")
    assert is_network_failure(error)
    assert hub_problem("model", "someone/some-model", error).exit_code == 5


def test_a_folder_that_cannot_be_loaded_is_no_matter_of_the_network(tmp_path: Path) -> None:
    problem = hub_problem("tokenizer", str(tmp_path), TimeoutError("slow disk"))
    assert problem.exit_code == 4
    assert str(problem) == f"{tmp_path}: its tokenizer cannot be loaded: slow disk"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("what happened\nand much advice", "what happened"),
        ("\n  Wrong field 'n_embd':\n  expected int\nmore", "Wrong field 'n_embd': expected int"),
        ("", "ValueError"),
        ("ends so:", "ends so:"),
    ],
)
def test_the_first_line_of_an_error_says_what_happened(message: str, expected: str) -> None:
    assert first_line(ValueError(message)) == expected
