"""Identities of trainings, table cells and references, and the keys under which their files are stored.

A file on disk may be reused while all that it depends on is the same: that is what keys are for. They are local and careful: an
edit of the code that numbers run through, listed below, makes a file be made again. Whether a *published* number still holds is
another question (revision.py).
"""

from __future__ import annotations

import ast
import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmark import registry
from benchmark.files import ROOT, below, digest, state_of
from benchmark.protocol import Protocol

# What the numbers of a training and of a cell's images run through, besides the method's own file.
TRAINING = ("benchmark.model.method", "benchmark.model.precision", "benchmark.model.autoencoder", "benchmark.data.batches")
INITIAL = "benchmark.model.checkpoint"  # and those of a training that starts from a checkpoint
SAMPLING = ("benchmark.model.method", "benchmark.model.precision", "benchmark.model.autoencoder")
REFERENCE = "benchmark.evaluate.reference"
SCORING = ("benchmark.evaluate.score", REFERENCE, "benchmark.evaluate.denoising")


@dataclass(frozen=True)
class Training:
    """A checkpoint: a method that trains its own, at one size, under one seed."""

    protocol: Protocol = field(compare=False, repr=False)
    method: str
    size: str
    seed: int

    def __str__(self) -> str:
        return f"{self.method} {self.size} seed {self.seed}"

    def key(self, data: str) -> str:
        """The hash of everything that the weights depend on; `data` is that of what the model sees."""
        rules = self.protocol.training(self.size)
        rates = rules["train"].pop("lr_of", {})  # that of another method is no part of this training
        config = self.protocol.train
        rules["train"]["lr"] = rates.get(self.method, config.lr)
        if config.optimizer == "muon" and rules["train"]["lr"] != config.lr:  # which Muon's rate follows
            rules["train"]["muon_lr"] = config.muon_lr * (rules["train"]["lr"] / config.lr)
        modules = [*TRAINING, *([INITIAL] if config.init else []), f"methods.{self.method}"]
        return digest(
            {
                "rules": rules,
                "method": self.method,
                "options": self.protocol.options.get(self.method, {}),
                "seed": self.seed,
                "data": data,
                "code": code_key(*modules),
            }
        )

    def folder(self, out: Path, data: str) -> Path:
        """Where its files lie; protocols whose trainings agree share it."""
        return below(out, "trainings", f"{self.method}-{self.size}-s{self.seed}-{self.key(data)}")


@dataclass(frozen=True)
class Cell:
    """One number of a table: a method, trained at one size and tested at another, under one seed."""

    protocol: Protocol = field(compare=False, repr=False)
    method: str
    train: str
    test: str
    seed: int

    def __str__(self) -> str:
        return f"{self.method} {self.train} -> {self.test} seed {self.seed}"

    @property
    def training(self) -> Training:
        """The training whose weights it uses."""
        return Training(self.protocol, registry.trained_name(self.method), self.train, self.seed)

    def key(self, training: str) -> str:
        """The hash of everything that the images depend on; `training` is the key of the weights."""
        return digest(
            {
                "training": training,
                "method": self.method,
                "options": self.protocol.options.get(self.method, {}),
                "sizes": [self.train, self.test],
                "largest": self.protocol.largest(self.train),
                "rules": self.protocol.sampling(),
                "seed": self.seed,
                "code": code_key(*SAMPLING, f"methods.{self.method}"),
            }
        )

    def folder(self, out: Path, training: str) -> Path:
        """Where its files lie."""
        name = f"{self.method}-{self.train}-{self.test}-s{self.seed}-{self.key(training)}"
        return below(out, "cells", self.protocol.name, name)


def methods_of(protocol: Protocol) -> list[str]:
    """The methods that a sweep of the protocol runs: those that it names, or else all; never those named with a minus before."""
    left_out = [registry.check(name[1:]) for name in protocol.methods if name.startswith("-")]
    named = [registry.check(name) for name in protocol.methods if not name.startswith("-")]
    return [name for name in named or registry.names() if name not in left_out]


def cells_of(protocol: Protocol, methods: list[str], seed: int) -> list[Cell]:
    """Every cell of the methods, in the order of the protocol."""
    return [Cell(protocol, method, train, test, seed) for method in methods for train, test in protocol.pairs()]


def reference_key(source: str, content: str, size: str, detector: str, weights: str, count: int, nearest: int) -> str:
    """The hash of all that decides what reference statistics are, up to rounding: the same on every machine.

    Args:
        source, content: of the real images: what they are called, and the hash of what they are.
        size: in pixels, such as "64x48".
        detector, weights: its name, and the hash of its weights.
        count, nearest: images in the statistics, and how many of them keep their features.
    """
    return digest([source, content, size, detector, weights, count, nearest])


def detector_module(name: str) -> str:
    """The module of a detector: its code is part of what features, references and records depend on."""
    return f"benchmark.evaluate.detectors.{name}"


def features_folder(cell: Path | str, detector: str, weights: str) -> Path:
    """The folder of the features below `cell`, a folder of samples; its name identifies the weights and the code.

    Args:
        detector, weights: its name, and the hash of its weights.
    """
    code = code_key(detector_module(detector), "benchmark.evaluate.spectrum")
    return Path(cell) / "features" / f"{detector}-{weights}-{code[:6]}"


def scoring_code(detector: str) -> str:
    """The hash of the code that scores run through, the detector's included."""
    return code_key(*SCORING, detector_module(detector))


def reference_ending(key: str, detector: str) -> str:
    """How the file name of reference statistics ends: their key, and the code that made them."""
    return f"-{key}-{code_key(REFERENCE, detector_module(detector))[:6]}.npz"


# --- Code ------------------------------------------------------------------------------------------------------------


@functools.cache
def code_key(*modules: str) -> str:
    """A hash of the code that some modules run through: their files, and every file of this project that those import.

    Comments, docstrings and layout do not change it, code does. It is taken once: an edit while a process runs, which holds the
    code as it was, changes the keys of the next one.

    Args:
        modules: such as "benchmark.model.method" or "methods.yarn".
    """
    return digest([[name, _syntax(*state_of(ROOT / name))] for name in code_files(*modules)])


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
            waiting += _imported(*state_of(path))
    return sorted(found)


@functools.cache
def _imported(path: str, size: int, changed: int) -> list[str]:
    """The modules of this project that a source file imports, but for those imported for annotations only."""
    found: list[str] = []

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.ImportFrom) and (child.module or "").split(".")[0] in ("benchmark", "methods"):
                found.append(str(child.module))
                found.extend(f"{child.module}.{alias.name}" for alias in child.names)  # of which the modules have a file
            if isinstance(child, ast.Import):
                found.extend(alias.name for alias in child.names if alias.name.split(".")[0] in ("benchmark", "methods"))
            visit(child)

    visit(ast.parse(Path(path).read_text(encoding="utf-8")))
    return found


@functools.cache
def _syntax(path: str, size: int, changed: int) -> str:
    """The hash of a source file's syntax tree, without docstrings; a plan asks for the same ones over and over."""

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

    return digest(canonical(ast.parse(Path(path).read_text(encoding="utf-8"))))
