"""What the package's source never says: ways to run what somebody else wrote."""

from __future__ import annotations

import ast

import pytest

from tests.test_imports import MODULES, imported_by

# tests/test_imports.py has pickle and its kin, eval, exec, torch.save, and torch.load, which one module
# may call with weights_only=True.
UNSAFE_NAMES = {
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "np.load",
    "numpy.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.unsafe_load",
    "yaml.Loader",
    "yaml.FullLoader",
    "yaml.UnsafeLoader",
    "yaml.CLoader",
    "runpy.run_path",
    # They widen what torch's reader of weights alone takes.
    "torch.serialization.add_safe_globals",
    "torch.serialization.safe_globals",
}
# Of which calls an argument makes the difference: what it must be.
ARGUMENTS = {
    "trust_remote_code": "False",
    "use_safetensors": "True",
    "weights_only": "True",
    "Loader": "yaml.SafeLoader",
}
FORBIDDEN_ARGUMENTS = {"shell", "allow_pickle", "allow_all_kernels", "use_kernels", "custom_generate"}
# Starting programs: `gptcli doctor` starts gptcli itself; compiled code needs a compiler.
STARTS_PROGRAMS = {"gptcli.pipelines.doctor", "gptcli.native.kernels"}
# Calling C: functions of the C library that the process already runs on, and what gptcli compiles of its
# own source, into a folder that nobody else may write to.
CALLS_C = {
    "gptcli.training.device",
    "gptcli.native.kernels",
    "gptcli.native.adamw",
    "gptcli.native.attention",
    "gptcli.native.layer",
    "gptcli.native.loss",
    "gptcli.native.muon",
    "gptcli.native.product",
    "gptcli.models.native_forward",
}


def problems_in(module: str, source: str) -> list[str]:
    """Return what of the above is in a module."""
    tree = ast.parse(source)
    problems = []
    for name in imported_by(tree):
        root = name.partition(".")[0]
        if (
            root in ("runpy", "code")
            or (root == "ctypes" and module not in CALLS_C)
            or (root in ("subprocess", "pty", "multiprocessing") and module not in STARTS_PROGRAMS)
        ):
            problems.append(f"imports {name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node) in UNSAFE_NAMES:
            if isinstance(node.ctx, ast.Load):  # A setting may be called `compile`.
                problems.append(f"uses {ast.unparse(node)}")
        elif isinstance(node, ast.Call):
            problems += _problems_of_call(node)
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                name = str(key.value) if isinstance(key, ast.Constant) else ""
                problems += _problems_of_argument(name, value)
    return problems


def _problems_of_call(node: ast.Call) -> list[str]:
    problems = [p for word in node.keywords for p in _problems_of_argument(word.arg or "", word.value)]
    if ast.unparse(node.func) == "yaml.load":
        problems.append("calls yaml.load")
    return problems


def _problems_of_argument(name: str, value: ast.expr) -> list[str]:
    given = ast.unparse(value)
    if name in FORBIDDEN_ARGUMENTS or given != ARGUMENTS.get(name, given):
        return [f"passes {name}={given}"]
    return []


@pytest.mark.parametrize("module", MODULES)
def test_nothing_runs_what_somebody_else_wrote(module: str) -> None:
    assert problems_in(module, MODULES[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("module", MODULES)
def test_every_model_is_loaded_from_safetensors_and_none_brings_code(module: str) -> None:
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Model.from_pretrained"):
            assert "use_safetensors" in {word.arg for word in node.keywords}
        if isinstance(node, ast.Attribute) and node.attr == "from_pretrained":
            assert "AutoConfig" not in ast.unparse(node), "it may read code: take the class itself"


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("import subprocess", "imports subprocess"),
        ("import os\nos.system('x')", "uses os.system"),
        ("f(trust_remote_code=True)", "passes trust_remote_code=True"),
        ("f(trust_remote_code=value)", "passes trust_remote_code=value"),
        ("f(**{'trust_remote_code': True})", "passes trust_remote_code=True"),
        ("f(use_safetensors=None)", "passes use_safetensors=None"),
        ("torch.load(x, weights_only=False)", "passes weights_only=False"),
        (
            "import torch\ntorch.serialization.add_safe_globals([f])",
            "uses torch.serialization.add_safe_globals",
        ),
        ("import yaml\nyaml.load(x)", "calls yaml.load"),
        ("import yaml\nyaml.compose(x, Loader=yaml.Loader)", "uses yaml.Loader"),
        ("import numpy as np\nnp.load('x')", "uses np.load"),
        ("f(shell=True)", "passes shell=True"),
        ("__import__('x')", "uses __import__"),
    ],
)
def test_the_walk_sees_what_it_looks_for(source: str, problem: str) -> None:
    assert problem in problems_in("gptcli.training.loop", source)
