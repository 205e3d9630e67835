"""What there is by lying in a folder: methods (methods/) and detectors (evaluate/detectors/), listed without importing torch.

This is the harness's only reach into methods/.
"""

from __future__ import annotations

import ast
import functools
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.files import ROOT, UserError, unknown

if TYPE_CHECKING:
    from benchmark.model.method import Method
    from benchmark.protocol import Protocol

FOLDER = ROOT / "methods"
DETECTORS = ROOT / "benchmark" / "evaluate" / "detectors"
FEW_SPLITS = 10  # of the inception score, where a detector names no number of images for one


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
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("methods."):
                waiting.append(node.module.split(".")[1])
    return sorted(found)


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


def describe(name: str) -> str:
    """The first line of a method's docstring: the idea in one sentence. Read without importing torch."""
    text = Path(FOLDER / f"{check(name)}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").strip().split("\n")[0]


# --- Detectors -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DetectorFacts:
    """What a detector's file declares as the literal FACTS, so that plans and protocols know it without torch.

    Attributes:
        flops: operations for one image, at the size that it is reduced to; a test counts them again.
        numbers: float32 numbers that it keeps of an image.
        classes: of its logits; 0 where it has none, and then it gives no inception score.
        split_images: images in a split of the inception score; 0 takes FEW_SPLITS splits, however many images there are.
    """

    flops: float
    numbers: int
    classes: int = 0
    split_images: int = 0

    def splits(self, count: int) -> int:
        """Splits of the inception score of `count` images, where a protocol names no number."""
        return max(1, round(count / self.split_images)) if self.split_images else min(FEW_SPLITS, count)


def detectors(scoring: bool = False) -> list[str]:
    """Every detector: a file of evaluate/detectors/ that declares FACTS; with `scoring` those that give an inception score."""
    found = {path.stem: _facts(path, path.stat().st_mtime_ns) for path in sorted(DETECTORS.glob("*.py"))}
    return [name for name, facts in found.items() if facts and (facts.classes or not scoring)]


def detector_facts(name: str) -> DetectorFacts:
    """What a detector's file declares."""
    if name not in detectors():
        raise unknown("detector", name, detectors())
    path = DETECTORS / f"{name}.py"
    return _facts(path, path.stat().st_mtime_ns)


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
