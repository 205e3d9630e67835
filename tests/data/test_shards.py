"""Shards: what is written is standard, whole, and a function of the source alone."""

import contextlib
import dataclasses
import errno
import fcntl
import functools
import http.server
import io
import json
import multiprocessing
import os
import pickle
import re
import resource
import shutil
import signal
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from benchmark.data import shapes, sources, writer
from benchmark.data.batches import Batches
from benchmark.data.card import Card
from benchmark.data.choice import UNREADABLE
from benchmark.data.index import Index
from benchmark.data.latents import (
    prepare_latents,
    write_latents,
)
from benchmark.data.remote import Remote
from benchmark.data.sources import (
    Folder,
    source,
)
from benchmark.data.tars import unique_keys
from benchmark.data.writer import prepare, write
from benchmark.files import UserError, file_hash, is_full, read_json, write_array

DRAWN = Card(name="drawn", kind="shapes", classes=8, count=50, size=(24, 16))
FOLDER = Card(name="photos", kind="folder")


def picture(seed: int, size: tuple[int, int] = (20, 30), mode: str = "RGB") -> Image.Image:
    """A smooth random picture, so that JPEG keeps it nearly."""
    channels = len(mode)
    rough = np.random.default_rng(seed).integers(0, 256, (4, 5, channels), dtype=np.uint8)
    image = Image.fromarray(rough.squeeze() if channels == 1 else rough, mode=mode)
    return image.resize(size[::-1], Image.Resampling.BICUBIC)


def encoded_image(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def tree(root: Path, classes: int = 3, each: int = 7) -> Path:
    """Class folders of JPEGs, in ImageNet's layout."""
    for label in range(classes):
        folder = root / f"n{label:08d}"
        folder.mkdir(parents=True)
        for number in range(each):
            (folder / f"n{label:08d}_{number}.JPEG").write_bytes(encoded_image(picture(100 * label + number)))
    return root


def read_with_webdataset(folder: Path) -> dict[str, dict]:
    """All samples of a folder as the library itself reads them."""
    urls = sorted(str(path) for path in folder.glob("*.tar"))
    return {sample["__key__"]: sample for sample in webdataset.WebDataset(urls, shardshuffle=False)}


def contents(folder: Path) -> dict[str, str]:
    return {path.name: file_hash(path) for path in folder.iterdir() if path.name != ".lock"}


# --- The embedded data set ------------------------------------------------------------------------------------------


def test_webdataset_reads_drawn_scenes(tmp_path: Path) -> None:
    done = write(DRAWN, source(DRAWN), tmp_path, per_shard=20)
    assert (done.count, done.left_out[UNREADABLE], done.skipped) == (50, 0, False)
    assert sorted(p.name for p in tmp_path.glob("*.tar")) == [f"train-00000{k}.tar" for k in range(3)]
    urls = sorted(str(path) for path in tmp_path.glob("*.tar"))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert len(samples) == 50
    for number, sample in enumerate(samples):
        assert sample["cls"] == shapes.label("train", number)
        np.testing.assert_array_equal(sample["png"], shapes.render("train", number, (24, 16)))


def test_index_addresses_what_webdataset_reads(tmp_path: Path) -> None:
    write(FOLDER, source(FOLDER, tree(tmp_path / "in")), tmp_path / "out", per_shard=4)
    index, samples = Index(tmp_path / "out"), read_with_webdataset(tmp_path / "out")
    assert len(index) == len(samples) == 21
    for number in np.random.default_rng(0).permutation(21):
        mine = index[int(number)]
        theirs = samples[mine.key]
        assert mine.data == theirs[mine.member]
        assert mine.label == int(theirs["cls"])
        assert theirs["__url__"].endswith("/" + mine.shard)


def test_second_call_skips_and_a_lost_or_cut_shard_comes_back(tmp_path: Path) -> None:
    write(DRAWN, source(DRAWN), tmp_path, per_shard=20)
    before = contents(tmp_path)
    assert write(DRAWN, source(DRAWN), tmp_path, per_shard=20).skipped
    (tmp_path / "train-000000.tar").unlink()
    os.truncate(tmp_path / "train-000001.tar", 512)
    assert not write(DRAWN, source(DRAWN), tmp_path, per_shard=20).skipped
    assert contents(tmp_path) == before


def test_output_does_not_depend_on_workers_or_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(DRAWN, source(DRAWN), tmp_path / "one", per_shard=20)
    monkeypatch.setattr("time.time", lambda: 1e9)
    write(DRAWN, source(DRAWN), tmp_path / "two", per_shard=20, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_killed_writer_continues(tmp_path: Path) -> None:
    """A real SIGKILL in the middle of the second shard."""
    write(DRAWN, source(DRAWN), tmp_path / "whole", per_shard=20)
    root = tree(tmp_path / "in")
    write(FOLDER, source(FOLDER, root), tmp_path / "whole-photos", per_shard=5)

    class Deadly(Folder):
        def part(self, start: int, stop: int) -> list:
            items = list(super().part(start, stop))
            return Die(items) if start == 5 else items

    class Die(list):
        def __iter__(self):
            for number, item in enumerate(super().__iter__()):
                if number == 3:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield item

    out = tmp_path / "out"
    child = multiprocessing.get_context("fork").Process(target=lambda: write(FOLDER, Deadly(root), out, per_shard=5))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert list(out.glob(".*.part")), "the kill came in the middle of a shard"
    assert [p.name for p in out.glob("*.tar")] == ["train-000000.tar"]
    with pytest.raises(UserError, match="no index"):
        Index(out)
    first = (out / "train-000000.tar").stat().st_mtime_ns
    assert write(FOLDER, source(FOLDER, root), out, per_shard=5).count == 21
    assert (out / "train-000000.tar").stat().st_mtime_ns == first, "the finished shard is kept"
    assert contents(out) == contents(tmp_path / "whole-photos")


def test_progress_counts_what_was_there(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    write(DRAWN, source(DRAWN), tmp_path, per_shard=20)
    (tmp_path / "train-000001.tar").unlink()
    write(DRAWN, source(DRAWN), tmp_path, per_shard=20, progress=lambda *state: calls.append(state))
    assert calls == [(30, 50), (50, 50)]


def test_another_source_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    write(DRAWN, source(DRAWN), tmp_path / "a", per_shard=20)
    with pytest.raises(UserError, match="another source"):
        write(DRAWN, source(DRAWN), tmp_path / "a", per_shard=25)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.tar").touch()
    with pytest.raises(UserError, match="tars from elsewhere"):
        write(DRAWN, source(DRAWN), tmp_path / "b")


def test_second_writer_waits_and_finds_it_done(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One process holds the folder while it writes; readers of a whole folder need no turn."""
    results: list[writer.Written] = []

    def second() -> None:
        results.append(write(DRAWN, source(DRAWN), tmp_path, per_shard=20))

    with writer.claimed(tmp_path, writer.fingerprint(DRAWN, source(DRAWN), 20), 0.0, None):
        thread = threading.Thread(target=second)
        thread.start()
        deadline = time.monotonic() + 30
        while "waiting for another process" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
        assert thread.is_alive()
        assert "waiting for another process" in caplog.text
        assert not list(tmp_path.glob("*.tar"))
    thread.join()
    with open(tmp_path / ".lock") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        second()
    assert [done.skipped for done in results] == [False, True]


def test_full_disk_is_told_and_leaves_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(webdataset.writer.TarWriter, "write", full)
        with pytest.raises(UserError, match="no space left"):
            write(DRAWN, source(DRAWN), tmp_path, per_shard=20)
    assert not list(tmp_path.glob("*.tar"))
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize("name", ["index.npy", "manifest.json", "train-000001.idx.json"])
def test_damaged_index_is_written_anew(tmp_path: Path, name: str) -> None:
    """What `Index` tells people to do about it has to help."""
    write(DRAWN, source(DRAWN), tmp_path, per_shard=20)
    before = contents(tmp_path)
    os.truncate(tmp_path / name, (tmp_path / name).stat().st_size // 2)
    if name.endswith(".idx.json"):  # read only while the folder is being written
        (tmp_path / "manifest.json").unlink()
    assert not write(DRAWN, source(DRAWN), tmp_path, per_shard=20).skipped
    assert contents(tmp_path) == before


def test_an_array_whose_last_bytes_do_not_fit_is_an_error(tmp_path: Path) -> None:
    """NumPy writes blocks of 4096 bytes, and the rest when it closes the file, without a look at how that went."""
    array = (np.arange(4096 + 1000) % 251).astype(np.uint8)
    write_array(tmp_path / "fits.npy", array)
    np.testing.assert_array_equal(np.load(tmp_path / "fits.npy"), array)
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (128 + 4096, most))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_array(tmp_path / "does_not.npy", array)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert [path.name for path in tmp_path.iterdir()] == ["fits.npy"]


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (OSError(errno.ENOENT, "No such file or directory"), False),
        (RuntimeError("out of memory"), False),
    ],
)
def test_full_disks_are_told_from_other_trouble(error: Exception, full: bool) -> None:
    assert is_full(error) == full


# --- Class folders --------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_oddities_of_imagenet_survive(tmp_path: Path) -> None:
    """A PNG called .JPEG, CMYK, grayscale, broken EXIF, a transparent palette; damaged files are listed."""
    good = {
        "a/png.JPEG": encoded_image(picture(0), "PNG"),
        "a/cmyk.JPEG": encoded_image(picture(1, mode="CMYK")),
        "a/gray.JPEG": encoded_image(picture(2, mode="L")),
        "b/exif.JPEG": encoded_image(picture(3), exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xffbroken"),
        "b/deep/er/palette.png": encoded_image(picture(4).convert("P"), "PNG", transparency=3),
        "b/two.dots.jpg": encoded_image(picture(5)),
        "b/two_dots.png": encoded_image(picture(6), "PNG"),  # its key would be that of the file before
    }
    whole = encoded_image(picture(7, (200, 200)))
    bad = {"a/cut.JPEG": whole[: len(whole) // 2], "b/empty.JPEG": b"", "b/text.JPEG": b"<html>404</html>"}
    for path, data in {**good, **bad, "a/readme.txt": b"hello", "b/.DS_Store": b"x"}.items():
        (tmp_path / "in" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / path).write_bytes(data)
    (tmp_path / "in/a/gone.JPEG").symlink_to("nowhere")

    with pytest.raises(UserError, match=r"4 of 11 images are unreadable.*more than 10\.00%"):
        write(FOLDER, source(FOLDER, tmp_path / "in"), tmp_path / "out", tolerance=0.1)
    done = write(FOLDER, source(FOLDER, tmp_path / "in"), tmp_path / "out", tolerance=0.5)
    assert (done.count, done.left_out[UNREADABLE]) == (7, 4)
    assert "4 unreadable" in str(done)
    manifest = read_json(tmp_path / "out/manifest.json")
    assert sorted(name for name, _ in manifest["failures"]) == ["a/cut.JPEG", "a/gone.JPEG", "b/empty.JPEG", "b/text.JPEG"]
    assert not any("0x" in reason for _, reason in manifest["failures"]), "the address of a buffer, which is another each time"
    assert manifest["ignored"] == 1
    assert manifest["class_names"] == ["a", "b"]
    assert manifest["class_counts"] == [3, 4]

    samples = read_with_webdataset(tmp_path / "out")
    assert {data for sample in samples.values() for member, data in sample.items() if member in ("jpg", "png")} == set(
        good.values()
    )
    assert samples["a/png"]["png"] == good["a/png.JPEG"], "named after what it is"
    for sample in webdataset.WebDataset(str(tmp_path / "out/train-000000.tar"), shardshuffle=False).decode("pilrgb"):
        image = sample.get("jpg") or sample.get("png")
        assert (image.mode, image.size) == ("RGB", (30, 20))


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.ENOTCONN])
def test_an_error_of_the_disk_is_no_damaged_picture(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left out, it would be missing for good, in shards of the same name."""
    for name in ("a/0.jpg", "a/1.jpg"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(encoded_image(picture(0)))
    given = sources.read_regular

    def broken(path: Path) -> bytes:
        if path.name == "1.jpg":
            raise OSError(number, "it failed", str(path))
        return given(path)

    monkeypatch.setattr(sources, "read_regular", broken)
    said = r"1\.jpg: it failed; run the command again to continue"
    with pytest.raises(UserError, match=said):
        write(FOLDER, source(FOLDER, tmp_path / "in"), tmp_path / "out", tolerance=1.0)
    monkeypatch.undo()
    assert write(FOLDER, source(FOLDER, tmp_path / "in"), tmp_path / "out").count == 2
    opened = Image.open  # of one's own pictures the first bytes are looked at before
    monkeypatch.setattr(Image, "open", lambda path, *rest: broken(path) if str(path).endswith("1.jpg") else opened(path, *rest))
    own = dataclasses.replace(FOLDER, kind="own")
    with pytest.raises(UserError, match=said):
        write(own, source(own, tmp_path / "in"), tmp_path / "own")


def test_a_folder_that_cannot_be_listed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/0.jpg", "b/0.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(encoded_image(picture(0)))
    given = os.scandir

    def broken(path: str) -> object:
        if str(path).endswith("/b"):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return given(path)

    monkeypatch.setattr(os, "scandir", broken)
    with pytest.raises(UserError, match=r"/b cannot be listed: Input/output error"):
        source(FOLDER, tmp_path)


def test_shards_mix_classes(tmp_path: Path) -> None:
    """A source sorted by class must not give shards of one class."""
    write(FOLDER, source(FOLDER, tree(tmp_path / "in", classes=4, each=25)), tmp_path / "out", per_shard=25)
    index = Index(tmp_path / "out")
    for start in index.starts:
        assert len(set(index.rows["label"][start : start + 25].tolist())) == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "does not exist"),
        (lambda root: root.mkdir(), "holds no images"),
        (lambda root: (root / "a").mkdir(parents=True), "holds no images"),
        (lambda root: root.write_text("x"), "neither a folder nor tars nor parquet"),
    ],
)
def test_unusable_source(tmp_path: Path, make, message: str) -> None:
    make(tmp_path / "in")
    with pytest.raises(UserError, match=message):
        source(FOLDER, tmp_path / "in")


def test_source_must_be_what_the_card_says(tmp_path: Path) -> None:
    root = tree(tmp_path / "in")
    with pytest.raises(UserError, match="needs DATA"):
        source(FOLDER)
    with pytest.raises(UserError, match="are rendered: DATA must be empty"):
        source(DRAWN, root)
    for card, message in ((Card("c", "folder", count=22), "21 images"), (Card("c", "folder", classes=1000), "3 classes")):
        with pytest.raises(UserError, match=message):
            write(card, source(card, root), tmp_path / "out")


# --- Tars and parquet -----------------------------------------------------------------------------------------------


def pixels(folder: Path) -> list[tuple[int, bytes]]:
    return sorted((int(sample["cls"]), sample.get("jpg") or sample["png"]) for sample in read_with_webdataset(folder).values())


def test_tars_are_dealt_anew(tmp_path: Path) -> None:
    truth = []
    (tmp_path / "in").mkdir()
    for shard in range(3):
        with webdataset.TarWriter(str(tmp_path / f"in/x-{shard}.tar")) as tar:
            for number in range(6):
                data = encoded_image(picture(10 * shard + number))
                truth.append((shard, data))
                label = {"cls": shard} if number % 2 else {"json": {"label": shard}}
                tar.write({"__key__": f"k{number}", "JPEG": data, "txt": "a caption", **label})
    done = prepare(FOLDER, tmp_path / "in", tmp_path, per_shard=7)
    assert done.folder.name == f"photos-{done.fingerprint}"
    assert pixels(done.folder) == sorted(truth)
    braces = write(FOLDER, source(FOLDER, f"{tmp_path}/in/x-{{0..2}}.tar"), tmp_path / "braces", per_shard=7)
    assert contents(braces.folder) == contents(done.folder)


def test_parquet_is_dealt_anew(tmp_path: Path) -> None:
    truth = [(number % 4, encoded_image(picture(number))) for number in range(40)]
    (tmp_path / "in").mkdir()
    for part in range(2):
        rows = truth[part::2]
        image = pa.array([{"bytes": data, "path": "x.jpg"} for _, data in rows])
        table = pa.table({"image": image, "label": [label for label, _ in rows]})
        pq.write_table(table, tmp_path / f"in/train-{part}.parquet", row_group_size=6)
    done = write(FOLDER, source(FOLDER, tmp_path / "in"), tmp_path / "out", per_shard=9)
    assert done.count == 40
    assert pixels(tmp_path / "out") == sorted(truth)
    table = pa.table({"jpg": [data for _, data in truth], "label": [label for label, _ in truth]})
    pq.write_table(table, tmp_path / "flat.parquet")
    write(FOLDER, source(FOLDER, tmp_path / "flat.parquet"), tmp_path / "flat", per_shard=100)
    assert pixels(tmp_path / "flat") == sorted(truth)


def test_more_rows_and_scenes_than_are_read_at_once(tmp_path: Path) -> None:
    truth = [(encoded_image(picture(number, (8, 8))), number % 4) for number in range(150)]
    (tmp_path / "in").mkdir()
    rows = {"jpg": [data for data, _ in truth], "label": [label for _, label in truth]}
    pq.write_table(pa.table(rows), tmp_path / "in" / "x.parquet")  # in one group
    assert write(FOLDER, source(FOLDER, tmp_path / "in"), tmp_path / "out", per_shard=70).count == 150
    read = read_with_webdataset(tmp_path / "out")
    assert sorted((sample["jpg"], int(sample["cls"])) for sample in read.values()) == sorted(truth)
    card = dataclasses.replace(DRAWN, count=150)
    assert write(card, source(card), tmp_path / "drawn").count == 150
    assert sorted(read_with_webdataset(tmp_path / "drawn")) == [f"{number:08d}" for number in range(150)]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda items: items[:-1], "held 21 images when they were counted and gave 18"),
        (
            lambda items: [*items, dataclasses.replace(items[0], key="another")],
            "held 21 images when they were counted and gave 24",
        ),
        (lambda items: [*items, items[0]], "two images of one shard have the key"),
    ],
)
def test_a_source_that_gives_other_images_than_it_counted_is_told(change, told: str, tmp_path: Path) -> None:
    class Changing(Folder):
        def part(self, start: int, stop: int) -> list:
            items = list(super().part(start, stop))
            return change(items) if start else items

    with pytest.raises(UserError, match=told):
        write(FOLDER, Changing(tree(tmp_path / "in")), tmp_path / "out", per_shard=6)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_parquet_sorted_by_class_is_refused(tmp_path: Path) -> None:
    """However large its row groups are; where they are so small that as many as a reader mixes hold all classes, it is taken."""
    labels = np.arange(100).repeat(300)
    orders = {"sorted": labels, "shuffled": np.random.RandomState(0).permutation(labels)}
    for name, order in orders.items():
        for rows in (30_000, 2_500, 10):
            path = tmp_path / f"{name}-{rows}.parquet"
            pq.write_table(pa.table({"image": [b"x"] * len(order), "label": order}), path, row_group_size=rows)
            refused = name == "sorted" and rows > 10
            told = r"parquet: the rows are sorted by class: 8,000 of them hold [0-9.]+ of 100 classes, where shuffled ones"
            with pytest.raises(UserError, match=told) if refused else contextlib.nullcontext():
                source(FOLDER, path).ready()


def test_class_folders_come_before_the_archives_beside_them(tmp_path: Path) -> None:
    """torchvision leaves ImageNet's tars beside train/ and val/."""
    for place in ("train/a/1.png", "train/b/2.png", "val/a/3.png"):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).write_bytes(encoded_image(picture(1)))
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(b"a tar of tars")
    assert [path for path, *_ in source(FOLDER, tmp_path).files] == ["a/1.png", "b/2.png"]
    shutil.rmtree(tmp_path / "val")
    shutil.rmtree(tmp_path / "train")
    (tmp_path / "train_logs" / "run").mkdir(parents=True)
    assert source(FOLDER, tmp_path).kind == "tars"


@pytest.mark.parametrize("card", [FOLDER, Card("own", "own")], ids=["folder", "own"])
def test_folders_of_images_and_a_tar_beside_them_are_ambiguous(card: Card, tmp_path: Path) -> None:
    """Without splits: the archive that the folders came from, or one without labels, would silently take their place."""
    (tmp_path / "rose").mkdir()
    (tmp_path / "rose/1.png").write_bytes(encoded_image(picture(1)))
    (tmp_path / "flowers.tar").write_bytes(b"-")
    with pytest.raises(UserError, match=r"holds flowers\.tar and a folder of images, rose: move one of the two elsewhere"):
        source(card, tmp_path)
    (tmp_path / "flowers.tar").unlink()
    assert [path for path, *_ in source(card, tmp_path).files] == ["rose/1.png"]


@pytest.mark.parametrize("cut", [0.5, "member", "garbage"])
def test_truncated_or_corrupt_tar_is_refused(tmp_path: Path, cut) -> None:
    path = tmp_path / "x.tar"
    with webdataset.TarWriter(str(path)) as tar:
        for number in range(5):
            tar.write({"__key__": f"k{number}", "jpg": encoded_image(picture(number)), "cls": 0})
    size = path.stat().st_size
    if cut == "member":  # exactly between two members, where tarfile sees nothing wrong
        with tarfile.open(path) as tar:
            cut = tar.getmembers()[4].offset / size
    if cut == "garbage":
        data = bytearray(path.read_bytes())
        data[1024:1600] = os.urandom(576)
        path.write_bytes(data)
    else:
        os.truncate(path, round(size * cut))
    with pytest.raises(UserError, match=r"x\.tar"):
        write(FOLDER, source(FOLDER, path), tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tar"))


@pytest.mark.parametrize("member", [{}, {"json": {"caption": "x"}}, {"cls": "cat"}])
def test_sample_without_label_is_refused(tmp_path: Path, member: dict) -> None:
    with webdataset.TarWriter(str(tmp_path / "x.tar")) as tar:
        tar.write({"__key__": "odd", "jpg": encoded_image(picture(0)), **member})
    with pytest.raises(UserError, match="'odd' has no label"):
        write(FOLDER, source(FOLDER, tmp_path / "x.tar"), tmp_path / "out")


def test_label_beyond_the_classes_is_refused(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "x.tar")) as tar:
        tar.write({"__key__": "odd", "jpg": encoded_image(picture(0)), "cls": 5})
    card = Card("c", "folder", classes=5)
    with pytest.raises(UserError, match="odd: label 5 is not one of 5"):
        write(card, source(card, tmp_path / "x.tar"), tmp_path / "out")


def test_parquet_without_label_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"x"], "text": ["y"]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="it has image, text"):
        write(FOLDER, source(FOLDER, tmp_path / "x.parquet"), tmp_path / "out")
    (tmp_path / "y.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match="not a complete parquet"):
        write(FOLDER, source(FOLDER, tmp_path / "y.parquet"), tmp_path / "out2")


# --- Keys -----------------------------------------------------------------------------------------------------------


def test_keys_are_webdataset_keys() -> None:
    names = ["a/b", "a/b", "a.b", "a_b", "a/" + "é" * 120, "a/" + "é" * 121, "/x", "a/b~2"]
    keys = unique_keys(names)
    assert len(set(keys)) == len(keys)
    for key in keys:
        assert webdataset.tariterators.base_plus_ext(f"{key}.jpg") == (key, "jpg")
        tarfile.TarInfo(f"{key}.jpeg").tobuf(tarfile.USTAR_FORMAT)


def test_any_name_can_be_read_back(tmp_path: Path) -> None:
    """Also those that are not ASCII, or too long for a tar header."""
    names = ["b/c", "Äpfel/ä", "苹果/一", "🍏" * 30 + "/x"]
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True)
        Image.new("RGB", (70, 70)).save(tmp_path / "in" / f"{name}.png")
    done = write(FOLDER, source(FOLDER, tmp_path / "in"), tmp_path / "out")
    index = Index(done.folder)
    assert {index[number].key for number in range(len(index))} == set(unique_keys(names))
    assert {item["__key__"] for item in webdataset.WebDataset(str(done.folder / "train-000000.tar"), shardshuffle=False)} == {
        *unique_keys(names)
    }


# --- Reading the index ----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(DRAWN, source(DRAWN), tmp_path / "set", per_shard=20)
    return tmp_path / "set"


def test_unusable_folder(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        Index(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no shards"):
        Index(tmp_path / "empty")
    (tmp_path / "bare").mkdir()
    shutil.copy(folder / "train-000000.tar", tmp_path / "bare")
    with pytest.raises(UserError, match="no index"):
        Index(tmp_path / "bare")


def test_damaged_folder(folder: Path) -> None:
    whole = (folder / "train-000001.tar").read_bytes()
    os.truncate(folder / "train-000001.tar", len(whole) - 512)
    with pytest.raises(UserError, match=r"train-000001\.tar has \d+ bytes, but its index says"):
        Index(folder)
    (folder / "train-000001.tar").unlink()
    with pytest.raises(UserError, match=r"train-000001\.tar is missing"):
        Index(folder)
    (folder / "train-000001.tar").write_bytes(whole)
    os.truncate(folder / "index.npy", 1000)
    with pytest.raises(UserError, match=r"index\.npy cannot be read"):
        Index(folder)
    (folder / "manifest.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(UserError, match="not of format"):
        Index(folder)


def test_sample_that_is_not_where_the_index_says(folder: Path) -> None:
    """The shard of another data set, of the same length."""
    shutil.copy(folder / "train-000000.tar", folder / "train-000001.tar")
    index = Index(folder)
    assert index[3].key == "00000003"
    with pytest.raises(UserError, match=r"train-000001\.tar: sample '00000023' is damaged or not where"):
        index[23]


def test_the_advice_about_a_damaged_shard_can_be_followed(folder: Path, tmp_path: Path) -> None:
    """Rendered scenes have no original images; others are written again from these."""
    photos = prepare(FOLDER, tree(tmp_path / "tree"), tmp_path / "out").folder
    for shards, ending in ((folder, "again"), (photos, "again, with the original images as DATA")):
        (tar, *_) = sorted(shards.glob("*.tar"))
        tar.write_bytes(bytes(tar.stat().st_size))
        with pytest.raises(UserError, match=rf": move {tar.name} away and run `python -m benchmark shards` {ending}$"):
            Index(shards)[0]


def test_a_damaged_copy_of_a_remote_shard_is_what_has_to_go(folder: Path, tmp_path: Path) -> None:
    far = remote(folder, tmp_path)
    far[0]
    far.close()
    (copy,) = tmp_path.glob("posbench-shards/*/*.tar")
    copy.write_bytes(bytes(copy.stat().st_size))
    with pytest.raises(UserError, match=f"is damaged .*: remove its copy, {re.escape(str(copy))}, and run"):
        far[0]
    copy.unlink()
    far.close()
    assert far[0] == Index(folder)[0]


@pytest.mark.parametrize("lost", [1, 2])
def test_a_file_that_a_network_lost_is_opened_again(lost: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index, original, times = Index(folder), os.pread, []

    def stale(*where: int) -> bytes:
        times.append(where)
        if len(times) <= lost:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return original(*where)

    monkeypatch.setattr(os, "pread", stale)
    if lost == 1:
        assert index[3].key == "00000003"
    else:
        with pytest.raises(UserError, match=r"train-000000\.tar cannot be read \(Stale file handle\); run the same"):
            index[3]


def test_few_files_stay_open(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Index, "OPEN_FILES", 2)
    index = Index(folder)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for number in (0, 20, 40, 1, 21, 41):
        assert index[number].key == f"{number:08d}"
    assert len(index._files) == 2
    index.close()
    if before:
        assert len(os.listdir("/proc/self/fd")) == before


# --- Remote folders -------------------------------------------------------------------------------------------------


def remote(folder: Path, cache: Path, limit: int = 1 << 30) -> Index:
    return Index(f"pipe:cat {folder}/{{}}", cache, limit)


def test_pipe_reads_the_same_samples(folder: Path, tmp_path: Path) -> None:
    local, far = Index(folder), remote(folder, tmp_path / "cache")
    assert [far[n] for n in (49, 0, 20)] == [local[n] for n in (49, 0, 20)]
    shutil.rmtree(folder)
    again = pickle.loads(pickle.dumps(far))
    assert again[1].key == "00000001", "from the cache"


def test_the_table_of_remote_shards_is_fetched_once(folder: Path, tmp_path: Path) -> None:
    remote(folder, tmp_path / "cache")
    (folder / "index.npy").unlink()
    assert remote(folder, tmp_path / "cache")[0].key == "00000000"
    (cached,) = (tmp_path / "cache").rglob("index.npy")
    cached.write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"index\.npy cannot be read"):
        remote(folder, tmp_path / "cache")


def test_http_reads_the_same_samples(folder: Path, tmp_path: Path) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        local, far = Index(folder), Index(url, tmp_path / "cache")
        assert [far[n] for n in range(50)] == [local[n] for n in range(50)]
        (folder / "train-000001.tar").unlink()
        shutil.rmtree(tmp_path / "cache")
        far = Index(url, tmp_path / "cache")
        far.remote = dataclasses.replace(far.remote, tries=2, pause=0.01)
        with pytest.raises(UserError, match=r"train-000001\.tar cannot be read from http://127.* after 2 tries"):
            far[25]
    finally:
        server.shutdown()


def test_cache_stays_within_its_limit_and_drops_the_oldest(folder: Path, tmp_path: Path) -> None:
    size = max(path.stat().st_size for path in folder.glob("*.tar"))
    far = remote(folder, tmp_path / "cache", 2 * size)
    held = []
    for shard in (0, 1, 0, 2, 1):
        far.close()
        far[20 * shard]
        held.append(sorted(path.stem[-1] for path in (tmp_path / "cache").glob("*/*/*.tar")))
    assert held == [["0"], ["0", "1"], ["0", "1"], ["0", "2"], ["1", "2"]]
    with pytest.raises(UserError, match="does not fit into a cache"):
        remote(folder, tmp_path / "other", size - 1)[0]


def test_a_cache_makes_room_among_its_own_files_alone(folder: Path, tmp_path: Path) -> None:
    """SHARD_CACHE may name a folder in which somebody's data sets lie."""
    mine = tmp_path / "imagenet" / "train.tar"
    mine.parent.mkdir()
    mine.write_bytes(bytes(100))
    os.utime(mine, (1, 1))
    size = max(path.stat().st_size for path in folder.glob("*.tar"))
    far = remote(folder, tmp_path, size)
    for shard in (0, 1):
        far[20 * shard]
    assert mine.is_file()
    assert len(list(tmp_path.glob("posbench-shards/*/*.tar"))) == 1


def test_another_shard_of_the_same_size_at_the_same_address_is_fetched(tmp_path: Path) -> None:
    """As latents of another autoencoder have it."""
    (tmp_path / "there").mkdir()
    contents = [bytes([fill]) * 10_240 for fill in (1, 2)]
    found = []
    for content in contents:
        (tmp_path / "there/a.tar").write_bytes(content)
        found.append(Remote(f"pipe:cat {tmp_path}/there/{{}}", tmp_path / "cache", 1 << 20).fetch(
            "a.tar", len(content), file_hash(tmp_path / "there/a.tar")).read_bytes())  # fmt: skip
    assert found == contents


def test_bad_transfers_are_tried_again(folder: Path, tmp_path: Path) -> None:
    """The command gives half of each file at first."""
    flaky = tmp_path / "flaky.sh"
    half = f"head -c 99 {folder}/$1"
    flaky.write_text(f"test -e {tmp_path}/again && cat {folder}/$1 || {half}\ntouch {tmp_path}/again\n")
    far = remote(folder, tmp_path / "cache")
    far.remote = dataclasses.replace(far.remote, location=f"pipe:sh {flaky} {{}}", pause=0.01)
    assert far[0] == Index(folder)[0]
    (tmp_path / "again").unlink()
    far.close()
    far.remote = dataclasses.replace(far.remote, location=f"pipe:sh {flaky}  {{}}", tries=1)
    with pytest.raises(UserError, match=r"after 1 tries \(what came is not what the manifest lists"):
        far[0]


def test_remote_that_is_gone_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    for location, message in (
        ("pipe:exit 3; {}", "manifest.json cannot be read from pipe:exit 3; {} after 4 tries"),
        ("http://127.0.0.1:9", "manifest.json cannot be read from http://127.0.0.1:9 after 4 tries"),
        ("nonsense://x", "cannot be opened: Protocol not known: nonsense"),
    ):
        with pytest.raises(UserError, match=re.escape(message)) as error:
            Index(location, tmp_path)
        assert "\n" not in str(error.value)


# --- Latents --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The real class with tiny random weights and a factor of 4."""
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    sizes = {"block_out_channels": (8, 8, 8), "latent_channels": 4, "norm_num_groups": 4}
    path = tmp_path_factory.mktemp("vae")
    AutoencoderKL(**blocks, **sizes, scaling_factor=0.25).save_pretrained(path)
    return str(path)


def test_latents_are_the_posteriors_of_both_mirror_images(folder: Path, tmp_path: Path, autoencoder: str) -> None:
    import torch
    from diffusers import AutoencoderKL

    index = Index(folder)
    calls: list[tuple[int, int]] = []
    done = write_latents(index, tmp_path / "out", autoencoder, (16, 8), batch=2, progress=lambda *c: calls.append(c))
    assert (done.count, calls[0], calls[-1]) == (50, (0, 50), (50, 50))
    model = AutoencoderKL.from_pretrained(autoencoder).eval()
    read = read_with_webdataset(tmp_path / "out")
    assert sorted(read) == [f"{n:08d}" for n in range(50)]
    assert all(int(sample["cls"]) == shapes.label("train", int(key)) for key, sample in read.items())
    for number in (0, 19, 23, 49):
        value = np.load(io.BytesIO(read[f"{number:08d}"]["npy"]))
        assert (value.shape, value.dtype) == ((2, 2, 4, 4, 2), np.float16)
        picture = Image.fromarray(shapes.render("train", number, (24, 16))).resize((11, 16), Image.Resampling.BICUBIC)
        pixels = np.asarray(picture.crop((1, 0, 9, 16))).astype(np.float32) / 127.5 - 1
        for flipped in (0, 1):
            image = torch.from_numpy(pixels[:, ::-1].copy() if flipped else pixels).permute(2, 0, 1)[None]
            with torch.no_grad():
                posterior = model.encode(image).latent_dist
            np.testing.assert_allclose(value[flipped, 0], posterior.mean[0], atol=2e-3)
            np.testing.assert_allclose(value[flipped, 1], posterior.std[0], rtol=2e-3)
    assert done.folder == tmp_path / "out"
    manifest = Index(tmp_path / "out").manifest
    assert (manifest["kind"], manifest["size"], manifest["factor"], manifest["scale"]) == ("latents", [16, 8], 4, 0.25)


def test_latents_are_read_as_batches(folder: Path, tmp_path: Path, autoencoder: str) -> None:
    write_latents(Index(folder), tmp_path / "out", autoencoder, (16, 8))
    stored = {key: np.load(io.BytesIO(value["npy"])) for key, value in read_with_webdataset(tmp_path / "out").items()}
    mirrored = 0
    for flip in (True, False):
        batch = Batches(Index(tmp_path / "out"), 40, flip=flip)[0]
        assert batch.keys() == {"image", "std", "label", "crop", "key", "step", "rows"}
        assert (batch["crop"] == batch["crop"].new_tensor([16, 8, 0, 0, 16, 8])).all()
        for row, key in enumerate(batch["key"]):
            image, std = batch["image"][row].numpy(), batch["std"][row].numpy()
            which = int(not np.allclose(image, stored[key][0, 0] * np.float32(0.25)))
            np.testing.assert_allclose(image, stored[key][which, 0] * np.float32(0.25))
            np.testing.assert_allclose(std, stored[key][which, 1] * np.float32(0.25))
            mirrored += which
            assert flip or not which
    assert 8 < mirrored < 32


def test_latents_continue_and_are_skipped(folder: Path, tmp_path: Path, autoencoder: str) -> None:
    index, out = Index(folder), tmp_path / "out"
    done = write_latents(index, out, autoencoder, (8, 8))
    before = contents(out)
    assert write_latents(index, out, autoencoder, (8, 8)).skipped
    for name in ("manifest.json", "train-000001.idx.json", "train-000002.tar"):
        (out / name).unlink()
    again = write_latents(index, out, autoencoder, (8, 8))
    assert (again.skipped, again.fingerprint) == (False, done.fingerprint)
    assert contents(out) == before
    with pytest.raises(UserError, match="another source"):
        write_latents(index, out, autoencoder, (16, 8))


def test_impossible_latents(folder: Path, tmp_path: Path, autoencoder: str) -> None:
    index = Index(folder)
    with pytest.raises(UserError, match="size 18x16 is not a multiple of the autoencoder's 4"):
        write_latents(index, tmp_path / "out", autoencoder, (18, 16))
    with pytest.raises(UserError, match="cannot be loaded: give a folder"):
        write_latents(index, tmp_path / "out", str(tmp_path), (16, 16))
    done = prepare_latents(index, tmp_path, autoencoder, (8, 8))
    assert done.folder.name == f"drawn-latents-{done.fingerprint}"
    with pytest.raises(UserError, match="holds latents"):
        write_latents(Index(done.folder), tmp_path / "out", autoencoder, (8, 8))
