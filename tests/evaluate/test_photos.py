"""The small detector of photographs: its interface, what its file states, its training's corruptions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from benchmark import registry
from benchmark.cli import tools
from benchmark.data import shapes
from benchmark.evaluate import detectors, photos, photos_training
from benchmark.evaluate.metrics import Moments, frechet_distance
from benchmark.files import UserError


@pytest.mark.parametrize("size", [(24, 24), (32, 64), (64, 32), (128, 96)])
def test_any_size(size):
    found = detectors.load("photos")(torch.randint(0, 256, (3, 3, *size), dtype=torch.uint8))
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "features": (3, 128), "spatial": (3, 128), "logits": (3, 100)
    }  # fmt: skip
    assert all(torch.isfinite(value).all() for value in found.values())


def test_shipped_weights_state_where_they_come_from():
    assert photos.WEIGHTS.stat().st_size < 4e6
    said = photos.stated()
    assert said["command"].startswith("python -m benchmark.evaluate.photos_training")
    assert said["sizes"].keys() == set(photos_training.SIZES)
    assert all(0.1 < figures["top1"] < figures["top5"] < 1 for figures in said["sizes"].values())


def test_the_distance_grows_with_every_corruption():
    """On rendered scenes, which it has never seen: N = 600 against other 600."""
    eye = detectors.load("photos")

    def moments(images: torch.Tensor) -> Moments:
        features = torch.cat([eye(images[i : i + 100])["features"] for i in range(0, len(images), 100)]).double()
        return Moments(features.mean(0), torch.cov(features.T), len(features))

    def scenes(first: int) -> torch.Tensor:
        starts = range(first, first + 600, 100)
        pictures = np.concatenate([shapes.render_batch("train", np.arange(i, i + 100), (32, 32)) for i in starts])
        return torch.from_numpy(pictures).permute(0, 3, 1, 2)

    real, other = moments(scenes(0)), scenes(600)
    grain = torch.from_numpy(np.random.default_rng(0).standard_normal(other.shape)).float()

    def noisy(level: float) -> torch.Tensor:
        return (other.float() + level * grain).round().clamp(0, 255).to(torch.uint8)

    def blurred(width: int) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(other.float(), width, 1, width // 2, count_include_pad=False).to(torch.uint8)

    for ways in ([other, noisy(16), noisy(32), noisy(64)], [other, blurred(3), blurred(5), blurred(9)]):
        found = [frechet_distance(moments(images), real) for images in ways]
        assert found == sorted(found)
        assert found[-1] > 4 * found[0]


def test_corruptions_are_told():
    rng = np.random.Generator(np.random.Philox(0))
    images = 255 * torch.rand(200, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    target = torch.nn.functional.one_hot(torch.arange(200) % 100, 100).float()
    spoilt, flatter, degrees = photos_training._corrupt(images.clone(), target, rng)
    assert spoilt.dtype == torch.uint8
    touched = (spoilt.float() - images.round()).abs().flatten(1).amax(1) > 1
    assert not touched[degrees.sum(1) == 0].any()
    assert touched[degrees.amax(1) > 0.5].all()
    assert torch.allclose(flatter.sum(1), torch.ones(200))
    assert (flatter.amax(1)[degrees[:, 2] > 0] < 1).all()


def test_refusals(tmp_path):
    network = photos.Photos()
    with pytest.raises(UserError, match="at least 16 pixels per side, not 8x8"):
        network(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(UserError, match="takes uint8"):
        network(torch.zeros(1, 3, 32, 32))
    with pytest.raises(UserError, match="writes the weights of the photos detector"):
        photos.load(tmp_path / "none.safetensors")
    (tmp_path / "other.safetensors").write_bytes(b"-")
    with pytest.raises(UserError, match="does not hold the photos detector"):
        photos.load(tmp_path / "other.safetensors")


# --- Training on other classes ---------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Pictures of three classes, each of another colour."""
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for label, name in enumerate(("amber", "blue", "cyan")):
            (tmp_path / "pictures" / split / name).mkdir(parents=True)
            for number in range(count):
                picture = random.integers(0, 60, (70, 64, 3), np.uint8)
                picture[..., label] += 150
                Image.fromarray(picture).save(tmp_path / "pictures" / split / name / f"{number}.png")
    monkeypatch.chdir(tmp_path)  # where shards are kept
    monkeypatch.setattr(photos_training, "SIZES", ("32x32", "32x64"))
    return tmp_path / "pictures"


def test_a_detector_of_other_classes(folder, tmp_path, monkeypatch):
    out = tmp_path / "mine.safetensors"
    shipped = photos.WEIGHTS.read_bytes()
    tools.detector(name="photos", data=str(folder), card="", out=out, steps=2, seed=1)
    said = photos.stated(out)
    assert said["command"] == "python -m benchmark detector --name photos --card own --data DATA --steps 2 --seed 1"
    assert (said["trained on"], said["tested on"]) == ("24 pictures, 2.0 times", "12 pictures")
    assert said["sizes"].keys() == {"32x32", "32x64"}
    assert all(figures["top5"] == 1 for figures in said["sizes"].values()), "there are three classes"
    assert photos.WEIGHTS.read_bytes() == shipped
    monkeypatch.setenv("DETECTOR_WEIGHTS", str(out))
    mine = detectors.load("photos")
    assert mine.hash == detectors.load("photos", out).hash == registry.detector_weights("photos")
    assert mine(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))["logits"].shape == (2, mine.widths["logits"]) == (2, 3)


def test_pictures_that_no_detector_can_be_trained_on(folder, tmp_path):
    def refused(data, message):
        with pytest.raises(UserError, match=message):
            tools.detector(name="photos", data=str(data), card="own", out=tmp_path / "none.safetensors", steps=1, seed=0)

    refused(folder / "train", "no val/ next to train/")
    (folder / "val" / "cyan").rename(folder / "val" / "grass")
    refused(folder, "the classes of val")
    for split, name in (("val", "grass"), ("train", "cyan"), ("val", "blue"), ("train", "blue")):
        (folder / split / name).rename(tmp_path / f"{split}-{name}")
    refused(folder, "has one class")
    assert not (tmp_path / "none.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "inception"}, "unknown small detector 'inception'.*photos, shapes"),
        ({"data": "x"}, "belong to --name photos"),
        ({"card": "own"}, "belong to --name photos"),
        ({"name": "photos"}, "give their folder as --data"),
        ({"name": "photos", "data": "x"}, "give the file for yours as --out"),
        ({"name": "photos", "data": "nowhere", "card": "imagenet-64"}, "nowhere' does not exist"),
    ],
)
def test_what_the_command_refuses(options, message):
    with pytest.raises(UserError, match=message):
        tools.detector(**{"name": "shapes", "data": "", "card": "", "out": None, "steps": 1, "seed": 0} | options)
