"""Costs: operations against torch's counter, and figures known elsewhere."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import timm
import torch
from diffusers import AutoencoderKL
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import inception_v3

from benchmark import protocol, registry
from benchmark.evaluate.classifier import Classifier
from benchmark.evaluate.photos import Photos
from benchmark.model import diffusion, flops
from benchmark.model.dit import Core
from benchmark.model.encoding import Encoding
from benchmark.plan import cost

SIZES = ["256x256", "384x384", "512x512", "768x768", "1024x1024"]


def counted(work, *arguments) -> int:
    """Operations as torch counts them; on the meta device nothing is computed."""
    with FlopCounterMode(display=False) as counter:
        work(*arguments)
    return counter.get_total_flops()


def core_of(found: protocol.Protocol, outputs: int) -> Core:
    config = dataclasses.asdict(found.core)
    config.pop("rope_base")
    with torch.device("meta"):
        return Core(**config, out_channels=found.core.channels * outputs)


@pytest.mark.parametrize("grid_hw", [(4, 4), (8, 6), (3, 20), (24, 32)])
@pytest.mark.parametrize(
    ("outputs", "core"),
    [
        (1, protocol.Core()),
        (2, protocol.Core(width=64, depth=3, heads=4, patch=2, channels=4, classes=10, mlp_ratio=2.0)),
        (2, protocol.Core(width=384, depth=12, heads=6, patch=2, channels=4, classes=1000)),
    ],
)
def test_forward_and_training_are_what_torch_counts(core, outputs, grid_hw):
    found = protocol.Protocol("small", "Small", {}, core=core)
    network = core_of(found, outputs)
    images = 2
    with torch.device("meta"):
        x = torch.empty(images, core.channels, *(core.patch * n for n in grid_hw))
        time, label = torch.empty(images), torch.empty(images, dtype=torch.int64)
    formula = flops.forward_flops(core, outputs, grid_hw)
    forward = counted(network, x, time, label, Encoding())
    assert forward / images == pytest.approx(formula, rel=0.01)
    both = counted(lambda: network(x, time, label, Encoding()).sum().backward())
    assert both / forward == pytest.approx(1 + flops.BACKWARD, rel=0.05)
    assert flops.parameters(core, outputs) == sum(value.numel() for value in network.parameters())


@pytest.mark.parametrize("name", ["ledit", "rpe2d", "extrapolation"])
def test_what_a_method_adds_is_rules_change(name):
    found = protocol.load("shapes")
    method = registry.build(name, found, "32x32", 0)
    x, label = torch.zeros(1, 3, 48, 64), torch.zeros(1, dtype=torch.int64)

    def forward() -> None:
        with torch.no_grad():
            method.predict(x, torch.zeros(1), label, method.encoding((12, 16)), torch.zeros(1, 6))

    assert counted(forward) == pytest.approx(flops.forward_flops(found.core, 1, (12, 16)), rel=0.03)


def test_published_sizes_of_dit():
    """Peebles and Xie 2023, table 4 and appendix A (their "Gflops" are multiply-adds) at 256 x 256; parameters in millions."""
    for name, giga, millions in (("s2", 6.06, 33), ("b2", 23.01, 130), ("xl2", 118.64, 675)):
        found = protocol.load(f"imagenet-256-{name}")
        assert flops.forward_flops(found.core, 2, (16, 16)) / 2e9 == pytest.approx(giga, rel=0.01)
        assert flops.parameters(found.core, 2) / 1e6 == pytest.approx(millions, abs=0.6)


@pytest.mark.parametrize(
    ("name", "hours"),
    [("imagenet-256-xl2", [4.1, 9.7, 18, 48, 101]), ("imagenet-256-b2", [0.8, 1.9, 3.7, 10, 23])],
)
def test_a_cell_costs_what_was_estimated_independently(name, hours):
    """50,000 images, 250 steps, guidance, at 400 TFLOP/s; decoding left out. The estimate was rounded to two digits."""
    found = protocol.load(name)
    core = flops.Device("", 400, math.inf, math.inf)
    for size, expected in zip(SIZES, hours, strict=True):
        hours_ = cost.sampling(found, size, 0).hours(core, 1.0)
        assert hours_ == pytest.approx(expected, rel=0.02), size


def test_h100_at_its_stated_efficiency_is_the_400_teraflops_of_that_estimate():
    chosen = flops.device("h100")
    assert chosen.bf16 * chosen.efficiency == pytest.approx(400, rel=0.02)


def test_autoencoder_is_what_torch_counts():
    with torch.device("meta"):
        model = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        ).requires_grad_(False)  # fmt: skip
        for height, width in ((256, 256), (384, 512)):
            decoding = counted(model.decode, torch.empty(1, 4, height // 8, width // 8))
            encoding = counted(model.encode, torch.empty(1, 3, height, width))
            assert decoding == pytest.approx(cost.autoencoder_flops(cost.DECODE_PIXEL, height, width), rel=0.001)
            assert encoding == pytest.approx(cost.autoencoder_flops(cost.ENCODE_PIXEL, height, width), rel=0.001)


def test_latents_of_a_picture_are_two_pairs_in_half_precision():
    """Mean and deviation, of the picture and of its mirror image."""
    found = cost.latents(protocol.load("imagenet-256-xl2"), "256x256", 1)
    assert found.bytes - cost.OVERHEAD == np.zeros((2, 2, 4, 32, 32), np.float16).nbytes


def test_detectors_are_what_torch_counts():
    with torch.device("meta"):
        networks = {
            "inception": (inception_v3(weights=None, init_weights=False, aux_logits=False), torch.empty(1, 3, 299, 299)),
            "dinov2": (
                timm.create_model("vit_large_patch14_dinov2.lvd142m", img_size=224, num_classes=0),
                torch.empty(1, 3, 224, 224),
            ),
        }
    for name, network in (("shapes", Classifier()), ("photos", Photos())):
        networks[name] = network, torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    assert sorted(networks) == registry.detectors()
    for name, (network, images) in networks.items():
        with torch.no_grad():
            assert counted(network.eval(), images) == pytest.approx(registry.detector_facts(name).flops, rel=0.01), name


def test_outputs_and_evaluations_are_those_of_the_objectives():
    for name in ("flow", "ddpm"):
        objective = diffusion.objective(protocol.Objective(name=name))
        assert flops.OUTPUTS[name] == objective.outputs
        for solver in protocol.SOLVERS[name]:
            for guidance in (1.0, 1.5):
                config = protocol.Sample(solver=solver, steps=6, guidance=guidance)
                forwards = []

                def predict(x, time, label, outputs=objective.outputs, forwards=forwards):
                    forwards.append(len(x))
                    return torch.cat([x] * outputs, dim=1) * 0.1

                steered = diffusion.guided(predict, torch.zeros(1, dtype=torch.int64), 8, guidance, "all")
                objective.sample(steered, torch.zeros(1, 4, 2, 2), config, generators=[torch.Generator()])
                assert sum(forwards) == cost.evaluations(config), (name, solver, guidance)
