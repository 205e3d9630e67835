"""Shards: what is written is standard, whole, and a function of the source alone."""

import io
import json
import multiprocessing
import os
import shutil
import signal
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from benchmark import shapes, shards
from benchmark.files import UserError, file_hash, read_json
from benchmark.shards import Card, Index, prepare, source, write

DRAWN = Card(name="drawn", kind="shapes", classes=8, count=50, size=(24, 16))
FOLDER = Card(name="photos", kind="folder")


def picture(seed: int, size: tuple[int, int] = (20, 30), mode: str = "RGB") -> Image.Image:
    """A smooth random picture, so that JPEG keeps it nearly."""
    channels = len(mode)
    rough = np.random.default_rng(seed).integers(0, 256, (4, 5, channels), dtype=np.uint8)
    image = Image.fromarray(rough.squeeze() if channels == 1 else rough, mode=mode)
    return image.resize(size[::-1], Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def tree(root: Path, classes: int = 3, each: int = 7) -> Path:
    """Class folders of JPEGs, in ImageNet's layout."""
    for label in range(classes):
        folder = root / f"n{label:08d}"
        folder.mkdir(parents=True)
        for number in range(each):
            (folder / f"n{label:08d}_{number}.JPEG").write_bytes(encoded(picture(100 * label + number)))
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
    assert (done.count, done.failures, done.skipped) == (50, 0, False)
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

    class Deadly(shards.Folder):
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
    with pytest.raises(UserError, match="not written here"):
        write(DRAWN, source(DRAWN), tmp_path / "b")


def test_second_writer_is_refused(tmp_path: Path) -> None:
    tmp_path.mkdir(exist_ok=True)
    with shards._claimed(tmp_path, "x", 0.1, None), pytest.raises(UserError, match="another process"):
        write(DRAWN, source(DRAWN), tmp_path)


def test_full_disk_is_told_and_leaves_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(webdataset.writer.TarWriter, "write", full)
        with pytest.raises(UserError, match="no space left"):
            write(DRAWN, source(DRAWN), tmp_path, per_shard=20)
    assert not list(tmp_path.glob("*.tar"))
    assert not list(tmp_path.glob(".*.part"))


# --- Class folders --------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_oddities_of_imagenet_survive(tmp_path: Path) -> None:
    """A PNG called .JPEG, CMYK, grayscale, broken EXIF, a transparent palette; damaged files are listed."""
    good = {
        "a/png.JPEG": encoded(picture(0), "PNG"),
        "a/cmyk.JPEG": encoded(picture(1, mode="CMYK")),
        "a/gray.JPEG": encoded(picture(2, mode="L")),
        "b/exif.JPEG": encoded(picture(3), exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xffbroken"),
        "b/deep/er/palette.png": encoded(picture(4).convert("P"), "PNG", transparency=3),
        "b/two.dots.jpg": encoded(picture(5)),
        "b/two_dots.png": encoded(picture(6), "PNG"),  # its key would be that of the file before
    }
    whole = encoded(picture(7, (200, 200)))
    bad = {"a/cut.JPEG": whole[: len(whole) // 2], "b/empty.JPEG": b"", "b/text.JPEG": b"<html>404</html>"}
    for path, data in {**good, **bad, "a/readme.txt": b"hello", "b/.DS_Store": b"x"}.items():
        (tmp_path / "in" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / path).write_bytes(data)
    (tmp_path / "in/a/gone.JPEG").symlink_to("nowhere")

    with pytest.raises(UserError, match=r"4 of 11 pictures are unreadable.*more than 10\.00%"):
        write(FOLDER, source(FOLDER, tmp_path / "in"), tmp_path / "out", tolerance=0.1)
    done = write(FOLDER, source(FOLDER, tmp_path / "in"), tmp_path / "out", tolerance=0.5)
    assert (done.count, done.failures) == (7, 4)
    assert "4 unreadable" in str(done)
    manifest = read_json(tmp_path / "out/manifest.json")
    assert sorted(name for name, _ in manifest["failures"]) == ["a/cut.JPEG", "a/gone.JPEG", "b/empty.JPEG", "b/text.JPEG"]
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


def test_shards_mix_classes(tmp_path: Path) -> None:
    """A source sorted by class must not give shards of one class."""
    write(FOLDER, source(FOLDER, tree(tmp_path / "in", classes=4, each=25)), tmp_path / "out", per_shard=25)
    index = Index(tmp_path / "out")
    for start in index.starts:
        assert len(set(index.rows["label"][start : start + 25].tolist())) == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "is not there"),
        (lambda root: root.mkdir(), "holds no pictures"),
        (lambda root: (root / "a").mkdir(parents=True), "holds no pictures"),
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
    with pytest.raises(UserError, match="drawn here"):
        source(DRAWN, root)
    for card, message in ((Card("c", "folder", count=22), "21 pictures"), (Card("c", "folder", classes=1000), "3 classes")):
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
                data = encoded(picture(10 * shard + number))
                truth.append((shard, data))
                label = {"cls": shard} if number % 2 else {"json": {"label": shard}}
                tar.write({"__key__": f"k{number}", "JPEG": data, "txt": "a caption", **label})
    done = prepare(FOLDER, tmp_path / "in", tmp_path, per_shard=7)
    assert done.folder.name == f"photos-{done.fingerprint}"
    assert pixels(done.folder) == sorted(truth)
    braces = write(FOLDER, source(FOLDER, f"{tmp_path}/in/x-{{0..2}}.tar"), tmp_path / "braces", per_shard=7)
    assert contents(braces.folder) == contents(done.folder)


def test_parquet_is_dealt_anew(tmp_path: Path) -> None:
    truth = [(number % 4, encoded(picture(number))) for number in range(40)]
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


@pytest.mark.parametrize("cut", [0.5, "member", "garbage"])
def test_truncated_or_corrupt_tar_is_refused(tmp_path: Path, cut) -> None:
    path = tmp_path / "x.tar"
    with webdataset.TarWriter(str(path)) as tar:
        for number in range(5):
            tar.write({"__key__": f"k{number}", "jpg": encoded(picture(number)), "cls": 0})
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
        tar.write({"__key__": "odd", "jpg": encoded(picture(0)), **member})
    with pytest.raises(UserError, match="'odd' has no label"):
        write(FOLDER, source(FOLDER, tmp_path / "x.tar"), tmp_path / "out")


def test_label_beyond_the_classes_is_refused(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "x.tar")) as tar:
        tar.write({"__key__": "odd", "jpg": encoded(picture(0)), "cls": 5})
    card = Card("c", "folder", classes=5)
    with pytest.raises(UserError, match="odd: label 5 is not one of 5"):
        write(card, source(card, tmp_path / "x.tar"), tmp_path / "out")


def test_parquet_without_label_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"x"], "text": ["y"]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="it has image, text"):
        write(FOLDER, source(FOLDER, tmp_path / "x.parquet"), tmp_path / "out")
    (tmp_path / "y.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match="not a whole parquet"):
        write(FOLDER, source(FOLDER, tmp_path / "y.parquet"), tmp_path / "out2")


# --- Keys -----------------------------------------------------------------------------------------------------------


def test_keys_are_webdataset_keys() -> None:
    names = ["a/b", "a/b", "a.b", "a_b", "a/" + "é" * 120, "a/" + "é" * 121, "/x", "a/b~2"]
    keys = shards.unique_keys(names)
    assert len(set(keys)) == len(keys)
    for key in keys:
        assert webdataset.tariterators.base_plus_ext(f"{key}.jpg") == (key, "jpg")
        tarfile.TarInfo(f"{key}.jpeg").tobuf(tarfile.USTAR_FORMAT)


# --- Reading the index ----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(DRAWN, source(DRAWN), tmp_path / "set", per_shard=20)
    return tmp_path / "set"


def test_unusable_folder(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not there"):
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
    with pytest.raises(UserError, match=r"train-000001\.tar has \d+ bytes where its index says"):
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
