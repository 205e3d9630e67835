"""What a card takes of a source: classes by name or number, splits, and pictures of one's own."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmark.data.card import Card, load_card
from benchmark.data.index import Index
from benchmark.data.sources import source
from benchmark.data.writer import prepare
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
    assert "left out: 6 of other classes, 4 that are no pictures" in str(done)
    assert str(prepare(PART, root, tmp_path / "out")) == str(done).replace("written", "already complete, skipped")
    held_out = prepare(PART, source(PART, root, "val"), tmp_path / "val")
    assert labels(held_out.folder) == {"images/val_0": 1, "images/val_2": 0, "images/val_3": 1}
    with pytest.raises(UserError, match="no image of 1 of the card's classes, such as n09"):
        source(Card("part", "folder", classes=("n02", "n09"), others="dropped"), root)


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


def test_a_bad_folder_of_ones_own(tmp_path):
    """Too small, cut, grey, CMYK, texts: what can be used is, and the line says what was left out."""
    root = put(tmp_path / "in", {
        "b/good.jpg": jpeg(1), "b/cmyk.jpg": jpeg(2, mode="CMYK"), "b/small.jpg": jpeg(3, 63, 200), "b/cut.jpg": jpeg(4)[:400],
        "b/text.jpg": b"<html>404</html>", "b/notes.txt": b"-", "a/grey.jpg": jpeg(5, mode="L"), "c/good.jpg": jpeg(6, 64, 64),
    })  # fmt: skip
    done = prepare(OWN, root, tmp_path / "out")
    assert labels(done.folder) == {"b/good": 0, "b/cmyk": 0, "c/good": 1}
    assert read_json(done.folder / "manifest.json")["class_names"] == ["b", "c"], "a class without a usable picture is no class"
    assert "left out: 2 unreadable, 1 too small, 1 grey, 1 that are no pictures" in str(done)


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
    assert "1 too small" in str(done)
    named = tmp_path / "named"
    named.mkdir()
    pq.write_table(pa.table({"image": [jpeg(1), jpeg(2)], "label": ["dog", "cat"]}), named / "a.parquet")
    assert labels(prepare(OWN, named, tmp_path / "out").folder) == {"00000000": 1, "00000001": 0}
    tars = tmp_path / "tars"
    tars.mkdir()
    first = prepare(Card("first", "folder"), put(tmp_path / "tree", {"x/1.jpg": jpeg(1), "y/2.jpg": jpeg(2)}), tmp_path / "out")
    (first.folder / "train-000000.tar").rename(tars / "a.tar")
    assert labels(prepare(OWN, tars, tmp_path / "out").folder) == {"x/1": 0, "y/2": 1}


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
