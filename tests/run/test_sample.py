"""Sampling: what an image depends on, and what it does not."""

from __future__ import annotations

import dataclasses
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import synthetic
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file
from scipy.special import log_softmax
from scipy.stats import chisquare

from benchmark import protocol, registry, streams
from benchmark.data.tars import members
from benchmark.evaluate.detectors.base import at_rest
from benchmark.evaluate.samples import Images, Unit, read_chunk
from benchmark.evaluate.score import Features, unit_file
from benchmark.files import UserError, read_json
from benchmark.identity import Cell
from benchmark.model.autoencoder import to_uint8
from benchmark.model.encoding import Encoding
from benchmark.plan import stages
from benchmark.plan.layout import DONE
from benchmark.plan.place import Run
from benchmark.run import sample
from benchmark.run import score as scoring
from benchmark.run.train import train


@pytest.fixture(scope="module")
def method():
    """A method whose last layer is not zero, so that it generates something."""
    smoke = protocol.load("smoke", ["sample.precision=float32"])
    made = registry.build("rpe2d", smoke, "16x16", 0).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in made.parameters():
            value.add_(0.05 * torch.randn(value.shape, generator=generator))
    return made


def test_an_image_depends_on_its_seed_and_number_alone(method):
    together = method.generate("32x24", 3, range(6))
    apart = torch.cat([method.generate("32x24", 3, [4, 1]), method.generate("32x24", 3, [5])])
    torch.testing.assert_close(apart, together[[4, 1, 5]], rtol=0, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 0.1
    other = method.generate("32x24", 4, range(6))
    assert (together - other).abs().amax(dim=(1, 2, 3)).min() > 0.1


@pytest.mark.parametrize("rule", ["balanced", "random"])
def test_a_label_depends_on_its_seed_and_number_alone(method, monkeypatch, rule):
    """As the core is told it, in batches of any kind, and as the score is."""
    told, kept = [], method.protocol
    monkeypatch.setattr(
        sample.Method, "predict", lambda self, x, time, label, encoding, crop: told.append(label.tolist()) or torch.zeros_like(x)
    )
    monkeypatch.setattr(
        method, "protocol", dataclasses.replace(kept, sample=dataclasses.replace(kept.sample, labels=rule, guidance=1.0))
    )

    def asked(seed, numbers):
        told.clear()
        method.generate("16x16", seed, numbers)
        return told[-1]

    classes = kept.core.classes
    together = asked(3, range(24))
    assert asked(3, [7, 2]) + asked(3, [23]) == [together[7], together[2], together[23]]
    assert together == streams.labels(rule, 3, range(24), classes).tolist()
    if rule == "balanced":
        assert together == asked(4, range(24)) == [number % classes for number in range(24)]
    else:
        assert together != asked(4, range(24))


@pytest.mark.parametrize("rule", ["balanced", "random"])
def test_an_image_is_scored_by_the_label_that_it_was_made_with(monkeypatch, tmp_path, rule):
    rules, seen = protocol.load("smoke", [f"sample.labels={rule}", "sample.count=40"]), []
    monkeypatch.setattr(scoring.scoring, "Features", lambda *_: None)
    monkeypatch.setattr(scoring.scoring, "score", lambda _, real, labels, options, device: seen.extend([labels, options]))
    one = Cell(rules, "nope", "16x16", "16x16", 5)
    detector = type("Eye", (), {"name": "eye", "hash": "0" * 12, "device": "cpu", "head": None})()
    scoring.measured(one, tmp_path, detector, None)
    assert seen[0].tolist() == streams.labels(rule, 5, range(40), rules.core.classes).tolist()
    assert seen[1].balanced == (rule == "balanced")


def test_random_labels_are_equally_likely_and_share_no_stream():
    """Chi-squared over classes, and over pairs: of neighbours, of one image under two seeds, of neighbours under two seeds."""
    for classes in (2, 8, 10):
        count = 200 * classes**2
        first, other = (streams.labels("random", seed, range(count), classes) for seed in (0, 1))
        assert (first.min(), first.max()) == (0, classes - 1)
        pairs = (first[:-1], first[1:]), (first, other), (first[1:], other[:-1])
        for found, cells in ((first, classes), *((one * classes + two, classes**2) for one, two in pairs)):
            times = np.bincount(found, minlength=cells)
            assert chisquare(times).pvalue > 1e-3
    assert streams.labels("random", 0, range(4000), 1000).max() > 990
    assert streams.labels("random", 0, [5], 10**6) != streams.mixed_seed(streams.IMAGES, 0, 5) * 10**6 >> 63


def test_global_random_state_is_neither_read_nor_moved(method):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = method.generate("16x16", 0, range(2))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(method.generate("16x16", 0, range(2)), first)


def test_a_rectangle_is_height_times_width(method):
    assert method.generate("32x24", 0, range(2)).shape == (2, 3, 32, 24)


def test_pixels_follow_the_evaluators_formula():
    """trunc(127.5 x + 128), clamped: worked out by hand."""
    values = torch.tensor([-1.2, -1.0, -0.5, 0.0, 0.5, 0.999, 1.0, 1.2])
    image = to_uint8(values.view(1, 1, 1, -1).expand(1, 3, 1, -1))
    assert image.shape == (1, 1, 8, 3)
    assert image[0, 0, :, 0].tolist() == [0, 0, 64, 128, 191, 255, 255, 255]


def test_values_that_are_not_numbers_are_refused():
    with pytest.raises(UserError, match="not numbers"):
        to_uint8(torch.full((1, 3, 2, 2), float("nan")))


def test_grid_places_images_row_by_row(tmp_path):
    images = [np.full((4, 6, 3), number, np.uint8) for number in range(10)]
    sample.save_grid(images, tmp_path / "grid.png")
    sheet = np.asarray(Image.open(tmp_path / "grid.png"))
    assert sheet.shape == (4 * 2 + 2, 6 * 8 + 2 * 7, 3)
    assert (sheet[:4, :6] == 0).all()
    assert (sheet[:4, 8:14] == 1).all()
    assert (sheet[6:, :6] == 8).all()
    assert (sheet[4:6] == 255).all()


def test_key_follows_what_images_depend_on():
    smoke = protocol.load("smoke")

    def key(found=smoke, method="yarn", test="32x24", training="aa") -> str:
        return Cell(found, method, "16x16", test, 0).key(training)

    assert key() == key()
    assert key() != key(test="32x32")
    assert key() != key(method="ntk")
    assert key() != key(training="bb")
    assert key() != key(dataclasses.replace(smoke, options={"yarn": {"temperature": 0.2}}))
    assert key() == key(dataclasses.replace(smoke, score=dataclasses.replace(smoke.score, splits=5)))


def test_guidance_and_shift_change_the_image(method):
    plain = method.generate("32x32", 0, range(2))
    kept = method.protocol
    try:
        method.protocol = dataclasses.replace(kept, sample=dataclasses.replace(kept.sample, guidance=1.0))
        assert (method.generate("32x32", 0, range(2)) - plain).abs().max() > 1e-3
        method.protocol = dataclasses.replace(kept, switches=protocol.Switches(timestep_shift="sqrt_area"))
        assert (method.generate("32x32", 0, range(2)) - plain).abs().max() > 1e-4
        # At the training size the switch changes nothing at all.
        shifted = method.generate("16x16", 0, range(2))
        method.protocol = kept
        assert torch.equal(shifted, method.generate("16x16", 0, range(2)))
    finally:
        method.protocol = kept


def test_what_stays_of_a_large_detectors_outputs(tmp_path):
    """Half the bytes and no logits, which its head makes again; numbers of an image stay exact. Small detectors keep all."""
    random = np.random.default_rng(0)
    detector = SimpleNamespace(head=torch.from_numpy(random.normal(size=(10, 40)).astype(np.float32)))
    outputs = {"features": random.gamma(1, 0.4, (6, 40)).astype(np.float32), "predicted": np.arange(4095, 4101, dtype=np.float32)}
    outputs["logits"] = outputs["features"] @ detector.head.numpy().T
    small = at_rest(outputs, SimpleNamespace(head=None), False)
    assert small == outputs
    stays = at_rest(outputs, detector, True)
    assert {name: value.dtype for name, value in stays.items()} == {"features": np.float16, "predicted": np.float32}
    save_file(stays, unit_file(tmp_path, 0), {"stamp": "x"})
    images = Images("", (8, 8), [Unit(0, 6, "x", lambda: np.zeros(0))], "")
    read, chosen = Features(tmp_path, images, detector.head), np.array([1, 4])
    assert {name: list(width) for name, width in read.widths.items()} == {"features": [40], "predicted": [], "logits": [10]}
    for name in ("features", "logits", "predicted"):
        assert read.all(name).dtype == torch.float32
        assert torch.equal(read.take(name, chosen), read.all(name)[chosen])
        np.testing.assert_allclose(read.all(name).numpy(), outputs[name], rtol=6e-4 * (name != "predicted"), atol=2e-3)
    assert "logits" not in Features(tmp_path, images)


def test_the_last_batch_of_a_cell_may_be_smaller(tmp_path):
    rules = protocol.load("smoke", ["sample.count=40"])
    found = sample.units(Cell(rules, "nope", "16x16", "16x16", 0), tmp_path).units
    assert [(unit.start, unit.count) for unit in found] == [(0, 16), (16, 16), (32, 8)]


@pytest.mark.parametrize("level", [None, 0, -1])
def test_encodings_are_compared_at_every_noise_level_of_the_sampler(level, monkeypatch):
    """A timed method may differ from its base at one of them alone."""
    cell = Cell(protocol.load("smoke"), "tasr", "16x16", "32x32", 0)
    timed, plain = (registry.build(name, cell.protocol, "16x16", 0) for name in ("tasr", "extrapolation"))
    differs = None if level is None else timed.sampling_times((8, 8))[level]
    monkeypatch.setattr(
        type(timed), "encode", lambda self, grid_hw, *, time: Encoding() if time == differs else plain.encode(grid_hw)
    )
    assert sample.same_encodings(cell) == (level is None)


def test_the_hours_of_a_cell_are_those_of_all_ranks_and_runs(tmp_path, monkeypatch):
    for rank, hours in ((0, 1.0), (1, 2.5), (0, 0.25)):
        sample.add_hours(tmp_path, rank, hours)
    monkeypatch.setattr(sample, "is_done", lambda *_: True)
    monkeypatch.setattr(sample, "read_chunk", lambda path: np.zeros((16, 16, 16, 3), np.uint8))
    sample.finish(Cell(protocol.load("smoke"), "nope", "16x16", "16x16", 0), tmp_path, tmp_path, 1)
    assert read_json(tmp_path / DONE)["hours"] == 3.75


def test_a_cell_names_all_that_its_images_were_made_on(tmp_path, monkeypatch):
    """One that was resumed elsewhere; what made the features anew is not among them."""
    for rank, name, precision in ((0, "GPU", "bf16"), (1, "GPU", "bf16"), (0, "CPU", "float32"), (0, "CPU", "float32")):
        monkeypatch.setattr(sample, "machine", lambda name=name: name)
        monkeypatch.setattr(sample, "effective", lambda wanted, precision=precision: precision)
        sample.note_hardware(tmp_path, rank, "bf16")
    monkeypatch.setattr(sample, "machine", lambda: "laptop")
    assert sample.made_on(tmp_path, 2, "bf16") == {"device": "cpu", "name": "GPU and CPU", "count": 2}
    (tmp_path / "hardware-0.json").unlink()
    assert sample.made_on(tmp_path, 2, "bf16") == {"device": "cpu", "name": "GPU", "count": 2, "precision": "bf16"}


def test_a_machine_that_made_nothing_is_not_named(made, tmp_path, monkeypatch):
    """One that ran out of memory, say."""
    cell, run, _ = made
    shutil.copytree(run.out / "trainings", tmp_path / "trainings")
    elsewhere = Run(tmp_path, devices="1", workers=1)

    def fails(self, *_):
        raise UserError("out of memory")

    with monkeypatch.context() as context:
        context.setattr(sample, "machine", lambda: "small GPU")
        context.setattr(type(registry.build("nope", cell.protocol, "16x16", 0)), "generate", fails)
        with pytest.raises(UserError, match="out of memory"):
            sample.sample(cell, elsewhere)
    monkeypatch.setattr(sample, "machine", lambda: "large GPU")
    folder = sample.sample(cell, elsewhere)
    assert read_json(folder / DONE)["hardware"]["name"] == "large GPU"
    shutil.rmtree(folder / "features")
    monkeypatch.setattr(sample, "machine", lambda: "laptop")
    assert read_json(sample.sample(cell, elsewhere) / DONE)["hardware"]["name"] == "large GPU"


QUARTERS = """\
import torch
from safetensors.torch import load_file

from benchmark import registry
from benchmark.evaluate.detectors.base import Detector
from benchmark.files import file_hash

FACTS = {"flops": 1e6, "numbers": 12, "bytes": 2, "classes": 6, "weights": "quarters.safetensors"}


class Quarters(Detector):
    name, widths = "quarters", {"features": 12, "logits": 6}

    def __init__(self, weights, device):
        path = registry.weights_file(self.name)
        self.hash, self.head, self.network = file_hash(path)[:12], load_file(path)["head"], torch.nn.Linear(1, 1)

    def outputs(self, images):
        features = torch.nn.functional.adaptive_avg_pool2d(images / 12.75 - 10, 2).flatten(1)
        return {"features": features, "logits": features @ self.head.T}
"""


def test_a_cell_is_scored_by_logits_that_were_not_stored(made, tmp_path, monkeypatch):
    """As with Inception: features of two bytes, of which the detector's head makes the logits of the inception score."""
    cell, run, _ = made
    head = 2 * np.random.default_rng(0).normal(size=(6, 12)).astype(np.float32)
    save_file({"head": head}, tmp_path / "quarters.safetensors")
    synthetic.detectors(tmp_path / "detectors", monkeypatch, quarters=QUARTERS)
    monkeypatch.setattr(scoring.heldout_images, "__defaults__", (4, ""))  # the denoising loss on a few images
    rules = protocol.load("smoke", [*cell.protocol.overrides, "score.detector=quarters", "score.splits=1"])
    elsewhere = Run(tmp_path / "runs", devices="1", workers=1)
    shutil.copytree(run.out / "trainings", elsewhere.out / "trainings")
    folder = sample.sample(dataclasses.replace(cell, protocol=rules), elsewhere)
    stored = [load_file(path) for path in folder.glob("features/quarters-*/*.safetensors")]
    kept = {"features": np.float16, "spectrum": np.float16}
    assert [{name: value.dtype for name, value in unit.items()} for unit in stored] == [kept, kept]
    (stage,) = (
        stage
        for stage in stages.graph(rules, ["nope"], 0, elsewhere)
        if isinstance(stage, stages.Score) and stage.cell.test == cell.test
    )
    stage.run()
    images = np.concatenate([read_chunk(path) for path in chunks(folder)]) / 12.75 - 10
    features = images.reshape(32, 2, 16, 2, 12, 3).mean(axis=(2, 4)).transpose(0, 3, 1, 2).reshape(32, 12)
    log_p = log_softmax(features @ head.T, axis=1)
    own = (np.exp(log_p) * (log_p - np.log(np.exp(log_p).mean(axis=0)))).sum(axis=1)
    expected = np.exp(own.mean())
    assert expected > 1.1
    assert read_json(stage.file)["scores"]["is"]["value"] == pytest.approx(expected, rel=2e-3)


# --- A cell of two batches of 16 -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A cell, the run that it is of, and its folder."""
    rules = protocol.load("smoke", ["train.steps=2", "train.precision=float32", "sample.precision=float32"])
    cell, run = Cell(rules, "nope", "16x16", "32x24", 0), Run(tmp_path_factory.mktemp("runs"), devices="1", workers=1)
    train(cell.training, run)
    return cell, run, sample.sample(cell, run)


def chunks(folder):
    return sorted(folder.glob("chunks/*.tar"))


def test_no_two_images_of_a_cell_are_the_same(made):
    _, _, folder = made
    images = np.concatenate([read_chunk(path) for path in chunks(folder)])
    assert len(np.unique(images.reshape(32, -1), axis=0)) == 32


def test_images_are_numbered_through_the_batches_of_a_cell(made):
    _, _, folder = made
    assert [key for path in chunks(folder) for key in members(path)] == [f"{number:06}" for number in range(32)]


def test_images_of_a_later_batch_are_those_of_their_numbers(made):
    cell, run, folder = made
    expected = to_uint8(sample.built(cell, run).generate("32x24", 0, range(16, 32)))
    assert np.abs(read_chunk(chunks(folder)[1]).astype(int) - expected).max() <= 1


def test_nothing_is_made_again_of_a_cell_whose_first_images_stay(made, tmp_path, monkeypatch):
    cell, _, folder = made
    kept = shutil.copytree(folder, tmp_path / folder.name)
    chunks(kept)[1].unlink()
    monkeypatch.setattr(stages, "KEPT_IMAGES", 16)
    assert sample.lost(cell, kept, stages.features_of(kept, cell.protocol), False) == []
