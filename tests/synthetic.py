"""Made-up protocols and records for the tests of tables; nothing here was measured."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmark import files, protocol, registry, revision
from benchmark.board import table
from benchmark.protocol import Protocol
from benchmark.results import record

TITLES = {"rpe2d": "RPE-2D", "yarn": "YaRN", "ledit": "LEDiT", "ntk": "NTK-aware", "rifle": "RIFLEx", "sincos": "sin-cos"}
SMALL = """\
title: A small protocol
cells:
  16x16: [8x8, 16x16, 24x24, 32x32, 32x16]
core: {width: 32, depth: 2, heads: 2, patch: 4}
sample: {count: 100}
score: {detector: shapes, reference: 200}
"""
TINY = """\
title: "A tiny protocol | <b>"
cells: {16x16: [16x16, 32x32, 16x32]}
core: {width: 32, depth: 2, heads: 2, patch: 4}
train: {steps: 10, batch: 4}
sample: {steps: 8, guidance: 3.0, count: 100}
score: {detector: shapes, reference: 200}
"""


def protocols(folder: Path, patch: pytest.MonkeyPatch, **texts: str) -> None:
    """Makes `folder` the place of all protocols: {name: YAML}, "_" in a name standing for "-"."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name.replace('_', '-')}.yaml").write_text(text)
    patch.setattr(protocol, "FOLDER", folder)


def detectors(folder: Path, patch: pytest.MonkeyPatch, **texts: str) -> None:
    """Makes `folder` the place of all detectors, those there are and {name: code}, and the folder around it that of weights."""
    folder.mkdir(parents=True)
    for path in registry.DETECTORS.glob("*.py"):
        (folder / path.name).write_text(path.read_text())
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(text)
        module = f"benchmark.evaluate.detectors.{name}"
        patch.setitem(sys.modules, module, None)  # so that it is forgotten with the rest
        del sys.modules[module]
    patch.setattr(registry, "DETECTORS", folder)
    patch.setattr("benchmark.evaluate.detectors.__path__", [str(folder)])


def value_of(
    rules: Protocol,
    method: str,
    pair: tuple[str, str],
    seed: int = 0,
    fid: float | None = 20.0,
    resamples: int = 20,
    **scores: Any,
) -> dict[str, Any]:
    """A valid record's JSON, a function of its arguments alone; `fid` None is a failed cell.

    The replicates of all methods share their noise, as they do where methods share their samples' seeds.
    """
    noise = np.random.RandomState([seed, *map(ord, "".join(pair))]).standard_normal(resamples)
    measured: dict[str, Any] | None = None
    if fid is not None:
        measured = {"sfid": {"value": fid / 2}, "precision": {"value": 0.5}, "recall": {"value": 0.25}}
        for name, center, width in (("fid", fid, 0.02 * fid), ("is", max(1.0, 8 - fid / 40), 0.05)):
            replicates = [center + width * item for item in noise]
            ends = {"low": center - 2 * width, "high": center + 2 * width}
            measured[name] = {"value": center, **ends, "replicates": replicates}
        measured |= scores
    return record.rounded(
        {
            "schema": 2,
            "protocol": {"name": rules.name, "hash": rules.hash},
            "method": {
                "name": method,
                "title": TITLES.get(method, method),
                "trained_as": "extrapolation" if method in ("yarn", "ntk") else method,
                "options": {},
                "note": "reimplemented from the abstract" if method == "rpe2d" else "",
            },
            "cell": {"train": pair[0], "test": pair[1]},
            "seed": seed,
            "revisions": revision.current(method) if method in registry.names() else {**revision.parts(), "method": {method: 1}},
            "code": {"commit": "0" * 40, "dirty": False},
            "training": {
                "fingerprint": "f" * 12,
                "steps": rules.train.steps,
                "parameters": 4_200_000,
                "hours": 0.125,
                "loss": 0.1,
                "machine": "a processor",
            },
            "data": {"card": rules.data.card, "hash": "d" * 12},
            "reference": {"hash": files.digest(pair[1]), "count": rules.score.reference},
            "detector": {"name": rules.score.detector, "hash": "e" * 12},
            "count": rules.sample.count,
            "scores": measured,
            "uncertainty": {"method": "bootstrap over images", "resamples": resamples, "level": 0.95},
            "hours": {"sample": 0.01 * protocol.ratio(*pair) ** 2, "score": 0.001},
            "hardware": {"device": "cpu", "name": "a processor", "count": 1},
            "libraries": {"numpy": "2"},
        }
    )


def fill(folder: Path, rules: Protocol, fids: dict[str, float], seeds: int = 1, resamples: int = 20, **scores: Any) -> None:
    """Writes a record for every cell, method and seed; FID grows with the distance from the training size."""
    for method, fid in fids.items():
        for pair in rules.pairs():
            away = abs(np.log2(protocol.ratio(*pair)))
            for seed in range(seeds):
                here = fid * (0.2 + away) * (1 + 0.03 * np.sin(7 * seed + len(method)))
                record.write(value_of(rules, method, pair, seed, float(here), resamples, **scores), folder)


def tiny(folder: Path, rules: Protocol) -> None:
    """Records of TINY with one of everything: several seeds, one seed, stale code, a failed cell, a missing cell."""
    for seed, fids in ((0, (10, 40, 30)), (1, (11, 42, 33))):
        for pair, fid in zip(rules.pairs(), fids, strict=True):
            record.write(value_of(rules, "yarn", pair, seed, fid), folder)
    for pair, fid in zip(rules.pairs(), (10.2, 20, 31), strict=True):
        record.write(value_of(rules, "ledit", pair, 0, fid), folder)
    for pair, fid in zip(rules.pairs(), (10, 90, 80), strict=True):
        value = value_of(rules, "ntk", pair, 0, fid)
        value["revisions"]["train"] += 1
        record.write(value, folder)
    same, twice, _ = rules.pairs()
    record.write(value_of(rules, "rpe2d", same, 0, 12.5, top1={"value": 0.75}), folder)
    record.write(value_of(rules, "rpe2d", twice, 0, None), folder)


def board_of(rules: Protocol, fids: dict[tuple[str, int], tuple[float | None, ...]], **scores: Any) -> table.Table:
    """A table of made-up FIDs: {(method, seed): one FID per cell; None failed, NaN not run}."""
    found = []
    for (method, seed), row in fids.items():
        for pair, fid in zip(rules.pairs(), row, strict=True):
            if fid is None or not math.isnan(fid):
                found.append(record.from_value(value_of(rules, method, pair, seed, fid, **scores), rules))
    return table.build(rules, found)


def entry(board: table.Table, method: str, place: int, metric: str = "fid") -> table.Entry:
    return next(row for row in board.rows if row.method == method).entries[metric, board.columns[place]]
