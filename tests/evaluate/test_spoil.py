"""Spoiled scenes: wrong in the way that their names say, and in no other."""

import numpy as np
import pytest

from benchmark.data import shapes
from benchmark.evaluate import spoil

SIZES = [(64, 64), (64, 48), (48, 64), (32, 32), (20, 33)]
INDEX = np.arange(16)


def whole(size, index=INDEX):
    return shapes.render_batch("heldout", index, size)


def random():
    return np.random.Generator(np.random.Philox(5))


def middle(images, grounds):
    """Centre (y, x) and area of what is not ground, in pixels."""
    cover = (images != grounds).any(3)
    rows, columns = np.arange(cover.shape[1])[:, None], np.arange(cover.shape[2])
    area = cover.sum((1, 2))
    return np.stack([(cover * rows).sum((1, 2)), (cover * columns).sum((1, 2))], 1) / area[:, None], area


@pytest.mark.parametrize("size", SIZES)
def test_placed_without_a_change_is_the_scene(size):
    assert np.array_equal(spoil.placed("heldout", INDEX, size), whole(size))
    assert np.array_equal(spoil.placed("heldout", INDEX, size, ground=True), whole(size))


def test_placed_scales_and_shifts():
    ground = spoil.empty("heldout", INDEX, (64, 48))
    there, area = middle(whole((64, 48)), ground)
    moved, same = middle(spoil.placed("heldout", INDEX, (64, 48), shift_yx=(0.125, 0)), ground)
    np.testing.assert_allclose(moved - there, np.tile([6, 0], (16, 1)), atol=1.0)
    np.testing.assert_allclose(same, area, rtol=0.05)
    half, small = middle(spoil.placed("heldout", INDEX, (64, 48), 0.5), ground)
    np.testing.assert_allclose(small / area, 0.25, rtol=0.35)  # pixels on the outline count in full
    np.testing.assert_allclose(half - [31.5, 23.5], (there - [31.5, 23.5]) / 2, atol=1.0)
    far = np.array([[9.0, 0]] * 8 + [[0, -9.0]] * 8)
    assert np.array_equal(spoil.placed("heldout", INDEX, (64, 48), 0.5, far), ground)


@pytest.mark.parametrize("size", SIZES)
def test_tiles_and_quarters_show_the_scene_small(size):
    small = whole((-(-size[0] // 2), -(-size[1] // 2)))
    tiled = spoil.tiled("heldout", INDEX, size)
    assert tiled.shape == (16, *size, 3)
    assert np.array_equal(tiled[:, : small.shape[1], : small.shape[2]], small)
    assert np.array_equal(tiled[:, small.shape[1] :, small.shape[2] :], small[:, : size[0] // 2, : size[1] // 2])
    if not size[0] % 2 and not size[1] % 2:
        assert np.array_equal(spoil.quarters("heldout", INDEX, size, [range(4)] * 16), tiled)
    once = spoil.quarters("heldout", INDEX, size, [[3]] * 16)
    ground = spoil.empty("heldout", INDEX, size)
    assert np.array_equal(once[:, : size[0] // 2], ground[:, : size[0] // 2])
    assert np.array_equal(once[:, -(size[0] // 2) :, -(size[1] // 2) :], whole((size[0] // 2, size[1] // 2)))


@pytest.mark.parametrize("size", SIZES)
def test_shuffled_moves_its_share_and_keeps_every_pixel(size):
    numbers = np.arange(size[0] * size[1] * 3).reshape(1, *size, 3) % 65521  # every pixel is another
    numbers = np.repeat(numbers, 4, 0)
    for share, block in ((0, 8), (0.5, 8), (1, 8), (1, 16)):
        places = (size[0] // block) * (size[1] // block)
        out = spoil.shuffled(numbers, share, random(), block)
        for picture, source in zip(out, numbers, strict=True):
            assert np.array_equal(np.sort(picture, None), np.sort(source, None))
            moved = picture != source
            expected = round(share * places)
            assert moved.any(2).sum() == (expected if expected > 1 else 0) * block * block
    again = [spoil.shuffled(numbers, [0, 0.3, 0.6, 1], random(), 8) for _ in range(2)]
    assert np.array_equal(*again)
    assert np.array_equal(again[0][0], numbers[0])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("axis", [0, 1])
def test_halves(size, axis):
    images, others = whole(size), whole(size, INDEX + 1)
    cut = round(size[axis] / 2)
    head, tail = (slice(None),) * (axis + 1) + (slice(None, cut),), (slice(None),) * (axis + 1) + (slice(cut, None),)
    swapped = spoil.swapped(images, axis)
    assert np.array_equal(np.concatenate([images[tail], images[head]], axis + 1), swapped)
    joined = spoil.joined(images, others, axis)
    assert np.array_equal(joined[head], images[head])
    assert np.array_equal(joined[tail], others[tail])
    mirrored = spoil.mirrored(images, axis)
    assert np.array_equal(mirrored, np.flip(mirrored, axis + 1))
    assert np.array_equal(mirrored[head], images[head])


def test_blur_and_noise_by_degree():
    images = whole((48, 64))
    assert np.array_equal(spoil.blurred(images, 0), images)
    assert np.array_equal(spoil.noisy(images, 0, random()), images)
    edges = [np.abs(np.diff(spoil.blurred(images, sigma).astype(float), axis=2)).max() for sigma in (0, 1, 2, 4)]
    assert edges == sorted(edges, reverse=True)
    grey = np.full((2, 64, 64, 3), 128, np.uint8)
    assert spoil.noisy(grey, 20, random()).std() == pytest.approx(20, rel=0.03)
