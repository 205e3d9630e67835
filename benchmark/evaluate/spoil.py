"""Scenes of the embedded data set with known corruptions, which a detector must notice and is tested on.

Failures of structure (scale, number, place, order) first, then of quality (blur, noise). A scene is made again at another
size, natively, wherever that is possible, so that a smaller object is not also a blurred one.

Legend: N scenes, h and w pixels, pictures uint8 [N, h, w, 3]; y before x; a shift is in units of the short side.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmark.data import shapes

Array = np.ndarray
Size = tuple[int, int]


def empty(split: str, indices: Sequence[int] | Array, size_hw: Size) -> Array:
    """The scenes' grounds, without an object."""
    return shapes.render_batch(split, indices, size_hw, objects=0)


def scaled_size(size_hw: Size, scale: float) -> Size:
    """The pixels of a picture that is `scale` times as large, each side at least as large as scenes can be."""
    height, width = (max(shapes.SIDE_MIN, round(side * scale)) for side in size_hw)
    return height, width


def placed(split: str, indices: Sequence[int] | Array, size_hw: Size, scale: float = 1.0,
           shift_yx: Array | tuple[float, float] = (0.0, 0.0), ground: bool = False) -> Array:  # fmt: skip
    """The object `scale` times as large and shifted, on the scene's own ground.

    Args:
        split, indices, size_hw: as in `shapes.render_batch`.
        scale: of the object's size.
        shift_yx: of the object against where it would be, [2] for all or [N, 2]; (0.25, 0) is a quarter of the short side
            down. What leaves the picture is cut off.
        ground: the scaled picture is pasted as it is, with its ground, which shows an edge; otherwise the object alone.
    """
    height, width = size_hw
    scaled = scaled_size(size_hw, scale)
    pictures = shapes.render_batch(split, indices, scaled)
    cover = np.ones(pictures.shape[:3], bool) if ground else (pictures != empty(split, indices, scaled)).any(3)
    out = empty(split, indices, size_hw)
    corners = np.broadcast_to(np.asarray(shift_yx, np.float64), (len(out), 2)) * min(size_hw)
    corners = np.floor(corners + (np.array(size_hw) - scaled) / 2 + 0.5).astype(int)
    for picture, covered, target, (top, left) in zip(pictures, cover, out, corners, strict=True):
        rows, columns = slice(max(0, top), min(height, top + scaled[0])), slice(max(0, left), min(width, left + scaled[1]))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            continue
        source = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
        target[rows, columns][covered[source]] = picture[source][covered[source]]
    return out


def quarters(split: str, indices: Sequence[int] | Array, size_hw: Size, which: Sequence[Sequence[int]] | Array) -> Array:
    """The scene at half its size in some quarters of its own ground.

    Args:
        which: for each scene the quarters that show it, 0 to 3 in reading order.
    """
    height, width = size_hw[0] // 2, size_hw[1] // 2
    small, out = shapes.render_batch(split, indices, (height, width)), empty(split, indices, size_hw)
    for picture, target, chosen in zip(small, out, which, strict=True):
        for quarter in chosen:
            top, left = quarter // 2 * (size_hw[0] - height), quarter % 2 * (size_hw[1] - width)
            target[top : top + height, left : left + width] = picture
    return out


def tiled(split: str, indices: Sequence[int] | Array, size_hw: Size, times_yx: tuple[int, int] = (2, 2)) -> Array:
    """Several copies of the scene, each rendered at the size of its tile; sides that do not divide repeat a part more."""
    tile = tuple(-(-side // times) for side, times in zip(size_hw, times_yx, strict=True))
    copies = np.tile(shapes.render_batch(split, indices, tile), (1, *times_yx, 1))
    return np.ascontiguousarray(copies[:, : size_hw[0], : size_hw[1]])


def shuffled(images: Array, share: float | Array, random: np.random.Generator, block: int = 16) -> Array:
    """A share of the blocks of `block` x `block` pixels change places in a ring, so that none of them stays.

    Args:
        share: 0 to 1, for all or for each picture; the number of blocks is rounded, and one alone cannot move.
    """
    out = images.copy()
    rows, columns = images.shape[1] // block, images.shape[2] // block
    places = [(slice(y * block, (y + 1) * block), slice(x * block, (x + 1) * block)) for y in range(rows) for x in range(columns)]
    for picture, source, part in zip(out, images, np.broadcast_to(share, len(images)), strict=True):
        moved = random.permutation(len(places))[: round(float(part) * len(places))]
        for to, start in zip(moved, np.roll(moved, 1), strict=True):
            picture[places[to]] = source[places[start]]
    return out


def swapped(images: Array, axis: int, at: float = 0.5) -> Array:
    """Torn in two at `at` of the height (axis 0) or width (axis 1), the two parts in each other's place."""
    return np.roll(images, -round(images.shape[axis + 1] * at), axis + 1)


def joined(images: Array, others: Array, axis: int, at: float = 0.5) -> Array:
    """The first part of one scene and the last part of another, top and bottom (axis 0) or left and right (axis 1)."""
    cut = round(images.shape[axis + 1] * at)
    first, last = np.split(images, [cut], axis + 1)[0], np.split(others, [cut], axis + 1)[1]
    return np.concatenate([first, last], axis + 1)


def mirrored(images: Array, axis: int) -> Array:
    """The first half of the scene and its mirror image in place of the last."""
    side = images.shape[axis + 1]
    return np.take(images, np.minimum(np.arange(side), side - 1 - np.arange(side)), axis + 1)


def blurred(images: Array, sigma: float) -> Array:
    """Gaussian blur of `sigma` pixels."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(images.astype(np.float32), (0, sigma, sigma, 0), mode="nearest").round().astype(np.uint8)


def noisy(images: Array, sigma: float, random: np.random.Generator) -> Array:
    """Gaussian noise of `sigma` grey levels, independent in every pixel and channel."""
    grain = random.standard_normal(images.shape, np.float32)
    return np.clip(np.rint(images + np.float32(sigma) * grain), 0, 255).astype(np.uint8)
