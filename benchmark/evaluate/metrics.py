"""Scores of images: streaming torchmetrics over a detector's outputs, with the influence of every image on each score.

Every state is float64 and is summed (or concatenated) over ranks, so that any split of the images over ranks and batches
gives the same number. A metric never sees a detector: it is fed what detectors return.

Uncertainty. All these scores are smooth functions T of the empirical distribution of the images, so that to first order
T(resampled) = T + mean over the draw of IF_i, where IF_i is the influence of image i (the derivative of T when the weight
of image i grows; Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 21-22). `replicates` resamples
those influences. That costs one pass instead of an eigenvalue problem per replicate, and it has no upward bias from
repeated images: a resampled covariance is the covariance of fewer distinct images, and FID grows with fewer images.
Where classes take turns, influences are taken about the mean of their class (`within_classes`). Intervals of FID are up to a
fifth too wide at N = 8 D and right from about N = 30 D. They are wider than they need be close to the reference, where
second-order terms dominate (a third at N = 8 D), with features of heavier tails, and at smaller N. They are not too narrow.

Shapes: N images, D features, S splits, C classes, K frequencies.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from benchmark.files import UserError
from benchmark.results.compare import interval
from benchmark.streams import draws, split_order


def check_features(features: Tensor, name: str = "features") -> None:
    """Raises UserError unless `features` is [n, D], floating and finite."""
    if features.ndim != 2:
        raise UserError(f"{name} must have the shape [images, width], not {list(features.shape)}")
    if not features.is_floating_point():
        raise UserError(f"{name} must be floating-point numbers, not {features.dtype}")
    if not torch.isfinite(features).all():
        bad = int((~torch.isfinite(features).all(dim=1)).sum())
        raise UserError(f"{name} of {bad} of {len(features)} images are NaN or infinite; all must be finite")


class Moments:
    """Mean [D] and covariance [D, D] (divided by N - 1) of features, both float64, with their number if it is known."""

    def __init__(self, mu: Tensor, sigma: Tensor, count: int | None = None):
        self.mu, self.sigma, self.count = mu.double(), sigma.double(), count
        width = self.mu.numel()
        if self.mu.shape != (width,) or self.sigma.shape != (width, width):
            raise UserError(f"a mean {list(mu.shape)} and a covariance {list(sigma.shape)} do not match")
        if not (torch.isfinite(self.mu).all() and torch.isfinite(self.sigma).all()):
            raise UserError("mean and covariance must be finite")
        self._factor: Tensor | None = None

    @property
    def factor(self) -> Tensor:
        """Some L [D, D] with L L^T = the covariance: Cholesky's, or that of the eigenvectors where it is singular."""
        if self._factor is None:
            self._factor, failed = torch.linalg.cholesky_ex(self.sigma)
            if failed:
                values, vectors = torch.linalg.eigh(self.sigma)
                self._factor = vectors * values.clamp(min=0).sqrt()
        return self._factor

    def to(self, device: torch.device | str) -> Moments:
        if self.mu.device == torch.device(device):
            return self  # and keep its factor
        return Moments(self.mu.to(device), self.sigma.to(device), self.count)


def _check_widths(a: Moments, b: Moments) -> None:
    if a.mu.shape != b.mu.shape:
        raise UserError(f"features of width {a.mu.numel()} cannot be compared with a reference of {b.mu.numel()}")


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mu_a - mu_b|^2 + tr(A + B - 2 (AB)^1/2), the squared Frechet distance of two Gaussians (Dowson, Landau 1982).

    tr (AB)^1/2 is the sum of the square roots of the eigenvalues of L^T A L, B = L L^T, which has the same spectrum as AB but
    is symmetric: faster and better conditioned than a square root or the eigenvalues of AB.
    """
    _check_widths(a, b)
    inner = b.factor.T @ a.sigma @ b.factor
    cross = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp(min=0).sqrt().sum()
    return float((a.mu - b.mu).square().sum() + a.sigma.trace() + b.sigma.trace() - 2 * cross)


class FrechetInfluence:
    """The influence of one image on the Frechet distance from sample moments `a` to reference moments `b`.

    d distance / dA = I - M with M = L (L^T A L)^-1/2 L^T, the linear map that carries the Gaussian a to b = L L^T.
    The inverse is taken on the range only: resampled images never leave the span of the images.
    """

    def __init__(self, a: Moments, b: Moments):
        _check_widths(a, b)
        inner = b.factor.T @ a.sigma @ b.factor
        values, vectors = torch.linalg.eigh((inner + inner.T) / 2)
        roots = values.clamp(min=0).sqrt()
        # Eigenvalues below the rounding error of the largest are zeros.
        keep = values > values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
        inverse = torch.where(keep, 1 / torch.where(keep, roots, 1.0), 0.0)
        carry = b.factor @ ((vectors * inverse) @ vectors.T) @ b.factor.T
        self.value = float((a.mu - b.mu).square().sum() + a.sigma.trace() + b.sigma.trace() - 2 * roots.sum())
        self.mean, self.shift = a.mu, 2 * (a.mu - b.mu)
        self.slope = torch.eye(len(carry), dtype=carry.dtype, device=carry.device) - carry
        self.constant = (self.slope * a.sigma).sum()
        self.unbias = a.count / (a.count - 1) if a.count else 1.0  # sigma is divided by N - 1

    def __call__(self, features: Tensor) -> Tensor:
        """Influences [n] of the features [n, D] of n of the images."""
        x = features.to(self.mean) - self.mean
        return x @ self.shift + self.unbias * ((x @ self.slope) * x).sum(dim=1) - self.constant


class FrechetDistance(Metric):
    """Frechet distance of features (FID) or spatial features (sFID) to a reference; Heusel et al. 2017, Nash et al. 2021.

    States: the sum of the features, the sum of their outer products, and their number.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    def __init__(self, width: int, reference: Moments | None = None, **kwargs):
        super().__init__(**kwargs)
        self.reference = reference
        self.add_state("total", torch.zeros(width, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("outer", torch.zeros(width, width, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, features: Tensor) -> None:
        check_features(features)
        x = features.to(self.total)
        if x.shape[1] != len(self.total):
            raise UserError(f"features have the width {x.shape[1]}, expected {len(self.total)}")
        self.total += x.sum(dim=0)
        self.outer.addmm_(x.T, x)
        self.count += len(x)

    def set_dtype(self, dst_type: torch.dtype) -> FrechetDistance:
        """States stay float64, whatever precision the caller works in."""
        return self

    def moments(self) -> Moments:
        """Moments of all features seen by this rank (after torchmetrics' sync: by all ranks)."""
        count = int(self.count)
        if count < 2:
            raise UserError(f"a covariance needs at least 2 images, not {count}")
        mu = self.total / count
        sigma = (self.outer - count * torch.outer(mu, mu)) / (count - 1)
        return Moments(mu, sigma, count)

    def compute(self) -> Tensor:
        if self.reference is None:
            raise UserError("this Frechet distance was made without a reference; only moments() is defined")
        value = frechet_distance(self.moments(), self.reference.to(self.total.device))
        return torch.tensor(value, dtype=torch.float64)


def split_of(count: int, splits: int) -> Tensor:
    """The split of the inception score that each of `count` images belongs to, int64 [count].

    The images are shuffled with a fixed seed and cut into nearly equal runs. Without shuffling, a file sorted by class
    gives a far lower score (guided-diffusion issue 165: 62 instead of 298).
    """
    if splits < 1:
        raise UserError(f"the inception score is a mean over at least one split, not over {splits}")
    if count < splits:
        raise UserError(f"the inception score needs at least one image per split: {count} images, {splits} splits")
    order = split_order(count)
    split = np.empty(count, np.int64)
    for s in range(splits):
        split[order[s * count // splits : (s + 1) * count // splits]] = s
    return torch.from_numpy(split)


class InceptionScore(Metric):
    """exp(mean KL(p(y|x) || p(y))) from logits without bias, mean over seeded random splits; Salimans et al. 2016.

    The number of images must be known beforehand, so that image i belongs to a fixed split however images arrive. States,
    per split: the sum of the probabilities, the sum of p log p, the number of images.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self, classes: int, count: int, splits: int = 10, **kwargs):
        super().__init__(**kwargs)
        self.expected = count
        self.split = split_of(count, splits)
        self.add_state("marginal", torch.zeros(splits, classes, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("negentropy", torch.zeros(splits, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(splits, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, start: int) -> None:
        """Takes the logits [n, C] of images start .. start + n - 1."""
        check_features(logits, "logits")
        if not 0 <= start <= self.expected - len(logits):
            raise UserError(f"images {start} to {start + len(logits) - 1} are beyond the {self.expected} expected")
        split = self.split[start : start + len(logits)].to(self.marginal.device)
        log_p = logits.to(self.marginal).log_softmax(dim=1)
        p = log_p.exp()
        self.marginal.index_add_(0, split, p)
        self.negentropy.index_add_(0, split, (p * log_p).sum(dim=1))
        self.counts.index_add_(0, split, torch.ones_like(split))

    def set_dtype(self, dst_type: torch.dtype) -> InceptionScore:
        """States stay float64, whatever precision the caller works in."""
        return self

    def per_split(self) -> Tensor:
        """The score of each split, float64 [S]."""
        if int(self.counts.sum()) != self.expected:
            raise UserError(f"the inception score saw {int(self.counts.sum())} images instead of {self.expected}")
        mean = self.marginal / self.counts[:, None]
        return (self.negentropy / self.counts - torch.xlogy(mean, mean).sum(dim=1)).exp()

    def compute(self) -> Tensor:
        return self.per_split().mean()

    def influence(self, logits: Tensor, start: int) -> Tensor:
        """Influences [n] of images start .. start + n - 1 on the score, from their logits [n, C].

        A split's score is exp(A) with A = mean_i sum_c p_ic log(p_ic / q_c), q the marginal; the influence of image i on A
        is its own sum minus A (the derivative by way of q sums to zero).
        """
        split = self.split[start : start + len(logits)].to(self.marginal.device)
        log_p = logits.to(self.marginal).log_softmax(dim=1)
        log_q = (self.marginal / self.counts[:, None]).clamp(min=1e-300).log()
        own = (log_p.exp() * (log_p - log_q[split])).sum(dim=1)
        scores = self.per_split()
        share = self.expected / (len(scores) * self.counts[split])  # a split's weight in the mean, per image
        return share * scores[split] * (own - scores[split].log())


def within_classes(influence: Tensor, labels: Tensor) -> Tensor:
    """Influences [N] about the mean of their class, for images whose classes take turns instead of being drawn.

    Every set of samples then holds the same number of each class, so that differences between classes add nothing to the
    spread. The factor sqrt(n / (n - 1)) of a class with n images makes up for the mean taken off; classes with a single
    image tell nothing of their spread and are left as they are.
    """
    _, inverse, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    totals = torch.zeros(len(counts), dtype=influence.dtype).index_add_(0, inverse, influence)
    several = counts[inverse] > 1
    factor = torch.where(counts > 1, counts / (counts - 1).clamp(min=1), 1.0).sqrt()
    return torch.where(several, (influence - (totals / counts)[inverse]) * factor[inverse], influence)


def replicates(value: float, influence: Tensor | np.ndarray, resamples: int) -> list[float]:
    """Bootstrap replicates of a score from the influences [N] of its images; replicate r of N images draws `draws(r, N)`."""
    influence = np.asarray(influence, np.float64)
    count = len(influence)
    return [value + float(draws(r, count) @ influence) / count for r in range(resamples)]


def with_interval(value: float, influence: Tensor | np.ndarray, resamples: int, level: float) -> dict[str, object]:
    """A score of a record: {"value", "low", "high", "replicates"}; only the value without resamples."""
    if not resamples:
        return {"value": value}
    drawn = replicates(value, influence, resamples)
    low, high = interval(value, drawn, level)
    return {"value": value, "low": low, "high": high, "replicates": drawn}


def infinity_sizes(count: int, width: int, points: int = 15) -> list[int]:
    """Sample sizes for the extrapolation to infinitely many images, evenly spaced up to N; none if N is below 4 D.

    They start at N / 10, as Chong and Forsyth's do, but not below 2 D: only with more images than features does FID fall
    in a line over 1 / N (theirs were 5,000 to 50,000 for 2,048 features).
    """
    if count < 4 * width:
        return []
    return sorted({round(size) for size in np.linspace(max(2 * width, count / 10), count, points)})


def extrapolate(sizes: list[int], values: list[float]) -> float:
    """FID at infinitely many images: the intercept of a line through FID over 1 / N; Chong and Forsyth 2020, section 3."""
    if len(sizes) < 2:
        raise UserError(f"extrapolating FID needs several sample sizes, not {len(sizes)}")
    slope, intercept = np.polyfit(1 / np.asarray(sizes, np.float64), np.asarray(values, np.float64), 1)
    assert math.isfinite(slope)
    return float(intercept)
