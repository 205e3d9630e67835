"""A protocol's data as they lie: pictures, latents of one or several autoencoders, real images."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from PIL import Image

from benchmark import protocol
from benchmark.data import shapes, sources, writer
from benchmark.data.index import FORMAT
from benchmark.evaluate import reference
from benchmark.files import UserError, write_json
from benchmark.identity import Training
from benchmark.plan import own, stages
from benchmark.plan.dataset import PICTURE, DataSet
from benchmark.plan.place import Run
from benchmark.run import local

PICTURES, RIGHT, OTHER, SECOND = (letter * 12 for letter in "abcd")  # fingerprints
SHARD = {"name": "shard-00000.tar", "count": 10, "bytes": 5000, "sha256": "e" * 64}
MANIFEST = {
    "format": FORMAT, "card": "imagenet", "kind": "images", "classes": 1000, "class_names": None, "count": 10, "samples": 10,
    "failures": [], "index": "f" * 12, "shards": [SHARD],
}  # fmt: skip


def latents(fingerprint: str, images: str, side: int) -> dict:
    """The manifest of latents, as far as a plan reads it."""
    autoencoder = {"name": "small", "hash": "e" * 12}
    more = {"size": [side, side], "scale": 1.0, "shift": 0.0, "autoencoder": autoencoder, "samples": 20}
    return MANIFEST | {"kind": "latents", "fingerprint": fingerprint, "images": images} | more


def manifests(folder: Path) -> None:
    """Pictures, their latents at two sizes, and latents of other pictures, as far as a plan reads them."""
    for name, manifest in {
        "pictures": MANIFEST | {"fingerprint": PICTURES},
        f"latents-{RIGHT}": latents(RIGHT, PICTURES, 256),
        f"latents-{OTHER}": latents(OTHER, PICTURES, 512),
        "latents-strange": latents("9" * 12, "8" * 12, 256),
    }.items():
        write_json(folder / name / "manifest.json", manifest)


def test_pictures_have_an_identity_before_they_are_written(tmp_path):
    smoke, run = protocol.load("smoke"), Run(tmp_path)
    data = DataSet(smoke, run)
    assert data.images is None
    assert data.count == 64
    assert list(tmp_path.iterdir()) == []
    written = writer.prepare(data.card, None, tmp_path / "data", workers=1)
    assert (data.fingerprint, data.folder) == (written.fingerprint, written.folder)
    found = DataSet(smoke, run)
    assert found.images == written.folder
    assert found.seen_by(Training(smoke, "nope", "16x16", 0)) == written.fingerprint
    total = sum(path.stat().st_size for path in written.folder.glob("*.tar"))
    assert found.picture_bytes == pytest.approx(total / 64)
    assert found.real() == ("shapes", shapes.REVISION)


def test_without_a_source_it_says_what_is_missing(tmp_path):
    data = DataSet(protocol.load("imagenet-256-s2"), Run(tmp_path))
    assert (data.fingerprint, data.folder, data.images, data.latents) == (None, None, None, {})
    assert data.count == 1_281_167
    assert data.picture_bytes > PICTURE
    with pytest.raises(UserError, match="give their folder as DATA"):
        data.real()


def test_what_a_training_sees(tmp_path):
    """The one set of latents there is; where there are two, that of the autoencoder, which only a training loads."""
    manifests(tmp_path / "data")
    large = protocol.load("imagenet-256-s2")
    run = Run(tmp_path, str(tmp_path / "data" / "pictures"))
    training = Training(large, "nope", "256x256", 0)
    data = DataSet(large, run)
    assert data.seen_by(training) == RIGHT
    assert {size: len(folders) for size, folders in data.latents.items()} == {"256x256": 1, "512x512": 1}
    write_json(tmp_path / "data" / "second" / "manifest.json", latents(SECOND, PICTURES, 256))
    assert DataSet(large, run).seen_by(training) is None


def test_of_latents_that_are_given_the_pictures_are_found(tmp_path):
    """`make latents` prints their folder last; references, which come after days of training, are made of the pictures."""
    manifests(tmp_path / "data")
    given = Run(tmp_path, str(tmp_path / "data" / f"latents-{RIGHT}"))
    large = protocol.load("imagenet-256-s2")
    data = DataSet(large, given)
    assert data.real() == DataSet(large, Run(tmp_path, str(tmp_path / "data" / "pictures"))).real() == ("pictures", PICTURES)
    assert data.pictures == tmp_path / "data" / "pictures"
    assert data.given == tmp_path / "data" / f"latents-{RIGHT}"
    alone = DataSet(large, dataclasses.replace(given, out=tmp_path / "elsewhere"))
    with pytest.raises(UserError, match="holds latents, and references are made of the images: give their folder as DATA"):
        alone.real()
    with pytest.raises(UserError, match="holds latents, and references are made of the images"):
        local.bench(large, ["nope"], 0, alone.run)
    shown = [stage for stage in stages.graph(large, ["nope"], 0, alone.run) if stage.kind == "reference"]
    assert {stage.state() for stage in shown} == {stages.MISSING}


def test_a_folder_of_pictures_is_walked_once_until_it_changes(tmp_path, monkeypatch):
    walks, walk = [], sources.Folder.__init__
    monkeypatch.setattr(sources.Folder, "__init__", lambda self, *args: walks.append(1) or walk(self, *args))
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True)
        (tmp_path / "in" / name).touch()
    rules, run = protocol.load("imagenet-64", ["data.card=own"]), Run(tmp_path, str(tmp_path / "in"))
    first = [DataSet(rules, run).fingerprint for _ in range(3)]
    assert (len(walks), len(set(first))) == (1, 1)
    (tmp_path / "in/b/3.png").touch()
    assert DataSet(rules, run).fingerprint != first[0]
    (tmp_path / "in/b/3.png").unlink()
    assert DataSet(rules, run).fingerprint == first[0]
    assert len(walks) == 3


def test_a_file_deep_in_a_folder_is_noticed(tmp_path):
    rules, run = protocol.load("imagenet-64", ["data.card=own"]), Run(tmp_path, str(tmp_path / "in"))
    for name in ("train/a/1.png", "train/b/2.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True)
        (tmp_path / "in" / name).touch()
    first = DataSet(rules, run).fingerprint
    (tmp_path / "in/train/b/3.png").touch()
    assert DataSet(rules, run).fingerprint != first


def test_braces_may_be_longer_than_a_name(tmp_path):
    names = [f"part-{number:012d}.tar" for number in range(20)]
    for name in names:
        (tmp_path / name).touch()
    rules = protocol.load("imagenet-256-s2")
    assert DataSet(rules, Run(tmp_path, f"{tmp_path}/{{{','.join(names)}}}")).fingerprint


def test_shards_of_another_data_set_are_refused(tmp_path):
    manifests(tmp_path / "data")
    pictures = str(tmp_path / "data" / "pictures")
    DataSet(protocol.load("imagenet-256-s2"), Run(tmp_path, pictures)).check()
    with pytest.raises(UserError, match="holds shards of imagenet, but imagenet-64 uses imagenet-64"):
        DataSet(protocol.load("imagenet-64"), Run(tmp_path, pictures)).check()
    with pytest.raises(UserError, match="holds shards of 'imagenet': choose a protocol for that data set with --protocol"):
        own.default_protocol(pictures)


def test_other_shards_of_the_embedded_set_are_refused(tmp_path):
    smoke = protocol.load("smoke")
    written = writer.prepare(DataSet(smoke, Run(tmp_path)).card, None, tmp_path / "data", workers=1)
    given = Run(tmp_path / "runs", str(written.folder))
    DataSet(smoke, given).check()
    with pytest.raises(UserError, match="holds other shards of shapes than shapes trains on: leave DATA empty"):
        DataSet(protocol.load("shapes"), given).check()
    assert own.default_protocol(str(written.folder)) == "shapes"


def test_a_manifest_that_was_edited_is_told(tmp_path):
    write_json(tmp_path / "manifest.json", {"format": FORMAT, "kind": "images"})
    (tmp_path / "index.npy").touch()
    with pytest.raises(UserError, match=r"was edited: the manifest lacks card$"):
        own.default_protocol(str(tmp_path))


def test_a_manifest_of_somebody_elses_makes_no_shards(tmp_path):
    write_json(tmp_path / "manifest.json", {"name": "my pets", "version": 3})
    for label in ("cats", "dogs"):
        (tmp_path / label).mkdir()
        Image.new("RGB", (80, 80), "red").save(tmp_path / label / "one.png")
    assert isinstance(reference.open_source(tmp_path), reference.ImageFolder)
    (tmp_path / "more-0000.tar").touch()
    assert own.default_protocol(str(tmp_path)) == "folder"
    data = DataSet(protocol.load("folder"), Run(tmp_path / "out", data=str(tmp_path)))
    assert data.given is None


def test_a_broken_manifest_of_another_data_set_is_passed_over(tmp_path):
    smoke, run = protocol.load("smoke"), Run(tmp_path)
    write_json(tmp_path / "data" / "other" / "manifest.json", {"format": 0})
    assert DataSet(smoke, run).images is None
    written = writer.prepare(DataSet(smoke, run).card, None, tmp_path / "data", workers=1)
    assert DataSet(smoke, run).images == written.folder


def test_pictures_encoded_on_the_way_are_those_of_this_autoencoder(tmp_path, monkeypatch):
    """An augmenting training by another autoencoder than that of the stored latents is found where it was trained."""
    rules, run = protocol.load("imagenet-256-s2"), Run(tmp_path, str(tmp_path / "data" / "pictures"))
    manifests(tmp_path / "data")
    training = Training(rules, "rpe2d", "256x256", 0)
    monkeypatch.setenv("AUTOENCODER", "small")
    assert DataSet(rules, run).seen_by(training) == RIGHT
    monkeypatch.setenv("AUTOENCODER", "another")
    assert DataSet(rules, run).seen_by(training) is None, "known once that one has been loaded"
    assert DataSet(rules, run).seen_by(Training(rules, "nope", "256x256", 0)) == RIGHT
    training.folder(tmp_path, RIGHT).mkdir(parents=True)
    assert DataSet(rules, run).seen_by(training) == RIGHT, "begun by the first one, where its variable is not set"
