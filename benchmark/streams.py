"""All random number streams: the purpose of each, and what it is a function of.

    weights     torch, of (seed)                    a method's start
    training    torch, of (seed, step)              times, noise and dropped labels of a step, for the global batch (Draws)
    images      torch, of (seed, image)             the noise of one generated image
    labels      SplitMix64, of (seed, image)        the class of one generated image, where a protocol says `random`
    positions   torch, of (seed, axis)              positions that a method takes at random at test
    heldout     torch, of (image, level)            noise on held-out images, whose denoising loss is measured
    order       numpy's Philox, of (seed, epoch)    the order of an epoch, and what is random about a sample in it
    replicates  numpy's frozen RandomState          bootstrap resamples, subsets, orders and splits of the evaluation
    agreement   numpy's frozen RandomState          perturbed values behind the intervals of rank correlations
    untrained   torch, of a constant                the weights of untrained detectors, for tests

Torch's own generators are made in model/draws.py, from the seeds that are mixed here, so that this file needs no torch.
No two purposes of a run share a stream, and none depends on batch size, number of devices or what was drawn before. The scenes
of the embedded data set have generators of their own, which are part of what a scene is (data/shapes.py). There is one
known overlap: with seed 0, a scene's flip and crop in epoch 1 use the numbers that it was rendered from, since both have the key
(1, number). It stays, because another key would change every training.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

import numpy as np

from benchmark.inputs import BITS

SUBSET_SEED, INFINITY_SEED = 0, 1
AGREEMENT_SEED = 0
SPLIT_SEED = 2020  # torch-fidelity's default, so that both shuffle alike
UNTRAINED_SEED = 0


def subset(total: int, count: int) -> np.ndarray:
    """`count` of `total` positions, ascending and chosen at random once and for all: never the first classes of a file."""
    if count >= total:
        return np.arange(total)
    return np.sort(np.random.RandomState(SUBSET_SEED).permutation(total)[:count])


WEIGHTS, TRAINING, IMAGES, POSITIONS, HELDOUT, LABELS = range(6)  # what random numbers are for: no two purposes share a stream


def mixed_seed(*parts: int) -> int:
    """One 63-bit seed from several integers; nearby integers give unrelated seeds (SplitMix64's finaliser)."""
    state = 0
    for part in parts:
        state = (state + (part + 1) * 0x9E3779B97F4A7C15) & (2**64 - 1)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            state = ((state ^ (state >> shift)) * factor) & (2**64 - 1)
        state ^= state >> 31
    return state >> 1


def labels(rule: str, seed: int, images: Iterable[int], classes: int) -> np.ndarray:
    """The classes that generated images are asked to show, int64 [n]; each is a function of the seed and its own image alone.

    Args:
        rule: "balanced": classes take turns, whatever the seed; "random": every class is equally likely for every image.
        images: their numbers.
    """
    if rule == "balanced":
        return np.fromiter((image % classes for image in images), np.int64)
    assert rule == "random", rule
    # A 63-bit word as a fraction of its range: classes are equally likely up to `classes` / 2^63.
    return np.fromiter((mixed_seed(LABELS, seed, image) * classes >> 63 for image in images), np.int64)


def draws(replicate: int, count: int) -> np.ndarray:
    """How often bootstrap replicate `replicate` uses each of `count` images: int64 [count], summing to `count`.

    A function of the two arguments alone, on numpy's frozen generator, so that it is the same for every method, machine
    and numpy version.
    """
    generator = np.random.RandomState([replicate, count])  # its stream is frozen, Generator's is not
    return np.bincount(generator.randint(0, count, count), minlength=count)


def shuffled(count: int, *key: int) -> np.ndarray:
    """A permutation of 0 .. count - 1, int64 [count], that is a function of `key` alone.

    It sorts raw words of Philox (Salmon et al. 2011), a counter-based generator. NumPy keeps a bit generator's raw stream
    for ever, but not what Generator.permutation makes of it.

    Args:
        key: up to two integers in [0, 2^64).
    """
    words = np.zeros(2, np.uint64)
    words[: len(key)] = key
    return np.argsort(np.random.Philox(key=words).random_raw(count), kind="stable")


def split_order(count: int) -> np.ndarray:
    """The order of images, int64 [N], whose runs are the splits of the inception score; torch-fidelity's."""
    return np.random.RandomState(SPLIT_SEED).permutation(count)


def balanced_order(classes: np.ndarray) -> np.ndarray:
    """A fixed random order of images, int64 [N], whose every beginning holds all classes as equally often as can be."""
    random = np.random.RandomState(INFINITY_SEED)
    order = random.permutation(len(classes))
    turn = np.empty(len(classes), np.int64)  # how many of an image's class come before it
    for each in np.unique(classes):
        members = order[classes[order] == each]
        turn[members] = np.arange(len(members))
    return order[np.argsort(turn[order], kind="stable")]


def uniforms(seed: int, epoch: int, number: int, count: int) -> np.ndarray:
    """Uniform numbers in [0, 1), float64 [count]: what is random about a sample in an epoch."""
    _philox.start["state"]["key"][:] = (seed << BITS) | epoch, number
    _philox.generator.state = _philox.start  # a third of the time of a new generator
    return (_philox.generator.random_raw(count) >> np.uint64(11)) * 2.0**-53


class _Philox(threading.local):
    """A generator for each thread, and the state that it starts from."""

    def __init__(self) -> None:
        self.generator = np.random.Philox(key=0)
        self.start = self.generator.state


_philox = _Philox()


def agreement() -> np.random.RandomState:
    """A new generator for the interval of one rank correlation."""
    return np.random.RandomState(AGREEMENT_SEED)
