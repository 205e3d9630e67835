"""Paired comparison of two scores of the same cell, from their bootstrap replicates alone, without torch.

Replicate r of every method draws the same image indices, and image i of every method starts from the same noise and
label. So the difference of two methods' replicates keeps what they share, and its interval is narrower than the two
intervals would suggest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmark.files import UserError

NOT_DIFFERENT = "not different"


@dataclass(frozen=True)
class Comparison:
    """The difference a - b of two values, its interval, and "lower", "higher" or "not different" (a against b)."""

    difference: float
    low: float
    high: float
    verdict: str


def interval(value: float, replicates: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """The middle `level` of the replicates after their mean has been moved onto `value`, as (low, high).

    Resampling repeats images, which biases many statistics (FID upwards, the inception score downwards). Their spread is
    right all the same, so only the spread is used.
    """
    moved = np.asarray(replicates, np.float64)
    moved = moved - moved.mean() + value
    low, high = np.quantile(moved, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def compare(a: dict[str, Any], b: dict[str, Any], level: float = 0.95) -> Comparison:
    """Compares two scores of one cell in pairs.

    Args:
        a, b: scores of records: {"value": ..., "replicates": [...]}, of the same number of images.
        level: of the interval.

    Raises:
        UserError: a score has no replicates, or the two have different numbers of them.
    """
    left, right = (score.get("replicates") or [] for score in (a, b))
    if not left or not right:
        raise UserError("a paired comparison needs replicates in both scores; score both cells with resamples > 0")
    if len(left) != len(right):
        raise UserError(f"a paired comparison needs equally many replicates, not {len(left)} and {len(right)}")
    difference = a["value"] - b["value"]
    low, high = interval(difference, np.subtract(left, right).tolist(), level)
    verdict = "lower" if high < 0 else "higher" if low > 0 else NOT_DIFFERENT
    return Comparison(float(difference), low, high, verdict)
