"""Objectives and samplers against their equations in numpy, scipy and diffusers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import small
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from scipy import stats

from benchmark.files import UserError
from benchmark.model import diffusion
from benchmark.model.draws import Draws, image_generator
from benchmark.protocol import Objective, Sample
from benchmark.streams import POSITIONS, WEIGHTS, mixed_seed

BETAS = np.linspace(1e-4, 0.02, 1000)
BAR = np.cumprod(1 - BETAS)


def objective(name: str, time: str = "logit_normal"):
    return diffusion.objective(Objective(name=name, time=time))


def test_flow_loss_by_hand():
    flow = objective("flow", "uniform")
    data, noise = small.normal(1, 3, 2, 4, 6), small.normal(2, 3, 2, 4, 6)
    uniform = torch.tensor([0.0, 0.25, 0.9])
    seen = {}

    def predict(x, time):
        seen.update(x=x, time=time)
        return 0.5 * x

    loss = flow.loss(predict, data, uniform, noise)
    assert seen["time"].tolist() == pytest.approx([0, 250, 900])
    assert torch.equal(seen["x"][0], data[0]), "t = 0 is data"
    torch.testing.assert_close(seen["x"][2], 0.1 * data[2] + 0.9 * noise[2])
    expected = np.mean((0.5 * seen["x"].double().numpy() - (noise - data).double().numpy()) ** 2)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_logit_normal_times():
    flow = objective("flow")
    times = flow.times(torch.tensor([0.0, 0.1, 0.5, 0.975, 1.0 - 2**-24]))
    assert times[1:4].tolist() == pytest.approx([1 / (1 + math.exp(-stats.norm.ppf(u))) for u in (0.1, 0.5, 0.975)], rel=1e-5)
    assert 0 < times[0] < 0.01
    assert 0.99 < times[4] < 1


def gaussian_velocity(x, time, deviation=0.5):
    """The exact velocity where the data are N(0, deviation^2): x(t) = x(1) sqrt((1 - t)^2 s^2 + t^2)."""
    t = (time / 1000)[:, None, None, None].double()
    return (x * (t - (1 - t) * deviation**2) / ((1 - t) ** 2 * deviation**2 + t**2)).float()


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_flow_solvers_converge_to_the_known_solution(solver, order):
    noise = small.normal(1, 2, 3, 4, 6)
    errors = []
    for steps in (32, 64, 128):
        x = objective("flow").sample(gaussian_velocity, noise, Sample(solver=solver, steps=steps))
        errors.append((x - 0.5 * noise).abs().max().item())
    assert errors[2] < (0.02 if order == 1 else 5e-4)
    for coarse, fine in itertools.pairwise(errors):
        assert 2 ** (order - 0.25) < coarse / fine < 2 ** (order + 0.6)


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("shift", [1.0, 2.0])
def test_flow_solvers_are_exact_on_straight_paths(solver, shift):
    """Data in a single point c: v = (x - c) / t, and every step stays on the line."""
    noise, point = small.normal(1, 2, 3, 4, 6), 0.3
    calls = []

    def predict(x, time):
        calls.append(time[0].item() / 1000)
        return (x - point) / (time / 1000)[:, None, None, None]

    x = objective("flow").sample(predict, noise, Sample(solver=solver, steps=5), shift)
    torch.testing.assert_close(x, torch.full_like(x, point), rtol=0, atol=1e-5)
    times = [shift * t / (1 + (shift - 1) * t) for t in (1, 0.8, 0.6, 0.4, 0.2)]
    visited = times if solver == "euler" else [times[0], *np.repeat(times[1:], 2)]
    assert calls == pytest.approx(visited, abs=1e-6)


def test_the_objectives_own_shift_multiplies_that_of_a_size():
    """sigma' = s sigma / (1 + (s - 1) sigma) twice is once with the product."""
    seen, flow = [], diffusion.objective(Objective(name="flow", shift=3.0))
    flow.sample(lambda x, t: seen.append(t[0].item() / 1000) or x, torch.zeros(1, 1, 2, 2), Sample(solver="euler", steps=4), 2.0)
    assert seen == pytest.approx([6 * t / (1 + 5 * t) for t in (1, 0.75, 0.5, 0.25)])


def test_progress_counts_steps():
    done = []
    for name, solver in (("flow", "heun"), ("ddpm", "ddim")):
        done.clear()
        model = gaussian_velocity if name == "flow" else lambda x, t: torch.cat([x, x], 1)
        objective(name).sample(
            model, small.normal(1, 1, 3, 2, 2), Sample(solver=solver, steps=7), progress=lambda: done.append(1)
        )
        assert len(done) == 7


def posterior(level: int, data: np.ndarray, noisy: np.ndarray):
    """q(x_{t-1} | x_t, x_0) as a product of two normal densities in x_{t-1}: mean, variance."""
    before = BAR[level - 1]
    precision = (1 - BETAS[level]) / BETAS[level] + 1 / (1 - before)
    mean = (math.sqrt(1 - BETAS[level]) * noisy / BETAS[level] + math.sqrt(before) * data / (1 - before)) / precision
    return mean, 1 / precision


@pytest.mark.parametrize("level", [0, 1, 2, 500, 999])
def test_ddpm_loss_by_hand(level):
    ddpm = objective("ddpm")
    data = small.normal(1, 1, 4, 3, 5).mul(0.6).clamp(-1, 1)
    noise = small.normal(2, 1, 4, 3, 5)
    model = {}

    def predict(x, time):
        assert time.tolist() == [level]
        model.update(x=x, eps=0.9 * noise + 0.1, share=torch.sin(5 * x))
        return torch.cat([model["eps"], model["share"]], 1)

    loss = ddpm.loss(predict, data, torch.tensor([(level + 0.5) / 1000]), noise).item()
    x, eps, share, clean, true = (v.double().numpy() for v in (model["x"], model["eps"], model["share"], data, noise))
    np.testing.assert_allclose(x, math.sqrt(BAR[level]) * clean + math.sqrt(1 - BAR[level]) * true, rtol=1e-5, atol=1e-6)
    guess = (x - math.sqrt(1 - BAR[level]) * eps) / math.sqrt(BAR[level])
    smallest = posterior(max(level, 1), clean, x)[1]  # level 0 takes the variance of level 1
    log_variance = (share + 1) / 2 * math.log(BETAS[level]) + (1 - share) / 2 * math.log(smallest)
    if level:
        (mean, variance), wrong = posterior(level, clean, x), posterior(level, guess, x)[0]
        p = torch.distributions.Normal(torch.tensor(wrong), torch.tensor(np.exp(log_variance / 2)))
        q = torch.distributions.Normal(torch.tensor(mean), math.sqrt(variance))
        nats = torch.distributions.kl_divergence(q, p).numpy()
    else:
        normal = stats.norm(guess, np.exp(log_variance / 2))  # at level 0 the mean is the predicted data
        high, low = normal.cdf(clean + 1 / 255), normal.cdf(clean - 1 / 255)
        inside = np.where(clean < -0.999, high, np.where(clean > 0.999, 1 - low, high - low))
        nats = -np.log(np.maximum(inside, 1e-12))
    expected = np.mean((eps - true) ** 2) + nats.mean() / math.log(2)
    assert loss == pytest.approx(expected, rel=2e-3)


def test_the_bound_does_not_move_the_noise_prediction():
    eps = small.normal(3, 2, 1, 2, 2).requires_grad_()
    share = small.normal(4, 2, 1, 2, 2).requires_grad_()
    noise = small.normal(2, 2, 1, 2, 2)
    loss = objective("ddpm").loss(lambda x, t: torch.cat([eps, share], 1), small.normal(1, 2, 1, 2, 2),
                                  torch.tensor([0.3, 0.0]), noise)  # fmt: skip
    loss.backward()
    torch.testing.assert_close(eps.grad, 2 * (eps.detach() - noise) / eps.numel())
    assert share.grad.abs().min() > 0


def noisy_model(x, time):
    """Some smooth function in place of a network; twice the channels."""
    level = (time / 1000)[:, None, None, None]
    return torch.cat([0.8 * x + 0.3 * torch.sin(3 * x + level), torch.tanh(x - level)], 1)


@pytest.mark.parametrize("steps", [1, 1001])
@pytest.mark.parametrize("solver", ["ddim", "ddpm"])
def test_ddpm_takes_two_steps_to_all_levels(solver, steps):
    """One step would start at level 0, where noise counts as nearly clean."""
    noise = torch.randn(1, 4, 2, 2)
    with pytest.raises(UserError, match="a model with 1000 noise levels allows 2 to 1000 steps"):
        objective("ddpm").sample(noisy_model, noise, Sample(solver=solver, steps=steps))


@pytest.mark.parametrize("steps", [250, 1000, 7])
def test_ddpm_sampler_is_ancestral_sampling(steps):
    """Against the equations in float64 and against diffusers' scheduler driven by hand, with each image's own noise."""
    noise = small.normal(1, 2, 1, 2, 3)
    generators = [image_generator(5, i) for i in range(2)]
    ours = objective("ddpm").sample(noisy_model, noise, Sample(solver="ddpm", steps=steps), generators=generators)

    generators = [image_generator(5, i) for i in range(2)]
    levels = [round(i * 999 / (steps - 1)) for i in range(steps)]
    bar = BAR[levels]
    before = np.concatenate([[1.0], bar[:-1]])
    betas = 1 - bar / before
    x = noise.double().numpy()
    for i in reversed(range(steps)):
        time = torch.full((2,), float(levels[i]))
        eps, share = noisy_model(torch.tensor(x), time).double().chunk(2, 1)
        data = (x - math.sqrt(1 - bar[i]) * eps.numpy()) / math.sqrt(bar[i])
        x = (math.sqrt(before[i]) * betas[i] * data + math.sqrt(1 - betas[i]) * (1 - before[i]) * x) / (1 - bar[i])
        if i:
            smallest = betas[i] * (1 - before[i]) / (1 - bar[i])
            share = (share.numpy() + 1) / 2
            fresh = np.stack([torch.randn(1, 1, 2, 3, generator=g)[0].double().numpy() for g in generators])
            x = x + np.exp((share * math.log(betas[i]) + (1 - share) * math.log(smallest)) / 2) * fresh
    assert np.abs(x).max() < 100
    np.testing.assert_allclose(ours.numpy(), x, rtol=0, atol=2e-4 * np.abs(x).max())

    scheduler = DDPMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=False, variance_type="learned_range",
                              timestep_spacing="linspace")  # fmt: skip
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == levels[::-1]
    generators, x = [image_generator(5, i) for i in range(2)], noise
    for level in scheduler.timesteps:
        x = scheduler.step(noisy_model(x, level.float().expand(2)), level, x, generator=generators).prev_sample
    assert (ours - x).abs().max() <= 1e-5


@pytest.mark.parametrize("steps", [1000, 50, 16, 2])
def test_ddim_visits_the_levels_it_computes_with(steps):
    noise = small.normal(1, 2, 1, 2, 3)
    ours = objective("ddpm").sample(noisy_model, noise, Sample(solver="ddim", steps=steps))
    levels = [round(i * 999 / (steps - 1)) for i in reversed(range(steps))]
    x = noise.double().numpy()
    for level, after in zip(levels, [*levels[1:], -1], strict=True):
        eps = noisy_model(torch.tensor(x), torch.full((2,), float(level))).chunk(2, 1)[0].double().numpy()
        then = BAR[after] if after >= 0 else 1.0
        x = math.sqrt(then) * (x - math.sqrt(1 - BAR[level]) * eps) / math.sqrt(BAR[level]) + math.sqrt(1 - then) * eps
    np.testing.assert_allclose(ours.numpy(), x, rtol=1e-3, atol=1e-4 * np.abs(x).max())


def test_ddim_equals_diffusers_where_its_step_divides_the_levels():
    scheduler = DDIMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=False, timestep_spacing="linspace")
    scheduler.set_timesteps(1000)
    ours = objective("ddpm").sample(noisy_model, small.normal(1, 2, 1, 2, 3), Sample(solver="ddim", steps=1000))
    x = small.normal(1, 2, 1, 2, 3)
    for level in scheduler.timesteps:
        x = scheduler.step(noisy_model(x, level.float().expand(2)).chunk(2, 1)[0], level, x).prev_sample
    torch.testing.assert_close(ours, x, rtol=1e-3, atol=1e-3)


def test_ddim_recovers_gaussian_data():
    """Where the data are N(0, s^2) the optimal noise prediction is known, and DDIM maps x_T to about s x_T."""
    deviation = 0.5

    def predict(x, time):
        bar = torch.tensor(BAR)[time.long()][:, None, None, None]
        eps = (1 - bar).sqrt() * x / (bar * deviation**2 + 1 - bar)
        return torch.cat([eps, eps], 1).float()

    noise = small.normal(1, 2, 3, 4, 6)
    x = objective("ddpm").sample(predict, noise, Sample(solver="ddim", steps=1000))
    torch.testing.assert_close(x, deviation * noise, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize(("channels", "guided"), [("all", 4), ("three", 3)])
def test_guidance_by_hand(channels, guided):
    x, label = small.normal(1, 2, 4, 2, 3), torch.tensor([2, 0])

    def predict(x, time, label):
        assert time.tolist() == [7.0] * 4
        return torch.cat([x * (label + 1)[:, None, None, None], x + label[:, None, None, None]], 1)

    result = diffusion.guided(predict, label, 9, 1.5, channels)(x, torch.full((2,), 7.0))
    assert result.shape == (2, 8, 2, 3)
    for i in range(2):
        for c in range(8):
            own = x[i, c] * (label[i] + 1) if c < 4 else x[i, c - 4] + label[i]
            null = x[i, c] * 10 if c < 4 else x[i, c - 4] + 9
            torch.testing.assert_close(result[i, c], null + 1.5 * (own - null) if c < guided else own)


def test_guidance_is_combined_in_float32():
    """Of predictions in bfloat16, as autocast gives them: they differ by little, and the scale would multiply the rounding."""
    own, null = (small.normal(seed, 1, 3, 4, 4).bfloat16() for seed in (1, 2))
    step = diffusion.guided(lambda x, time, label: torch.cat([own, null]), torch.tensor([1]), 9, 1.5, "all")
    assert torch.equal(step(torch.zeros(1, 3, 4, 4), torch.zeros(1)), null.float() + 1.5 * (own.float() - null.float()))


def test_no_guidance_costs_no_second_half():
    sizes = []

    def predict(x, time, label):
        sizes.append(len(x))
        return x

    diffusion.guided(predict, torch.tensor([1, 2]), 9, 1.0, "all")(torch.zeros(2, 3, 2, 2), torch.zeros(2))
    assert sizes == [2]


def test_no_two_purposes_share_random_numbers():
    """Noise seen in training does not come back as the start of an image, at whatever place in the stream."""
    trained = {value for step in range(20) for value in Draws(0, step, (0, 16), 16).normal(64).flatten().tolist()}
    drawn = {v for i in range(20) for v in torch.randn(1024, generator=image_generator(0, i)).tolist()}
    placed = set(Draws(0, 0, (0, 16), 16, purpose=POSITIONS).normal(64).flatten().tolist())
    torch.manual_seed(mixed_seed(WEIGHTS, 0))
    weights = set(torch.randn(1024).tolist())
    sets = [trained, drawn, placed, weights]
    for number, one in enumerate(sets):
        for other in sets[number + 1 :]:
            assert len(one & other) < 20, "a few meet by chance among float32 numbers"


def test_noise_of_an_image_depends_on_seed_and_index():
    def draw(seed, index):
        return torch.randn(4, generator=image_generator(seed, index)).tolist()

    assert draw(0, 5) == draw(0, 5)
    drawn = [tuple(draw(seed, index)) for seed in range(4) for index in range(50)]
    assert len(set(drawn)) == 200
    seeds = [mixed_seed(a, b) for a in range(30) for b in range(30)]
    assert len(set(seeds)) == 900
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert mixed_seed(1, 2) != mixed_seed(2, 1)
    bits = np.unpackbits(np.array(seeds, dtype=">u8").view(np.uint8)).reshape(-1, 64)[:, 1:].mean(0)
    assert np.abs(bits - 0.5).max() < 0.1


def test_noise_levels():
    """t = 0 is data, t = 1 is noise; a DDPM level is the flow's time of the same signal-to-noise ratio."""
    flow, ddpm = (objective(name) for name in ("flow", "ddpm"))
    assert [flow.noise_level(t) for t in (0.0, 426.0, 1000.0)] == [0, 0.426, 1]
    assert ddpm.noise_level(0.0) == pytest.approx(math.sqrt(1e-4) / (math.sqrt(1e-4) + math.sqrt(1 - 1e-4)))
    assert ddpm.noise_level(426.0) == pytest.approx(0.70, abs=2e-3)
    assert 0.99 < ddpm.noise_level(999.0) < 1
    for level in (1, 300, 426, 800):
        t, abar = ddpm.noise_level(float(level)), ddpm.alphas_bar[level].item()
        assert (1 - t) ** 2 / t**2 == pytest.approx(abar / (1 - abar))
