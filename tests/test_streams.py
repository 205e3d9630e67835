"""Random streams are frozen: a change of these numbers makes other weights, other trainings and other images."""

from __future__ import annotations

from benchmark import streams

SEEDS = [
    3622912419420151471, 2223031467017074286, 670984901879974907, 2575875503376528050, 5069015083688986918, 437642337207406710,
]  # fmt: skip


def test_mixed_seeds_are_fixed_for_ever():
    assert [streams.mixed_seed(purpose, 3, 7) for purpose in range(6)] == SEEDS


def test_random_labels_are_fixed_for_ever():
    assert streams.labels("random", 0, range(8), 10).tolist() == [9, 7, 2, 6, 5, 4, 0, 6]


def test_purposes_keep_their_numbers():
    assert (streams.WEIGHTS, streams.TRAINING, streams.IMAGES) == (0, 1, 2)
    assert (streams.POSITIONS, streams.HELDOUT, streams.LABELS) == (3, 4, 5)
