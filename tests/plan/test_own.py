"""Pictures of one's own: which protocol they have, and what of its rules they decide."""

from __future__ import annotations

import io
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmark import protocol
from benchmark.data import sources
from benchmark.data.index import Index
from benchmark.files import UserError
from benchmark.plan import dataset, place, stages
from benchmark.plan.own import default_protocol, fitted
from benchmark.plan.place import Run
from benchmark.run import train

TINY = ["core.width=32", "core.depth=1", "core.heads=2", "train.steps=2", "train.warmup=1", "train.precision=float32",
        "sample.count=4", "sample.batch=4", "sample.steps=2", "sample.precision=float32", "score.detector=shapes",
        "score.splits=0"]  # fmt: skip


def pictures(root, classes: int = 3, each: int = 4):
    for label in range(classes):
        (root / str(label)).mkdir(parents=True)
        for number in range(each):
            pixels = np.random.default_rng(10 * label + number).integers(0, 256, (70, 90, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / str(label) / f"{number}.png")
    return root


def test_what_the_pictures_decide(tmp_path):
    root = pictures(tmp_path / "mine")
    run = Run(tmp_path / "runs", str(root))
    assert default_protocol(str(root)) == "folder"
    rules = fitted("folder", ["sample.count=64"], run)
    assert (rules.core.classes, rules.score.reference, rules.score.nearest, rules.train.batch) == (3, 12, 12, 12)
    assert rules.custom
    assert not rules.ranked
    assert protocol.load(rules.source, rules.overrides).hash == rules.hash, "a launched process loads the same rules"
    assert fitted("folder", ["core.classes=5", "train.batch=2"], run).core.classes == 5, "what is given wins"
    (shards,) = (tmp_path / "runs/data").glob("own-*")
    assert default_protocol(str(shards)) == "folder"
    assert fitted("folder", [], Run(tmp_path / "runs", str(shards))).core.classes == 3


def test_shards_are_written_with_other_devices_than_the_jobs_will_have(tmp_path, monkeypatch):
    """As on the login node of a cluster."""
    monkeypatch.setattr(place, "gpus", lambda: 1)
    rules = fitted("folder", [], Run(tmp_path / "runs", str(pictures(tmp_path / "mine")), devices="4"))
    assert rules.core.classes == 3


def save(path, height: int, width: int, mode: str = "RGB"):
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.new(mode, (width, height)).save(path)


def test_a_run_with_images_left_out_finds_its_own_shards_and_training(tmp_path, capsys):
    """The identity of a folder is that of all its files: each stage, and each process, takes it at another moment."""
    root = pictures(tmp_path / "mine")
    save(root / "0" / "small.png", 20, 90)
    save(root / "none" / "grey.png", 70, 90, "L")
    (root / "empty").mkdir()
    run = Run(tmp_path / "runs", str(root), "1", 1)
    planned = fitted("folder", TINY, run, write=False)
    rules = fitted("folder", TINY, run)
    assert planned.hash == rules.hash
    assert fitted("folder", TINY, run, write=False).hash == rules.hash, "with shards"
    found = stages.graph(rules, ["extrapolation"], 0, run)
    shards, train, sample = (next(stage for stage in found if stage.kind == kind) for kind in ("shards", "train", "sample"))
    assert shards.is_complete()
    shards.run()
    train.run()
    sample.run()
    assert train.is_complete()
    assert sample.is_complete()
    assert len(list((tmp_path / "runs/data").iterdir())) == 1
    said = [line for line in capsys.readouterr().out.splitlines() if "12 images" in line and "left out" in line]
    assert len(said) == 1, "the shards are announced once"
    assert "written, left out: 1 with a side below 64 pixels, 1 grey (listed in manifest.json)" in said[0]
    assert stages.graph(rules, ["extrapolation"], 0, run)[0].is_complete()


def test_shards_that_were_there_are_announced_once(tmp_path, capsys):
    root, out = pictures(tmp_path / "mine"), tmp_path / "runs"
    fitted("folder", TINY, Run(out, str(root), "1", 1))
    (out / "data").rename(tmp_path / "earlier")
    (tmp_path / "again").mkdir()
    (tmp_path / "earlier").rename(tmp_path / "again" / "data")  # as by an earlier process
    capsys.readouterr()
    run = Run(tmp_path / "again", str(root), "1", 1)
    rules = fitted("folder", TINY, run)
    found = stages.graph(rules, ["extrapolation"], 0, run)
    for stage in found:
        if stage.kind in ("shards", "train"):
            stage.run()
    assert capsys.readouterr().out.count("images already complete, skipped") == 1


def test_a_class_without_a_usable_image_is_an_error(tmp_path):
    """Where only its pixels tell: a class without images would take its share of balanced samples."""
    root = pictures(tmp_path / "mine")
    whole = (root / "0" / "0.png").read_bytes()
    (root / "cut").mkdir()
    (root / "cut" / "0.png").write_bytes(whole[: len(whole) // 2])
    for _ in "written", "there":
        with pytest.raises(UserError, match=r"no image of 1 of the 4 classes can be used \(cut\).*remove") as error:
            fitted("folder", [], Run(tmp_path / "runs", str(root)))
        assert str(error.value).startswith(str(root))
    (root / "cut" / "0.png").unlink()
    assert fitted("folder", [], Run(tmp_path / "runs", str(root))).core.classes == 3


def test_a_class_of_images_with_16_bits_is_no_class(tmp_path):
    root = pictures(tmp_path / "mine")
    (root / "deep").mkdir()
    Image.fromarray(np.zeros((70, 90), np.uint16)).save(root / "deep" / "0.png")
    assert fitted("folder", [], Run(tmp_path / "runs", str(root))).core.classes == 3
    (shards,) = (tmp_path / "runs/data").iterdir()
    assert Index(shards).manifest["failures"] == [["deep/0.png", "grey: mode I;16"]]


def test_other_protocols_stay_as_they_are(tmp_path):
    assert default_protocol("") == "shapes"
    assert fitted("smoke", [], Run(tmp_path)).hash == protocol.load("smoke").hash
    with pytest.raises(UserError, match="give their folder as DATA"):
        fitted("folder", [], Run(tmp_path))
    with pytest.raises(UserError, match="2 usable images; a reference needs at least 4"):
        fitted("folder", [], Run(tmp_path, str(pictures(tmp_path / "few", 1, 2))))


def test_published_hashes_know_no_convention():
    """A rule that came later is left out at its usual value: records of before keep their place."""
    assert "convention" not in protocol.load("shapes").rules()["objective"]
    assert protocol.load("imagenet-256-sit-ft").rules()["objective"]["convention"] == "sit"


@pytest.mark.parametrize("packed", [True, False])
def test_files_that_have_changed_since_their_shards_were_written_are_told(packed, tmp_path, capsys):
    """Files are known by name and size: new content of the same length is not seen."""
    folder = tmp_path / "data"
    folder.mkdir()
    stream = io.BytesIO()
    Image.fromarray(np.random.RandomState(0).randint(0, 255, (80, 80, 3), np.uint8)).save(stream, "PNG")
    if packed:
        pq.write_table(pa.table({"image": [stream.getvalue()] * 4}), folder / "a.parquet")
    for name in () if packed else ("a.png", "b.png", "c.png", "d.png"):
        (folder / name).write_bytes(stream.getvalue())
    run = Run(tmp_path / "runs", str(folder), "1", workers=1)

    def prepared() -> tuple[Path, bool]:
        train._told.clear()
        dataset.forget()  # as in the next process
        where = train.prepared(fitted("folder", TINY, run), run)
        return where, "holds files newer than these shards" in capsys.readouterr().out

    where, told = prepared()
    assert prepared() == (where, False)
    assert not told
    os.utime(where / "manifest.json", (time.time() - 100,) * 2)
    os.utime(min(folder.iterdir()), (time.time() - 200,) * 2)  # as by `rsync -a`, which keeps times
    assert prepared() == (where, True)


def test_shards_of_the_same_names_and_sizes_elsewhere_are_told(tmp_path, capsys):
    """Uncompressed files, say, or tars with other labels."""
    one, other = pictures(tmp_path / "one"), tmp_path / "other"
    shutil.copytree(one, other)
    for root in (one, other):
        train._told.clear()
        dataset.forget()
        run = Run(tmp_path / "runs", str(root), "1", workers=1)
        where = train.prepared(fitted("folder", TINY, run), run)
        said = f"{one}, whose files have the names and sizes of those in {other}; if that is something else, remove {where}"
        assert (f"these shards were made from {said}" in " ".join(capsys.readouterr().out.split())) == (root == other)


def test_the_disk_that_shards_need_is_that_of_the_images(tmp_path):
    root = pictures(tmp_path / "mine")
    mean = sum(path.stat().st_size for path in root.rglob("*.png")) / 12
    assert dataset.DataSet(protocol.load("folder"), Run(tmp_path / "runs", str(root))).picture_bytes == mean + dataset.OVERHEAD
    packed = sources.Parquet([root / "0" / "0.png"])
    packed.total, packed.dropped, packed._ready = 2, 8, True  # of classes that the card leaves out
    assert dataset.mean_bytes(packed) == (root / "0" / "0.png").stat().st_size / 10
