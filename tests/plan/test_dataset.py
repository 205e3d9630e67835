"""A protocol's data as they lie: pictures, latents of one or several autoencoders, real images."""

from __future__ import annotations

from pathlib import Path

import pytest
from small import manifest

from benchmark import protocol
from benchmark.data import shapes, writer
from benchmark.files import UserError, write_json
from benchmark.identity import Training
from benchmark.plan.dataset import PICTURE, DataSet
from benchmark.plan.place import Run

PICTURES, RIGHT, OTHER = "aaaaaaaa", "11111111", "22222222"


def latents(fingerprint: str, images: str, size: int) -> dict[str, object]:
    """The manifest of latents."""
    return manifest(
        fingerprint,
        kind="latents",
        images=images,
        size=[size, size],
        scale=0.18215,
        shift=0.0,
        autoencoder={"folder": "sd-vae-ft-ema", "hash": fingerprint},
    )


def manifests(folder: Path) -> None:
    """Pictures, their latents at two sizes, and latents of other pictures, as far as a plan reads them."""
    for name, found in {
        "pictures": manifest(PICTURES),
        "right": latents(RIGHT, PICTURES, 256),
        "latents-other": latents(OTHER, PICTURES, 512),
        "latents-strange": latents("33333333", "bbbbbbbb", 256),
    }.items():
        write_json(folder / name / "manifest.json", found)


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
    write_json(tmp_path / "data" / "second" / "manifest.json", latents("44444444", PICTURES, 256))
    assert DataSet(large, run).seen_by(training) is None
