"""Latents, stored or made on the way: what a training sees, which latents it finds, and the pictures that come out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from small import reader

from benchmark import protocol
from benchmark.data import batches
from benchmark.data.index import Index
from benchmark.data.latents import prepare_latents
from benchmark.files import UserError
from benchmark.identity import Cell, Training
from benchmark.model import autoencoder as autoencoders
from benchmark.model.autoencoder import Autoencoder, decoder
from benchmark.plan.place import Run
from benchmark.protocol import Protocol
from benchmark.run import loss, sample, train

LATENTS = """
title: Latents, for tests
ranked: false
data: {card: shapes, count: 24, representation: latents, factor: 4}
cells:
  32x32: [32x32, 48x32]
core: {width: 32, depth: 2, heads: 2, patch: 2, channels: 4, classes: 8, rope_base: 100}
train: {steps: 4, batch: 4, lr: 1.0e-3, ema: 0.9, precision: float32}
sample: {solver: euler, steps: 2, guidance: 2.0, count: 16, batch: 8, precision: float32}
score: {detector: shapes, reference: 64, nearest: 16, splits: 2}
"""


def make_autoencoder(path: Path, seed: int) -> str:
    """The real class with tiny random weights and a factor of 4; with a shift, as later autoencoders have one."""
    torch.manual_seed(seed)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    sizes = {"block_out_channels": (8, 8, 8), "latent_channels": 4, "norm_num_groups": 4}
    AutoencoderKL(**blocks, **sizes, scaling_factor=0.25, shift_factor=0.5).save_pretrained(path)
    return str(path)


@pytest.fixture
def autoencoder(tmp_path, monkeypatch) -> str:
    name = make_autoencoder(tmp_path / "autoencoder", 0)
    monkeypatch.setenv("AUTOENCODER", name)
    return name


@pytest.fixture
def small(tmp_path) -> Protocol:
    (tmp_path / "latents.yaml").write_text(LATENTS)
    return protocol.load(str(tmp_path / "latents.yaml"))


def encode(small: Protocol, run: Run, autoencoder: str, size: tuple[int, int] = (32, 32)) -> Path:
    pictures = Index(train.prepared(small, run))
    return prepare_latents(pictures, run.out / "data", autoencoder, size).folder


def test_encoding_on_the_way_gives_the_stored_latents(small, autoencoder, tmp_path, monkeypatch):
    """The same samples in the same order, mirrored or not; float16 apart, since batches differ in size."""
    monkeypatch.setattr(autoencoders, "PASS", 2)  # of five pictures
    run = Run(tmp_path / "runs")
    stored = encode(small, run, autoencoder)
    plain = train.open_data(Training(small, "extrapolation", "32x32", 0), run)
    on_the_way = train.open_data(Training(small, "rpe2d", "32x32", 0), run)
    assert plain.index.folder == stored
    assert (plain.on_the_way, on_the_way.on_the_way) == ("", autoencoder)
    assert plain.hash == on_the_way.hash, "one identity for the same latents"
    assert plain.autoencoder == on_the_way.autoencoder != ""
    ready = batches.Batches(plain.index, 5, seed=3)
    raw = batches.Batches(on_the_way.index, 5, seed=3, transform=batches.Transform((32, 32)))
    for step in (0, 3, 9):
        expected, picture = ready[step], raw[step]
        made = Autoencoder(autoencoder)(picture)
        assert made["key"] == expected["key"]
        assert made["image"].shape == (5, 4, 8, 8)
        for name in ("image", "std"):
            torch.testing.assert_close(made[name], expected[name], rtol=2e-3, atol=2e-3)
    assert expected["image"].std() > 0.05, "the comparison is of something"


def test_a_training_reads_mirrored_latents_if_its_protocol_says_so(small, autoencoder, tmp_path):
    index, found = Index(encode(small, Run(tmp_path / "runs"), autoencoder)), []
    for flip in (True, False):
        rules = dataclasses.replace(small, train=dataclasses.replace(small.train, batch=12, flip=flip))
        found.append(next(iter(reader(index, rules, "32x32", start=1, seed=3))))
        expected = batches.Batches(index, 12, 3, flip=flip)[1]
        assert found[-1]["key"] == expected["key"]
        assert all(torch.equal(found[-1][name], expected[name]) for name in ("image", "std"))
    assert 0 < sum(map(torch.equal, found[0]["image"], found[1]["image"])) < 12


def test_latents_decode_to_the_pictures_of_the_library(autoencoder):
    """latent -> x / scale + shift -> decoder, as diffusers' pipelines do it."""
    model = AutoencoderKL.from_pretrained(autoencoder).eval()
    x = torch.randn(3, 4, 8, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model.decode(x / 0.25 + 0.5).sample
        torch.testing.assert_close(decoder(autoencoder, torch.device("cpu"))(x), expected, rtol=1e-5, atol=1e-5)


def test_trains_on_latents_whether_stored_or_not(small, autoencoder, tmp_path):
    run = Run(tmp_path / "runs", devices="1")
    with pytest.raises(UserError, match=r"no latents of .* at 32x32: run `make latents`"):
        train.train(Training(small, "extrapolation", "32x32", 0), run)
    encode(small, run, autoencoder)
    encode(small, run, autoencoder, (16, 16))
    for name in ("extrapolation", "rpe2d"):
        folder = train.train(Training(small, name, "32x32", 0), run)
        report = json.loads((folder / train.REPORT).read_text())
        assert report["autoencoder"]
        assert np.isfinite(report["loss"])
        made = sample.sample(Cell(small, name, "32x32", "48x32", 0), run)
        assert sample.read_chunk(sample.chunk_path(made, 0)).shape == (8, 48, 32, 3)


def test_the_latents_of_the_right_autoencoder_are_found(small, autoencoder, tmp_path, monkeypatch):
    run = Run(tmp_path / "runs", devices="1")
    training, cell = Training(small, "nope", "32x32", 0), Cell(small, "nope", "32x32", "32x32", 0)
    first = encode(small, run, autoencoder)
    folder = train.train(training, run)
    other = make_autoencoder(tmp_path / "other", 1)
    monkeypatch.setenv("AUTOENCODER", other)
    with pytest.raises(UserError, match="not the one used for training"):
        sample.sample(cell, run)
    with pytest.raises(UserError, match="not the one used for training"):
        loss.cell_loss(cell, run, loss.heldout_images(small, "32x32", run, "cpu", count=8))
    with pytest.raises(UserError, match=f"has no latents of .* at 32x32 by the autoencoder {other}: run `make latents`"):
        train.open_data(training, run)
    second = encode(small, run, other)
    assert train.open_data(training, run).index.folder == second
    with pytest.raises(UserError, match="nope 32x32 seed 0 is not trained"):
        sample.sample(cell, run)
    monkeypatch.setenv("AUTOENCODER", autoencoder)
    assert train.open_data(training, run).index.folder == first
    assert train.trained(training, run)[0] == folder, "latents of another autoencoder lie beside its own"
    assert list(sample.sample(cell, run).glob("features/*/unit-*.safetensors"))


def test_data_of_the_wrong_kind(small, autoencoder, tmp_path, monkeypatch):
    run = Run(tmp_path / "runs")
    latents = encode(small, run, autoencoder)
    given = dataclasses.replace(run, data=str(latents))
    assert train.open_data(Training(small, "nope", "32x32", 0), given).index.folder == latents
    with pytest.raises(UserError, match=r"rpe2d augments images before they are encoded.*give the images as DATA"):
        train.open_data(Training(small, "rpe2d", "32x32", 0), given)
    with pytest.raises(UserError, match="holds latents of 32x32 images, but latents trains at 64x64"):
        train.open_data(Training(small, "nope", "64x64", 0), given)
    with pytest.raises(UserError, match="holds latents, but smoke trains on pixels"):
        train.open_data(Training(protocol.load("smoke"), "nope", "16x16", 0), given)
    fewer = dataclasses.replace(small, core=dataclasses.replace(small.core, classes=4))
    with pytest.raises(UserError, match="has 8 classes, but the protocol's core has 4"):
        train.open_data(Training(fewer, "nope", "32x32", 0), run)
    more = dataclasses.replace(small, core=dataclasses.replace(small.core, classes=16))  # half of the samples would be of none
    with pytest.raises(UserError, match=r"has 8 classes, but the protocol's core has 16: set core\.classes=8"):
        train.open_data(Training(more, "nope", "32x32", 0), run)
    monkeypatch.delenv("AUTOENCODER")
    with pytest.raises(UserError, match="has no autoencoder; give one as AUTOENCODER=folder"):
        train.open_data(Training(small, "rpe2d", "32x32", 0), run)
