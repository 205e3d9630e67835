"""The embedded data set: the same on every machine, anti-aliased at every size, balanced, and loud where asked for nonsense."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import yaml

from benchmark.data import shapes
from benchmark.files import ROOT, UserError

SIZES = [(8, 8), (16, 16), (32, 32), (64, 64), (64, 48), (48, 64), (17, 40)]


def halved(images: np.ndarray) -> np.ndarray:
    """Box average over 2 x 2 pixels: float64 [N, h, w, 3] -> [N, h/2, w/2, 3]."""
    n, h, w, c = images.shape
    return images.reshape(n, h // 2, 2, w // 2, 2, c).astype(np.float64).mean((2, 4))


def test_pictures_are_the_pinned_ones():
    """Every step of drawing is exact in IEEE 754, so the hash of the bytes is the same on every machine."""
    pictures = [shapes.render_batch(split, range(16), size).tobytes() for split in shapes.SPLITS for size in SIZES]
    pictures.append(shapes.render_batch("train", range(20), (32, 48), [i % 5 for i in range(20)]).tobytes())
    assert hashlib.sha256(b"".join(pictures)).hexdigest() == "b65167d5bb1ac1dddba87853ba36c5aeaedbd9c8d452b49aa9f12da34392d926"


def test_pictures_do_not_depend_on_their_batch_or_on_global_state():
    np.random.seed(1)  # noqa: NPY002 (the point is that it does not matter)
    many = shapes.render_batch("train", range(70), (64, 48))  # more than one chunk of 64 x 48
    order = [69, 3, 40]
    assert np.array_equal(shapes.render_batch("train", order, (64, 48)), many[order])
    assert np.array_equal(shapes.render("train", 40, (64, 48)), many[40])


def test_splits_share_no_scene():
    seen = {shapes.render(split, index, (16, 16)).tobytes() for split in shapes.SPLITS for index in range(200)}
    assert len(seen) == 200 * len(shapes.SPLITS)


@pytest.mark.parametrize("size", SIZES)
def test_shape_and_type(size):
    picture = shapes.render("reference", 3, size)
    assert picture.shape == (*size, 3)
    assert picture.dtype == np.uint8


@pytest.mark.parametrize(("large", "small"), [((64, 64), (32, 32)), ((128, 96), (64, 48)), ((32, 32), (16, 16))])
def test_anti_aliasing_agrees_across_sizes(large, small):
    """A picture drawn small is the box average of the same scene drawn large, but for corners within one pixel."""
    difference = np.abs(halved(shapes.render_batch("train", range(128), large)) - shapes.render_batch("train", range(128), small))
    assert difference.mean() < 1.0
    assert np.quantile(difference, 0.995) < 16
    # taking one pixel of four, as drawing without anti-aliasing would, is far off
    corner = shapes.render_batch("train", range(128), large)[:, ::2, ::2].astype(np.float64)
    assert np.abs(corner - shapes.render_batch("train", range(128), small)).mean() > 3 * difference.mean()


def test_a_rectangle_shows_more_of_the_same_scene():
    square = shapes.render_batch("train", range(32), (48, 48))
    assert np.array_equal(shapes.render_batch("train", range(32), (64, 48))[:, 8:56], square)
    assert np.array_equal(shapes.render_batch("train", range(32), (48, 64))[:, :, 8:56], square)


def test_objects_stay_inside_and_stand_out():
    """The frame is ground alone, so it varies slowly; inside there is an object that does not."""
    pictures = shapes.render_batch("reference", range(400), (64, 64)).astype(int)
    frame = np.concatenate([pictures[:, 0], pictures[:, -1], pictures[:, :, 0], pictures[:, :, -1]], 1)
    steps = np.abs(np.diff(frame.reshape(len(pictures), 4, 64, 3), axis=2)).max((1, 2, 3))
    assert steps.max() <= 6
    grey = pictures @ [0.2126, 0.7152, 0.0722]
    contrast = np.quantile(grey, 0.98, axis=(1, 2)) - np.quantile(grey, 0.02, axis=(1, 2))
    assert contrast.min() > 40


def test_labels_are_balanced_and_in_the_order_of_classes():
    labels = [shapes.label("train", index) for index in range(4000)]
    assert np.array_equal(np.bincount(labels), np.full(len(shapes.CLASSES), 500))


def test_the_distribution_is_symmetric_under_flips():
    """Training flips pictures, which is right only where a mirrored scene is as likely as the scene."""
    pictures = shapes.render_batch("train", range(6, 16000, 8), (16, 16)).astype(np.float64)  # crescents: the lopsided class
    mean, error = pictures.mean(0), pictures.std(0) / np.sqrt(len(pictures))
    assert (np.abs(mean - mean[:, ::-1]) < 6 * error).all()


def test_number_of_objects():
    from scipy import ndimage

    index = np.arange(0, 8 * 40, 8)  # discs are one piece each
    for objects in range(shapes.OBJECTS_MAX + 1):
        pictures = shapes.render_batch("heldout", index, (64, 96), objects).astype(np.float64)
        ground = shapes.render_batch("heldout", index, (64, 96), 0).astype(np.float64)
        covered = np.abs(pictures - ground).max(3) > 12
        assert [ndimage.label(mask)[1] for mask in covered] == [objects] * len(index)


def test_no_two_classes_look_alike():
    """Outlines on the unit shape differ in at least a tenth of the area they cover together."""
    y, x = np.mgrid[-1.2:1.2:200j, -1.2:1.2:200j].astype(np.float32)
    masks = [outline(x, y) < 0 for outline in shapes.OUTLINES.values()]
    for i, first in enumerate(masks):
        assert 0.15 < first.mean() < 0.65
        for second in masks[:i]:
            assert (first ^ second).sum() > 0.1 * (first | second).sum()


@pytest.mark.parametrize("name", shapes.CLASSES)
def test_outlines_are_distances_where_they_cross_zero(name):
    """The gradient has length 1 at the outline, which is what makes one pixel of smoothing one pixel."""
    y, x = np.mgrid[-1.2:1.2:481j, -1.2:1.2:481j].astype(np.float64)
    distance = shapes.OUTLINES[name](x, y)
    slope = np.hypot(*np.gradient(distance, 2.4 / 480))
    near = np.abs(distance) < 0.02
    assert np.quantile(np.abs(slope[near] - 1), 0.9) < 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("trian", [0], (32, 32)), "did you mean 'train'"),
        (("train", [-1], (32, 32)), "0 or more"),
        (("train", [0], (4, 32)), "at least 8"),
        (("train", [0], (32, 32), 5), "0 to 4"),
    ],
)
def test_nonsense_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        shapes.render_batch(*arguments)


def test_an_empty_batch_is_a_batch():
    assert shapes.render_batch("train", [], (16, 24)).shape == (0, 16, 24, 3)


def test_drawing_needs_no_torch():
    code = "import sys, json; from benchmark.data import shapes; print(json.dumps('torch' in sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) is False


def test_the_card_says_what_is_drawn():
    card = yaml.safe_load((ROOT / "datasets" / "shapes.yaml").read_text(encoding="utf-8"))
    assert tuple(card["classes"]) == shapes.CLASSES
    assert tuple(card["splits"]) == shapes.SPLITS
    assert card["count"] % len(shapes.CLASSES) == 0
