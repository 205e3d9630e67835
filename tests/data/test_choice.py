"""What a card takes of a source: classes by name or number, splits, and pictures of one's own."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmark.data.card import Card, load_card
from benchmark.data.choice import UNREADABLE, split_files, split_of
from benchmark.data.index import Index
from benchmark.data.sources import source
from benchmark.data.writer import fingerprint, prepare
from benchmark.evaluate.samples import image_files
from benchmark.files import UserError, read_json

PART = Card("part", "folder", classes=("n02", "n03"), others="dropped", labels=4)
OWN = Card("own", "own", smallest=64, grey="dropped")


def jpeg(seed: int, height: int = 70, width: int = 80, mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, len(mode)), dtype=np.uint8)
    image = Image.fromarray(pixels.squeeze() if mode == "L" else pixels, mode=mode).resize((width, height))
    stream = io.BytesIO()
    image.save(stream, "JPEG")
    return stream.getvalue()


def put(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def labels(folder: Path) -> dict[str, int]:
    index = Index(folder)
    return {index[i].key: index[i].label for i in range(len(index))}


def archive(root: Path) -> Path:
    """The public archive's layout, with four classes."""
    files = {f"train/n0{c}/images/n0{c}_{i}.JPEG": jpeg(10 * c + i) for c in (1, 2, 3, 4) for i in range(3)}
    files |= {f"train/n0{c}/n0{c}_boxes.txt": b"n01_0.JPEG\t0\t0\t9\t9\n" for c in (1, 2, 3, 4)}
    files |= {f"val/images/val_{i}.JPEG": jpeg(100 + i) for i in range(4)}
    files |= {
        "val/val_annotations.txt": b"".join(b"val_%d.JPEG\tn0%d\t0\t0\t9\t9\n" % (i, c) for i, c in enumerate((3, 1, 2, 3)))
    }
    return put(root, files | {"test/images/test_0.JPEG": jpeg(1), "wnids.txt": b"n04\nn01\nn02\nn03\n"})


def test_the_archive_gives_the_named_classes_of_either_split(tmp_path):
    root = archive(tmp_path / "tiny")
    done = prepare(PART, root, tmp_path / "out")
    assert labels(done.folder) == {f"n0{c}/images/n0{c}_{i}": c - 2 for c in (2, 3) for i in range(3)}
    assert str(done).endswith("6 images written, left out: 6 of other classes, 4 of other file types"), "of which it has no list"
    assert str(prepare(PART, root, tmp_path / "out")) == str(done).replace("written", "already complete, skipped")
    held_out = prepare(PART, source(PART, root, "val"), tmp_path / "val")
    assert labels(held_out.folder) == {"images/val_0": 1, "images/val_2": 0, "images/val_3": 1}
    with pytest.raises(UserError, match="no image of 1 of the card's classes, such as n09"):
        source(Card("part", "folder", classes=("n02", "n09"), others="dropped"), root)


NAMES = {
    "train": ["train-0.parquet", "train0001.tar", "imagenet1k-train-0000.tar"],
    "val": ["validation-3.tar", "imagenet1k-validation-00.tar", "x_VAL.tar"],
    "test": ["x-test.tar"],
    "": ["x.tar", "another-1.tar"],
}


@pytest.mark.parametrize(("split", "name"), [(split, name) for split, names in NAMES.items() for name in names])
def test_the_split_of_a_file_is_a_word_of_its_name(split, name):
    assert split_of(name) == split


def test_a_split_that_some_files_alone_name_inside_is_none():
    paths = [Path(name) for name in ("cats.tar", "dogs-train.tar", "birds-test.tar")]
    assert split_files(paths, "train") == paths
    named = [Path(name) for name in ("x-train-0.tar", "x-validation-0.tar")]
    assert split_files(named, "train") == named[:1]


@pytest.mark.parametrize("form", ["wnid", "names", "numbers"])
def test_parquet_gives_the_named_classes(form, tmp_path):
    classes = [3, 1, 2, 0, 2, 1, 3, 0, 1]  # of n01 .. n04
    table = {"image": [jpeg(i) for i in range(9)], "label": classes}
    if form == "wnid":  # whose numbers are of another order: names win
        table |= {"label": [3 - c for c in classes], "wnid": [f"n0{c + 1}" for c in classes]}
    made = pa.table(table)
    if form == "names":
        about = {"info": {"features": {"label": {"names": ["n01", "n02", "n03", "n04"], "_type": "ClassLabel"}}}}
        made = made.replace_schema_metadata({"huggingface": json.dumps(about)})
    pq.write_table(made, tmp_path / "train-0.parquet", row_group_size=4)
    pq.write_table(pa.table({"image": [jpeg(1)], "label": [0]}), tmp_path / "val.parquet")
    done = prepare(PART, tmp_path, tmp_path / "out", per_shard=2)
    first = 0 if form == "numbers" else 1  # bare numbers: the card's classes are the first of the whole
    kept = {row: c - first for row, c in enumerate(classes) if c - first in (0, 1)}
    assert labels(done.folder) == {f"{row:08d}": label for row, label in kept.items()}
    assert f"{9 - len(kept)} of other classes" in str(done)
    index = Index(done.folder)
    assert {index[i].key: index[i].data for i in range(len(index))} == {f"{row:08d}": jpeg(row) for row in kept}


def test_numbers_of_another_set_are_refused(tmp_path):
    pq.write_table(pa.table({"image": [jpeg(1), jpeg(2)], "label": [0, 999]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="numeric labels up to 999 are ambiguous: with 2 or 4 classes"):
        prepare(PART, tmp_path, tmp_path / "out")


def test_classes_without_an_image_are_counted_by_name(tmp_path):
    """The source's names are in another order, and one of them is not the card's."""
    four = Card("four", "folder", classes=("a", "b", "c", "d"), others="dropped", labels=4)
    features = {"label": {"names": ["b", "c", "x", "d"], "_type": "ClassLabel"}}
    table = pa.table({"image": [jpeg(1)], "label": [1]})
    pq.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), tmp_path / "a.parquet"
    )
    with pytest.raises(UserError, match="has no image of 3 of the card's classes, such as a"):
        prepare(four, tmp_path, tmp_path / "out")


def test_files_of_other_splits_are_named(tmp_path):
    put(tmp_path, {"val-0.parquet": b"-", "test-0.parquet": b"-"})
    with pytest.raises(UserError, match=r"holds test-0\.parquet, val-0\.parquet, but nothing of the split 'train'"):
        source(Card("folder", "folder"), tmp_path)


def test_scoring_sees_the_same_pictures_as_training(tmp_path):
    """Linked classes too, none twice through a link to a folder above, and nothing whose name begins with a dot."""
    root = put(tmp_path / "in", {"cat/a.png": b"-", "cat/B.PNG": b"-", "cat/._a.png": b"-", "cat/.ipynb_checkpoints/z.png": b"-"})
    put(tmp_path / "elsewhere", {"c.jpg": b"-"})
    (root / "dog").symlink_to(tmp_path / "elsewhere")
    (root / "cat" / "self").symlink_to(root / "cat")
    expected = ["cat/B.PNG", "cat/a.png", "dog/c.jpg"]
    assert sorted(path for path, _, _ in source(Card("folder", "folder"), root).files) == expected
    assert [str(file.relative_to(root)) for file in image_files(root)] == expected


def test_numbers_without_a_name_keep_their_number(tmp_path):
    """Hugging Face's -1 for pictures without label, or one beyond the names."""
    table = pa.table({"image": [jpeg(1), jpeg(2), jpeg(3)], "label": [-1, 0, 2]})
    features = {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "a.parquet")
    done = prepare(OWN, tmp_path, tmp_path / "out")
    assert read_json(done.folder / "manifest.json")["class_names"] == ["-1", "a", "2"]
    pq.write_table(pa.table({"image": [jpeg(4)], "label": ["a"]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match="some labels are numbers and some are names"):
        prepare(OWN, tmp_path, tmp_path / "other")


def test_a_bad_folder_of_ones_own(tmp_path):
    """Too small, cut, grey, CMYK, texts: what can be used is, and the line says what was left out."""
    root = put(tmp_path / "in", {
        "b/good.jpg": jpeg(1), "b/cmyk.jpg": jpeg(2, mode="CMYK"), "b/small.jpg": jpeg(3, 63, 200), "b/cut.jpg": jpeg(4)[:400],
        "b/text.jpg": b"<html>404</html>", "b/notes.txt": b"-", "a/grey.jpg": jpeg(5, mode="L"), "c/good.jpg": jpeg(6, 64, 64),
    })  # fmt: skip
    done = prepare(OWN, root, tmp_path / "out")
    assert labels(done.folder) == {"b/good": 0, "b/cmyk": 0, "c/good": 1}
    assert read_json(done.folder / "manifest.json")["class_names"] == ["b", "c"], "a class without a usable picture is no class"
    assert str(done).endswith(
        "left out: 2 unreadable, 1 with a side below 64 pixels, 1 grey (listed in manifest.json); 1 of other file types"
    )
    names = [name for name, _ in read_json(done.folder / "manifest.json")["failures"]]
    assert sorted(names) == ["a/grey.jpg", "b/cut.jpg", "b/small.jpg", "b/text.jpg"]


def test_more_images_without_use_than_with(tmp_path):
    """Of one's own that is no error, when they are written and when they are found there."""
    texts = {f"a/{number}.jpg": b"<html>404</html>" for number in range(3)}
    root = put(tmp_path / "in", {"a/good.jpg": jpeg(1), **texts})
    done = prepare(OWN, root, tmp_path / "out")
    assert "left out: 3 unreadable (listed in manifest.json)" in str(done)
    assert str(prepare(OWN, root, tmp_path / "out")) == str(done).replace("written", "already complete, skipped")


def test_the_identity_of_a_folder_is_that_of_its_files(tmp_path):
    """Whether or not it has been read already; of a folder that is used in full it is what it always was."""
    root = put(tmp_path / "in", {"a/1.jpg": jpeg(1), "b/2.jpg": jpeg(2)})
    sound = source(OWN, root)
    before = sound.identity()
    summary = hashlib.sha256()
    for label, path in enumerate(("a/1.jpg", "b/2.jpg")):
        summary.update(f"{path}\0{label}\0{(root / path).stat().st_size}\n".encode())
    assert before == [2, summary.hexdigest(), ["a", "b"]]
    sound.ready()
    assert sound.identity() == before
    put(root, {"a/small.jpg": jpeg(3, 20, 20), "c/grey.jpg": jpeg(4, mode="L")})
    found = source(OWN, root)
    before = found.identity()
    assert before != sound.identity()
    done = prepare(OWN, found, tmp_path / "out")
    assert found.identity() == before
    assert done.fingerprint == fingerprint(OWN, source(OWN, root)) == fingerprint(OWN, found)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_more_than_eight_bits_are_left_out_beforehand(mode, tmp_path):
    """Of any card: whether colour is asked for or not."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    Image.new(mode, (80, 70)).save(tmp_path / "in" / "deep" / "1.tif")
    put(tmp_path / "in", {"a/good.jpg": jpeg(1)})
    for card, reason in ((OWN, f"grey: mode {mode}"), (Card("mine", "own"), f"more than 8 bits a channel: mode {mode}")):
        done = prepare(card, tmp_path / "in", tmp_path / "out")
        about = read_json(done.folder / "manifest.json")
        assert (about["failures"], about["class_names"]) == ([["deep/1.tif", reason]], ["a"])
        assert f"left out: 1 {reason.partition(':')[0].replace('more', 'with more')} (listed" in str(done)


def test_what_is_left_out_by_choice_is_no_damage(tmp_path):
    """A data set whose pictures should all be readable may hold some of more than 8 bits; damaged ones it may not."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    Image.new("I;16", (80, 70)).save(tmp_path / "in" / "deep" / "1.tif")
    put(tmp_path / "in", {"a/good.jpg": jpeg(1)})
    done = prepare(Card("folder", "folder"), tmp_path / "in", tmp_path / "out")
    assert (done.count, done.left_out[UNREADABLE]) == (1, 0)
    put(tmp_path / "in", {"a/cut.jpg": jpeg(2)[:80]})
    with pytest.raises(UserError, match=r"1 of \d images are unreadable so far"):
        prepare(Card("folder", "folder"), tmp_path / "in", tmp_path / "out")


def test_images_beside_class_folders_are_named(tmp_path):
    classes = {f"{name}/{number}.jpg": jpeg(number) for name in "ab" for number in range(2)}
    root = put(tmp_path / "in", {**classes, "x.jpg": jpeg(8), "y.JPG": jpeg(9), ".hidden.jpg": jpeg(9), "list.txt": b"-"})
    done = prepare(OWN, root, tmp_path / "out")
    assert str(done).endswith("4 images written, left out: 2 beside the class folders (listed in manifest.json)")
    failures = [[name, "beside the class folders"] for name in ("x.jpg", "y.JPG")]
    assert read_json(done.folder / "manifest.json")["failures"] == failures
    put(root, {f"more-{number}.jpg": jpeg(number) for number in range(3)})
    with pytest.raises(UserError, match="in has 5 images beside its class folders and 4 in them: move"):
        source(OWN, root)
    assert len(source(Card("folder", "folder"), root)) == 4, "ImageNet's layout takes class folders alone"


def test_nothing_usable_is_told_with_its_reasons(tmp_path):
    root = put(tmp_path / "in", {f"a/{number}.jpg": jpeg(number, 20, 90) for number in range(3)} | {"b/g.jpg": jpeg(7, mode="L")})
    with pytest.raises(UserError) as error:
        prepare(OWN, root, tmp_path / "out")
    assert str(error.value) == f"none of the 4 images in {root} can be used: 3 with a side below 64 pixels, 1 grey"
    parquet = tmp_path / "table"
    parquet.mkdir()
    pq.write_table(pa.table({"image": [jpeg(1, 20, 20), jpeg(2)[:300]]}), parquet / "a.parquet")
    with pytest.raises(UserError) as error:
        prepare(OWN, parquet, tmp_path / "out")
    told = "can be used: 1 unreadable, 1 with a side below 64 pixels"
    assert str(error.value) == f"none of the 2 images in {parquet}/a.parquet {told}"


def test_a_folder_without_images_is_told_what_is_taken(tmp_path):
    root = put(tmp_path / "in", {"photo.heic": b"-"})
    with pytest.raises(UserError, match=r"in holds no images: expected image files \(\.jpg, .*\.pgm\), plain or in a folder"):
        source(OWN, root)
    with pytest.raises(UserError, match=r"in holds no images: expected class folders with image files \(\.jpg, "):
        source(Card("folder", "folder"), root)


def test_other_layouts_of_ones_own(tmp_path):
    plain = put(tmp_path / "cats", {"1.jpg": jpeg(1), "2.jpg": jpeg(2), "list.csv": b"-"})
    done = prepare(OWN, plain, tmp_path / "out")
    assert labels(done.folder) == {"1": 0, "2": 0}
    assert read_json(done.folder / "manifest.json")["class_names"] == ["cats"]
    unlabelled = tmp_path / "unlabelled"
    unlabelled.mkdir()
    pq.write_table(pa.table({"image": [jpeg(1), jpeg(2, 20, 20), jpeg(3)]}), unlabelled / "a.parquet")
    done = prepare(OWN, unlabelled, tmp_path / "out")
    assert labels(done.folder) == {"00000000": 0, "00000002": 0}
    assert "1 with a side below 64 pixels" in str(done)
    named = tmp_path / "named"
    named.mkdir()
    pq.write_table(pa.table({"image": [jpeg(1), jpeg(2)], "label": ["dog", "cat"]}), named / "a.parquet")
    assert labels(prepare(OWN, named, tmp_path / "out").folder) == {"00000000": 1, "00000001": 0}
    tars = tmp_path / "tars"
    tars.mkdir()
    first = prepare(Card("first", "folder"), put(tmp_path / "tree", {"x/1.jpg": jpeg(1), "y/2.jpg": jpeg(2)}), tmp_path / "out")
    (first.folder / "train-000000.tar").rename(tars / "a.tar")
    assert labels(prepare(OWN, tars, tmp_path / "out").folder) == {"x/1": 0, "y/2": 1}


def test_splits_without_class_folders_are_splits(tmp_path):
    root = put(
        tmp_path / "mine", {f"{split}/{number}.jpg": jpeg(number) for split in ("train", "val", "test") for number in (1, 2)}
    )
    assert labels(prepare(OWN, root, tmp_path / "out").folder) == {"1": 0, "2": 0}
    assert source(OWN, root, "val").root == root / "val"
    for names in (["train"], ["trains", "valleys"], ["test_cats", "test_dogs", "train_cats", "train_dogs"], ["train", "valley"]):
        classes = put(tmp_path / "-".join(names), {f"{name}/1.jpg": jpeg(1) for name in names})
        assert source(OWN, classes).classes == tuple(names)


def test_the_card_of_a_hundred_classes():
    card = load_card("imagenet-64")
    assert len(set(card.classes)) == 100
    assert list(card.classes) == sorted(card.classes)
    assert card.count == 500 * 100
    with pytest.raises(UserError, match="needs `classes` as a list of names"):
        load_card(str(_write("kind: folder\nclasses: 3\nothers: dropped")))


def _write(text: str) -> Path:
    import tempfile

    path = Path(tempfile.mkdtemp()) / "x.yaml"
    path.write_text(text)
    return path
