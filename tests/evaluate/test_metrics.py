"""Scores against torch-fidelity, torchmetrics, scipy, numpy and closed forms; their intervals against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torchmetrics.image.fid import FrechetInceptionDistance

from benchmark import registry
from benchmark.evaluate.manifold import kernel_distance, precision_recall
from benchmark.evaluate.metrics import (
    FrechetDistance,
    FrechetInfluence,
    InceptionScore,
    Moments,
    extrapolate,
    frechet_distance,
    infinity_sizes,
    replicates,
    split_of,
    with_interval,
    within_classes,
)
from benchmark.evaluate.spectrum import log_spectrum, spectrum_distance
from benchmark.files import UserError
from benchmark.results import compare
from benchmark.streams import draws, split_order


def cloud(seed: int, count: int, width: int, shift: float = 0.0) -> torch.Tensor:
    """Features with unequal, correlated directions, float32 [count, width]."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=torch.Generator().manual_seed(99)) / width**0.5 + 0.3 * torch.eye(width)
    return torch.randn(count, width, generator=generator) @ mix + shift


def moments(x: torch.Tensor) -> Moments:
    x = x.double()
    return Moments(x.mean(dim=0), torch.from_numpy(np.atleast_2d(np.cov(x.numpy(), rowvar=False))), len(x))


def filled(metric, features, size: int):
    for part in features.split(size):
        metric.update(part)
    return metric


# --- Frechet distance ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "width"), [(500, 48), (30, 48), (2, 5), (200, 1)])
def test_frechet_agrees_with_torch_fidelity_and_scipy(count, width):
    """Also where the covariance is singular (fewer images than features)."""
    fake, real = cloud(1, count, width, 0.1), cloud(2, 400, width)
    metric = filled(FrechetDistance(width, moments(real)), fake, 7)
    if width > 1:
        statistics = [fid_features_to_statistics(x.double()) for x in (fake, real)]
        expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
        assert metric.compute().item() == pytest.approx(expected, rel=1e-6)
    a, b = (np.atleast_2d(np.cov(x.double().numpy(), rowvar=False)) for x in (fake, real))
    root = scipy.linalg.sqrtm(a @ b + 1e-13 * np.eye(width))
    mean = (fake.double().mean(0) - real.double().mean(0)).square().sum().item()
    assert metric.compute().item() == pytest.approx(mean + np.trace(a + b - 2 * root.real), rel=1e-4)


def test_singular_references():
    """Fewer reference images than features, and features that are always zero: Cholesky has no factor."""
    few, many = moments(cloud(1, 12, 20)), moments(cloud(2, 200, 20))
    assert frechet_distance(many, few) == pytest.approx(frechet_distance(few, many), rel=1e-6)
    dead = torch.diag(torch.tensor([0.0, 4.0, 0.0, 9.0]))
    assert frechet_distance(Moments(torch.zeros(4), torch.eye(4)), Moments(torch.zeros(4), dead)) == pytest.approx(1 + 1 + 1 + 4)


def test_moments_are_numpys_covariance():
    x = cloud(3, 300, 20, 50.0)
    found = filled(FrechetDistance(20), x, 64).moments()
    np.testing.assert_allclose(found.mu, x.double().numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.sigma, np.cov(x.double().numpy(), rowvar=False), rtol=1e-8, atol=1e-10)
    assert found.count == 300
    assert found.mu.dtype == found.sigma.dtype == torch.float64


def test_frechet_agrees_with_torchmetrics():
    class Narrow(torch.nn.Module):
        """The first columns of a picture's pixels as features; torchmetrics feeds it pictures."""

        num_features = 12

        def forward(self, x):
            return x.flatten(1)[:, :12].float()

    pictures = torch.randint(0, 256, (90, 3, 299, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    fake, real = pictures[:40], pictures[40:] // 2
    peer = FrechetInceptionDistance(Narrow(), input_img_size=(3, 299, 4), antialias=False)
    peer.set_dtype(torch.float64)
    peer.update(real, real=True)
    peer.update(fake, real=False)
    first, second = (part.flatten(1)[:, :12].float() for part in (fake, real))
    ours = filled(FrechetDistance(12, moments(second)), first, 16).compute()
    assert ours.item() == pytest.approx(peer.compute().item(), rel=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6))
def test_frechet_of_gaussians_with_known_distance(seed, width):
    """Covariances that share their eigenvectors: |mu_a - mu_b|^2 + sum (sqrt a - sqrt b)^2, in any rotation."""
    random = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(random.normal(size=(width, width)))
    a, b = random.uniform(0, 9, (2, width))
    b[0] = 0  # a direction in which the reference has no extent
    mu_a, mu_b = random.normal(size=(2, width))
    first, second = (
        Moments(torch.from_numpy(mu), torch.from_numpy((rotation * values) @ rotation.T)) for mu, values in ((mu_a, a), (mu_b, b))
    )
    expected = np.sum((mu_a - mu_b) ** 2) + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)
    assert frechet_distance(first, second) == pytest.approx(expected, abs=1e-6)
    assert FrechetInfluence(first, second).value == pytest.approx(frechet_distance(first, second), abs=1e-6)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first), abs=1e-6)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_batches_do_not_matter(sizes):
    x = cloud(4, sum(sizes) + 2, 6)
    complete = filled(FrechetDistance(6), x, len(x)).moments()
    parts = FrechetDistance(6)
    for part in x.split([*sizes, 2]):
        parts.update(part)
    torch.testing.assert_close(parts.moments().sigma, complete.sigma, rtol=1e-10, atol=1e-12)


def test_state_stays_float64():
    metric = FrechetDistance(4, moments(cloud(1, 50, 4))).half().float()
    metric.set_dtype(torch.float16)
    metric.update(cloud(2, 20, 4).half())
    assert metric.outer.dtype == torch.float64
    metric.reset()
    assert int(metric.count) == 0


# --- Inception score -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "splits"), [(1000, 10), (103, 10), (10, 10), (64, 1)])
def test_inception_score_agrees_with_torch_fidelity(count, splits):
    logits = 3 * cloud(5, count, 12)
    metric = InceptionScore(12, count, splits)
    for start in reversed(range(0, count, 17)):  # any order of arrival
        metric.update(logits[start : start + 17], start)
    peer = isc_features_to_metric(logits, splits)
    assert metric.compute().item() == pytest.approx(peer["inception_score_mean"], rel=1e-9)
    assert metric.per_split().std(correction=0).item() == pytest.approx(peer["inception_score_std"], rel=1e-6, abs=1e-12)


def test_sorted_classes_score_as_shuffled_ones():
    """A file sorted by class, cut in file order, scores far less: that is what the shuffle is for."""
    labels = torch.arange(2000) // 200
    logits = 8.0 * torch.nn.functional.one_hot(labels, 10) + cloud(6, 2000, 10)
    shuffled = logits[torch.randperm(2000, generator=torch.Generator().manual_seed(1))]

    def ours(x: torch.Tensor) -> float:
        metric = InceptionScore(10, len(x))
        metric.update(x, 0)
        return metric.compute().item()

    assert ours(logits) == pytest.approx(ours(shuffled), rel=0.02)
    assert isc_features_to_metric(logits, 10, shuffle=False)["inception_score_mean"] < 0.3 * ours(logits)


def test_splits_of_inceptions_score_are_the_evaluators():
    """Its evaluator takes runs of 5,000 images; ten splits, whatever N is, give far less at N = 10,000."""
    facts = registry.detector_facts("inception")
    assert [facts.splits(count) for count in (1000, 2600, 10_000, 50_000)] == [1, 1, 2, 10]
    generator = np.random.default_rng(0)
    count, classes = 10_000, 1008
    logits = generator.normal(size=(count, classes)) * 1.5
    logits[np.arange(count), generator.integers(0, classes, count)] += 8.45

    def ours(splits: int) -> float:
        metric = InceptionScore(classes, count, splits)
        metric.update(torch.from_numpy(logits), 0)
        return metric.compute().item()

    def evaluators(p: np.ndarray, size: int = 5000) -> float:
        runs = [p[start : start + size] for start in range(0, len(p), size)]
        return float(np.mean([np.exp(np.mean(np.sum(run * (np.log(run) - np.log(run.mean(0))), 1))) for run in runs]))

    shuffled = scipy.special.softmax(logits, axis=1)[split_order(count)]
    assert ours(facts.splits(count)) == pytest.approx(evaluators(shuffled), rel=1e-9)
    assert ours(2) == pytest.approx(47, abs=2)
    assert ours(10) < 0.9 * ours(2)


@pytest.mark.parametrize("splits", [0, -1])
def test_no_splits_are_refused(splits):
    with pytest.raises(UserError, match="at least one split"):
        InceptionScore(4, 40, splits)


def test_every_image_is_in_one_split():
    split = split_of(103, 10)
    assert sorted(torch.bincount(split).tolist()) == [10] * 7 + [11] * 3
    assert not torch.equal(split, split.sort().values)


def test_inception_score_bounds():
    metric = InceptionScore(4, 40)
    metric.update(torch.zeros(40, 4), 0)
    assert metric.compute().item() == pytest.approx(1)
    sharp = InceptionScore(4, 40, 1)
    sharp.update(200.0 * torch.eye(4).repeat(10, 1), 0)
    assert sharp.compute().item() == pytest.approx(4)


# --- Spectrum --------------------------------------------------------------------------------------------------------


def test_spectrum_of_white_noise_is_its_variance():
    noise = torch.randint(0, 256, (20, 3, 48, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    spectrum = log_spectrum(noise)
    assert spectrum.shape == (20, 24)
    expected = 10 * math.log10((256**2 - 1) / 12)  # the variance of a uniform integer in 0 .. 255
    np.testing.assert_allclose(spectrum.mean(0)[2:], expected, atol=0.4)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 48), (48, 64), (33, 64)])
@pytest.mark.parametrize("axis", [0, 1])
def test_spectrum_finds_a_wave_at_its_frequency(height, width, axis):
    """A wave of 0.25 cycles per pixel lies in the bin of 0.25 x the short side, along either axis of a rectangle."""
    phase = torch.arange([height, width][axis]) * 0.25 * 2 * math.pi
    wave = (128 + 60 * phase.sin()).reshape([(-1, 1), (1, -1)][axis]).expand(height, width)
    spectrum = log_spectrum(wave.to(torch.uint8).expand(1, 3, -1, -1))[0]
    frequency = (1 + spectrum.argmax().item()) / min(height, width)
    assert frequency == pytest.approx(0.25, abs=1.01 / min(height, width))


def test_spectrum_is_the_full_transforms():
    """Against a plain complex FFT over all frequencies."""
    image = torch.randint(0, 256, (1, 3, 20, 14), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    x = image[0].double().numpy()
    window = np.outer(*(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n) for n in (20, 14)))
    power = np.abs(np.fft.fft2((x - x.mean((1, 2), keepdims=True)) * window)) ** 2 / (window**2).sum()
    radius = np.hypot(np.fft.fftfreq(20)[:, None], np.fft.fftfreq(14)[None, :])
    ring = np.rint(radius * 14)
    expected = [10 * np.log10(power[:, ring == b].mean() + 1 / 12) for b in range(1, 8)]
    np.testing.assert_allclose(log_spectrum(image)[0], expected, rtol=1e-4)


def test_spectrum_of_a_flat_image_is_the_rounding_floor():
    flat = torch.full((1, 3, 16, 16), 7, dtype=torch.uint8)
    np.testing.assert_allclose(log_spectrum(flat), 10 * math.log10(1 / 12), rtol=1e-5)


def test_blur_has_a_distance():
    sharp = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool2d(sharp.float(), 3, 1, 1).to(torch.uint8)
    value, gradient = spectrum_distance(log_spectrum(blurred).mean(0), log_spectrum(sharp).mean(0))
    assert value > 5
    assert gradient[-1] < 0
    with pytest.raises(UserError, match="different image sizes"):
        spectrum_distance(torch.zeros(8), torch.zeros(16))


def test_the_gradient_of_the_spectrums_distance_is_autograds():
    mean, there = torch.arange(9.0).double().sin().requires_grad_(), torch.arange(9.0).double().cos()
    (mean - there).square().mean().sqrt().backward()
    torch.testing.assert_close(spectrum_distance(mean.detach(), there)[1], mean.grad)


# --- Influences and intervals ----------------------------------------------------------------------------------------


def weighted_frechet(weights: torch.Tensor, x: torch.Tensor, real: Moments) -> float:
    mu = weights @ x
    sigma = ((x - mu).T * weights) @ (x - mu) * len(x) / (len(x) - 1)
    return frechet_distance(Moments(mu, sigma), real)


def by_difference(statistic, count: int, image: int, step: float = 1e-4) -> float:
    """The derivative of a statistic when the weight of one image grows at the cost of all."""
    values = []
    for sign in (1, -1):
        weights = torch.full((count,), (1 - sign * step) / count, dtype=torch.float64)
        weights[image] += sign * step
        values.append(statistic(weights))
    return (values[0] - values[1]) / (2 * step)


def test_influence_on_the_frechet_distance():
    x, real = cloud(12, 40, 5, 0.3).double(), moments(cloud(13, 200, 5))
    influence = FrechetInfluence(moments(x), real)(x)
    assert influence.mean().item() == pytest.approx(0, abs=1e-9)
    for i in (0, 7, 39):
        assert influence[i].item() == pytest.approx(by_difference(lambda w: weighted_frechet(w, x, real), 40, i), rel=1e-4)


def test_influence_on_the_inception_score():
    logits = 3 * cloud(14, 31, 6)  # splits of 10, 10 and 11
    metric = InceptionScore(6, 31, 3)
    metric.update(logits, 0)
    influence = metric.influence(logits, 0)
    p, split = logits.double().softmax(1), split_of(31, 3)

    def statistic(weights: torch.Tensor) -> float:
        scores = []
        for s in range(3):
            w = weights * (split == s)
            w = w / w.sum()
            scores.append((w @ (p * (p / (w @ p)).log()).sum(1)).exp())
        return float(sum(scores) / 3)

    assert influence.mean().item() == pytest.approx(0, abs=1e-9)
    for i in (0, 11, 29):
        assert influence[i].item() == pytest.approx(by_difference(statistic, 31, i), rel=1e-4)


def test_influence_on_the_kernel_distance():
    """To the order of 1 / N: the unbiased estimate leaves out the diagonal, its derivative does not."""
    fake, real = cloud(15, 300, 5, 0.3).double(), cloud(16, 100, 5).double()
    value, influence = kernel_distance(fake, real)
    without = [kernel_distance(fake[torch.arange(300) != i], real)[0] for i in range(20)]
    jackknife = 299 * (value - torch.tensor(without))
    assert np.corrcoef(jackknife, influence[:20])[0, 1] > 0.999
    np.testing.assert_allclose(jackknife.numpy(), influence[:20].numpy(), atol=0.02 * influence.abs().max())


def test_interval_is_as_wide_as_fresh_images_make_it():
    """The spread from one set of images equals the spread of FID over many sets, and the interval holds the value."""
    real = moments(cloud(17, 4000, 8))
    values, widths = [], []
    for seed in range(120):
        x = cloud(1000 + seed, 300, 8, 0.3).double()
        influence = FrechetInfluence(moments(x), real)
        score = with_interval(influence.value, influence(x), 100, 0.95)
        assert score["low"] < score["value"] < score["high"]
        values.append(influence.value)
        widths.append(score["high"] - score["low"])
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.std(values), rel=0.25)


def test_interval_within_classes():
    """Where classes take turns, far less varies than where they are drawn: the spread over many sets of images says so."""
    real = moments(cloud(17, 4000, 8))
    labels = torch.arange(400) % 4
    centres = 3 * torch.randn(4, 8, generator=torch.Generator().manual_seed(5))
    values, drawn, balanced = [], [], []
    for seed in range(200):
        x = (cloud(2000 + seed, 400, 8) + centres[labels]).double()
        influence = FrechetInfluence(moments(x), real)
        values.append(influence.value)
        drawn.append(influence(x).std().item() / 20)
        balanced.append(within_classes(influence(x), labels).std().item() / 20)
    assert np.mean(balanced) == pytest.approx(np.std(values), rel=0.25)
    assert np.mean(drawn) > 2 * np.std(values)


def test_classes_of_one_image_are_left_alone():
    influence = torch.tensor([1.0, 3.0, 7.0], dtype=torch.float64)
    found = within_classes(influence, torch.tensor([4, 4, 9]))
    assert found.tolist() == pytest.approx([-(2**0.5), 2**0.5, 7])


def test_plain_resampling_would_be_biased():
    """Why influences are resampled and not images: repeated images look like fewer, and FID grows with fewer."""
    x, real = cloud(18, 100, 20).double(), moments(cloud(19, 1000, 20))
    influence = FrechetInfluence(moments(x), real)
    plain = [frechet_distance(moments(x[np.random.default_rng(r).integers(0, 100, 100)]), real) for r in range(40)]
    ours = replicates(influence.value, influence(x), 200)
    assert min(plain) > influence.value
    assert np.mean(ours) == pytest.approx(influence.value, abs=3 * np.std(ours) / 200**0.5)
    assert np.std(ours) == pytest.approx(np.std(plain), rel=0.4)


def test_draws_are_frozen():
    """The pairing of records of different times and machines stands on this."""
    assert draws(0, 10).tolist() == [0, 0, 1, 2, 1, 1, 0, 2, 0, 3]
    assert draws(3, 10).tolist() == [0, 2, 0, 0, 3, 2, 0, 1, 1, 1]
    assert draws(1, 50_000).sum() == 50_000


def test_comparison_in_pairs():
    """Two methods that share their noise differ clearly although their intervals overlap."""
    random = np.random.default_rng(0)
    shared = random.normal(size=500)
    a = with_interval(10.0, shared + 0.1 * random.normal(size=500), 200, 0.95)
    b = with_interval(10.05, shared + 0.1 * random.normal(size=500), 200, 0.95)
    assert a["high"] > b["low"]
    result = compare.compare(a, b)
    assert result.verdict == "lower"
    assert result.low < result.difference < result.high < 0
    assert result.difference == pytest.approx(-0.05)
    assert compare.compare(b, a).verdict == "higher"
    c = with_interval(10.05, random.normal(size=500), 200, 0.95)
    assert compare.compare(a, c).verdict == "not different"
    assert compare.compare(a, a).verdict == "not different"


def test_comparison_needs_replicates():
    with pytest.raises(UserError, match="needs replicates"):
        compare.compare({"value": 1.0}, {"value": 2.0, "replicates": [1.0]})
    with pytest.raises(UserError, match="equally many"):
        compare.compare({"value": 1.0, "replicates": [1.0, 2.0]}, {"value": 2.0, "replicates": [1.0]})


def test_interval_is_centred_on_the_value():
    low, high = compare.interval(5.0, [7.0, 8.0, 9.0], 1.0)
    assert (low, high) == (4.0, 6.0)


def test_no_intervals_without_resamples():
    assert with_interval(1.0, torch.zeros(4), 0, 0.95) == {"value": 1.0}


# --- Infinitely many images ------------------------------------------------------------------------------------------


def test_extrapolation_finds_the_intercept():
    sizes = infinity_sizes(1000, 20)
    assert (sizes[0], sizes[-1], len(sizes)) == (100, 1000, 15)
    assert infinity_sizes(50_000, 2048)[0] == 5000  # the paper's
    assert infinity_sizes(1000, 200)[0] == 400
    assert infinity_sizes(1000, 251) == infinity_sizes(1000, 20, 0) == []
    assert extrapolate(sizes, [3 + 40 / n for n in sizes]) == pytest.approx(3)
    with pytest.raises(UserError, match="several sample sizes"):
        extrapolate([10], [1.0])


# --- Ranks -----------------------------------------------------------------------------------------------------------


def on_rank(rank: int, path: str) -> None:
    """One of two processes; rank 1 gets fewer and other images, each image exactly once."""
    torch.set_num_threads(1)  # the thread pool of the process that was forked is not there
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}/meet", rank=rank, world_size=2)
    x, real = cloud(20, 101, 6), cloud(21, 80, 6)
    metrics = {"fid": FrechetDistance(6, moments(real)), "is": InceptionScore(6, 101)}
    for k, start in enumerate(range(0, 101, 9)):
        if k % 2 == rank:
            part = x[start : start + 9]
            for name, metric in metrics.items():
                metric.update(*((part, start) if name == "is" else (part,)))
    torch.save({name: metric.compute() for name, metric in metrics.items()}, f"{path}/rank{rank}.pt")
    idle = FrechetDistance(6, moments(real))  # all images on one rank, none on the other
    if rank == 0:
        idle.update(x)
    torch.save(idle.compute(), f"{path}/idle{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_same_as_one(tmp_path):
    torch.multiprocessing.start_processes(on_rank, (str(tmp_path),), nprocs=2, start_method="fork")  # spawning imports anew
    x, real = cloud(20, 101, 6), cloud(21, 80, 6)
    score = InceptionScore(6, 101)
    score.update(x, 0)
    alone = {"fid": FrechetDistance(6, moments(real))(x), "is": score.compute()}
    for rank in range(2):
        found = torch.load(tmp_path / f"rank{rank}.pt")
        for name, expected in alone.items():
            torch.testing.assert_close(found[name], expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(torch.load(tmp_path / f"idle{rank}.pt"), alone["fid"])


# --- Bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: FrechetDistance(3, moments(cloud(1, 9, 3)))(cloud(1, 1, 3)), "at least 2 images, not 1"),
        (lambda: FrechetDistance(3).update(torch.full((2, 3), torch.nan)), "features of 2 of 2 images are NaN"),
        (lambda: FrechetDistance(3).update(torch.zeros(2, 4)), "width 4, expected 3"),
        (lambda: FrechetDistance(3).update(torch.zeros(2, 3, dtype=torch.uint8)), "floating-point"),
        (lambda: FrechetDistance(3).update(torch.zeros(3)), r"shape \[images, width\]"),
        (lambda: frechet_distance(moments(cloud(1, 9, 3)), moments(cloud(1, 9, 4))), "width 3 .* reference of 4"),
        (lambda: Moments(torch.zeros(3), torch.full((3, 3), torch.inf)), "finite"),
        (lambda: Moments(torch.zeros(3), torch.zeros(4, 4)), "do not match"),
        (lambda: InceptionScore(5, 9, 10), "9 images, 10 splits"),
        (lambda: InceptionScore(5, 20).update(torch.zeros(4, 5), 18), "beyond the 20 expected"),
        (lambda: InceptionScore(5, 20).compute(), "saw 0 images instead of 20"),
        (lambda: precision_recall(cloud(1, 9, 3), cloud(1, 3, 3)), "at least 4 images, not 3"),
        (lambda: kernel_distance(cloud(1, 1, 3), cloud(1, 9, 3)), "at least 2 images"),
    ],
)
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_bad_input_is_a_clear_error(act, message):
    with pytest.raises(UserError, match=message):
        act()
