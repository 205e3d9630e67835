"""The shipped detector of the embedded data set: what it says of itself holds, at every size."""

import numpy as np
import pytest
import torch

from benchmark.data import shapes
from benchmark.evaluate import classifier, spoil
from benchmark.files import UserError


@pytest.fixture(scope="module")
def model():
    return classifier.load()


def pictures(size, count=200, objects=None, split="heldout", first=5000):
    images = shapes.render_batch(split, range(first, first + count), size, objects)
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    """Frechet distance with scipy's matrix square root: not the way the project computes it."""
    from scipy.linalg import sqrtm

    a, b = np.cov(first.T.astype(np.float64)), np.cov(second.T.astype(np.float64))
    shift = first.mean(0, dtype=np.float64) - second.mean(0, dtype=np.float64)
    return float(shift @ shift + np.trace(a + b - 2 * sqrtm(a @ b).real))


def test_weights_are_small_and_say_how_they_were_made():
    assert classifier.WEIGHTS.stat().st_size < 1_000_000
    said = classifier.stated()
    assert said["command"].startswith("python -m benchmark detector")
    assert set(said["sizes"]) == {f"{h}x{w}" for h, w in classifier.SIZES}
    assert all(at["top1"] >= 0.97 for size, at in said["sizes"].items() if min(map(int, size.split("x"))) >= 32)


@pytest.mark.parametrize("size", classifier.SIZES)
def test_stated_figures_hold_on_other_heldout_scenes(model, size):
    said = classifier.stated()["sizes"]["{}x{}".format(*size)]
    right = model(pictures(size))["logits"].argmax(1).numpy() == np.arange(200) % classifier.CLASSES
    assert right.mean() >= said["top1"] - 3 * (said["top1"] * (1 - said["top1"]) / 200) ** 0.5 - 0.01
    objects = np.arange(100) % 5
    off = np.abs(model(pictures(size, 100, objects))["objects"].numpy() - objects)
    assert off.mean() <= said["count_error"] + 0.15


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (64, 48), (17, 40), (128, 128), (96, 32)])
def test_any_size_gives_the_same_widths(model, size):
    seen = model(pictures(size, 3))
    assert {name: tuple(value.shape) for name, value in seen.items()} == {
        "features": (3, classifier.FEATURES),
        "spatial": (3, classifier.SPATIAL_CHANNELS * classifier.SPATIAL_GRID**2),
        "logits": (3, classifier.CLASSES),
        "objects": (3,),
    }
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in seen.values())


def test_larger_than_trained_is_still_recognised(model):
    right = model(pictures((128, 128), 80))["logits"].argmax(1).numpy() == np.arange(80) % classifier.CLASSES
    assert right.mean() >= 0.95


def test_a_picture_is_seen_alike_alone_and_in_a_batch(model):
    images = pictures((48, 64), 5)
    together, alone = model(images), model(images[3:4])
    for name, value in alone.items():
        torch.testing.assert_close(value[0], together[name][3], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(16, 16), (64, 48)])
def test_distance_grows_with_every_degree_of_damage(model, size):
    """Not saturating: blur, noise, torn pictures and fading towards noise move features ever farther."""
    reference = model(pictures(size, 240, split="reference"))["features"].numpy()
    clean = pictures(size, 240).float()
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(clean.shape, generator=rng)
    soft = clean
    for _ in range(3):
        radius = size[1] // 16
        padded = torch.nn.functional.pad(soft, [radius] * 4, mode="replicate")
        soft = torch.nn.functional.avg_pool2d(padded, 2 * radius + 1, 1)
    damages = {
        "noise": lambda degree: clean + 60 * degree * noise,
        "blur": lambda degree: clean + degree * (soft - clean),
        "fade": lambda degree: clean + degree * (127 + 60 * noise - clean),
        "half of it": lambda degree: torch.cat([clean[: int(240 * (1 - degree))], 127 + 60 * noise[int(240 * (1 - degree)) :]]),
    }
    for name, damage in damages.items():
        distances = [
            frechet(model(damage(degree).clamp(0, 255).byte())["features"].numpy(), reference) for degree in (0, 0.3, 0.6, 1)
        ]
        assert distances == sorted(distances), (name, distances)
        # At 16 pixels a scene that has faded by 0.6 is hidden by the noise almost as well as one that has faded entirely.
        last = 1.05 if name == "fade" and size == (16, 16) else 1.1
        assert distances[2] > 1.1 * distances[1], (name, distances)
        assert distances[3] > last * distances[2], (name, distances)


def failures(size, index):
    """Failures of structure by name, uint8 [N, h, w, 3], and the ground alone."""
    whole, other = shapes.render_batch("heldout", index, size), shapes.render_batch("heldout", index + 1, size)
    rng = np.random.Generator(np.random.Philox(2))
    return {
        "corner": spoil.quarters("heldout", index, size, [[0]] * len(index)),
        "tiled": spoil.tiled("heldout", index, size),
        "shuffled": spoil.shuffled(whole, 1, rng),
        "swapped": spoil.swapped(whole, 1),
        "joined": spoil.joined(whole, other, 0),
    }, spoil.empty("heldout", index, size)


@pytest.mark.parametrize("size", [(48, 48), (64, 64), (64, 48), (48, 64)])
def test_failures_of_structure_count_as_much_as_a_missing_object(model, size):
    def features(images):
        return model(torch.from_numpy(images).permute(0, 3, 1, 2))["features"].numpy()

    index = np.arange(5000, 5240)
    reference = model(pictures(size, 240, split="reference"))["features"].numpy()
    same = frechet(model(pictures(size, 240))["features"].numpy(), reference)
    spoiled, ground = failures(size, index)
    empty = frechet(features(ground), reference)
    assert empty > 20 * same
    for name, images in spoiled.items():
        wrong = frechet(features(images), reference)
        assert wrong > 0.5 * empty, (name, wrong, empty)
        half = frechet(features(np.concatenate([images[:120], shapes.render_batch("heldout", index[120:], size)])), reference)
        assert 10 * same < half < wrong, (name, half, wrong)


def test_training_scenes_have_the_degrees_of_their_failures():
    rng = np.random.Generator(np.random.Philox(4))
    names = classifier.DEGREES
    for size in ((16, 16), (64, 48), (48, 64)):
        images, target, count, degrees = classifier._scenes(np.arange(classifier.BATCH), size, rng)
        assert images.shape == (classifier.BATCH, 3, *size)
        torch.testing.assert_close(target.sum(1), torch.ones(classifier.BATCH))
        whole = torch.from_numpy(shapes.render_batch("detector", range(classifier.BATCH), size)).permute(0, 3, 1, 2)
        unspoiled = (degrees == 0).all(1) & (count == 1)
        assert unspoiled.sum() >= 20
        assert torch.equal(images[unspoiled], whole[unspoiled])
        assert (degrees[:, :4] == 0).all()  # quality comes later
        empty = degrees[:, names.index("empty")] > 0
        assert torch.equal(empty, count == 0)
        copies, complete = degrees[:, names.index("copies")], ~empty & ~count.isnan()
        torch.testing.assert_close(2 ** (2 * copies[complete]), count[complete])
        parts = degrees[:, [names.index("shuffled"), names.index("torn")]].amax(1) > 0
        assert torch.equal(parts, count.isnan())
        assert (target.amax(1) == 1)[degrees.nan_to_num().abs().sum(1) == 0].all()


def test_features_see_colours(model):
    reference = model(pictures((32, 32), 400, split="reference"))["features"].numpy()
    images = pictures((32, 32), 400)
    same = frechet(model(images)["features"].numpy(), reference)
    grey = images.float().mean(1, keepdim=True).expand(-1, 3, -1, -1).byte()
    assert frechet(model(grey)["features"].numpy(), reference) > 3 * same


def test_spatial_features_see_where_things_are(model):
    """Objects confined to one quarter are far from objects anywhere; pictures flipped are not."""
    reference = model(pictures((32, 32), 600, split="reference"))["spatial"].numpy()
    images = pictures((32, 32), 600)
    flipped = frechet(model(images.flip(3))["spatial"].numpy(), reference)
    moved = frechet(model(images.roll((9, 9), (2, 3)))["spatial"].numpy(), reference)
    assert moved > 2 * flipped


def test_training_is_deterministic_and_writes_what_load_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "SIZES", ())  # no measuring
    losses: list[list[float]] = []
    for name in ("a", "b"):
        losses.append([])
        classifier.train(tmp_path / name, steps=2, seed=3, report=lambda step, loss: losses[-1].append(loss))
    assert losses[0] == losses[1]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert classifier.stated(tmp_path / "a")["command"] == "python -m benchmark detector --steps 2 --seed 3"
    assert not classifier.load(tmp_path / "a").training


def test_bad_input_is_refused(model, tmp_path):
    with pytest.raises(UserError, match="uint8"):
        model(torch.zeros(1, 3, 32, 32))
    with pytest.raises(UserError, match="uint8"):
        model(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))
    with pytest.raises(UserError, match="8 pixels"):
        model(torch.zeros(1, 3, 4, 32, dtype=torch.uint8))
    with pytest.raises(UserError, match="does not exist"):
        classifier.load(tmp_path / "none.safetensors")
    (tmp_path / "half.safetensors").write_bytes(classifier.WEIGHTS.read_bytes()[:1000])
    with pytest.raises(UserError, match="does not hold"):
        classifier.load(tmp_path / "half.safetensors")
    from safetensors.torch import save_file

    save_file({"other": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="does not hold"):
        classifier.load(tmp_path / "other.safetensors")
