"""The methods there are: the files of methods/. This is the harness's only reach into that folder."""

from __future__ import annotations

import ast
import functools
import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.files import ROOT, UserError, unknown

if TYPE_CHECKING:
    from benchmark.model.method import Method
    from benchmark.protocol import Protocol

FOLDER = ROOT / "methods"


def names() -> list[str]:
    """Every strategy: a file name in methods/."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))


def check(name: str) -> str:
    """The name itself; a UserError lists the choices when there is no such method."""
    if name not in names():
        raise unknown("method", name, names())
    return name


def load(name: str) -> type[Method]:
    """The class of a strategy: the one subclass of Method that its file defines and no other class there derives from.

    Raises:
        UserError: no such file, or not exactly one such class in it.
    """
    module = importlib.import_module(f"methods.{check(name)}")
    own = [value for value in vars(module).values()
           if isinstance(value, type) and value.__module__ == module.__name__ and _is_method(value)]  # fmt: skip
    leaves = [cls for cls in own if not any(other is not cls and issubclass(other, cls) for other in own)]
    if len(leaves) != 1:
        raise UserError(f"methods/{name}.py must define exactly one Method, it defines {len(leaves)}")
    return leaves[0]


def _is_method(cls: type) -> bool:
    """Whether a class derives from Method, which is known by its name here: its module stands below this one, with torch."""
    return any((base.__module__, base.__name__) == ("benchmark.model.method", "Method") for base in cls.__mro__)


def trained_name(name: str) -> str:
    """The method whose checkpoint `name` uses."""
    return load(name).trains_as or name


def build(name: str, protocol: Protocol, train: str, seed: int) -> Method:
    """The method `name` in a contest, with the contest's hyper-parameters for it, and fresh weights."""
    return load(name)(protocol, train, seed, protocol.options.get(name, {}))


def sources(name: str) -> list[str]:
    """The file of a method and the files of methods/ it imports, relative to the repository: what its numbers run through."""
    found: list[str] = []
    waiting = [check(name)]
    while waiting:
        path = f"methods/{waiting.pop()}.py"
        if path in found:
            continue
        found.append(path)
        waiting += _imports(path, (ROOT / path).stat().st_mtime_ns)
    return sorted(found)


@functools.cache
def _imports(source: str, changed: int) -> list[str]:
    """The methods that a file of methods/ imports; `changed`, when it was last written, keeps the cache right."""
    tree = ast.parse((ROOT / source).read_text(encoding="utf-8"))
    modules = (node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    return [module.split(".")[1] for module in modules if module.startswith("methods.")]


def revisions(name: str) -> dict[str, int]:
    """{method: its declared revision} for a method and those of methods/ that it builds on. Read without importing torch."""
    return {Path(source).stem: _revision(source, (ROOT / source).stat().st_mtime_ns) for source in sources(name)}


@functools.cache
def _revision(source: str, changed: int) -> int:
    """The class attribute `revision` in a file of methods/; 1 where it is not declared."""
    found = 1
    for node in ast.walk(ast.parse((ROOT / source).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            for item in node.body:
                if isinstance(item, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "revision" for t in item.targets):
                    found = max(found, ast.literal_eval(item.value))
    return found


@dataclass(frozen=True)
class About:
    """What a method's file says of itself: class attributes, or what its docstring and its bases tell where they are absent."""

    title: str
    paper: str  # an address, or ""
    year: int | None
    kind: str  # "trained" or "training-free", or what the class says
    trains_as: str


def about(name: str) -> About:
    """What a method's file says of itself. Read without importing torch."""
    said = _declared(check(name), tuple((FOLDER / f"{other}.py").stat().st_mtime_ns for other in names()))
    text = Path(FOLDER / f"{name}.py").read_text(encoding="utf-8")
    # Where a class does not declare its paper, the first that its docstring cites is taken.
    paper = str(said.get("paper") or "") or next(iter(re.findall(r"arXiv \d{4}\.\d{4,5}", text)), "")
    number = re.search(r"\d{4}\.\d{4,5}(v\d+)?", paper)
    if not paper.startswith("https://"):
        paper = f"https://arxiv.org/abs/{number[0]}" if number else ""
    year = said.get("year") or (2000 + int(number[0][:2]) if number else None)
    trains_as = str(said.get("trains_as") or name)
    kind = str(said.get("kind") or ("trained" if trains_as == name else "training-free"))
    return About(str(said.get("title") or name), paper, int(year) if year else None, kind, trains_as)


@functools.cache
def _declared(name: str, changed: tuple[int, ...]) -> dict[str, object]:
    """The plain class attributes of a method, its bases' in methods/ included, as Python would inherit them.

    `changed`, when the files of methods/ were last written, keeps the cache right.
    """
    tree = ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    modules = {alias.asname or alias.name: node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)
               for alias in node.names}  # fmt: skip
    found: dict[str, dict[str, object]] = {}
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        for base in map(ast.unparse, node.bases):
            module = modules.get(base, "")
            if base in found:
                inherited = found[base]
            elif module.startswith("methods."):
                inherited = _declared(module.removeprefix("methods."), changed)
            elif (module, base) == ("benchmark.model.method", "Method"):
                inherited = {}
            else:
                continue  # not a method: a layer of the network, say
            own = {ast.unparse(target): item.value.value for item in node.body
                   if isinstance(item, ast.Assign | ast.AnnAssign) and isinstance(item.value, ast.Constant)
                   for target in (item.targets if isinstance(item, ast.Assign) else [item.target])}  # fmt: skip
            found[node.name] = {**inherited, **own}
            break
    return list(found.values())[-1] if found else {}


def describe(name: str) -> str:
    """The first line of a method's docstring: the idea in one sentence. Read without importing torch."""
    text = Path(FOLDER / f"{check(name)}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").strip().split("\n")[0]
