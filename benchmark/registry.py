"""The registry: methods (methods/) and detectors (evaluate/detectors/), found by listing folders, without importing torch.

This is the harness's only reach into methods/.
"""

from __future__ import annotations

import ast
import functools
import importlib
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.files import ROOT, UserError, file_hash, unknown

if TYPE_CHECKING:
    from benchmark.model.method import Method
    from benchmark.protocol import Protocol

FOLDER = ROOT / "methods"
DETECTORS = ROOT / "benchmark" / "evaluate" / "detectors"
FEW_SPLITS = 10  # of the inception score, where a detector names no number of images for one


def names() -> list[str]:
    """Every method: a file name in methods/."""
    found = (name.removesuffix(".py") for name in os.listdir(FOLDER) if name.endswith(".py"))
    return sorted(name for name in found if name[:1] not in ("", "_", "."))


def check(name: str) -> str:
    """The name itself; a UserError lists the choices when there is no such method."""
    if name not in names():
        raise unknown("method", name, names())
    return name


def load(name: str) -> type[Method]:
    """The class of a method: the one subclass of Method that its file defines and no other class there derives from.

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
    """The method whose checkpoint `name` uses. Read without importing torch."""
    return attribute(name, "trains_as") or name


def shared() -> str:
    """The method whose checkpoint most others use. Read without importing torch."""
    return Counter(filter(None, (attribute(name, "trains_as") for name in names()))).most_common(1)[0][0]


def augments(name: str, options: Mapping[str, Any]) -> bool:
    """Whether a method's training changes pictures before it sees them, so that it cannot read latents of unchanged ones.

    Its class attribute `augments` names the option whose value says so. Read without importing torch.
    """
    option = attribute(name, "augments")
    return bool(option and options.get(option, _options(name).get(option)))


def attribute(name: str, attribute: str) -> Any:
    """A class attribute of a method as it stands in its file, or in that of the method it derives from; None for neither."""
    for cls in _classes(name):
        for item in cls.body:
            if isinstance(item, ast.Assign | ast.AnnAssign) and item.value is not None:
                for target in item.targets if isinstance(item, ast.Assign) else [item.target]:
                    names = target.elts if isinstance(target, ast.Tuple) else [target]  # title, kind = "...", "..."
                    for place, known in enumerate(names):
                        if isinstance(known, ast.Name) and known.id == attribute:
                            value = ast.literal_eval(item.value)
                            return value[place] if isinstance(target, ast.Tuple) else value
    return None


def _options(name: str) -> dict[str, Any]:
    """The defaults of a method's options, as far as they are written as literals."""
    found: dict[str, Any] = {}
    for cls in reversed(_classes(name)):
        for inner in cls.body:
            if isinstance(inner, ast.ClassDef) and inner.name == "Options":
                for item in inner.body:
                    if isinstance(item, ast.AnnAssign) and isinstance(item.value, ast.Constant):
                        found[ast.unparse(item.target)] = item.value.value
    return found


def _classes(name: str) -> list[ast.ClassDef]:
    """A method's class and those of methods/ that it derives from, the method's own first."""
    tree = _tree(*_state(check(name)))
    elsewhere = {
        alias.asname or alias.name: (node.module or "").split(".")[1]
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("methods.")
        for alias in node.names
    }
    here = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    base = {node.name: node.bases[0].id if node.bases and isinstance(node.bases[0], ast.Name) else "" for node in here.values()}
    own = [known for known in here if base[known] in {"Method", *elsewhere, *here} and known not in base.values()]
    found: list[ast.ClassDef] = []
    current = own[-1] if own else ""
    while current in here:
        found.append(here[current])
        current = base[current]
    return found + (_classes(elsewhere[current]) if current in elsewhere else [])


# What was read of a file is kept while the file stays the same: a table of 2,000 records asks for the same ones over and over.
State = tuple[str, int, int]


def _state(name: str) -> State:
    """Shows whether a method's file has changed since it was read: path, size, time."""
    path = f"{FOLDER}/{name}.py"
    state = os.stat(path)
    return path, state.st_size, state.st_mtime_ns


@functools.cache
def _tree(path: str, size: int, changed: int) -> ast.Module:
    return ast.parse(Path(path).read_text(encoding="utf-8"))


@functools.cache
def _imports(path: str, size: int, changed: int) -> list[str]:
    """The files of methods/ that a file imports, functions' imports included."""
    nodes = ast.walk(_tree(path, size, changed))
    modules = (node.module or "" for node in nodes if isinstance(node, ast.ImportFrom))
    return [module.split(".")[1] for module in modules if module.startswith("methods.")]


def build(name: str, protocol: Protocol, train: str, seed: int) -> Method:
    """The method `name` under a protocol, with the protocol's hyper-parameters for it, and fresh weights."""
    return load(name)(protocol, train, seed, protocol.options.get(name, {}))


def sources(name: str) -> list[str]:
    """The file of a method and the files of methods/ it imports, relative to the repository: what its numbers run through."""
    return [f"methods/{each}.py" for each in _built_on(name)]


def _built_on(name: str) -> list[str]:
    """A method and those of methods/ that it builds on, by name."""
    found: set[str] = set()
    waiting = [check(name)]
    while waiting:
        each = waiting.pop()
        if each not in found:
            found.add(each)
            waiting += _imports(*_state(each))
    return sorted(found)


def revisions(name: str) -> dict[str, int]:
    """{method: its declared revision} for a method and those of methods/ that it builds on. Read without importing torch."""
    found = _built_on(name)
    return dict(zip(found, _revisions(tuple(found), tuple(map(_state, found))), strict=True))


@functools.cache
def _revisions(names: tuple[str, ...], states: tuple[State, ...]) -> list[int]:
    """The declared revisions of methods, in files whose state is known."""
    return [attribute(name, "revision") or 1 for name in names]


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
    paper = str(attribute(name, "paper") or "")
    number = re.search(r"\d{4}\.\d{4,5}(v\d+)?", paper)
    if not paper.startswith("https://"):
        paper = f"https://arxiv.org/abs/{number[0]}" if number else ""
    year = attribute(name, "year") or (2000 + int(number[0][:2]) if number else None)
    trains_as = trained_name(name)
    kind = "trained" if trains_as == name else "training-free"
    return About(str(attribute(name, "title") or name), paper, year, kind, trains_as)


# --- Detectors -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DetectorFacts:
    """What a detector's file declares as the literal FACTS, so that plans and protocols know it without torch.

    Attributes:
        flops: operations for one image, at the size that it is reduced to; a test counts them again.
        numbers: how many numbers of an image stay on disk.
        classes: of its logits; 0 where it has none, and then it gives no inception score.
        bytes: of a number on disk: 4 for float32, 2 for float16, which detectors of many numbers take. What that does to scores:
            `python -m benchmark.measure.evaluation rest`.
        weights: the weight file, beside benchmark/evaluate/classifier.py or in torch's cache of downloads.
        split_images: images in a split of the inception score; 0 takes FEW_SPLITS splits, however many images there are.
    """

    flops: float
    numbers: int
    classes: int = 0
    split_images: int = 0
    bytes: int = 4
    weights: str = ""

    def splits(self, count: int) -> int:
        """Splits of the inception score of `count` images, where a protocol names no number."""
        return max(1, round(count / self.split_images)) if self.split_images else min(FEW_SPLITS, count)


def detectors(scoring: bool = False) -> list[str]:
    """Every detector: a file of evaluate/detectors/ that declares FACTS; with `scoring` those that give an inception score."""
    found = {path.stem: _facts(path, path.stat().st_mtime_ns) for path in sorted(DETECTORS.glob("*.py"))}
    return [name for name, facts in found.items() if facts and (facts.classes or not scoring)]


def detector_facts(name: str) -> DetectorFacts:
    """What a detector's file declares."""
    file = f"{name}.py"
    facts = _facts(DETECTORS / file, (DETECTORS / file).stat().st_mtime_ns) if file in os.listdir(DETECTORS) else None
    if facts is None:
        raise unknown("detector", name, detectors())
    return facts


@functools.cache
def _facts(path: Path, changed: int) -> DetectorFacts | None:
    """The module constant FACTS of a file; None where the file is no detector.

    Raises:
        UserError: the file defines a detector without FACTS, or with others than DetectorFacts has.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["FACTS"]:
            try:
                return DetectorFacts(**ast.literal_eval(node.value))
            except (TypeError, ValueError) as error:
                raise UserError(f"{path.name}: FACTS must be a literal dict of DetectorFacts' fields ({error})") from None
    if any(isinstance(node, ast.ClassDef) and "Detector" in map(ast.unparse, node.bases) for node in tree.body):
        raise UserError(
            f"{path.name} defines a detector and declares no FACTS, such as FACTS = {{'flops': 1e9, 'numbers': 1024}}"
        )
    return None


def detector_weights(name: str) -> str | None:
    """The hash of a detector's weights, the first 12 hexadecimal digits of their SHA-256; None where they are not there yet."""
    cache = Path(os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "torch")
    file = detector_facts(name).weights
    shipped = DETECTORS.parent / file
    path = Path(os.environ.get("DETECTOR_WEIGHTS") or (shipped if shipped.is_file() else cache / "hub" / "checkpoints" / file))
    if not path.is_file():
        return None
    state = path.stat()
    return _content(str(path), state.st_size, state.st_mtime_ns)[:12]


@functools.cache
def _content(path: str, size: int, changed: int) -> str:
    return file_hash(path)
