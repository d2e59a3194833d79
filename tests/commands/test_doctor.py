from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gptcli.native
from gptcli.native.kernels import COMPILERS, kernel_folder, load_kernels
from gptcli.native.processor import multiplies_tiles
from gptcli.pipelines.doctor import Check, examine
from tests.conftest import Cli, skip_without_compiled_code


def check_of(name: str) -> Check:
    """Return a check, without those that come after it."""
    return next(check for check in examine() if check.name == name)


@pytest.fixture
def _fresh_kernels() -> Iterator[None]:
    """Let what is compiled in a test be for it alone."""
    skip_without_compiled_code("forward")
    load_kernels.cache_clear()
    yield
    load_kernels.cache_clear()


@pytest.mark.usefixtures("_fresh_kernels")
def test_all_compiled_code_is_looked_at() -> None:
    sources = Path(gptcli.native.__file__).parent.glob("*.cpp")
    assert "agrees with torch's operators" in check_of("compiled code").detail
    assert {file.stem.partition("-")[0] for file in kernel_folder().iterdir()} == {
        file.stem for file in sources
    }


# As if the compiler had made a mistake: it gets another source.
COMPILER = """\
#!{python}
import pathlib, subprocess, sys
*options, source = sys.argv[1:]
text = pathlib.Path(source).read_text()
if source.endswith("/{name}.cpp"):
    assert {right!r} in text, "an error: nothing to change"
    text = text.replace({right!r}, {wrong!r})
include = ["-I", str(pathlib.Path(source).parent), "-x", "c++", "-"]
sys.exit(subprocess.run([{compiler!r}, *options, *include], input=text.encode()).returncode)
"""


OTHER_SCALE = "attend<{}>([&] {{ Attention other = *attention; other.scale *= 2; return other; }}()"


@pytest.mark.usefixtures("_fresh_kernels")
@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        # Steps, and the norm of gradients.
        ("adamw", "weights[i] * some.kept", "weights[i]"),
        ("adamw", "sum += some;", "sum = some;"),
        # Attended values, and gradients.
        ("attention", "attend<Forward>(*attention", OTHER_SCALE.format("Forward")),
        ("attention", "attend<Backward>(*attention", OTHER_SCALE.format("Backward")),
        ("forward", "tanh_gelu(value)", "std::max(value, 0.0f)"),
        # The loss, its gradients, and sums of them.
        ("loss", "return std::log(sum) -", "return 1.001 * std::log(sum) -"),
        ("loss", "- less - float(1 - smoothing)", "- less"),
        ("loss", "sums[i] += number(", "sums[i] = number("),
        *(
            pytest.param(
                "layer",
                *change,
                marks=pytest.mark.skipif(not multiplies_tiles(), reason="a processor it is not for"),
            )
            for change in (
                ("outputs.residual = layer.middle;", "outputs.residual = layer.inputs;"),
                ("through_activation.slopes_at = layer.given;", ""),
            )
        ),
        pytest.param(
            "muon",
            "product.added_scale = b;",
            "product.added_scale = c;",
            marks=pytest.mark.skipif(not multiplies_tiles(), reason="a processor it is not for"),
        ),
        pytest.param(
            "product",
            "multiply(*product, threads)",
            "multiply([&] { Product other = *product; other.adds = 0; return other; }(), threads)",
            marks=pytest.mark.skipif(not multiplies_tiles(), reason="a processor it is not for"),
        ),
    ],
)
def test_compiled_code_with_wrong_results_is_named(
    name: str, right: str, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "wrong-compiler"
    real = next(found for found in map(shutil.which, COMPILERS) if found)
    words = {"python": sys.executable, "compiler": real, "name": name, "right": right, "wrong": wrong}
    compiler.write_text(COMPILER.format(**words))
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    check = check_of("compiled code")
    assert not check.is_fine
    assert check.detail == (
        f"{name}: other results than those of torch's operators. Remove {kernel_folder()} and try "
        "another compiler, such as CXX=clang++."
    )


def test_the_doctor_finds_what_is_broken_and_that_all_else_works(gptcli: Cli, tmp_path: Path) -> None:
    (tmp_path / "no-folder").touch()
    environment = {
        "XDG_CACHE_HOME": str(tmp_path / "no-folder"),
        # Settings of the user's runs, which would break those of the doctor.
        "GPTCLI_TRAINING__MAX_STEPS": "3",
    }
    done = gptcli("doctor", "--json", variables=environment)
    diagnosis = json.loads(done.stdout)
    assert diagnosis["failed"] == ["token cache"], diagnosis
    assert not diagnosis["ok"]
    assert [check["name"] for check in diagnosis["checks"]] == [
        "versions",
        "devices",
        "precision",
        "compiled code",
        "token cache",
        "this folder",
        "tokenizer",
        "pretraining",
        "kill and resume",
        "generation",
    ]
    assert done.returncode == 5
    assert done.stderr.splitlines()[-1] == "Error: 1 of 10 checks failed: token cache."
