"""Objectives and samplers: flow matching, and DDPM with learned variance. t = 0 is data and t = 1 is noise.

Shapes: B batch, C channels, (H, W) pixels or latents. The core is told the noise level on DiT's scale of 0 .. 1000.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from benchmark.files import UserError
from benchmark.model.flops import OUTPUTS
from benchmark.protocol import DDPM_LEVELS
from benchmark.protocol import Objective as ObjectiveConfig
from benchmark.protocol import Sample as SampleConfig

# (x [B, C, H, W], time [B] on 0 .. 1000) -> the core's output [B, C', H, W]
Predict = Callable[[Tensor, Tensor], Tensor]


def objective(config: ObjectiveConfig) -> FlowMatching | DDPM:
    """The objective that a protocol names."""
    return {"flow": FlowMatching, "ddpm": DDPM}[config.name](config)


class FlowMatching:
    """Linear path and velocity (Lipman et al. 2023; Liu et al. 2023): x_t = (1 - t) x_0 + t eps, v = eps - x_0.

    Published cores were trained under other conventions, which no change of their weights can absorb: they know other
    frequencies of time. `convention` says what the core is told, and what it answers:

        dit     1000 t, v            this project's own, on DiT's scale
        repa    t, v                 sihyun-yu/REPA (loss.py: t = 0 is data)
        sit     1 - t, -v            willisma/SiT (transport: t = 0 is noise, the velocity points to data)
    """

    outputs = OUTPUTS["flow"]  # output channels per input channel

    def __init__(self, config: ObjectiveConfig) -> None:
        self.density, self.shift, self.convention = config.time, config.shift, config.convention

    def core_time(self, time: Tensor) -> Tensor:
        """The time input of the core for the noise level [B], on 0 .. 1000."""
        return {"dit": time, "repa": time / 1000, "sit": 1 - time / 1000}[self.convention]

    def prediction(self, output: Tensor) -> Tensor:
        """The velocity from data to noise in the core's output."""
        return -output if self.convention == "sit" else output

    def times(self, uniform: Tensor) -> Tensor:
        """Training times in [0, 1) from uniform draws [B]: uniform or logit-normal(0, 1) (Esser et al. 2024, eq. 19), shifted."""
        t = uniform if self.density == "uniform" else torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6)).sigmoid()
        return shifted(t, self.shift)

    def noise_level(self, time: float) -> float:
        """t in [0, 1] for a time on the core's scale of 0 .. 1000."""
        return time / 1000

    def loss(self, predict: Predict, data: Tensor, uniform: Tensor, noise: Tensor) -> Tensor:
        """Mean squared error of the velocity, a scalar.

        Args:
            predict: the core.
            data, noise: [B, C, H, W].
            uniform: [B] draws in [0, 1) that become times.
        """
        return self._squares(predict, data, uniform, noise).mean()

    def losses(self, predict: Predict, data: Tensor, uniform: Tensor, noise: Tensor) -> Tensor:
        """The loss of every image, [B]; arguments as for `loss`."""
        return self._squares(predict, data, uniform, noise).mean(dim=(1, 2, 3))

    def _squares(self, predict: Predict, data: Tensor, uniform: Tensor, noise: Tensor) -> Tensor:
        t = self.times(uniform)
        mix = t[:, None, None, None]
        velocity = predict((1 - mix) * data + mix * noise, 1000 * t)
        return (velocity.float() - (noise - data)).square()

    def sample(self, predict: Predict, noise: Tensor, config: SampleConfig, shift: float = 1.0,
               generators: Sequence[torch.Generator] = (), progress: Callable[[], None] = lambda: None) -> Tensor:  # fmt: skip
        """Integrates dx = v dt from t = 1 to t = 0.

        Args:
            predict: the core, guidance included.
            noise: [B, C, H, W], standard normal.
            config: `solver` "euler" or "heun" (2 `steps` - 1 evaluations, as its last step is Euler's), `steps`.
            shift: alpha of t' = alpha t / (1 + (alpha - 1) t), Esser et al. 2024, eq. 23, on top of the objective's own.
            generators: not used, the flow is deterministic.
            progress: called after every step.

        Returns:
            float32 [B, C, H, W] at t = 0.
        """
        times = shifted(torch.linspace(1, 0, config.steps + 1, dtype=torch.float64), self.shift * shift).tolist()
        x = noise.float()
        for now, after in itertools.pairwise(times):
            velocity = self._velocity(predict, x, now)
            if config.solver == "heun" and after > 0:
                ahead = self._velocity(predict, x + (after - now) * velocity, after)
                velocity = (velocity + ahead) / 2
            x = x + (after - now) * velocity
            progress()
        return x

    @staticmethod
    def _velocity(predict: Predict, x: Tensor, t: float) -> Tensor:
        return predict(x, torch.full((len(x),), 1000 * t, dtype=torch.float32, device=x.device)).float()


def shifted(t: Tensor, alpha: float) -> Tensor:
    """t' = alpha t / (1 + (alpha - 1) t): more of the path near noise where alpha > 1 (Esser et al. 2024, eq. 23)."""
    return alpha * t / (1 + (alpha - 1) * t)


class DDPM:
    """Noise prediction with learned variance (Ho et al. 2020; Nichol and Dhariwal 2021): linear betas, 1000 steps.

    The loss is mse(eps) + one term of the variational bound in bits per dimension, with eps detached there.
    """

    outputs = OUTPUTS["ddpm"]
    levels, betas = DDPM_LEVELS, (1e-4, 0.02)

    def __init__(self, config: ObjectiveConfig) -> None:
        betas = torch.linspace(*self.betas, self.levels, dtype=torch.float64)
        alphas_bar = (1 - betas).cumprod(0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), alphas_bar[:-1]])
        self.alphas_bar = alphas_bar
        variance = betas * (1 - before) / (1 - alphas_bar)  # of q(x_{t-1} | x_t, x_0): Ho et al., eq. 7
        # The first variance is zero: its logarithm takes the next one's, as the published models were trained.
        self.log_variance = torch.cat([variance[1:2], variance[1:]]).log()
        self.mean_data = before.sqrt() * betas / (1 - alphas_bar)
        self.mean_noisy = (1 - before) * (1 - betas).sqrt() / (1 - alphas_bar)
        self.signal, self.noise, self.log_betas = alphas_bar.sqrt(), (1 - alphas_bar).sqrt(), betas.log()
        self._moved: dict[tuple[str, torch.device], Tensor] = {}

    def core_time(self, time: Tensor) -> Tensor:
        """The time input of the core for the noise level [B], on 0 .. 1000: the same."""
        return time

    def prediction(self, output: Tensor) -> Tensor:
        """The prediction in what the core answers: the same."""
        return output

    def times(self, uniform: Tensor) -> Tensor:
        """Training times in [0, 1), of which level = floor(1000 t)."""
        return uniform

    def noise_level(self, time: float) -> float:
        """The flow's t in [0, 1] whose signal-to-noise ratio a level has, for methods whose rule is written for flows.

        (1 - t) / t = sqrt(abar) / sqrt(1 - abar) gives t = sqrt(1 - abar) / (sqrt(abar) + sqrt(1 - abar)): level 426 of 1000 is
        t = 0.70.
        """
        signal, noise = (math.sqrt(part) for part in (self.alphas_bar[int(time)], 1 - self.alphas_bar[int(time)]))
        return noise / (signal + noise)

    def loss(self, predict: Predict, data: Tensor, uniform: Tensor, noise: Tensor) -> Tensor:
        """mse(eps) + L_vlb (Nichol and Dhariwal 2021, eq. 16, on DiT's scale: levels / 1000 = 1). Arguments as for the flow."""
        return self.losses(predict, data, uniform, noise).mean()

    def losses(self, predict: Predict, data: Tensor, uniform: Tensor, noise: Tensor) -> Tensor:
        """The loss of every image, [B]; arguments as for `loss`."""
        level = (uniform * self.levels).long().clamp(max=self.levels - 1)

        def at(name: str) -> Tensor:
            key = (name, data.device)
            if key not in self._moved:  # once: a copy to a GPU waits for all that it has yet to do
                self._moved[key] = getattr(self, name).to(data.device, torch.float32)
            return self._moved[key][level][:, None, None, None]

        noisy = at("signal") * data + at("noise") * noise
        predicted, share = predict(noisy, level.float()).float().chunk(2, dim=1)
        error = (predicted - noise).square().mean(dim=(1, 2, 3))
        bound = self._bound(data, noisy, predicted.detach(), share, level, at)
        return error + bound

    def _bound(self, data: Tensor, noisy: Tensor, predicted: Tensor, share: Tensor, level: Tensor,
               at: Callable[[str], Tensor]) -> Tensor:  # fmt: skip
        """KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) in bits per dimension, at level 0 -log p(x_0 | x_1): [B]."""
        low, high = at("log_variance"), at("log_betas")
        log_variance = low + (share + 1) / 2 * (high - low)  # Nichol and Dhariwal 2021, eq. 15, share from [-1, 1]
        predicted_data = (noisy - at("noise") * predicted) / at("signal")
        true_mean = at("mean_data") * data + at("mean_noisy") * noisy
        mean = at("mean_data") * predicted_data + at("mean_noisy") * noisy
        divergence = 0.5 * (
            log_variance - low - 1 + (low - log_variance).exp() + (true_mean - mean).square() * (-log_variance).exp()
        )
        likelihood = discretized_log_likelihood(data, mean, 0.5 * log_variance)
        nats = torch.where(level[:, None, None, None] == 0, -likelihood, divergence)
        return nats.mean(dim=(1, 2, 3)) / math.log(2)

    def sample(self, predict: Predict, noise: Tensor, config: SampleConfig, shift: float = 1.0,
               generators: Sequence[torch.Generator] = (), progress: Callable[[], None] = lambda: None) -> Tensor:  # fmt: skip
        """Ancestral sampling with the learned variance ("ddpm", through diffusers' scheduler), or DDIM with eta = 0 ("ddim").

        Args:
            generators: one for each image, on the CPU, for the noise of "ddpm"; the other arguments as for the flow.

        Raises:
            UserError: more steps than the objective has levels, or only one, which would take noise for nearly clean data.
        """
        assert shift == 1.0, "a timestep shift belongs to flows"
        if not 2 <= config.steps <= self.levels:
            levels = self.levels
            raise UserError(f"sample.steps {config.steps}: a model with {levels} noise levels allows 2 to {levels} steps")
        x = noise.float()
        step = self._ddim_step if config.solver == "ddim" else self._ddpm_step(config.steps, generators)
        levels = np.linspace(0, self.levels - 1, config.steps).round()[::-1].astype(int).tolist()
        for level, after in zip(levels, [*levels[1:], -1], strict=True):
            x = step(predict(x, torch.full((len(x),), float(level), device=x.device)).float(), level, after, x)
            progress()
        return x

    def _ddpm_step(self, steps: int, generators: Sequence[torch.Generator]) -> Callable[[Tensor, int, int, Tensor], Tensor]:
        from diffusers import DDPMScheduler  # seconds, for this sampler alone

        scheduler = DDPMScheduler(
            num_train_timesteps=self.levels, beta_start=self.betas[0], beta_end=self.betas[1], beta_schedule="linear",
            clip_sample=False, variance_type="learned_range", timestep_spacing="linspace")  # fmt: skip
        scheduler.set_timesteps(steps)
        return lambda output, level, after, x: scheduler.step(output, level, x, generator=list(generators)).prev_sample

    def _ddim_step(self, output: Tensor, level: int, after: int, x: Tensor) -> Tensor:
        """Song et al. 2021, eq. 12 with sigma = 0, from `level` to `after` (-1 is data).

        diffusers' scheduler is not used: it steps by 1000 // steps, which misses the levels that it visits.
        """
        now, then = (float(self.alphas_bar[i]) if i >= 0 else 1.0 for i in (level, after))
        noise = output.chunk(2, dim=1)[0]
        data = (x - math.sqrt(1 - now) * noise) / math.sqrt(now)
        return math.sqrt(then) * data + math.sqrt(1 - then) * noise


def discretized_log_likelihood(data: Tensor, mean: Tensor, log_deviation: Tensor) -> Tensor:
    """log P of 8-bit data in [-1, 1] under a normal distribution cut into bins (Ho et al. 2020, eq. 13), elementwise.

    The exact normal distribution function is used; the public code approximates it by a tanh.
    """
    precision = (-log_deviation).exp()
    upper = torch.special.ndtr((data - mean + 1 / 255) * precision)
    lower = torch.special.ndtr((data - mean - 1 / 255) * precision)
    probability = torch.where(data < -0.999, upper, torch.where(data > 0.999, 1 - lower, upper - lower))
    return probability.clamp(min=1e-12).log()


def guided(predict: Callable[[Tensor, Tensor, Tensor], Tensor], label: Tensor, null: int, scale: float, channels: str) -> Predict:
    """Classifier-free guidance (Ho and Salimans 2022): out = null + scale (class - null), both halves in one batch.

    Args:
        predict: (x, time, label) -> the core's output.
        label: [B] classes.
        null: the null class.
        scale: 1 is no guidance, and costs none.
        channels: "all" guides the whole prediction; "three" its first three channels, as DiT's code does. A learned variance
            is never guided: it is the one of the class.
    """
    if scale == 1.0:
        return lambda x, time: predict(x, time, label)
    both = torch.cat([label, torch.full_like(label, null)])

    def step(x: Tensor, time: Tensor) -> Tensor:
        # In float32: the difference of two rounded predictions, times the scale, would be rounded again at each step.
        with_class, without = predict(torch.cat([x, x]), torch.cat([time, time]), both).float().chunk(2)
        count = 3 if channels == "three" else x.shape[1]
        result = with_class.clone()
        result[:, :count] = without[:, :count] + scale * (with_class[:, :count] - without[:, :count])
        return result

    return step
