"""The denoising loss at a test size against the loss worked out by hand; the same numbers however the work is divided."""

from __future__ import annotations

import dataclasses
import itertools
import math
from unittest import mock

import numpy as np
import pytest
import small
import torch
from PIL import Image
from scipy.stats import norm

from benchmark import registry
from benchmark.data import shapes, writer
from benchmark.data.card import Card
from benchmark.evaluate import denoising
from benchmark.evaluate.denoising import HeldOut
from benchmark.evaluate.reference import Scenes, Shards
from benchmark.files import UserError
from benchmark.model import method as methods
from benchmark.model.draws import heldout_generator, image_generator
from benchmark.results.compare import compare
from benchmark.streams import subset

SIZE = "32x48"


def built(name: str = "extrapolation", objective: str = "flow", train: str = "16x24", **switches):
    rules = small.protocol(
        {**small.CELLS, SIZE: [SIZE]},
        core={"depth": 2, "classes": 8},
        objective={"name": objective, "class_dropout": 0.0},
        sample={"precision": "float32"},
        switches=switches,
    )
    return small.fill(registry.load(name)(rules, train, 0), 0.15).eval()


def scenes(size: str = SIZE, count: int = 6) -> HeldOut:
    return denoising.heldout(Scenes("heldout"), size, count)


def noise(index: int, level: int, shape) -> torch.Tensor:
    return torch.randn(shape, generator=heldout_generator(index, level + 1))


@pytest.mark.parametrize("shift", [1.0, 2.25])
def test_flow_by_hand_for_one_image_and_level(shift):
    """mean((v - (eps - x))^2) at x_t = (1 - t) x + t eps, t the quantile 5/16 of the logit-normal density, shifted."""
    model = built()
    model.objective.shift = shift
    found = denoising.losses(model, scenes())
    assert found.shape == (8, 6)
    image, level = 3, 2
    x = torch.from_numpy(shapes.render("heldout", image, (32, 48))).permute(2, 0, 1) / 127.5 - 1
    s = 1 / (1 + math.exp(-norm.ppf(5 / 16)))
    t = shift * s / (1 + (shift - 1) * s)
    eps = noise(image, level, x.shape)
    target = torch.tensor([[32.0, 48, 0, 0, 32, 48]])
    with torch.no_grad():
        v = model.predict(((1 - t) * x + t * eps)[None], torch.tensor([1000 * t]), torch.tensor([3]),
                          model.encoding((8, 12)), target)[0]  # fmt: skip
    by_hand = float(((v - (eps - x)).double() ** 2).mean())
    assert float(found[level, image]) == pytest.approx(by_hand, rel=1e-5)
    assert denoising.times(model)[level] == pytest.approx(t, rel=1e-6)


def test_ddpm_by_hand_for_one_image_and_level():
    """mse(eps) + KL of the two normal distributions in bits a number, at level 687 of 1000 under linear betas, in float64."""
    model = built(objective="ddpm")
    found = denoising.losses(model, scenes())
    image, level, step = 1, 5, 687  # floor(1000 * 11/16)
    betas = np.linspace(1e-4, 0.02, 1000)
    bars = np.cumprod(1 - betas)
    bar, before, beta = bars[step], bars[step - 1], betas[step]
    x = (torch.from_numpy(shapes.render("heldout", image, (32, 48))).permute(2, 0, 1) / 127.5 - 1).double().numpy()
    eps = noise(image, level, x.shape).double().numpy()
    noisy = bar**0.5 * x + (1 - bar) ** 0.5 * eps
    with torch.no_grad():
        output = model.predict(torch.from_numpy(noisy).float()[None], torch.tensor([float(step)]), torch.tensor([1]),
                               model.encoding((8, 12)), torch.tensor([[32.0, 48, 0, 0, 32, 48]]))[0].double().numpy()  # fmt: skip
    predicted, share = output[:3], (output[3:] + 1) / 2
    variance = beta * (1 - before) / (1 - bar)

    def posterior_mean(data):
        return before**0.5 * beta / (1 - bar) * data + (1 - before) * (1 - beta) ** 0.5 / (1 - bar) * noisy

    wide = np.exp(share * np.log(beta) + (1 - share) * np.log(variance))
    apart = posterior_mean(x) - posterior_mean((noisy - (1 - bar) ** 0.5 * predicted) / bar**0.5)
    divergence = 0.5 * (np.log(wide / variance) + (variance + apart**2) / wide - 1)
    by_hand = ((predicted - eps) ** 2).mean() + divergence.mean() / math.log(2)
    assert float(found[level, image]) == pytest.approx(by_hand, rel=1e-4)
    t = denoising.times(model)[level]  # the flow's time of the same signal-to-noise ratio
    assert ((1 - t) / t) ** 2 == pytest.approx(bar / (1 - bar), rel=1e-4)


@pytest.mark.parametrize("objective", ["flow", "ddpm"])
@pytest.mark.parametrize("name", ["extrapolation", "sincos", "rpe2d"])
def test_the_training_step_gives_the_same_where_times_and_noise_coincide(monkeypatch, name, objective):
    """At the training size, with the held-out images as the batch and their noise as the step's."""
    model, images = built(name, objective, "32x48"), scenes()
    if name == "rpe2d":  # in training its positions are drawn
        monkeypatch.setattr(model, "encode", lambda grid_hw, time=None, draws=None, given=model.encode: given(grid_hw))
    found = denoising.losses(model, images)

    class Given:
        def __init__(self, level):
            self.level = level

        def uniform(self):
            return torch.full((6,), denoising.quantiles(8)[self.level])

        def normal(self, *shape):
            return torch.stack([noise(i, self.level, shape) for i in range(6)])

    target = torch.tensor([[32.0, 48, 0, 0, 32, 48]] * 6)
    for level in (0, 3, 7):
        with mock.patch.object(methods, "Draws", lambda *_, level=level: Given(level)), torch.no_grad():
            batch = {"image": images.data, "label": images.labels, "crop": target, "step": 0, "rows": (0, 6)}
            loss = model.training_step(batch)
        assert float(loss) == pytest.approx(float(found[level].mean()), rel=1e-5)


def test_the_mean_over_levels_estimates_the_training_loss():
    """Against 1,600 random times from the objective's own density; many levels, as an untrained core is rough in time."""
    model, images = built(), scenes(count=8)
    found = float(denoising.losses(model, images, levels=64).mean())
    generator, drawn = torch.Generator().manual_seed(5), []
    predict = model.predictor(SIZE)
    with torch.no_grad():
        for _ in range(200):
            u, eps = torch.rand(8, generator=generator), torch.randn(images.data.shape, generator=generator)
            drawn.append(model.objective.losses(lambda x, t: predict(x, t, images.labels), images.data, u, eps))
    drawn = torch.cat(drawn).double()
    assert found == pytest.approx(float(drawn.mean()), abs=4 * float(drawn.std()) / len(drawn) ** 0.5)


def test_losses_do_not_depend_on_batches_or_the_seed_of_the_training(monkeypatch):
    model, images, done = built(), scenes(count=7), []
    alone = denoising.losses(model, images)
    tokens = math.prod(model.protocol.grid(images.size))
    for batch in (1, 3, 2):
        monkeypatch.setattr(denoising, "TOKENS", batch * tokens)
        batched = denoising.losses(model, images, report=lambda *now: done.append(now))
        torch.testing.assert_close(batched, alone, rtol=1e-5, atol=1e-7)
    assert done[-1] == (8 * 4, 8 * 4)
    assert torch.equal(denoising.losses(model, scenes(count=4)), batched[:, :4]), "an image's loss is its own"
    monkeypatch.undo()
    again = small.fill(registry.load("extrapolation")(model.protocol, "16x24", 1), 0.15).eval()
    torch.testing.assert_close(denoising.losses(again, images), alone)


def test_timed_methods_get_the_level_and_the_null_class_is_never_seen(monkeypatch):
    model, images = built("tasr"), scenes()
    assert model.timed
    seen, given = [], model.encode
    monkeypatch.setattr(model, "encode", lambda grid_hw, time=None, draws=None: seen.append((time, draws)) or given(
        grid_hw, time=time, draws=draws))  # fmt: skip
    labels = []
    forward = model.predict
    monkeypatch.setattr(model, "predict", lambda x, time, label, *rest: labels.append(label) or forward(x, time, label, *rest))
    monkeypatch.setattr(denoising, "TOKENS", 3 * math.prod(model.protocol.grid(images.size)))
    denoising.losses(model, images)
    assert [draws for _, draws in seen] == [None] * 8
    assert torch.cat(labels).tolist() == list(range(6)) * 8
    assert all(later > sooner for sooner, later in itertools.pairwise(time for time, _ in seen))


def test_a_switch_of_the_protocol_counts():
    plain, scaled = (denoising.losses(built(attention_scale=kind), scenes()) for kind in ("none", "jin"))
    assert not torch.allclose(plain, scaled)


def test_scenes_are_held_out_native_and_take_turns():
    images = scenes("24x20", 16)
    expected = shapes.render_batch("heldout", range(16), (24, 20))
    assert torch.equal(((images.data + 1) * 127.5).round().to(torch.uint8), torch.from_numpy(expected).permute(0, 3, 1, 2))
    assert images.labels.tolist() == [*range(8)] * 2
    assert images.balanced
    different = {scenes().hash, scenes("24x20").hash, scenes(count=5).hash, denoising.heldout(Scenes(), SIZE, 6).hash}
    assert len(different) == 4


def test_noise_is_that_of_no_generated_image():
    assert not torch.equal(noise(3, 0, (8,)), torch.randn(8, generator=image_generator(0, 3)))
    assert not torch.equal(noise(3, 0, (8,)), noise(3, 1, (8,)))
    assert not torch.equal(noise(3, 0, (8,)), noise(4, 0, (8,)))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Ten photographs of three classes and of their own sizes."""
    folder = tmp_path_factory.mktemp("shards")
    for number in range(10):
        path = folder / "pictures" / f"class{number % 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(shapes.render("train", number, (40 + number, 70 - number))).save(path)
    return writer.prepare(Card("pictures", "folder", classes=3), folder / "pictures", folder / "out").folder


def test_shards_are_cut_as_references_are_and_keep_their_classes(shards):
    source = Shards(shards)
    images = denoising.heldout(source, SIZE, 256)
    assert images.data.shape == (10, 3, 32, 48)
    assert images.labels.tolist() == [source.index[i].label for i in range(10)]
    assert not images.balanced
    expected = np.stack([picture for picture, _ in source.pictures(np.arange(10), (32, 48))])
    assert torch.equal(((images.data + 1) * 127.5).round().to(torch.uint8), torch.from_numpy(expected).permute(0, 3, 1, 2))
    few = denoising.heldout(source, SIZE, 4)
    assert few.hash != images.hash
    assert len(few.data) == 4


def test_some_held_out_images_are_the_chosen_ones(shards):
    every, few = (denoising.heldout(Shards(shards), SIZE, count) for count in (10, 4))
    assert torch.equal(few.data, every.data[subset(10, 4)])
    assert torch.equal(few.labels, every.labels[subset(10, 4)])


def test_latents_are_encoded_and_their_posterior_sampled_once(shards, tmp_path, monkeypatch):
    from diffusers import AutoencoderKL

    monkeypatch.setattr(denoising, "READ", 2)  # of three images, so that a second pass has its own noise
    torch.manual_seed(0)
    AutoencoderKL(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 2,
                  up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=3).save_pretrained(tmp_path / "vae")  # fmt: skip
    model = AutoencoderKL.from_pretrained(tmp_path / "vae").eval()
    images = denoising.heldout(Shards(shards), SIZE, 3, str(tmp_path / "vae"))
    assert images.data.shape == (3, 3, 16, 24)
    pixels = denoising.heldout(Shards(shards), SIZE, 3)
    with torch.no_grad():
        posterior = model.encode(pixels.data).latent_dist
    for i in range(3):
        eps = torch.randn(3, 16, 24, generator=heldout_generator(i, 0))
        expected = (posterior.mean[i] + posterior.std[i] * eps) * model.config.scaling_factor
        torch.testing.assert_close(images.data[i], expected, rtol=2e-3, atol=2e-3)  # stored latents are float16
    assert images.hash != pixels.hash


# --- The score of a record -------------------------------------------------------------------------------------------


def test_entry_holds_value_interval_and_levels():
    model, images = built(), scenes(count=16)
    found = denoising.losses(model, images)
    score = denoising.entry(found, model, images, 50, 0.95)
    assert score["value"] == pytest.approx(float(found.mean()))
    assert score["levels"] == pytest.approx(found.mean(1).tolist())
    assert len(score["times"]) == 8
    assert score["times"] == sorted(score["times"])
    assert score["images"] == images.hash
    assert score["trained_on"] is False
    assert denoising.entry(found, model, dataclasses.replace(images, trained_on=True), 0, 0.95)["trained_on"] is True
    assert len(score["replicates"]) == 50
    assert score["low"] < score["value"] < score["high"]
    assert "low" not in denoising.entry(found, model, images, 0, 0.95)


def test_an_interval_is_within_classes_where_they_take_turns():
    """Of losses that differ between classes alone there is then nothing to resample."""
    model, images = built(), scenes(count=16)
    found = images.labels.double().expand(8, 16)
    tight, loose = (
        denoising.entry(found, model, dataclasses.replace(images, balanced=balanced), 200, 0.95) for balanced in (True, False)
    )
    assert tight["low"] == pytest.approx(tight["high"])
    assert loose["high"] - loose["low"] > 1


def test_methods_are_compared_in_pairs():
    """A hundredth of every image's loss is certain in pairs, and lost in the spread over images otherwise."""
    generator = torch.Generator().manual_seed(0)
    model, images = built(), scenes(count=64)
    spread = torch.rand(8, 64, generator=generator, dtype=torch.float64) + torch.rand(64, generator=generator) * 3
    one, other = (denoising.entry(spread * factor, model, images, 200, 0.95) for factor in (1.0, 1.01))
    assert one["high"] > other["value"]
    comparison = compare(one, other)
    assert comparison.verdict == "lower"
    assert comparison.high - comparison.low < 0.2 * (one["high"] - one["low"])


def test_interval_is_as_wide_as_other_images_make_it():
    """The spread of the mean over many sets of 32 images, against the interval of one set; no classes that take turns."""
    generator, model = torch.Generator().manual_seed(3), built()
    images = HeldOut(SIZE, torch.zeros(32, 1), torch.zeros(32), False, "0" * 12)
    sets = [torch.rand(8, 32, generator=generator, dtype=torch.float64) ** 2 for _ in range(300)]
    widths = [score["high"] - score["low"] for score in (denoising.entry(one, model, images, 200, 0.95) for one in sets[:30])]
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.std([float(one.mean()) for one in sets]), rel=0.15)


def test_a_loss_that_is_no_number_is_an_error():
    model, images = built(), scenes()
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    with pytest.raises(UserError, match="denoising loss of Extrapolation at 32x48 is not a number on 6 of 6 images"):
        denoising.losses(model, images)
