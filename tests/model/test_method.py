"""A method on its protocol: its weights and schedule, and what a step of training and of sampling tells the core."""

from __future__ import annotations

import math

import pytest
import small
import torch

from benchmark import protocol, registry
from benchmark.model.draws import Draws

pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")


def build(name: str = "nope", **sections):
    return registry.build(name, small.protocol(**sections), "16x24", 0)


def told(method, monkeypatch) -> list[dict[str, torch.Tensor]]:
    """What each call of the core will have been told; it answers with its input."""
    seen = []

    def predict(x, time, label, encoding, crop):
        seen.append({"x": x, "time": time, "label": label, "crop": crop})
        return x

    monkeypatch.setattr(method, "predict", predict)
    return seen


def test_every_seed_has_weights_of_its_own():
    one, two = (registry.build("extrapolation", small.protocol(), "16x24", seed) for seed in (0, 1))
    assert not torch.equal(one.core.x_embedder.proj.weight, two.core.x_embedder.proj.weight)


def test_every_seed_has_random_numbers_of_its_own_in_training():
    one, two = (small.fill(registry.build("extrapolation", small.protocol(), "16x24", seed)) for seed in (0, 1))
    assert small.loss(one) != small.loss(two), "with the same weights, on the same batch"


def test_the_shift_of_sampling_times_is_the_root_of_the_ratio_of_areas():
    rules = protocol.load("smoke", ["switches.timestep_shift=sqrt_area"])
    method = registry.build("nope", rules, "16x16", 0)
    shifts = [method.sampling_shift(rules.grid(size)) for size in ("16x16", "32x32", "32x24")]
    assert shifts == pytest.approx([1, 2, math.sqrt(3)])


def test_the_norm_of_all_gradients_together_is_clipped():
    method = small.fill(build(train={"clip": 0.5}))
    for value in method.parameters():
        value.grad = torch.full_like(value, 3.0)
    method.configure_gradient_clipping(None)
    norm = math.sqrt(sum(float(value.grad.square().sum()) for value in method.parameters()))
    assert norm == pytest.approx(0.5, rel=1e-4)


def test_the_rate_warms_up_and_decays_to_zero_after_the_last_step():
    setup, rates = build(train={"lr": 1.0, "warmup": 4, "decay": 5, "steps": 20}).configure_optimizers(), []
    for _ in range(20):
        rates.append(setup["optimizer"].param_groups[0]["lr"])
        setup["lr_scheduler"]["scheduler"].step()
    assert rates == pytest.approx([0.25, 0.5, 0.75] + [1.0] * 13 + [0.8, 0.6, 0.4, 0.2])


def test_guidance_asks_for_the_null_class(monkeypatch):
    method = small.fill(build()).eval()
    seen = told(method, monkeypatch)
    method.generate("32x48", 0, [1, 2])
    null = method.protocol.core.classes
    assert [call["label"].tolist() for call in seen] == [[1, 2, null, null]] * method.protocol.sample.steps


def test_an_image_of_ddpm_has_noise_and_guidance_of_its_own():
    """Whatever it is made with; and DiT's code guides three of four channels."""

    def made(channels: str, numbers):
        core, sample = {"channels": 4}, {"solver": "ddpm", "guidance_channels": channels}
        method = small.fill(build(core=core, objective={"name": "ddpm"}, sample=sample)).eval()
        return method.generate("32x48", 1, numbers)

    together = made("three", range(4))
    torch.testing.assert_close(made("three", [3, 1]), together[[3, 1]], rtol=1e-4, atol=1e-4 * float(together.abs().max()))
    changed = (made("all", range(4)) - together).abs().amax(dim=(0, 2, 3)) / together.abs().amax(dim=(0, 2, 3))
    assert changed[3] > 1e-2


def test_a_generated_image_is_told_to_be_whole(monkeypatch):
    method = small.fill(build()).eval()
    seen = told(method, monkeypatch)
    method.generate("32x48", 0, [1, 2])
    assert seen[0]["crop"].tolist() == [[32, 48, 0, 0, 32, 48]] * 4


def test_labels_are_dropped_for_the_null_class_in_their_share(monkeypatch):
    method = small.fill(build(objective={"class_dropout": 0.25}))
    seen = told(method, monkeypatch)
    for step in range(100):
        small.loss(method, step)
    labels = torch.cat([call["label"] for call in seen])
    assert len(labels) == 400
    assert (labels == method.protocol.core.classes).float().mean().item() == pytest.approx(0.25, abs=0.1)


def test_the_posterior_of_latents_is_sampled_before_they_become_noisy(monkeypatch):
    """With noise of its own: by hand, from the step's random numbers in their order."""
    method = small.fill(build(objective={"time": "uniform"}))
    seen = told(method, monkeypatch)
    batch = small.batch(method.protocol, "16x24", 0)
    batch["std"] = torch.full_like(batch["image"], 0.3)
    method.loss(batch)
    draws = Draws(0, 0, (0, 4), 4)
    drawn = draws.normal(3, 16, 24)
    draws.uniform()  # which labels are dropped
    t, noise = draws.uniform()[:, None, None, None], draws.normal(3, 16, 24)
    torch.testing.assert_close(seen[0]["x"], (1 - t) * (batch["image"] + 0.3 * drawn) + t * noise)
