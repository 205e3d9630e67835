"""The script that measures what the photos detector notices, on scenes as photographs."""

from __future__ import annotations

import numpy as np
from PIL import Image

from benchmark.data import shapes
from benchmark.measure import photos


def folder(root, per_class: int = 20):
    for split, first in (("train", 0), ("val", 1000)):
        for number in range(first, first + 8 * per_class):
            path = root / split / str(shapes.label("train", number)) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(shapes.render("train", number, (64, 64))).save(path)
    return root


def test_the_table_of_distances(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(photos, "CHUNK", 60)  # of 160 images two chunks are used
    data = folder(tmp_path / "data")
    given = [str(data), "--card", "own", "--runs", str(tmp_path / "runs"), "--sizes", "32x32", "24x32"]
    assert photos.main(given) == 0
    found: dict[str, list[list[float]]] = {}
    for line in capsys.readouterr().out.splitlines():
        if "│" in line:
            name, _, *distances = (cell.strip() for cell in line.strip("│ ").split("│"))
            found.setdefault(name, []).append([float(distance) for distance in distances])
    assert found.keys() == {"none", *photos.WAYS}
    for name, (strengths, _) in photos.WAYS.items():
        series = [*found["none"], *found[name]]
        assert len(series) == len(strengths) + 1
        for first, last in zip(series[0], series[-1], strict=True):
            assert last > 1.2 * first, name
    for name in ("blur, pixels", "noise, grey levels"):
        for column in zip(*found[name][1:], strict=True):
            assert list(column) == sorted(column)  # 120 images are too few to tell the weakest from none


def test_corruptions_keep_shape_and_type():
    images = np.stack([shapes.render("train", number, (32, 64)) for number in range(3)])
    for strengths, corrupt in photos.WAYS.values():
        changed = corrupt(images, strengths[-1])
        assert changed.shape == images.shape
        assert changed.dtype == np.uint8
        assert not np.array_equal(changed, images)
    assert np.array_equal(photos.mixed(images, 0.5)[1], np.rint((images[1].astype(float) + images[0]) / 2).astype(np.uint8))


def test_a_folder_without_validation_images_is_refused_in_one_line(tmp_path, capsys):
    data = folder(tmp_path / "data", 1)
    (data / "val").rename(tmp_path / "val")
    assert photos.main([str(data / "train"), "--card", "own", "--runs", str(tmp_path / "runs")]) == 2
    assert "no val/ next to train/" in capsys.readouterr().err
