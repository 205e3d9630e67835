"""Reference statistics against numpy and guided-diffusion's file format; sources, cache and damage."""

from __future__ import annotations

import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from benchmark.data import shapes
from benchmark.evaluate import detectors, reference
from benchmark.evaluate.reference import ImageFolder, Scenes, load, make, open_source, save
from benchmark.evaluate.samples import (
    open_image,
)
from benchmark.evaluate.spectrum import log_spectrum
from benchmark.files import UserError
from benchmark.streams import subset


@pytest.fixture(scope="module")
def detector():
    return detectors.load("shapes", "random")


class Colours(detectors.Detector):
    """A detector that one can follow: mean of each channel, a corner's colours as spatial features."""

    name, hash = "colours", "0123456789ab"

    def __init__(self):
        self.widths = {"features": 3, "spatial": 3, "logits": 3}
        self.network = torch.nn.Linear(1, 1)

    def outputs(self, images):
        features = images.float().mean((2, 3))
        return {"features": features, "spatial": images[:, :, 0, 0].float(), "logits": features / 50}


def photographs(folder, sizes):
    """PNG files of the given (h, w), in two class folders."""
    random = np.random.default_rng(0)
    for i, (height, width) in enumerate(sizes):
        path = folder / "ab"[i % 2] / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).save(path)
    return folder


def test_statistics_are_numpys(tmp_path):
    real = make(Scenes(), (24, 32), Colours(), 50, 10, None, batch=7)
    images = shapes.render_batch("reference", range(50), (24, 32)).astype(np.float64)
    means, corners = images.mean((1, 2)), images[:, 0, 0]
    np.testing.assert_allclose(real.features.mu, means.mean(0), rtol=1e-5)
    np.testing.assert_allclose(real.features.sigma, np.cov(means, rowvar=False), rtol=1e-4)
    np.testing.assert_allclose(real.spatial.sigma, np.cov(corners, rowvar=False), rtol=1e-6)
    np.testing.assert_allclose(real.nearest, means[subset(50, 10)], rtol=1e-5)
    spectra = log_spectrum(torch.from_numpy(images.astype(np.uint8)).permute(0, 3, 1, 2))
    np.testing.assert_allclose(real.spectrum, spectra.double().mean(0), rtol=1e-5)
    assert (real.count, real.meta["size"], real.meta["upsampled"]) == (50, "24x32", 0)


def test_batches_do_not_matter(detector):
    first, second = (make(Scenes(), (16, 16), detector, 20, 8, None, batch) for batch in (3, 20))
    torch.testing.assert_close(first.features.sigma, second.features.sigma, rtol=1e-4, atol=1e-12)
    torch.testing.assert_close(first.nearest, second.nearest, rtol=1e-5, atol=1e-6)
    assert first.hash == second.hash


def test_cache_is_used_and_gives_the_same(detector, tmp_path, monkeypatch):
    first = make(Scenes(), (16, 24), detector, 12, 5, tmp_path)
    (file,) = tmp_path.iterdir()
    monkeypatch.setattr(Scenes, "pictures", None)  # no image is rendered any more
    second = make(Scenes(), (16, 24), detector, 12, 5, tmp_path)
    assert second.meta == first.meta
    for a, b in ((first.features.mu, second.features.mu), (first.features.sigma, second.features.sigma),
                 (first.spatial.sigma, second.spatial.sigma), (first.nearest, second.nearest),
                 (first.spectrum, second.spectrum)):  # fmt: skip
        assert torch.equal(a, b)
    with np.load(file) as arrays:  # what an evaluator asks for
        assert {"mu", "sigma", "mu_s", "sigma_s"} <= set(arrays.files)


def test_hash_names_everything_that_decides(detector):
    def key(source=None, size=(16, 16), detector=detector, count=10, nearest=5):
        return reference.identity(source or Scenes(), size, detector, count, nearest)

    keys = [key(), key(size=(16, 24)), key(detector=Colours()), key(count=11), key(nearest=6)]
    assert len(set(keys)) == len(keys)
    assert key() == keys[0]


def test_folder_is_cut_as_guided_diffusion_does(tmp_path):
    """Halving with a box filter, bicubic to the shorter side, then the centre: by hand for one image."""
    folder = photographs(tmp_path, [(70, 50), (20, 16), (32, 64)])
    source = ImageFolder(folder)
    cut = list(source.pictures(np.arange(3), (16, 16)))
    assert source.count == 3
    # sorted by path: a/000, a/002, b/001
    image = Image.open(folder / "a" / "000.png").resize((25, 35), Image.Resampling.BOX)
    image = image.resize((16, round(35 * 16 / 25)), Image.Resampling.BICUBIC)
    expected = np.asarray(image)[(image.height - 16) // 2 :][:16]
    np.testing.assert_array_equal(cut[0][0], expected)
    assert [flag for _, flag in cut] == [False, False, False]
    wide = list(source.pictures(np.arange(3), (16, 48)))
    assert [picture.shape for picture, _ in wide] == [(16, 48, 3)] * 3
    assert [flag for _, flag in wide] == [False, False, True]
    assert make(source, (16, 48), Colours(), 3, 3, None).meta["upsampled"] == 1


def test_fewer_than_all_are_chosen_at_random(tmp_path):
    """Never the first classes of a sorted folder, and always the same images."""
    chosen = subset(1000, 100)
    assert len(set(chosen)) == 100
    assert (np.diff(chosen) > 0).all()
    assert 400 < chosen.mean() < 600
    np.testing.assert_array_equal(chosen, subset(1000, 100))
    np.testing.assert_array_equal(subset(5, 100), np.arange(5))


def test_a_reference_of_some_images_is_of_the_chosen_ones(tmp_path):
    source = ImageFolder(photographs(tmp_path, [(16, 16)] * 12))
    pixels = np.stack([picture for picture, _ in source.pictures(np.arange(12), (16, 16))]).astype(float).mean((1, 2))
    real = make(source, (16, 16), Colours(), 4, 4, None)
    np.testing.assert_allclose(real.features.mu, pixels[subset(12, 4)].mean(0), rtol=1e-5)


def test_a_picture_that_was_written_again_is_another_folder(tmp_path):
    """Of the same size, as uncompressed pictures are: its time tells."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.bmp")
    before = ImageFolder(tmp_path).hash
    os.utime(tmp_path / "a.bmp", (1, 1))
    assert ImageFolder(tmp_path).hash != before


def test_shards_are_a_source(tmp_path):
    from benchmark.data import writer
    from benchmark.data.card import Card
    from benchmark.data.sources import (
        source,
    )

    photographs(tmp_path / "data", [(20, 20)] * 6)
    card = Card(name="photos", kind="folder")
    writer.write(card, source(card, tmp_path / "data"), tmp_path / "out")
    source = open_source(tmp_path / "out")
    real = make(source, (16, 16), Colours(), 6, 6, None)
    folder = make(ImageFolder(tmp_path / "data"), (16, 16), Colours(), 6, 6, None)
    torch.testing.assert_close(real.features.sigma, folder.features.sigma)
    assert source.count == 6


def adm_file(path, count=30, width=2048, images=None, **more):
    """What guided-diffusion's reference files hold."""
    random = np.random.default_rng(0)
    spatial = random.normal(size=(count, 20))
    arrays = {"mu": random.normal(size=width), "sigma": np.eye(width), "mu_s": spatial.mean(0),
              "sigma_s": np.cov(spatial, rowvar=False)}  # fmt: skip
    if images is not None:
        arrays["arr_0"] = images
    np.savez(path, **(arrays | more))
    return arrays


class Inceptionlike(Colours):
    name = "inception"


def test_guided_diffusions_reference_as_it_is(tmp_path):
    images = shapes.render_batch("reference", range(9), (16, 16))
    arrays = adm_file(tmp_path / "ref.npz", width=3, images=images)
    real = load(tmp_path / "ref.npz", Inceptionlike(), batch=4)
    np.testing.assert_array_equal(real.features.mu, arrays["mu"])
    np.testing.assert_array_equal(real.spatial.sigma, arrays["sigma_s"])
    np.testing.assert_allclose(real.nearest, images.astype(np.float64).mean((1, 2)), rtol=1e-5)
    assert real.spectrum.shape == (8,)
    assert real.count is None
    assert real.meta["size"] == "16x16"
    adm_file(tmp_path / "bare.npz", width=3)
    assert load(tmp_path / "bare.npz", Inceptionlike()).nearest is None


def test_progress_reaches_the_end(detector):
    seen = []
    make(Scenes(), (16, 16), detector, 10, 5, None, 4, lambda done, total: seen.append((done, total)))
    assert seen == [(4, 10), (8, 10), (10, 10)]


# --- Bad input -------------------------------------------------------------------------------------------------------


def test_too_few_images(tmp_path, detector):
    source = ImageFolder(photographs(tmp_path, [(16, 16)] * 3))
    with pytest.raises(UserError, match="has 3 images, the reference asks for 4"):
        make(source, (16, 16), detector, 4, 2, None)
    with pytest.raises(UserError, match="at least 2 images, not 1"):
        make(source, (16, 16), detector, 1, 1, None)


def test_empty_and_missing_folders(tmp_path):
    with pytest.raises(UserError, match="holds no images"):
        open_source(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        open_source(tmp_path / "none")


def test_damaged_image_is_named(tmp_path):
    folder = photographs(tmp_path, [(16, 16)] * 3)
    file = folder / "b" / "001.png"
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(UserError, match=r"b/001\.png is not a readable image"):
        list(ImageFolder(folder).pictures(np.arange(3), (16, 16)))


def test_pictures_of_more_than_8_bits_are_refused(tmp_path):
    """Pillow would make nearly all of them white."""
    for name, pixels in (("a.png", np.uint16(30_000)), ("b.tif", np.int32(30_000)), ("c.tif", np.float32(0.5))):
        Image.fromarray(np.full((4, 6), pixels)).save(tmp_path / name)
        with pytest.raises(UserError, match=rf"{name} has more than 8 bits a channel \(Pillow's mode [IF]"):
            open_image(tmp_path / name)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_pictures_of_other_modes_become_rgb(tmp_path, mode):
    """As torch-fidelity reads them: transparency is dropped."""
    picture = Image.fromarray(shapes.render_batch("heldout", [0], (16, 16))[0]).convert(mode)
    picture.save(tmp_path / "a.tif")
    np.testing.assert_array_equal(open_image(tmp_path / "a.tif"), picture.convert("RGB"))


def test_damage_beyond_pillows_usual_errors(tmp_path):
    (tmp_path / "a.ppm").write_bytes(b"P6 8 8 x255\n" + bytes(192))  # a ValueError
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    data = bytearray((tmp_path / "b.png").read_bytes())
    data[16:24] = struct.pack(">II", 60_000, 60_000)  # a decompression bomb
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "b.png").write_bytes(data)
    for name in ("a.ppm", "b.png"):
        with pytest.raises(UserError, match=f"{name} is not a readable image"):
            open_image(tmp_path / name)


@pytest.mark.parametrize("nearest", [0, -1])
def test_without_features_for_precision(detector, nearest):
    with pytest.raises(UserError, match=f"at least 1 image for precision and recall, not {nearest}"):
        make(Scenes(), (16, 16), detector, 4, nearest, None)


def test_references_with_foreign_or_missing_parts(tmp_path):
    arrays = adm_file(tmp_path / "half.npz", width=3)
    del arrays["sigma_s"]
    np.savez(tmp_path / "half.npz", **arrays)
    assert load(tmp_path / "half.npz", Inceptionlike()).spatial is None
    for meta in ('{"made": "elsewhere"}', "[1]", "3"):
        adm_file(tmp_path / "foreign.npz", width=3, meta=meta)
        with pytest.raises(UserError, match="its meta was not written by python -m benchmark reference"):
            load(tmp_path / "foreign.npz", Inceptionlike())


def test_reference_of_another_detector(tmp_path, detector):
    save(make(Scenes(), (16, 16), detector, 8, 4, None), tmp_path / "ours.npz")
    other = detectors.load("shapes", "random")
    other.hash = "ffffffffffff"
    with pytest.raises(UserError, match="cannot be compared"):
        load(tmp_path / "ours.npz", other)
    adm_file(tmp_path / "adm.npz", width=3)
    with pytest.raises(UserError, match="for detector 'inception' only"):
        load(tmp_path / "adm.npz", Colours())
    with pytest.raises(UserError, match=f"width 3, detector 'shapes' has {detector.widths['features']}"):
        load(tmp_path / "adm.npz", detector)


def test_edited_references(tmp_path, detector):
    """Foreign arrays are passed over; what is read has to fit, and the message names the file."""
    made = make(Scenes(), (16, 16), detector, 8, 4, None)
    save(made, tmp_path / "ours.npz")
    with np.load(tmp_path / "ours.npz") as file:
        arrays = dict(file)
    np.savez(tmp_path / "more.npz", **arrays | {"note": np.array("by me"), "mu": arrays["mu"].astype(">f8")})
    assert torch.equal(load(tmp_path / "more.npz", detector).features.mu, made.features.mu)
    wrong = {"nearest": arrays["nearest"][:, 1:], "spectrum": arrays["spectrum"] * np.nan, "mu": arrays["mu"] * np.nan}
    for (name, value), told in zip(
        wrong.items(), ("have the shape", "finite", "mean and covariance must be finite"), strict=True
    ):
        np.savez(tmp_path / "edited.npz", **arrays | {name: value})
        with pytest.raises(UserError, match=rf"edited\.npz: .*{told}"):
            load(tmp_path / "edited.npz", detector)


def test_a_damaged_reference_in_the_cache_is_to_be_removed(tmp_path, detector):
    make(Scenes(), (16, 24), detector, 12, 5, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="remove it and run the command again"):
        make(Scenes(), (16, 24), detector, 12, 5, tmp_path)


def test_damaged_references(tmp_path, detector):
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "none.npz", detector)
    (tmp_path / "half.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(UserError, match="not a readable reference"):
        load(tmp_path / "half.npz", detector)
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(UserError, match="no mean and covariance"):
        load(tmp_path / "other.npz", detector)
    adm_file(tmp_path / "code.npz", width=3, meta=np.array([{"run": print}], dtype=object))
    with pytest.raises(UserError, match="not a readable reference"):
        load(tmp_path / "code.npz", Inceptionlike())
