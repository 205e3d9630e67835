"""The direction of imports, what is imported when, and that the harness branches on no method's name."""

from __future__ import annotations

import ast
import subprocess
import sys
import time

import pytest

from benchmark import registry
from benchmark.files import ROOT

# Bottom to top: a file imports only files above it in this list.
ORDER = [
    "files", "protocol", "flops", "compare", "progress", "encoding", "core", "diffusion", "method", "checkpoint", "shapes",
    "classifier", "pictures", "shards", "data", "registry", "revision", "recipe", "train", "sample", "detect", "metrics",
    "reference", "score", "record", "table", "published", "plots", "page", "leaderboard", "sweep", "plan", "cluster", "reproduce",
    "spectrum", "speed", "__main__",
]  # fmt: skip
TORCH_FREE = [
    "files", "protocol", "flops", "compare", "progress", "shapes", "registry", "revision", "record", "table", "published",
    "plots", "page", "leaderboard", "sweep", "plan", "cluster", "reproduce", "__main__",
]  # fmt: skip
FILES = sorted(path.stem for path in (ROOT / "benchmark").glob("*.py") if path.stem != "__init__")


def imported(path, everywhere: bool = True) -> set[str]:
    """Names of the modules that a file imports; with `everywhere` also inside functions, else only when it is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module:
                found.update(f"{child.module}.{alias.name}" for alias in child.names)
            elif everywhere or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                visit(child)

    visit(tree)
    return found


def test_every_file_has_a_place():
    assert [name for name in FILES if name not in ORDER] == []


@pytest.mark.parametrize("name", FILES)
def test_imports_go_one_way(name):
    for module in imported(ROOT / "benchmark" / f"{name}.py"):
        if module.startswith("benchmark."):
            other = module.split(".")[1]
            assert other in ORDER, module
            assert ORDER.index(other) < ORDER.index(name), f"{name} imports {other}, which stands above it"
        assert not module.startswith("methods"), f"{name} reaches into methods/; only the registry finds methods"


@pytest.mark.parametrize("name", registry.names())
def test_methods_import_harness_and_methods_only_upwards(name):
    for module in imported(ROOT / "methods" / f"{name}.py"):
        if module.startswith("benchmark."):
            assert ORDER.index(module.split(".")[1]) <= ORDER.index("method"), f"methods/{name}.py imports {module}"


@pytest.mark.parametrize("name", [name for name in TORCH_FREE if name in FILES])
def test_no_torch_at_import(name):
    for module in imported(ROOT / "benchmark" / f"{name}.py", everywhere=False):
        assert module.split(".")[0] not in ("torch", "lightning", "timm", "diffusers", "torchmetrics"), module


def test_help_is_quick_and_without_torch():
    code = "import sys, runpy; sys.argv = ['benchmark', '--help']\ntry: runpy.run_module('benchmark', run_name='__main__')\n"
    code += "except SystemExit: pass\nassert 'torch' not in sys.modules, 'torch was imported'\nassert 'pandas' not in sys.modules"
    best = 99.0
    for _ in range(3):  # the best of three: what the machine does besides is not the point
        began = time.perf_counter()
        result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
        best = min(best, time.perf_counter() - began)
        assert result.returncode == 0, result.stderr
        if best < 1:
            break
    assert "leaderboards" in result.stdout
    assert best < 1, f"--help took {best:.2f} s"


@pytest.mark.parametrize("name", FILES)
def test_the_harness_branches_on_no_method(name):
    methods = set(registry.names())
    for node in ast.walk(ast.parse((ROOT / "benchmark" / f"{name}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Compare | ast.MatchValue):
            constants = {item.value for item in ast.walk(node) if isinstance(item, ast.Constant) and isinstance(item.value, str)}
            assert not constants & methods, f"benchmark/{name}.py line {node.lineno} compares with {constants & methods}"


def test_cards_are_data_only():
    assert not list((ROOT / "datasets").rglob("*.py")), "a Python package named datasets would shadow Hugging Face's"
