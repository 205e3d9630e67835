"""Scoring: images from anywhere, features on disk that survive interruption, and the scores of a complete cell."""

from __future__ import annotations

import dataclasses
import math
import shutil
import tracemalloc
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric

from benchmark import protocol
from benchmark.data import shapes
from benchmark.data.tars import write_contents
from benchmark.evaluate import detectors, external, samples
from benchmark.evaluate.external import score_files
from benchmark.evaluate.manifold import kernel_distance
from benchmark.evaluate.metrics import Moments, frechet_distance, infinity_sizes, with_interval, within_classes
from benchmark.evaluate.reference import Reference, Scenes, make, save
from benchmark.evaluate.samples import (
    Images,
    chunk_name,
    export_npz,
    open_images,
    write_chunk,
)
from benchmark.evaluate.score import FeatureRows, Features, Options, extract, fid_infinity, options_of, score, uncertainty
from benchmark.files import UserError, write_json
from benchmark.streams import balanced_order, subset

SIZE = (24, 32)


class Grid(detectors.Detector):
    """Features one can follow: means of a 2 x 3 grid, per channel; classes and objects from single pixels."""

    name, hash = "grid", "0123456789ab"

    def __init__(self):
        self.widths = {"features": 18, "spatial": 9, "logits": 8, "predicted": 0, "objects": 0}
        self.network = torch.nn.Linear(1, 1)
        self.calls = 0

    def outputs(self, images):
        self.calls += len(images)
        x = images.float()
        features = torch.nn.functional.adaptive_avg_pool2d(x, (2, 3)).flatten(1)
        return {"features": features, "spatial": x[:, :, 5, :3].flatten(1), "logits": features[:, :8] / 40,
                "predicted": images[:, 0, 0, 0] % 8, "objects": x[:, 0, 0, 0] % 3}  # fmt: skip


def scenes(count, size=SIZE):
    return shapes.render_batch("heldout", range(count), size)


def cell(folder, images, chunk=16):
    (folder / "chunks").mkdir(parents=True)
    for k, start in enumerate(range(0, len(images), chunk)):
        write_chunk(folder / "chunks" / chunk_name(k), images[start : start + chunk], start)
    return folder


def pngs(folder, images):
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:05d}.png")
    return folder


@pytest.fixture(scope="module")
def real():
    return make(Scenes(), SIZE, Grid(), 80, 60, None)


def features_of(images: Images, folder, detector=None, **options) -> Features:
    extract(images, detector or Grid(), folder, **options)
    return Features(folder, images)


# --- Opening ---------------------------------------------------------------------------------------------------------


def test_all_kinds_of_images_are_the_same_stream(tmp_path):
    images = scenes(50)
    np.savez(tmp_path / "stored.npz", arr_0=images)
    np.savez_compressed(tmp_path / "small.npz", images)
    cell(tmp_path / "cell", images)
    pngs(tmp_path / "pngs", images)
    for name in ("stored.npz", "small.npz", "cell", "cell/chunks", "pngs"):
        opened = open_images(tmp_path / name)
        assert (opened.count, opened.size_hw) == (50, SIZE)
        np.testing.assert_array_equal(np.concatenate(list(opened.batches())), images)


def test_a_cell_with_the_images_of_another_one(tmp_path):
    images = scenes(20)
    cell(tmp_path / "base", images)
    write_json(tmp_path / "cell" / "samples.json", {"count": 20, "same_as": "base"})
    np.testing.assert_array_equal(np.concatenate(list(open_images(tmp_path / "cell").batches())), images)
    write_json(tmp_path / "base" / "samples.json", {"count": 500})
    with pytest.raises(UserError, match="base holds 20 images of 500: sample the cell again with --keep"):
        open_images(tmp_path / "cell")


def test_npz_in_several_units(tmp_path, monkeypatch):
    """Read in any order; the file is never held in memory at once."""
    monkeypatch.setattr(samples, "UNIT_IMAGES", 7)
    images = scenes(20)
    np.savez(tmp_path / "a.npz", images)
    np.savez_compressed(tmp_path / "b.npz", images)
    for name in ("a.npz", "b.npz"):
        units = open_images(tmp_path / name).units
        assert [(unit.start, unit.count) for unit in units] == [(0, 7), (7, 7), (14, 6)]
        for unit in reversed(units):
            np.testing.assert_array_equal(unit.read(), images[unit.start : unit.start + unit.count])


def test_export_is_what_numpy_reads(tmp_path):
    images = scenes(30)
    export_npz(open_images(cell(tmp_path / "cell", images, 8)), tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as file:
        assert file.files == ["arr_0"]
        assert file["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(file["arr_0"], images)


def test_export_and_reading_do_not_hold_the_images(tmp_path):
    """24 chunks of 3 MB: at no time more than a few of them in memory."""
    folder = tmp_path / "cell" / "chunks"
    folder.mkdir(parents=True)
    for k in range(24):
        write_chunk(folder / chunk_name(k), np.full((4, 512, 512, 3), k, np.uint8), 4 * k)
    tracemalloc.start()
    export_npz(open_images(folder), tmp_path / "out.npz")
    assert tracemalloc.get_traced_memory()[1] < 12e6
    tracemalloc.stop()
    assert zipfile.ZipFile(tmp_path / "out.npz").getinfo("arr_0.npy").file_size > 24 * 3e6


# --- Features --------------------------------------------------------------------------------------------------------


def test_features_are_resumed(tmp_path):
    images = open_images(cell(tmp_path / "cell", scenes(70)))  # 5 chunks, the last of 6 images
    folder, detector, done = tmp_path / "features", Grid(), []
    with pytest.raises(UserError, match="is missing or belongs to other images"):
        Features(folder, images)
    extract(images, detector, folder, 5, lambda *now: done.append(now))
    assert done == [(n, 70) for n in (16, 32, 48, 64, 70)]
    assert detector.calls == 70
    again = Grid()
    features = features_of(images, folder, again)
    assert again.calls == 0
    alone = features_of(images, tmp_path / "alone", batch=70)
    assert features.widths == alone.widths
    for name in alone.widths:
        torch.testing.assert_close(features.all(name), alone.all(name), rtol=1e-5, atol=1e-5)
    (folder / "unit-00002.safetensors").unlink()
    (folder / "unit-00004.safetensors").write_bytes(b"half")
    extract(images, again, folder)
    assert again.calls == 16 + 6


def test_features_of_changed_images_are_made_anew(tmp_path):
    images = cell(tmp_path / "cell", scenes(32))
    features_of(open_images(images), tmp_path / "features")
    write_chunk(images / "chunks" / "chunk-00001.tar", scenes(40)[24:], 16)
    detector = Grid()
    with pytest.raises(UserError, match=r"unit-00001.* belongs to other images"):
        Features(tmp_path / "features", open_images(images))
    extract(open_images(images), detector, tmp_path / "features")
    assert detector.calls == 16


def test_blocks_of_several_units_hold_the_chosen_rows_in_order(tmp_path):
    features = features_of(open_images(cell(tmp_path / "cell", scenes(70))), tmp_path / "features")
    chosen = np.array([0, 3, 15, 16, 40, 41, 69])
    rows = FeatureRows(features, chosen, "cpu", block=4)
    for _ in range(2):  # as often as need be
        blocks = list(rows.blocks())
        assert [start for start, _ in blocks] == [0, 4]
        assert torch.equal(torch.cat([part for _, part in blocks]), features.all("features")[chosen])
    assert len(rows) == 7


def test_anybodys_features_stay_in_float32(tmp_path):
    """Those that are compared with other evaluators, whatever the detector; only a cell's rest in fewer bytes."""
    images, detector = open_images(cell(tmp_path / "cell", scenes(20))), Grid()
    detector.name, detector.head = "inception", torch.ones(8, 18)
    features = features_of(images, tmp_path / "features", detector)
    seen = detector.outputs(torch.from_numpy(scenes(20)).permute(0, 3, 1, 2))
    for name in ("features", "spatial", "logits"):
        assert torch.equal(features.all(name), seen[name])


def test_rows_by_index(tmp_path):
    images = open_images(cell(tmp_path / "cell", scenes(40), 9))
    features = features_of(images, tmp_path / "features")
    complete = features.all("features")
    for indices in ([0, 8, 9, 39], [20], list(range(40))):
        assert torch.equal(features.take("features", np.array(indices)), complete[indices])


# --- Scores ----------------------------------------------------------------------------------------------------------


def test_scores_of_a_cell(tmp_path, real):
    """Each against its own source, from images that torch-fidelity is handed directly."""
    pictures = scenes(100)
    images = open_images(cell(tmp_path / "cell", pictures))
    features = features_of(images, tmp_path / "features")
    labels = np.arange(100) % 8
    scores = score(features, real, labels, Options(nearest=60))
    seen = Grid().outputs(torch.from_numpy(pictures).permute(0, 3, 1, 2))
    there = Grid().outputs(torch.from_numpy(shapes.render_batch("reference", range(80), SIZE)).permute(0, 3, 1, 2))
    for name, part in (("fid", "features"), ("sfid", "spatial")):
        statistics = [fid_features_to_statistics(side[part].double()) for side in (seen, there)]
        expected = fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
        assert scores[name]["value"] == pytest.approx(expected, rel=1e-6)
    inception = isc_features_to_metric(seen["logits"])
    assert scores["is"]["value"] == pytest.approx(inception["inception_score_mean"], rel=1e-6)
    assert scores["is"]["deviation"] == pytest.approx(inception["inception_score_std"], rel=1e-5)
    assert scores["top1"]["value"] == np.mean(pictures[:, 0, 0, 0] % 8 == labels)
    assert scores["objects"]["value"] == pytest.approx(np.mean(np.abs(pictures[:, 0, 0, 0] % 3 - 1.0)))
    assert set(scores) == {"fid", "sfid", "is", "precision", "recall", "kid", "fid_inf", "spectrum", "top1", "objects"}
    for name in ("fid", "sfid", "is", "precision", "kid", "spectrum", "top1", "objects"):
        assert scores[name]["low"] < scores[name]["value"] < scores[name]["high"]
        assert len(scores[name]["replicates"]) == 200
        assert all(map(math.isfinite, scores[name]["replicates"]))
    assert 0 < scores["precision"]["value"] <= 1
    assert scores["fid_inf"]["value"] < scores["fid"]["value"]


def test_scores_do_not_depend_on_chunks_or_batches(tmp_path, real):
    pictures, found = scenes(60), []
    for k, (chunk, batch) in enumerate(((60, 60), (7, 3))):
        images = open_images(cell(tmp_path / f"cell{k}", pictures, chunk))
        extract(images, Grid(), tmp_path / f"features{k}", batch)
        found.append(score(Features(tmp_path / f"features{k}", images), real, options=Options(resamples=5)))
    for name, first in found[0].items():
        assert first["value"] == pytest.approx(found[1][name]["value"], rel=1e-5, abs=1e-8), name
        assert first.get("replicates", []) == pytest.approx(found[1][name].get("replicates", []), rel=1e-5, abs=1e-8), name


def test_worse_images_score_worse(tmp_path, real):
    """Blur and a tint: every distance grows, and the paired comparison sees it."""
    from benchmark.results.compare import compare

    good, found = scenes(96), []
    tinted = (good // 4 + np.roll(good, 1, 1) // 4 + np.roll(good, 2, 2) // 4 + 60).astype(np.uint8)
    for k, pictures in enumerate((good, tinted)):
        images = open_images(cell(tmp_path / f"cell{k}", pictures))
        found.append(score(features_of(images, tmp_path / f"f{k}"), real))
    for name in ("fid", "sfid", "kid", "spectrum"):
        assert compare(*(scores[name] for scores in found)).verdict == "lower", name


def test_infinity_is_below_a_finite_sample(tmp_path):
    """Of Gaussians with a known distance: FID at N is too large by c / N, and the line takes it away."""

    class Direct(Grid):
        def outputs(self, images):
            return {"features": images.flatten(1).double().float()}

    generator = torch.Generator().manual_seed(0)
    pictures = (128 + 25 * torch.randn(3000, 2, 4, 3, generator=generator)).round().clamp(0, 255).to(torch.uint8).numpy()
    detector = Direct()
    detector.widths = {"features": 24}
    features = features_of(open_images(cell(tmp_path / "cell", pictures, 500)), tmp_path / "f", detector)
    truth = Moments(torch.full((24,), 128.0), torch.eye(24) * (25**2 + 1 / 12))
    here = Moments(features.all("features").double().mean(0), torch.cov(features.all("features").double().T))
    finite, infinite = (
        frechet_distance(here, truth),
        fid_infinity(features, truth, infinity_sizes(3000, 24), torch.zeros(3000)),
    )
    rows, order, sizes = features.all("features").double(), balanced_order(np.zeros(3000)), infinity_sizes(3000, 24)
    parts = [rows[order[:size]] for size in sizes]
    values = [frechet_distance(Moments(part.mean(0), torch.cov(part.T)), truth) for part in parts]
    assert infinite == pytest.approx(np.polyfit(1 / np.array(sizes), values, 1)[1], rel=1e-6)
    assert finite > 2
    assert abs(infinite) < 0.5 * finite


def test_balanced_order():
    classes = np.repeat([2, 0, 1, 7], [5, 10, 10, 15])
    order = balanced_order(classes)
    assert sorted(order) == list(range(40))
    for beginning, expected in ((8, [2, 2, 2, 2]), (20, [5, 5, 5, 5]), (29, [8, 8, 5, 8]), (40, [10, 10, 5, 15])):
        assert np.bincount(classes[order[:beginning]], minlength=8)[[0, 1, 2, 7]].tolist() == expected
    assert order[:20].tolist() != sorted(order[:20])


def test_intervals_leave_out_what_differs_between_classes(tmp_path, real):
    """Classes take turns in samples: of images that are all alike within a class there is nothing to resample; values stay."""
    images = open_images(cell(tmp_path / "cell", np.tile(scenes(8), (10, 1, 1, 1))))
    features, options = features_of(images, tmp_path / "features"), Options(nearest=60, splits=1, resamples=20)
    unknown, known = (score(features, real, labels, options) for labels in (None, np.arange(80) % 8))
    for name in ("fid", "sfid", "is", "kid", "precision", "spectrum", "objects"):
        assert known[name]["value"] == unknown[name]["value"], name
        widths = [np.ptp(scores[name]["replicates"]) for scores in (known, unknown)]
        assert widths[0] < 1e-6 * widths[1], name


def test_kernel_distance_is_of_the_chosen_samples_within_their_classes(tmp_path, real):
    features = features_of(open_images(cell(tmp_path / "cell", scenes(100))), tmp_path / "features")
    labels, chosen = np.arange(100) % 8, subset(100, 60)
    value, influence = kernel_distance(features.all("features")[chosen], real.nearest)
    expected = with_interval(value, within_classes(influence, torch.from_numpy(labels[chosen])), 20, 0.95)
    found = score(features, real, labels, Options(nearest=60, resamples=20))["kid"]
    assert found["value"] == pytest.approx(value)
    assert found["replicates"] == pytest.approx(expected["replicates"], rel=1e-6)


def test_fid_is_extrapolated_from_samples_in_which_classes_take_turns(tmp_path, real):
    features = features_of(open_images(cell(tmp_path / "cell", scenes(100))), tmp_path / "features")
    labels, sizes = np.arange(100) % 8, infinity_sizes(100, 18)
    found = score(features, real, labels, Options(resamples=0))["fid_inf"]["value"]
    assert found == pytest.approx(fid_infinity(features, real.features, sizes, torch.from_numpy(labels)), rel=1e-6)
    assert found != pytest.approx(fid_infinity(features, real.features, sizes, torch.zeros(100)), rel=1e-3)


def test_random_labels_are_no_strata(tmp_path, real):
    """How often a class comes is part of what random labels vary: intervals are those of images of no class, values stay."""
    images = open_images(cell(tmp_path / "cell", scenes(80)))
    features, labels = features_of(images, tmp_path / "features"), np.arange(80) % 8
    unknown, drawn = score(features, real), score(features, real, labels, Options(balanced=False))
    assert drawn == {**unknown, **{name: drawn[name] for name in drawn if name not in unknown}}
    assert set(drawn) >= set(unknown)
    assert uncertainty(Options(balanced=False))["method"] == "bootstrap over images, of first-order influences"
    assert uncertainty(Options())["method"] == "bootstrap over images, of first-order influences, within classes"


def test_a_protocol_says_how_its_scores_are_taken():
    settings, expected = ["score.nearest=70", "score.splits=7"], Options(splits=7, nearest=70, all_samples=True)
    for labels, balanced in (("balanced", True), ("random", False)):
        rules = protocol.load("shapes-long", [*settings, f"sample.labels={labels}"])
        assert options_of(rules) == dataclasses.replace(expected, balanced=balanced)


def test_without_reference_parts_there_are_fewer_scores(tmp_path, real):
    bare = Reference(real.features, None, None, None, real.meta)
    images = open_images(cell(tmp_path / "cell", scenes(30)))
    scores = score(features_of(images, tmp_path / "features"), bare, options=Options(resamples=0, infinity=0))
    assert set(scores) == {"fid", "is", "objects"}
    assert set(scores["fid"]) == {"value"}


# --- Anybody's files -------------------------------------------------------------------------------------------------


def test_anybodys_files(tmp_path, monkeypatch):
    monkeypatch.setattr(detectors, "load", lambda name, weights, device: Grid())
    pictures, truth = scenes(40), shapes.render_batch("reference", range(50), SIZE)
    np.savez(tmp_path / "samples.npz", pictures)
    pngs(tmp_path / "samples", pictures)
    np.savez(tmp_path / "truth.npz", truth)
    pngs(tmp_path / "truth", truth)
    cell(tmp_path / "cell", truth)
    save(make(Scenes(), SIZE, Grid(), 50, 50, None), tmp_path / "reference.npz")
    found = [
        score_files(tmp_path / samples, tmp_path / there, "grid", options=Options(resamples=3))
        for samples, there in (("samples.npz", "reference.npz"), ("samples", "truth.npz"), ("samples.npz", "truth"),
                               ("samples.npz", "cell"))
    ]  # fmt: skip
    for result in found:
        assert result["count"] == 40
        assert result["reference"]["count"] == 50
        assert (result["nearest"], result["splits"]) == (50, 10)
        assert "classes" not in result["uncertainty"]["method"]  # nobody knows them
        assert {"fid", "sfid", "is", "precision", "recall"} <= set(result["scores"])
        for name, expected in found[0]["scores"].items():
            assert result["scores"][name]["value"] == pytest.approx(expected["value"], rel=1e-6, abs=1e-9)


def test_files_are_scored_as_the_fields_evaluator_scores_them(tmp_path, monkeypatch):
    """Splits of the inception score by their number, and precision and recall over all of them."""
    seen = []
    monkeypatch.setattr(detectors, "load", lambda *_: Grid())
    monkeypatch.setattr(external, "score", lambda features, real, labels, options, device: seen.append(options) or {})
    monkeypatch.setattr(external.registry, "detector_facts", lambda name: SimpleNamespace(splits=lambda count: count // 20))
    for name in "ab":
        pngs(tmp_path / name, scenes(40))
    assert score_files(tmp_path / "a", tmp_path / "b", "grid")["splits"] == 2
    assert [(options.splits, options.all_samples, options.balanced) for options in seen] == [(2, True, False)]


def test_files_however_they_are_named(tmp_path, monkeypatch):
    """A folder given as ".", an ending in capitals; and an interval stays within what a score can be."""
    monkeypatch.setattr(detectors, "load", lambda name, weights, device: Grid())
    pngs(tmp_path / "truth", shapes.render_batch("reference", range(50), SIZE))
    with open(tmp_path / "SAMPLES.NPZ", "wb") as file:
        np.savez(file, scenes(40))
    monkeypatch.chdir(tmp_path / "truth")
    found = score_files("../SAMPLES.NPZ", ".", "grid", options=Options(resamples=20))
    assert found["reference"] == found["reference"] | {"source": "truth", "upsampled": 0}
    for name in ("fid", "sfid", "precision", "spectrum"):
        assert 0 <= found["scores"][name]["low"] <= found["scores"][name]["high"], name
    (tmp_path / "truth" / "zz.png").symlink_to("nowhere.png")
    with pytest.raises(UserError, match=r"zz\.png: a link to nothing"):
        score_files("../SAMPLES.NPZ", ".", "grid")


def test_kept_features_serve_the_next_run(tmp_path, monkeypatch):
    detector = Grid()
    monkeypatch.setattr(detectors, "load", lambda name, weights, device: detector)
    save(make(Scenes(), SIZE, detector, 30, 30, None), tmp_path / "reference.npz")
    pngs(tmp_path / "samples", scenes(12))
    detector.calls = 0
    for _ in range(2):
        score_files(tmp_path / "samples", tmp_path / "reference.npz", "shapes", keep=tmp_path / "keep")
    assert detector.calls == 12


# --- Bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 3, 16, 16), np.uint8), "NCHW, transpose it to NHWC"),
        (np.zeros((4, 16, 16, 3), np.float32), "holds float32, images must be uint8"),
        (np.zeros((16, 16, 3), np.uint8), r"must be \[n, height, width, 3\]"),
        (np.zeros((4, 16, 16, 1), np.uint8), r"shape \[4, 16, 16, 1\]"),
        (np.zeros((4, 0, 16, 3), np.uint8), "images without pixels"),
    ],
)
def test_wrong_layout(tmp_path, array, message):
    np.savez(tmp_path / "a.npz", array)
    with pytest.raises(UserError, match=message):
        open_images(tmp_path / "a.npz")


def test_mixed_sizes(tmp_path):
    folder = cell(tmp_path / "cell", scenes(4), 4)
    write_chunk(folder / "chunks" / "chunk-00001.tar", scenes(4, (16, 16)), 4)
    with pytest.raises(UserError, match=r"chunk-00001\.tar is 16x16, the images before it are 24x32"):
        open_images(folder)
    pictures = pngs(tmp_path / "pngs", scenes(3))
    Image.new("RGB", (20, 10)).save(pictures / "z.png")
    with pytest.raises(UserError, match=r"z\.png is 10x20"):
        list(open_images(pictures).batches())


def test_missing_empty_and_damaged(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        open_images(tmp_path / "none")
    with pytest.raises(UserError, match="does not exist"):
        open_images(tmp_path / "none.npz")
    with pytest.raises(UserError, match="holds no images"):
        open_images(tmp_path)
    np.savez(tmp_path / "empty.npz", np.zeros((0, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match="holds no images"):
        open_images(tmp_path / "empty.npz")
    np.savez(tmp_path / "other.npz", images=np.zeros(3), labels=np.zeros(3))
    with pytest.raises(UserError, match=r"has no array arr_0.* \(it has: images, labels\)"):
        open_images(tmp_path / "other.npz")
    (tmp_path / "half.npz").write_bytes(b"PK nothing")
    with pytest.raises(UserError, match="is damaged"):
        open_images(tmp_path / "half.npz")
    folder = cell(tmp_path / "cell", scenes(20), 4)
    (folder / "chunks" / "chunk-00002.tar").unlink()
    with pytest.raises(UserError, match=r"chunk-00002\.tar is missing"):
        open_images(folder)


def test_damaged_chunks(tmp_path):
    folder = cell(tmp_path / "cell", scenes(20), 4)
    chunk = folder / "chunks" / "chunk-00002.tar"
    sound = chunk.read_bytes()
    write_contents(chunk, [{"__key__": "000008", "gif": b"GIF89a"}])
    strange = chunk.read_bytes()
    for damaged, message in (
        (b"", "not a complete, uncompressed tar"),
        (sound[:2000], "ends early"),
        (sound[:512] + bytes(100) + sound[612:], "is damaged"),
        (strange, "holds .*000008.*, which is no picture"),
    ):
        chunk.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"chunk-00002\.tar.*{message}"):
            open_images(folder)
    write_chunk(chunk, scenes(20)[8:12], 8)
    assert chunk.read_bytes() == sound, "the same bytes for the same images"
    last = sound.rfind(b"IDAT") + 20
    chunk.write_bytes(sound[:last] + bytes(40) + sound[last + 40 :])
    with pytest.raises(UserError, match=r"picture 3 of .*chunk-00002\.tar is not a readable image"):
        list(open_images(folder).batches())


def test_a_chunk_is_a_tar_of_pictures_that_others_read(tmp_path):
    """webdataset's own reader finds the images, each under its number in the cell."""
    images = scenes(5)
    write_chunk(tmp_path / chunk_name(2), images, 8)
    found = list(webdataset.WebDataset(str(tmp_path / "chunk-00002.tar"), shardshuffle=False).decode("rgb8"))
    assert [item["__key__"] for item in found] == [f"{number:06}" for number in range(8, 13)]
    np.testing.assert_array_equal(np.stack([item["png"] for item in found]), images)


def constant(images):
    return np.broadcast_to(images[:1], images.shape)


@pytest.mark.parametrize(
    ("pictures", "options", "message"),
    [
        (scenes(1), Options(), "at least 2 images, not 1"),
        (scenes(5), Options(), "5 images, 10 splits"),
        (scenes(3), Options(splits=1), "at least 4 images, not 3"),
        (constant(scenes(20)), Options(), "all 20 images have the same features"),
    ],
)
def test_too_few_or_constant(tmp_path, real, pictures, options, message):
    images = open_images(cell(tmp_path / "cell", pictures))
    with pytest.raises(UserError, match=message):
        score(features_of(images, tmp_path / "features"), real, options=options)


def test_features_that_are_nan(tmp_path, real):
    class Broken(Grid):
        def outputs(self, images):
            outputs = super().outputs(images)
            outputs["features"][0] = torch.nan
            return outputs

    images = open_images(cell(tmp_path / "cell", scenes(20), 20))
    with pytest.raises(UserError, match="features of 1 of 20 images are NaN or infinite"):
        score(features_of(images, tmp_path / "features", Broken(), batch=20), real)


def test_labels_of_another_number(tmp_path, real):
    images = open_images(cell(tmp_path / "cell", scenes(20)))
    with pytest.raises(UserError, match="19 labels for 20 images"):
        score(features_of(images, tmp_path / "features"), real, np.zeros(19))


def test_reference_of_another_size(tmp_path, real, monkeypatch):
    images = open_images(cell(tmp_path / "cell", scenes(20, (16, 16))))
    with pytest.raises(UserError, match="the reference is of 24x32 images, the samples are 16x16"):
        score(features_of(images, tmp_path / "features"), real)
    turned = open_images(cell(tmp_path / "turned", scenes(20, SIZE[::-1])))  # as many frequencies, yet other images
    with pytest.raises(UserError, match="the reference is of 24x32 images, the samples are 32x24"):
        score(features_of(turned, tmp_path / "turned"), real)
    monkeypatch.setattr(detectors, "load", lambda name, weights, device: Grid())
    np.savez(tmp_path / "truth.npz", scenes(20))
    with pytest.raises(UserError, match="truth has images of 24x32, the samples are 16x16"):
        score_files(tmp_path / "cell", tmp_path / "truth.npz", "grid")
    with pytest.raises(UserError, match="has no fixed number of images"):
        score_files(tmp_path / "cell", "shapes", "grid")
    shutil.rmtree(tmp_path / "cell")
    with pytest.raises(UserError, match="does not exist"):
        score_files(tmp_path / "cell", tmp_path / "truth.npz", "grid")


def test_npz_damaged_in_the_middle(tmp_path):
    np.savez(tmp_path / "a.npz", scenes(20))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[len(data) // 2] ^= 255
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(UserError, match=r"a\.npz is damaged \(Bad CRC"):
        list(open_images(tmp_path / "a.npz").batches())


def test_reference_of_another_size_is_seen_before_any_work(tmp_path, real, monkeypatch):
    detector = Grid()
    monkeypatch.setattr(detectors, "load", lambda name, weights, device: detector)
    save(real, tmp_path / "reference.npz")
    pngs(tmp_path / "samples", scenes(12, SIZE[::-1]))
    with pytest.raises(UserError, match="the samples are 32x24"):
        score_files(tmp_path / "samples", tmp_path / "reference.npz", "grid")
    pngs(tmp_path / "few", scenes(3, SIZE))
    with pytest.raises(UserError, match="few holds 3 images; precision needs at least 4"):
        score_files(tmp_path / "few", tmp_path / "reference.npz", "grid")
    assert detector.calls == 0


@pytest.mark.parametrize("name", ["out", "out.npy", "folder.npz"])
def test_export_to_something_that_is_no_npz(tmp_path, name):
    (tmp_path / "folder.npz").mkdir()
    images = open_images(cell(tmp_path / "cell", scenes(4)))
    with pytest.raises(UserError, match=r"cannot be written: give the name of a file that ends in \.npz"):
        export_npz(images, tmp_path / name)


def test_precision_and_recall_from_all_samples(tmp_path, real):
    features = features_of(open_images(cell(tmp_path / "cell", scenes(60))), tmp_path / "features")
    few, full = (score(features, real, options=Options(nearest=30, all_samples=flag)) for flag in (False, True))
    assert few["kid"] == full["kid"]
    assert full["recall"]["value"] > few["recall"]["value"]
    assert (30 * few["precision"]["value"]) % 1 == pytest.approx(0, abs=1e-9)
