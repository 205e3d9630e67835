"""The embedded data set: class-conditional scenes of shapes, rendered natively at any size.

A scene lives on a plane whose unit is the short side of the picture; a picture is a window of it around the origin,
so a rectangle shows more of the same scene and its central square is the square picture. Outlines are signed distance
functions, which give the share of a pixel that is covered, so every size is anti-aliased and none is the true one.

The same bytes come out on every machine: parameters are raw words of a counter-based generator keyed by (split, index),
and pixels are made with + - * / sqrt floor min max alone, one operation at a time in float32, which IEEE 754 defines to
the last bit.

Legend: N scenes, h and w pixels; x points right, y points down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from benchmark.files import UserError, unknown

SPLITS = ("train", "reference", "detector", "heldout")
SIDE_MIN, OBJECTS_MAX = 8, 4
GOLDEN_COS36, GOLDEN_SIN36 = 0.8090169943749475, 0.5877852522924731  # the wedges of a five-pointed star
SQRT3_2 = 0.8660254037844386
REVISION = "611876589a8b"  # of the scenes: in the identity of whatever is made of them; a change of their bytes needs a new one
ROOM = np.float32(1.21)  # the reach of the farthest corner over a shape's radius

Array = np.ndarray


def _box(x: Array, y: Array, half_x: float, half_y: float) -> Array:
    """Signed distance to a rectangle's edges (the corner region by its nearest edge, not its corner)."""
    return np.maximum(np.abs(x) - half_x, np.abs(y) - half_y)


def _disc(x: Array, y: Array) -> Array:
    return np.sqrt(x * x + y * y) - 0.92


def _square(x: Array, y: Array) -> Array:
    return _box(x, y, 0.8, 0.8)


def _triangle(x: Array, y: Array) -> Array:
    y = y - 0.1  # the centroid lies below the middle of the height
    return np.maximum(np.abs(x) * SQRT3_2 - y * 0.5, y) - 0.575


def _star(x: Array, y: Array) -> Array:
    """Folds the plane into one tenth of the star, where its outline is one line from tip to notch."""
    x, y = np.abs(x), -y
    for sign in (1.0, -1.0):
        past = 2 * np.maximum(sign * GOLDEN_COS36 * x - GOLDEN_SIN36 * y, 0)  # beyond the mirror at 36 degrees
        x, y = x - sign * GOLDEN_COS36 * past, y + GOLDEN_SIN36 * past
    x = np.abs(x)
    tip, notch = 1.08, 0.5
    edge_x, edge_y = notch * GOLDEN_SIN36, notch * GOLDEN_COS36 - tip
    length = (edge_x * edge_x + edge_y * edge_y) ** 0.5
    return (y - tip) * (edge_x / length) - x * (edge_y / length)


def _ring(x: Array, y: Array) -> Array:
    return np.abs(np.sqrt(x * x + y * y) - 0.74) - 0.22


def _cross(x: Array, y: Array) -> Array:
    return np.minimum(_box(x, y, 1.0, 0.27), _box(x, y, 0.27, 1.0))


def _crescent(x: Array, y: Array) -> Array:
    x = x - 0.12
    bite_x, bite_y = x - 0.5, y + 0.16
    return np.maximum(np.sqrt(x * x + y * y) - 1.0, 0.82 - np.sqrt(bite_x * bite_x + bite_y * bite_y))


def _bars(x: Array, y: Array) -> Array:
    return _box(np.abs(x) - 0.59, y, 0.26, 0.86)


OUTLINES: dict[str, Callable[[Array, Array], Array]] = {
    "disc": _disc, "square": _square, "triangle": _triangle, "star": _star,
    "ring": _ring, "cross": _cross, "crescent": _crescent, "bars": _bars,
}  # fmt: skip
CLASSES: tuple[str, ...] = tuple(OUTLINES)


def label(split: str, index: int) -> int:
    """The class of a scene. Classes take turns, so that every run of eight scenes is balanced."""
    _split(split)
    return index % len(CLASSES)


def render(split: str, index: int, size_hw: tuple[int, int], objects: int | None = None) -> Array:
    """One picture, uint8 [h, w, 3]; see `render_batch`."""
    return render_batch(split, [index], size_hw, objects)[0]


def render_batch(
    split: str,
    indices: Sequence[int] | Array,
    size_hw: tuple[int, int],
    objects: int | Sequence[int] | Array | None = None,
) -> Array:
    """Pictures of scenes, uint8 [N, h, w, 3].

    Args:
        split: one of SPLITS; splits share no scene.
        indices: which scenes, each 0 or more.
        size_hw: pixels (h, w), each at least SIDE_MIN.
        objects: how many objects a scene shows, 0 to 4, for all or for each. By default it is the scene that the
            benchmark is about: one large object in the central square. With a number, objects of the scene's class
            stand apart from each other anywhere in the picture, large or small as there is room.

    Raises:
        UserError: unknown split, or a size, index or number of objects out of range.
    """
    indices = np.asarray(indices, dtype=np.int64).reshape(-1)
    height, width = size_hw
    if min(height, width) < SIDE_MIN:
        raise UserError(f"shapes cannot be rendered at {height}x{width}: sides must be at least {SIDE_MIN} pixels")
    counts = None if objects is None else np.broadcast_to(np.asarray(objects, dtype=np.int64), indices.shape)
    if counts is not None and counts.size and (counts.min() < 0 or counts.max() > OBJECTS_MAX):
        raise UserError(f"a scene of shapes shows 0 to {OBJECTS_MAX} objects")
    out = np.empty((len(indices), height, width, 3), np.uint8)
    chunk = max(1, 65536 // (height * width))  # keeps the working set in the processor's cache
    for start in range(0, len(indices), chunk):
        part = slice(start, start + chunk)
        out[part] = _draw(split, indices[part], height, width, None if counts is None else counts[part])
    return out


def _split(split: str) -> int:
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    return SPLITS.index(split)


def _uniforms(split: str, indices: Array, count: int) -> Array:
    """Uniform numbers in [0, 1) with 24 bits, float32 [count, N]: the raw stream of Philox keyed by (split, index)."""
    if indices.size and indices.min() < 0:
        raise UserError("the index of a scene must be 0 or more")
    key = _split(split) + 1
    words = [np.random.Philox(key=np.array([key, index], np.uint64)).random_raw(count) for index in indices]
    words = np.array(words, np.uint64).reshape(len(indices), count)
    return np.ascontiguousarray(((words >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)).T)


def _direction(turn: Array) -> tuple[Array, Array]:
    """(cos, sin) of about 2 pi `turn`, with `turn` in [0, 1), without a trigonometric function.

    Within a quarter turn by the tangent of the half angle, then quarters by swapping: the same on every machine,
    of unit length, and within 17 % of uniform.
    """
    quarter = np.floor(turn * 4)
    tangent = (2 * (turn * 4 - quarter) - 1) * np.float32(0.41421356)
    norm = 1 + tangent * tangent
    c, s = (1 - tangent * tangent) / norm, 2 * tangent / norm
    cos = np.where(quarter == 0, c, np.where(quarter == 1, -s, np.where(quarter == 2, -c, s)))
    sin = np.where(quarter == 0, s, np.where(quarter == 1, c, np.where(quarter == 2, -s, -c)))
    return cos, sin


def _tilt(amount: Array) -> tuple[Array, Array]:
    """(cos, sin) of an angle of at most 15 degrees; `amount` in [-1, 1]."""
    tangent = amount * np.float32(0.13165250)
    norm = 1 + tangent * tangent
    return (1 - tangent * tangent) / norm, 2 * tangent / norm


def _colour(hue: Array, saturation: Array, light: Array) -> Array:
    """RGB in [0, 1], [3, N], of a hue in turns, with luminance `light` (Rec. 709 weights)."""
    hue = (hue - np.floor(hue)) * 6
    pure = np.stack([np.abs(hue - 3) - 1, 2 - np.abs(hue - 2), 2 - np.abs(hue - 4)])
    rgb = 1 - saturation * (1 - np.minimum(np.maximum(pure, 0), 1))
    luminance = rgb[0] * np.float32(0.2126) + rgb[1] * np.float32(0.7152) + rgb[2] * np.float32(0.0722)
    darker = rgb * (light / luminance)
    lighter = rgb + (1 - rgb) * ((light - luminance) / np.maximum(1 - luminance, np.float32(1e-3)))
    return np.where(luminance > light, darker, lighter)


def _wave(phase: Array) -> Array:
    """A smooth wave of period 1 between -1 and 1: two parabolas, very near a sine."""
    v = 2 * (phase - np.floor(phase)) - 1
    return 4 * v * (1 - np.abs(v))


def _draw(split: str, indices: Array, height: int, width: int, counts: Array | None) -> Array:
    """The pictures of some scenes, uint8 [N, h, w, 3]; `counts` as in `render_batch`."""
    short = min(height, width)
    f = np.float32

    def per_scene(value: Array) -> Array:
        return value[:, None, None]

    u = _uniforms(split, indices, 12 + 12 * OBJECTS_MAX)
    labels = indices % len(CLASSES)
    # Pixel centres on the plane, from integers: (2 j + 1 - w) / (2 short).
    x = ((2 * np.arange(width, dtype=np.float32) + 1 - width) / f(2 * short))[None, None, :]
    y = ((2 * np.arange(height, dtype=np.float32) + 1 - height) / f(2 * short))[None, :, None]

    dark = u[0] < 0.5  # a dark ground with light objects, or the other way round
    ground = np.where(dark, f(0.06) + f(0.14) * u[1], f(0.72) + f(0.2) * u[1])
    slope = np.where(dark, f(0.05) + f(0.12) * u[2], -f(0.05) - f(0.17) * u[2])
    hue, saturation = u[3], np.where(dark, f(0.3) + f(0.5) * u[4], f(0.15) + f(0.4) * u[4])
    near = _colour(hue, saturation, ground)
    far = _colour(hue + f(0.2) * (u[5] - f(0.5)), saturation, ground + slope)
    cos, sin = _direction(u[6])
    shade = np.minimum(np.maximum(x * per_scene(cos) + y * per_scene(sin) + f(0.5), 0), 1)
    image = np.stack([per_scene(near[c]) + shade * per_scene(far[c] - near[c]) for c in range(3)])  # [3, N, h, w]

    cell_order = np.argsort(u[8:12], axis=0, kind="stable")  # which quarter of the picture an object takes
    for number in range(1 if counts is None else OBJECTS_MAX):
        v = u[12 + 12 * number : 24 + 12 * number]
        if counts is None:
            radius = f(0.3) + f(0.09) * v[0]
            reach = f(0.5) - ROOM * radius
            centre_x, centre_y = (2 * v[1] - 1) * reach, (2 * v[2] - 1) * reach
            shown = np.ones(len(indices), bool)
        else:
            alone = counts == 1
            half_x, half_y = f(width / (2 * short)), f(height / (2 * short))
            reach_x, reach_y = np.where(alone, half_x, half_x / 2), np.where(alone, half_y, half_y / 2)
            most = np.where(alone, f(0.38), f(0.23))
            radius = f(0.12) + (most - f(0.12)) * v[0]
            cell = cell_order[number]
            middle_x = np.where(alone, 0, np.where(cell % 2 == 0, -reach_x, reach_x))
            middle_y = np.where(alone, 0, np.where(cell < 2, -reach_y, reach_y))
            centre_x = middle_x + (2 * v[1] - 1) * (reach_x - ROOM * radius)
            centre_y = middle_y + (2 * v[2] - 1) * (reach_y - ROOM * radius)
            shown = counts > number
        if not shown.any():
            break
        dx, dy = x - per_scene(centre_x), y - per_scene(centre_y)
        mirror = np.where(v[3] < 0.5, f(-1), f(1))  # so that a flipped scene is as likely as the scene
        cos, sin = _tilt(2 * v[4] - 1)
        scale_x, scale_y = 1 / radius * mirror, 1 / radius
        along = (dx * per_scene(cos) + dy * per_scene(sin)) * per_scene(scale_x)
        across = (dy * per_scene(cos) - dx * per_scene(sin)) * per_scene(scale_y)
        distance = np.empty(image.shape[1:], np.float32)
        for which, outline in enumerate(OUTLINES.values()):
            rows = labels == which
            if rows.any():
                distance[rows] = outline(along[rows], across[rows])
        cover = np.minimum(np.maximum(f(0.5) - distance * per_scene(radius * f(short)), 0), 1) * per_scene(shown)

        light = np.where(dark, f(0.5) + f(0.35) * v[5], f(0.12) + f(0.3) * v[5])
        colour = _colour(v[6], f(0.55) + f(0.45) * v[7], light)
        cos, sin = _direction(v[8])
        frequency = f(2.5) + f(1.5) * v[9]  # periods per unit: at 16 pixels each is at least 4 pixels long
        first = _wave((dx * per_scene(cos) + dy * per_scene(sin)) * per_scene(frequency))
        second = _wave((dy * per_scene(cos) - dx * per_scene(sin)) * per_scene(frequency))
        plain, stripes = v[10] < f(0.5), v[10] < f(0.75)
        wave = np.where(per_scene(stripes), first, first * second)  # otherwise dots
        texture = 1 + per_scene(np.where(plain, f(0), f(0.08) + f(0.1) * v[11])) * wave
        for c in range(3):
            image[c] += cover * (np.minimum(per_scene(colour[c]) * texture, 1) - image[c])

    levels = np.floor(np.minimum(np.maximum(image * 255 + f(0.5), 0), 255))
    return np.ascontiguousarray(np.moveaxis(levels.astype(np.uint8), 0, -1))
