"""Declared revisions: versions of the code behind a record's numbers, raised deliberately.

A record holds the revisions under which it was made; it is stale when one of them has been raised since. A refactor raises none.
tests/golden keeps watch: a change that moves a golden has to raise the revision of its part here (or a method's own, the
class attribute `revision`), and CHANGELOG.md says what the number means from then on.
"""

from __future__ import annotations

from typing import Any

from benchmark import registry

TRAIN = 1  # core, objectives, optimizer, averaging, reading of data: everything that a loss runs through
SAMPLE = 1  # solvers, guidance, decoding, rounding to uint8: from weights to images
SCORE = 2  # detectors, metrics, reference statistics, intervals: from images to scores


def parts() -> dict[str, int]:
    """The revisions of what all methods share."""
    return {"train": TRAIN, "sample": SAMPLE, "score": SCORE}


def current(method: str) -> dict[str, Any]:
    """The revisions that a record of `method` made now would hold; a method's include those of the files it builds on."""
    return {**parts(), "method": registry.revisions(method)}


def is_stale(revisions: dict[str, Any], method: str) -> bool:
    """Whether a record's number may have changed its meaning since.

    Of a method whose file is gone only the shared parts can be compared.
    """
    now = current(method) if method in registry.names() else {**parts(), "method": revisions["method"]}
    return revisions != now
