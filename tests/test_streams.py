"""Random streams are frozen: a change of these numbers makes other weights, other trainings and other images."""

from __future__ import annotations

import small
import torch

from benchmark import registry, streams
from benchmark.evaluate import denoising
from benchmark.model import draws, method
from benchmark.model.draws import Draws, heldout_generator, image_generator

SEEDS = [
    3622912419420151471, 2223031467017074286, 670984901879974907, 2575875503376528050, 5069015083688986918, 437642337207406710,
]  # fmt: skip
START = 6054347830425945219  # of the weights under seed 3


def test_mixed_seeds_are_fixed_for_ever():
    assert [streams.mixed_seed(purpose, 3, 7) for purpose in range(6)] == SEEDS


def test_generators_have_the_seeds_of_their_streams():
    """(seed, image), (image, level) and (seed, step), in this order: exchanged, they would be as random and other numbers."""
    assert image_generator(3, 7).initial_seed() == SEEDS[streams.IMAGES]
    assert heldout_generator(3, 7).initial_seed() == SEEDS[streams.HELDOUT]
    assert Draws(3, 7, (0, 4), 4).generator.initial_seed() == SEEDS[streams.TRAINING]
    assert Draws(3, 7, (0, 4), 4, purpose=streams.POSITIONS).generator.initial_seed() == SEEDS[streams.POSITIONS]


def test_weights_are_drawn_with_the_seed_of_their_stream(monkeypatch):
    seen, before = [], torch.initial_seed()
    monkeypatch.setattr(method.Method, "build", lambda self: seen.append(torch.initial_seed()))
    registry.build("nope", small.protocol(), "16x24", 3)
    assert seen == [START]
    assert torch.initial_seed() == before


def test_every_stream_is_asked_for_by_its_seed_and_number(monkeypatch):
    """By a step of training, an image, noise on held-out images, and the methods that place tokens at random at test."""
    asked, mixed = [], draws.mixed_seed
    monkeypatch.setattr(draws, "mixed_seed", lambda *parts: asked.append(parts) or mixed(*parts))

    def seen() -> list[tuple[int, ...]]:
        found = asked[:]
        asked.clear()
        return found

    rules = small.protocol()
    nope = registry.build("nope", rules, "16x24", 3)
    small.loss(nope, 7)
    assert seen() == [(streams.TRAINING, 3, 7)]
    nope.generate("16x24", 5, [7, 8])
    assert seen() == [(streams.IMAGES, 5, 7), (streams.IMAGES, 5, 8)]
    denoising.noise_of([3, 4], 7, torch.zeros(2, 3, 4, 4))
    assert seen() == [(streams.HELDOUT, 3, 7), (streams.HELDOUT, 4, 7)]
    for name, axes in (("rpe2d", (0, 1)), ("randomized_1d", (0,))):
        registry.load(name)(rules, "16x24", 3, {"spacing": "random"}).encode((4, 6))
        assert seen() == [(streams.POSITIONS, 3, axis) for axis in axes]


def test_random_labels_are_fixed_for_ever():
    assert streams.labels("random", 0, range(8), 10).tolist() == [9, 7, 2, 6, 5, 4, 0, 6]


def test_purposes_keep_their_numbers():
    assert (streams.WEIGHTS, streams.TRAINING, streams.IMAGES) == (0, 1, 2)
    assert (streams.POSITIONS, streams.HELDOUT, streams.LABELS) == (3, 4, 5)
