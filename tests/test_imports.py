"""The direction of imports between packages, what is imported when, and that the harness branches on no method's name."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from benchmark import lazy, registry
from benchmark.files import ROOT

# Top to bottom: a file imports only what stands above it; files of one package import each other without a cycle.
ORDER = [
    "files", "inputs", "lazy", "progress", "streams", "registry", "protocol", "revision", "identity",
    "results", "model", "data", "evaluate", "board", "plan", "run", "measure", "cli", "__main__",
]  # fmt: skip
TORCH = ("torch", "lightning", "timm", "diffusers", "torchmetrics", "torchvision", "safetensors")
TORCH_FREE = (
    "files",
    "inputs",
    "progress",
    "streams",
    "protocol",
    "registry",
    "revision",
    "identity",
    "results",
    "board",
    "plan",
    "cli",
)
BOARD = ("files", "inputs", "streams", "protocol", "registry", "revision", "results", "board")  # all that tables are made with
RENDERED = ("benchmark.data.shapes", "benchmark.data.card.load_card")  # and the real scenes beside samples, which are formulas
FILES = sorted(path.relative_to(ROOT / "benchmark") for path in (ROOT / "benchmark").rglob("*.py"))
INNER = 25  # imports inside functions, each with its reason beside it


def place(path: Path) -> str:
    """The package of a file, or the file itself where it lies at the top."""
    return path.parts[0].removesuffix(".py")


def imported(path: Path, everywhere: bool = True) -> set[str]:
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


def siblings(path: Path) -> set[Path]:
    """The files of the same package that a file imports."""
    found = set()
    for name in imported(ROOT / "benchmark" / path):
        parts = name.split(".")[1:]
        for end in range(len(parts), 0, -1):
            target = Path(*parts[:end])
            for candidate in (target.with_suffix(".py"), target / "__init__.py"):
                if name.startswith("benchmark.") and candidate in FILES and place(candidate) == place(path):
                    found.add(candidate)
                    break
            else:
                continue
            break
    return found - {path}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_go_one_way(path):
    if path == Path("__init__.py"):
        return
    assert place(path) in ORDER
    for module in imported(ROOT / "benchmark" / path):
        if module.startswith("benchmark."):
            other = module.split(".")[1]
            assert other in ORDER, module
            assert ORDER.index(other) <= ORDER.index(place(path)), f"{path} imports {other}, which stands below it"
        assert not module.startswith("methods"), f"{path} reaches into methods/; only the registry finds methods"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_what_is_asked_of_another_module_is_there(path):
    """A type checker does not look behind a module that is imported on first use."""
    if path.name == "__main__.py":
        return
    module = importlib.import_module(".".join(("benchmark", *path.with_suffix("").parts)).removesuffix(".__init__"))
    tree = ast.parse((ROOT / "benchmark" / path).read_text(encoding="utf-8"))
    local = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    local |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            known = vars(module).get(node.value.id)
            if isinstance(known, lazy.Module | ModuleType) and node.value.id not in local:
                assert hasattr(known, node.attr), f"line {node.lineno}: {node.value.id} has no {node.attr}"


def test_no_package_imports_itself_in_a_circle():
    waiting = {path: siblings(path) for path in FILES}
    while ready := [path for path, needs in waiting.items() if not needs & waiting.keys()]:
        for path in ready:
            del waiting[path]
    assert not waiting, f"in a circle: {', '.join(map(str, waiting))}"


@pytest.mark.parametrize("name", registry.names())
def test_methods_import_the_model_and_streams_alone(name):
    for module in imported(ROOT / "methods" / f"{name}.py"):
        if module.startswith("benchmark."):
            assert module.split(".")[1] in ("files", "streams", "model"), f"methods/{name}.py imports {module}"


@pytest.mark.parametrize("path", [path for path in FILES if place(path) in TORCH_FREE], ids=str)
def test_no_torch_at_import(path):
    for module in imported(ROOT / "benchmark" / path, everywhere=False):
        assert module.split(".")[0] not in TORCH, module


@pytest.mark.parametrize("path", [path for path in FILES if place(path) in ("results", "board")], ids=str)
def test_tables_are_made_from_records_and_rules_alone(path):
    for module in imported(ROOT / "benchmark" / path):
        inside = not module.startswith("benchmark.") or module.split(".")[1] in BOARD
        assert inside or (path.name == "real.py" and module in RENDERED), module


def test_what_tables_are_made_with_is_loaded_without_torch():
    code = "import sys; from benchmark.board import generate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


def test_packages_and_files_stay_small():
    for folder in {path.parent for path in FILES if len(path.parts) > 1}:
        assert len([path for path in FILES if path.parent == folder]) <= 13, f"{folder}: more than 12 files and __init__"
    for path in FILES:
        lines = len((ROOT / "benchmark" / path).read_text(encoding="utf-8").splitlines())
        assert lines <= 450, f"{path} has {lines} lines"


def test_imports_inside_functions_are_few():
    found = []
    for path in FILES:
        for node in ast.walk(ast.parse((ROOT / "benchmark" / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                found += [f"{path}:{n.lineno}" for n in ast.walk(node) if isinstance(n, ast.Import | ast.ImportFrom)]
    assert len(set(found)) <= INNER, f"{len(set(found))}: {', '.join(sorted(set(found)))}"


# What takes longer to import than all of --help; a test of seconds would fail on a slow machine.
SLOW = ("torch", "torchvision", "torchmetrics", "lightning", "timm", "pandas", "pyarrow", "scipy", "matplotlib", "webdataset")


def test_help_imports_nothing_slow():
    code = "import sys, runpy; sys.argv = ['benchmark', '--help']\ntry: runpy.run_module('benchmark', run_name='__main__')\n"
    code += f"except SystemExit: pass\nslow = [name for name in {SLOW} if name in sys.modules]\nassert not slow, slow"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "leaderboards" in result.stdout


VERBS = ("shards", "latents", "train yarn", "sample yarn", "score yarn", "loss yarn", "bench yarn", "sweep")


def test_verbs_without_their_pictures_refuse_before_torch(tmp_path):
    code = f"""
import contextlib, io, runpy, sys
for verb in {VERBS}:
    protocol = "imagenet-256-s2" if verb == "latents" else "imagenet-64"
    sys.argv = ["benchmark", *verb.split(), "--protocol", protocol, "--out", {str(tmp_path)!r}]
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            runpy.run_module("benchmark", run_name="__main__")
        except SystemExit as end:
            assert end.code == 2, (verb, end.code)
    assert "needs DATA, the folder of its images" in said.getvalue(), (verb, said.getvalue())
    assert "torch" not in sys.modules, f"{{verb}}: torch was imported"
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("path", FILES, ids=str)
def test_the_harness_branches_on_no_method(path):
    methods = set(registry.names())
    for node in ast.walk(ast.parse((ROOT / "benchmark" / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Compare | ast.MatchValue):
            constants = {item.value for item in ast.walk(node) if isinstance(item, ast.Constant) and isinstance(item.value, str)}
            assert not constants & methods, f"benchmark/{path} line {node.lineno} compares with {constants & methods}"


def test_cards_are_data_only():
    assert not list((ROOT / "datasets").rglob("*.py")), "a Python package named datasets would shadow Hugging Face's"
