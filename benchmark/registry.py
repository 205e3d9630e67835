"""The registry: methods (methods/) and detectors (evaluate/detectors/), found by listing folders, without importing torch.

This is the harness's only reach into methods/.
"""

from __future__ import annotations

import ast
import functools
import importlib
import os
import re
import sys
import traceback
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.files import ROOT, UserError, hash_of, state_of, unknown

if TYPE_CHECKING:
    from benchmark.model.method import Method
    from benchmark.protocol import Protocol

FOLDER = ROOT / "methods"
DETECTORS = ROOT / "benchmark" / "evaluate" / "detectors"
WEIGHTS_VARIABLE = "DETECTOR_WEIGHTS"  # names a weight file in place of a detector's own
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
        UserError: no such file, not exactly one such class in it, or one that trains otherwise than the file says.
    """
    trained_name(name)  # what is wrong with the file as it is read
    module, wanted = importlib.import_module(f"methods.{name}"), _classes(name)[0][1].name
    if not isinstance(getattr(module, wanted, None), type):
        raise UserError(f"methods/{name}.py: {wanted} is no longer a class after import")
    found: type[Method] = getattr(module, wanted)
    if (found.trains_as or None) != (read := attribute(name, "trains_as") or None):
        raise UserError(
            f"methods/{name}.py: trains_as is {found.trains_as!r} when it is imported and {read!r} when it is read: "
            "write it as a literal in the body of the class"
        )
    return found


def trained_name(name: str) -> str:
    """The method whose checkpoint `name` uses. Read without importing torch.

    Raises:
        UserError: there is no such method, or it has no checkpoint of its own.
    """
    base = attribute(name, "trains_as")
    if not base:
        return name
    where = f"methods/{name}.py: trains_as"
    if base == name:
        raise UserError(f"{where} is '{base}', the method itself; leave it out where a method trains its own checkpoint")
    if base not in names():
        raise UserError(f"{where}: {unknown('method', base, names())}")
    if other := attribute(base, "trains_as"):
        raise UserError(f"{where} is '{base}', which is training-free itself; name the method that both use: '{other}'")
    return base


def shared() -> str:
    """The method whose checkpoint most others use. Read without importing torch."""
    found: Counter[str] = Counter()
    for name in names():
        try:
            found[trained_name(name)] += 1
        except UserError as error:
            _warn(str(error))
    return found.most_common(1)[0][0]


@functools.cache
def _warn(message: str) -> None:
    """Reports, once, a file of methods/ that is left aside because the command is about other methods."""
    print(f"warning: {message}", file=sys.stderr)


def augments(name: str, options: Mapping[str, Any]) -> bool:
    """Whether a method's training changes pictures before it sees them, so that it cannot read latents of unchanged ones.

    Its class attribute `augments` names the option whose value says so. Read without importing torch.
    """
    option = attribute(name, "augments")
    return bool(option and options.get(option, _options(name).get(option)))


def attribute(name: str, attribute: str) -> Any:
    """A class attribute of a method as it stands in its file, or in that of the method it derives from; None for neither.

    Raises:
        UserError: the file cannot be read, holds no single Method, or has anything but a literal there.
    """
    return _value(_classes(name), attribute)


NUMBERS = ("year", "revision")  # class attributes that are integers; the others are strings


def _value(classes: list[Class], attribute: str) -> Any:
    """What the first class that assigns an attribute assigns last; None where none does."""
    kind, words = (int, "an integer") if attribute in NUMBERS else (str, "a string")
    for file, cls in classes:
        for item in reversed(cls.body):
            if isinstance(item, ast.Assign | ast.AnnAssign) and item.value is not None:
                for target in item.targets if isinstance(item, ast.Assign) else [item.target]:
                    names = target.elts if isinstance(target, ast.Tuple) else [target]  # title, kind = "...", "..."
                    given = item.value.elts if names != [target] and isinstance(item.value, ast.Tuple) else [item.value]
                    for place, known in enumerate(names):
                        if isinstance(known, ast.Name) and known.id == attribute:
                            value = given[place] if len(given) == len(names) else item.value
                            if not isinstance(value, ast.Constant) or not isinstance(value.value, kind | None):
                                raise UserError(f"methods/{file}.py: {attribute} must be {words} literal")
                            return value.value
    return None


def _options(name: str) -> dict[str, Any]:
    """The defaults of a method's options, as far as they are written as literals."""
    found: dict[str, Any] = {}
    for _, cls in reversed(_classes(name)):
        for inner in cls.body:
            if isinstance(inner, ast.ClassDef) and inner.name == "Options":
                for item in inner.body:
                    if isinstance(item, ast.AnnAssign) and isinstance(item.value, ast.Constant):
                        found[ast.unparse(item.target)] = item.value.value
    return found


Class = tuple[str, ast.ClassDef]  # the name of a file in methods/, and a class in it


def _classes(name: str) -> list[Class]:
    """A method's class and those of methods/ that it derives from, the method's own first.

    Raises:
        UserError: not exactly one class of the file is a Method that no other class there derives from.
    """
    found = _leaves(check(name))
    if not found:
        raise UserError(
            f"methods/{name}.py defines no Method: its class must name its base as imported by "
            "`from benchmark.model.method import Method` or `from methods.NAME import Class`"
        )
    if len(found) > 1:
        raise UserError(f"methods/{name}.py must define exactly one Method, it defines {len(found)}")
    return found[0]


def _leaves(name: str) -> list[list[Class]]:
    """As `_classes`, for each class of a file that is a Method and that no other class there derives from."""
    own = [classes for classes in _methods_in(name).values() if classes and classes[0][0] == name]
    bases = [cls for classes in own for _, cls in classes[1:]]
    return [classes for classes in own if classes[0][1] not in bases]


def _methods_in(name: str, above: tuple[str, ...] = ()) -> dict[str, list[Class]]:
    """The names that stand for Methods at the end of a file, each with that class and those it derives from, as in `_classes`."""
    known: dict[str, list[Class]] = {"Method": []}
    others = {other: _methods_in(other, (*above, name)) for other in _imports(*_state(name)) if other not in (*above, name)}
    for node in _tree(*_state(name)).body:
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            theirs = {"Method": []} if module == "benchmark.model.method" else others.get(module.removeprefix("methods."), {})
            known |= {alias.asname or alias.name: theirs[alias.name] for alias in node.names if alias.name in theirs}
        elif isinstance(node, ast.ClassDef):
            bases = [known[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in known]
            known.pop(node.name, None)
            if bases:
                known[node.name] = [(name, node), *(cls for base in bases for cls in base)]
    return known


# What was read of a file is kept while the file stays the same: a table of 2,000 records asks for the same ones over and over.
State = tuple[str, int, int]


def _state(name: str) -> State:
    """Shows whether a method's file has changed since it was read: path, size, time."""
    try:
        return state_of(f"{FOLDER}/{name}.py")
    except FileNotFoundError:
        raise UserError(f"there is no methods/{name}.py") from None


@functools.cache
def _tree(path: str, size: int, changed: int) -> ast.Module:
    """The syntax tree of a file.

    Raises:
        UserError: it is no Python; the message gives file and line.
    """
    where = f"methods/{Path(path).name}"
    try:
        tree = ast.parse(Path(path).read_text(encoding="utf-8"))
        compile(tree, path, "exec")  # which finds what the grammar allows, such as `return` outside a function
    except SyntaxError as error:
        raise UserError(f"{where}{f', line {error.lineno}' if error.lineno else ''}: {error.msg}") from None
    except ValueError as error:  # not UTF-8, or with a NUL
        raise UserError(f"{where} is not Python source: {error}") from None
    return tree


@functools.cache
def _imports(path: str, size: int, changed: int) -> list[str]:
    """The files of methods/ that a file imports, functions' imports included.

    Raises:
        UserError: it imports one that is not there, or in a form that is not followed here and in keys.
    """
    found = []
    for node in ast.walk(_tree(path, size, changed)):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        modules = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            modules = [f"{'.' * node.level}{node.module or ''}"]
            if modules[0].startswith("methods."):
                found.append(modules.pop().split(".")[1])
                if not Path(path).with_name(f"{found[-1]}.py").is_file():
                    raise UserError(f"methods/{Path(path).name}, line {node.lineno}: there is no methods/{found[-1]}.py")
        if any(module.split(".")[0] in ("methods", "") for module in modules):
            raise UserError(
                f"methods/{Path(path).name}, line {node.lineno}: write `from methods.NAME import Class` instead of "
                f"`{ast.unparse(node)}`, which is not followed when the file is read"
            )
    return found


def told(error: Exception) -> str:
    """What an exception says in one line, and the line of methods/ that it comes from, if it does."""
    if isinstance(error, UserError):
        return str(error)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).parent == FOLDER]
    where = f"methods/{Path(frames[-1].filename).name}, line {frames[-1].lineno}: " if frames else ""
    return f"{where}{' '.join(f'{type(error).__name__}: {error}'.split())}"


def build(name: str, protocol: Protocol, train: str, seed: int) -> Method:
    """The method `name` under a protocol, with the protocol's hyper-parameters for it, and fresh weights."""
    return load(name)(protocol, train, seed, protocol.options.get(name, {}))


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
    """{method: its declared revision} for a method and those of methods/ that it builds on. Read without importing torch.

    Of a file that cannot be read it is 0, which no record has: one broken file does not block the tables of other methods.
    """
    check(name)
    try:
        found = _built_on(name)
        return dict(zip(found, _revisions(tuple(found), tuple(map(_state, found))), strict=True))
    except UserError as error:
        _warn(str(error))
        return {name: 0}


@functools.cache
def _revisions(names: tuple[str, ...], states: tuple[State, ...]) -> list[int]:
    """The declared revisions of methods, in files whose state is known; 1 for a file of helpers."""
    leaves = map(_leaves, names)
    return [(_value(found[0], "revision") if len(found) == 1 else None) or 1 for found in leaves]


@dataclass(frozen=True)
class About:
    """What a method's file says of itself: class attributes, or what its docstring and its bases tell where they are absent."""

    title: str
    paper: str  # an address, or ""
    year: int | None
    kind: str  # "trained" or "training-free"; BROKEN of a file that cannot be read
    trains_as: str


BROKEN = "broken"


def about(name: str) -> About:
    """What a method's file says of itself. Read without importing torch; one that cannot be read is BROKEN, with a warning."""
    check(name)
    try:
        title, paper, year = (attribute(name, key) for key in ("title", "paper", "year"))
        trains_as = trained_name(name)
    except UserError as error:
        _warn(str(error))
        return About(name, "", None, BROKEN, name)
    paper = paper or ""
    number = re.search(r"\d{4}\.\d{4,5}(v\d+)?", paper)
    if not paper.startswith("https://"):
        paper = f"https://arxiv.org/abs/{number[0]}" if number else ""
    year = year or (2000 + int(number[0][:2]) if number else None)
    kind = "trained" if trains_as == name else "training-free"
    return About(title or name, paper, year, kind, trains_as)


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


def weights_file(name: str) -> Path:
    """Where a detector's own weights are: in benchmark/evaluate/ if they are shipped, else in torch's cache of downloads."""
    file = detector_facts(name).weights
    if (shipped := DETECTORS.parent / file).is_file():
        return shipped
    cache = Path(os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch")
    return cache.expanduser() / "hub" / "checkpoints" / file  # as torch.hub has it, without torch


def detector_weights(name: str) -> str | None:
    """The hash of a detector's weights, the first 12 hexadecimal digits of their SHA-256; None where they are not there yet."""
    path = Path(os.environ.get(WEIGHTS_VARIABLE) or weights_file(name))
    if not path.is_file():
        return None
    return hash_of(*state_of(path))[:12]
