"""The text that every CPython carries, so that a first run needs no network and no file.

`builtin:python-docs` is the language reference's help topics (`pydoc_data.topics`) and the docstrings
of the standard library; `builtin:docstrings` is those docstrings one by one, labelled with their
top-level module. Sources are parsed, never imported: importing all would open windows.
"""

from __future__ import annotations

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PYTHON_DOCS = "python-docs"
DOCSTRINGS = "docstrings"
# Modules with fewer are left out: too few to learn what is theirs.
MIN_DOCSTRINGS = 100

# Third-party packages, tests, applications and generated data: not the library's documentation.
_LEFT_OUT = {
    "site-packages",
    "dist-packages",
    "__pycache__",
    "test",
    "tests",
    "idle_test",
    "idlelib",
    "lib2to3",
    "turtledemo",
    "ensurepip",
    "pydoc_data",
}


@cache
def python_docs() -> tuple[str, ...]:
    """Return each help topic, then the docstrings of each standard library file, as documents.

    About 2 MB, kept: parsing the library takes seconds, and the text is read three times.
    """
    from pydoc_data.topics import topics

    helps = [topics[name].strip() + "\n" for name in sorted(topics)]
    modules = ["\n\n".join(docstrings) + "\n" for _, docstrings in standard_library_docstrings()]
    return (*helps, *modules)


@cache
def labelled_docstrings() -> tuple[tuple[str, str], ...]:
    """Return (docstring, top-level module) for all modules that have at least MIN_DOCSTRINGS."""
    by_module: dict[str, list[str]] = {}
    for module, docstrings in standard_library_docstrings():
        by_module.setdefault(module, []).extend(docstrings)
    return tuple(
        (docstring, module)
        for module, docstrings in by_module.items()
        if len(docstrings) >= MIN_DOCSTRINGS
        for docstring in docstrings
    )


def standard_library_docstrings() -> Iterator[tuple[str, list[str]]]:
    """Yield (top-level module, its docstrings) for each standard library file that has any."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if _LEFT_OUT.intersection(parts):
            continue
        docstrings = _docstrings(path)
        if docstrings:
            yield parts[0].removesuffix(".py"), docstrings


def _docstrings(path: Path) -> list[str]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Old modules have invalid escapes; not our concern.
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented))
    return [docstring for docstring in found if docstring]
