"""The layers of the package, and what no module may use."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import gptcli

PACKAGE = Path(gptcli.__file__).parent
MODULES = {
    ".".join(("gptcli", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

# A room imports rooms below its own. Rooms side by side may import each other, but not in a circle.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"commands"},
    {"pipelines"},
    {"tasks"},
    {"data", "models", "training", "generation", "evaluation", "inspection", "reports", "planning"},
    {"native"},
    {"config"},
    {"files", "hub", "console"},
    {"errors"},
    {""},  # gptcli/__init__.py
]
HEIGHTS = {room: -depth for depth, rooms in enumerate(LAYERS) for room in rooms}

UNSAFE_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "print"}
UNSAFE_NAMES = {"torch.load", "torch.save"}
# A checkpoint of nanoGPT is pickle: torch's reader of weights alone reads it, in one place.
READS_WEIGHTS = {"gptcli.models.nanogpt"}


def room_of(module: str) -> str:
    return (module + ".").split(".")[1]


def imported_by(tree: ast.AST) -> Iterator[str]:
    """Yield the name of every module that is imported, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module


def problems_in(module: str, source: str) -> list[str]:
    """Return the imports of `module` that point up, and the things in it that no module may use."""
    tree = ast.parse(source)
    problems = []
    for name in imported_by(tree):
        if name.partition(".")[0] == "gptcli":
            room, other = room_of(module), room_of(name)
            if HEIGHTS[other] > HEIGHTS[room]:
                problems.append(f"imports {name}")
            if other == "console" and room not in ("cli", "commands"):
                problems.append("imports gptcli.console")
        elif name.partition(".")[0] in UNSAFE_MODULES:
            problems.append(f"imports {name}")
    allowed = list(readers_of_weights(tree)) if module in READS_WEIGHTS else []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in UNSAFE_CALLS and (node.func.id, module) != ("print", "gptcli.console"):
                problems.append(f"calls {node.func.id}")
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in UNSAFE_NAMES:
            if node not in allowed:
                problems.append(f"uses {ast.unparse(node)}")
        elif isinstance(node, ast.ImportFrom) and node.module == "torch":
            names = {f"torch.{alias.name}" for alias in node.names} & UNSAFE_NAMES
            problems += [f"uses {name}" for name in sorted(names)]
    return problems


def readers_of_weights(tree: ast.AST) -> Iterator[ast.expr]:
    """Yield the torch.load of every call that says weights_only=True, word for word."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            words = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if words.get("weights_only") == "True":
                yield node.func


def test_every_room_has_a_layer() -> None:
    assert {room_of(module) for module in MODULES} <= HEIGHTS.keys()


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down_and_nothing_unsafe_is_used(module: str) -> None:
    assert problems_in(module, MODULES[module].read_text(encoding="utf-8")) == []


def test_neither_modules_nor_rooms_import_each_other_in_a_circle() -> None:
    modules: dict[str, set[str]] = {}
    rooms: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        for name in imported_by(ast.parse(path.read_text(encoding="utf-8"))):
            if name in MODULES:
                modules.setdefault(module, set()).add(name)
                if room_of(name) != room_of(module):
                    rooms.setdefault(room_of(module), set()).add(room_of(name))
    for graph in (modules, rooms):
        TopologicalSorter(graph).prepare()  # Raises CycleError, which names the circle.


@pytest.mark.parametrize(
    ("module", "source", "problem"),
    [
        ("gptcli.data.batches", "from gptcli.tasks import language_modelling", "imports gptcli.tasks"),
        (
            "gptcli.files",
            "def f():\n    from gptcli.config.schema import Settings",
            "imports gptcli.config.schema",
        ),
        (
            "gptcli.training.loop",
            "import gptcli.pipelines.train",
            "imports gptcli.pipelines.train",
        ),
        ("gptcli.pipelines.train", "from gptcli import console", "imports gptcli.console"),
        ("gptcli.training.loop", "import pickle", "imports pickle"),
        ("gptcli.training.loop", "from torch import save", "uses torch.save"),
        ("gptcli.training.loop", "import torch\nx = torch.load('x')", "uses torch.load"),
        ("gptcli.training.loop", "x = torch.load('x', weights_only=True)", "uses torch.load"),
        ("gptcli.models.nanogpt", "x = torch.load('x')", "uses torch.load"),
        ("gptcli.models.nanogpt", "x = torch.load('x', weights_only=1)", "uses torch.load"),
        ("gptcli.models.nanogpt", "torch.save(x, weights_only=True)", "uses torch.save"),
        ("gptcli.training.loop", "eval('1')", "calls eval"),
        ("gptcli.cli", "print(1)", "calls print"),
    ],
)
def test_the_walk_sees_what_it_looks_for(module: str, source: str, problem: str) -> None:
    assert any(found.startswith(problem) for found in problems_in(module, source))
