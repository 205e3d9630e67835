"""What things are: a cell of a table, and the code that a file was made by.

A file on disk may be reused while what it depends on is the same: that is what keys are for. They are local and careful: any edit
of the code behind a file makes it be made again. Whether a *published* number still holds is another question (revision.py).
"""

from __future__ import annotations

import ast
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.files import ROOT, digest


@dataclass(frozen=True)
class Cell:
    """One number of a table: a method, trained at one size and tested at another, under one seed."""

    method: str
    train: str
    test: str
    seed: int

    def __str__(self) -> str:
        return f"{self.method} {self.train} -> {self.test} seed {self.seed}"


# --- Code ------------------------------------------------------------------------------------------------------------


def code_key(*modules: str) -> str:
    """A hash of the code that some modules run through: their files, and every file of this project that those import.

    Comments, docstrings and layout do not change it, code does.

    Args:
        modules: such as "benchmark.model.method" or "methods.yarn".
    """
    return digest([[name, _syntax(*_state(ROOT / name))] for name in code_files(*modules)])


def code_files(*modules: str) -> list[str]:
    """The files behind some modules, relative to the repository, those of imports inside functions included."""
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = ROOT / name.replace(".", "/")
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        relative = str(path.relative_to(ROOT))
        if relative not in found and path.is_file():
            found.add(relative)
            waiting += _imported(*_state(path))
    return sorted(found)


def _state(path: Path) -> tuple[str, int, int]:
    """What tells whether a file has changed since it was parsed: path, bytes, time."""
    state = path.stat()
    return str(path), state.st_size, state.st_mtime_ns


@functools.cache
def _imported(path: str, size: int, changed: int) -> list[str]:
    """The modules of this project that a source file imports, but for those imported for annotations only."""
    found: list[str] = []

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.ImportFrom) and (child.module or "").split(".")[0] in ("benchmark", "methods"):
                found.append(child.module)
                found.extend(f"{child.module}.{alias.name}" for alias in child.names)  # of which the modules have a file
            visit(child)

    visit(ast.parse(Path(path).read_text(encoding="utf-8")))
    return found


@functools.cache
def _syntax(path: str, size: int, changed: int) -> list:
    """The syntax tree of a source file as nested lists, without docstrings; a plan asks for the same ones over and over."""

    def canonical(node: Any) -> Any:
        if isinstance(node, ast.AST):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                first = body[0]
                if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
                    node.body = body[1:]
            # Empty fields are left out, so that grammar fields added by a newer Python do not change the hash.
            fields = [(name, canonical(value)) for name, value in ast.iter_fields(node) if value not in (None, [])]
            return [type(node).__name__, *fields]
        if isinstance(node, list):
            return [canonical(item) for item in node]
        return repr(node)

    return canonical(ast.parse(Path(path).read_text(encoding="utf-8")))
