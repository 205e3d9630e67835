"""The detector of the embedded data set: features, spatial features, class and number of objects, at any size.

A small convolutional network with its weights beside it. Pictures are first brought to a short side of 64 pixels, so
that a shape has one scale whatever the size of its picture. The features are averages of activations without upper
bound, and the network has learnt to say how blurred, noisy, disordered or mixed a picture is: a Frechet distance
between features goes on growing where pictures get worse, and notices colours as well as outlines.

Shapes: B batch, (h, w) pixels, (m, n) cells of the map, F = 64 features, S = 128 spatial features, C = 8 classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from benchmark.data import shapes
from benchmark.files import UserError, atomic

WEIGHTS = Path(__file__).parent / "shapes.safetensors"
CLASSES = len(shapes.CLASSES)
FEATURES, SPATIAL_CHANNELS, SPATIAL_GRID = 64, 8, 4
SHORT_SIDE = 64  # pixels, of what the network sees
DEGREES = ("blur", "noise", "disorder", "mixture")  # of corruption, each 0 to 1
SIZES = ((16, 16), (24, 24), (32, 32), (48, 48), (64, 64), (64, 48), (48, 64))  # where the accuracy is stated
# Larger pictures are reduced to the short side first, and look like these.
TRAINING_SIZES = (*SIZES, (16, 16), (16, 24), (24, 16), (20, 20), (32, 24), (24, 32), (40, 40), (32, 48), (64, 32))
STEPS, BATCH = 2500, 64


class Classifier(nn.Module):
    """uint8 pictures -> features, spatial features, logits and number of objects."""

    def __init__(self) -> None:
        super().__init__()
        widths, strides = (3, 24, 48, 48, 96, 96, 96), (2, 2, 1, 2, 1, 1)
        layers = zip(widths[:-1], widths[1:], strides, strict=True)
        self.body = nn.Sequential(*(_layer(before, after, 3, stride) for before, after, stride in layers))
        self.neck = _layer(96, FEATURES, 1, 1)
        self.layout = nn.Conv2d(96, SPATIAL_CHANNELS, 1)
        self.density = nn.Conv2d(96, 1, 1)
        nn.init.constant_(self.density.bias, -4.0)  # starts near one object a picture
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """What is seen in pictures.

        Args:
            images: uint8 [B, 3, h, w], RGB, any size from 8 x 8.

        Returns:
            float32: features [B, F]; spatial [B, S], a 4 x 4 grid of 8 channels; logits [B, C]; objects [B], an estimate
            of how many objects there are: a real number, trained on 0 to 4.

        Raises:
            UserError: pictures of another type, layout or too small.
        """
        seen = self.look(images)
        features = self.neck(seen).mean((2, 3))
        spatial = F.adaptive_avg_pool2d(self.layout(seen), SPATIAL_GRID).flatten(1)
        # A sum over the map, whose cells are of one scale: twice the picture with twice the objects counts twice.
        objects = F.softplus(self.density(seen)).sum((1, 2, 3))
        return {"features": features, "spatial": spatial, "logits": self.head(features), "objects": objects}

    def look(self, images: Tensor) -> Tensor:
        """The map under all heads: uint8 [B, 3, h, w] -> [B, 96, m, n], 8 cells on the short side."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise UserError(f"the shapes detector sees uint8 [B, 3, h, w], not {images.dtype} {list(images.shape)}")
        height, width = images.shape[-2:]
        if min(height, width) < shapes.SIDE_MIN:
            raise UserError(f"the shapes detector sees {shapes.SIDE_MIN} pixels a side or more, not {height}x{width}")
        x = images.to(self.head.weight.dtype) / 127.5 - 1
        short = min(height, width)
        target = tuple(round(side * SHORT_SIDE / short) for side in (height, width))
        if target != (height, width):
            x = F.interpolate(x, target, mode="bilinear", align_corners=False, antialias=True)
        return self.body(x.contiguous(memory_format=torch.channels_last))


def _layer(before: int, after: int, kernel: int, stride: int) -> nn.Sequential:
    """Convolution, batch norm and SiLU, which has no upper bound."""
    conv = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after), nn.SiLU())


def load(path: Path | str = WEIGHTS, device: torch.device | str = "cpu") -> Classifier:
    """The detector with its weights, ready to use.

    Raises:
        UserError: the file is not there, or is not the weights of this network.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not there: python -m benchmark detector writes the weights of the shapes detector")
    model = Classifier()
    try:
        with safe_open(path, "pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        model.load_state_dict(state)  # copies into float32
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"{path} does not hold the shapes detector ({str(error).splitlines()[0]})") from None
    return model.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)


def stated(path: Path | str = WEIGHTS) -> dict:
    """What the weights' file says of itself: the command that made it, top-1 and error of the count at each size."""
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["posbench"])


def train(out: Path | str = WEIGHTS, steps: int = STEPS, seed: int = 0,
          report: Callable[[int, float], None] = lambda step, loss: None) -> dict:  # fmt: skip
    """Trains the detector, measures it on held-out scenes and writes the weights, float16, with what was measured.

    The same seed, machine and number of threads give the same weights.

    Args:
        out: the file to write.
        steps: of `BATCH` pictures each.
        seed: of weights, corruptions and sizes.
        report: called after every step with the number of steps done and the loss.

    Returns:
        What `stated` will say of the file.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, auxiliary = Classifier(), _Auxiliary()
    model.to(memory_format=torch.channels_last)
    parameters = [*model.parameters(), *auxiliary.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.1)
    for step, batch in zip(range(steps), _batches(seed), strict=False):
        loss = auxiliary(model, *batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        report(step + 1, loss.item())
    state = {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    state = {key: value.contiguous() for key, value in state.items()}
    model.load_state_dict(state)  # measured as stored
    said = {
        "command": f"python -m benchmark detector --steps {steps} --seed {seed}",
        "sizes": {f"{h}x{w}": measure(model.eval(), (h, w)) for h, w in SIZES},
    }
    with atomic(out) as draft:
        draft.write_bytes(save(state, {"posbench": json.dumps(said, sort_keys=True)}))
    return said


@torch.no_grad()
def measure(model: Classifier, size_hw: tuple[int, int], count: int = 2000) -> dict[str, float]:
    """Top-1 on held-out scenes, and mean absolute error of the count on held-out scenes with 0 to 4 objects."""
    hits, misses = 0.0, 0.0
    for start in range(0, count, 100):
        index = np.arange(start, start + 100)
        logits = model(_tensor(shapes.render_batch("heldout", index, size_hw)))["logits"]
        hits += (logits.argmax(1).numpy() == index % CLASSES).sum()
        objects = index // CLASSES % (shapes.OBJECTS_MAX + 1)
        seen = model(_tensor(shapes.render_batch("heldout", index, size_hw, objects)))["objects"]
        misses += np.abs(seen.numpy() - objects).sum()
    return {"top1": round(float(hits / count), 4), "count_error": round(float(misses / count), 3)}


class _Auxiliary(nn.Module):
    """The training loss, with the heads that only training needs."""

    def __init__(self) -> None:
        super().__init__()
        self.degrees = nn.Linear(FEATURES, len(DEGREES))
        self.colours = nn.Linear(FEATURES, 6)  # mean and deviation of R, G, B
        self.where = nn.Conv2d(SPATIAL_CHANNELS, 3 * 4, 1)  # a small picture, 2 x 2 pixels a cell
        self.which = nn.Linear(SPATIAL_CHANNELS * SPATIAL_GRID**2, CLASSES)

    def forward(self, model: Classifier, images: Tensor, target: Tensor, count: Tensor, degrees: Tensor) -> Tensor:
        """Loss of pictures [B, 3, h, w] with class probabilities [B, C], numbers of objects [B] and degrees [B, 4]."""
        seen = model.look(images)
        features, layout = model.neck(seen).mean((2, 3)), model.layout(seen)
        objects = F.softplus(model.density(seen)).sum((1, 2, 3))
        picture = images.float() / 127.5 - 1
        colours = torch.cat([picture.mean((2, 3)), picture.std((2, 3))], 1)
        small = F.interpolate(picture, [2 * side for side in layout.shape[-2:]], mode="bilinear", antialias=True)
        spatial = F.adaptive_avg_pool2d(layout, SPATIAL_GRID).flatten(1)
        return (
            F.cross_entropy(model.head(features), target)
            + 0.3 * F.cross_entropy(self.which(spatial), target)
            + 0.5 * F.smooth_l1_loss(objects, count)
            + 2.0 * F.mse_loss(self.degrees(features), degrees)
            + 1.0 * F.mse_loss(self.colours(features), colours)
            + 1.0 * F.mse_loss(F.pixel_shuffle(self.where(layout), 2), small)
        )


def _batches(seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Endless training batches, each of one size: half the scenes as in the contest, half with 0 to 4 objects."""
    rng = np.random.Generator(np.random.Philox(seed))
    start = 0
    while True:
        size_hw = TRAINING_SIZES[rng.integers(len(TRAINING_SIZES))]
        index = np.arange(start, start + BATCH)
        start += BATCH
        half = BATCH // 2
        objects = rng.integers(0, shapes.OBJECTS_MAX + 1, half)
        images = np.concatenate([
            shapes.render_batch("detector", index[:half], size_hw),
            shapes.render_batch("detector", index[half:], size_hw, objects),
        ])  # fmt: skip
        count = torch.from_numpy(np.concatenate([np.ones(half, np.int64), objects])).float()
        target = F.one_hot(torch.from_numpy(index % CLASSES), CLASSES).float()
        target = torch.where(count[:, None] > 0, target, 1 / CLASSES)
        yield _corrupt(_tensor(images), target, count, rng)


def _corrupt(images: Tensor, target: Tensor, count: Tensor,
             rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Spoils pictures in the ways of generators: each way hits a quarter of them, by a degree drawn from 0 to 1.

    Returns:
        pictures uint8, class probabilities (flatter where a picture is disordered or mixed), counts, degrees [B, 4].
    """
    number, _, height, width = images.shape
    hit = rng.random((len(DEGREES), number)) < 0.25
    degrees = torch.from_numpy(rng.random((len(DEGREES), number)) * hit).float()
    blurred, grainy, disordered, mixed = (torch.from_numpy(np.flatnonzero(rows)) for rows in hit)
    blur, noise, disorder, mixture = (degree[rows].view(-1, 1, 1, 1) for degree, rows in
                                      zip(degrees, (blurred, grainy, disordered, mixed), strict=True))  # fmt: skip
    x, target, count = images.float().contiguous(), target.clone(), count.clone()

    other, share = torch.from_numpy(rng.integers(number, size=len(mixed))), 0.5 * mixture
    x[mixed] = torch.lerp(x[mixed], x[other], share)
    target[mixed] = torch.lerp(target[mixed], target[other], share.view(-1, 1))
    count[mixed] = torch.lerp(count[mixed], count[other], share.flatten())

    torn = torch.from_numpy(rng.random(len(disordered)) < 0.4).view(-1, 1, 1, 1)
    x[disordered] = torch.where(torn, _torn(x[disordered], disorder, rng), _bent(x[disordered], disorder, rng))
    target[disordered] = torch.lerp(target[disordered], torch.tensor(1 / CLASSES), 0.7 * disorder.view(-1, 1))

    radius, soft = max(1, round(min(height, width) / 16)), x[blurred]
    for _ in range(2):
        soft = F.avg_pool2d(F.pad(soft, [radius] * 4, mode="replicate"), 2 * radius + 1, 1)
    x[blurred] = torch.lerp(x[blurred], soft, blur)

    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    grain = torch.randn((len(grainy), 3, height, width), generator=generator)
    blobs = 1.5 * F.interpolate(grain[..., : height // 4, : width // 4], (height, width), mode="bilinear")
    coarse = torch.from_numpy(rng.random(len(grainy)) < 0.5).view(-1, 1, 1, 1)
    x[grainy] += 48 * noise * torch.where(coarse, blobs, grain)
    return x.round().clamp(0, 255).to(torch.uint8), target, count, degrees.T


def _bent(x: Tensor, degree: Tensor, rng: np.random.Generator) -> Tensor:
    """Pictures [B, 3, h, w] with their coordinates displaced by a smooth random field, `degree` [B, 1, 1, 1] strong."""
    field = torch.from_numpy(rng.standard_normal((len(x), 2, 4, 4))).float()
    field = F.interpolate(field, x.shape[-2:], mode="bicubic", align_corners=False) * degree * 0.25
    straight = F.affine_grid(torch.eye(2, 3).expand(len(x), 2, 3), x.shape, align_corners=False)
    return F.grid_sample(x, straight + field.permute(0, 2, 3, 1), padding_mode="reflection", align_corners=False)


def _torn(x: Tensor, degree: Tensor, rng: np.random.Generator) -> Tensor:
    """Pictures [B, 3, h, w] cut into 4 x 4 pieces, of which a share of `degree` [B, 1, 1, 1] change places."""
    places = np.tile(np.arange(16), (len(x), 1))
    for row, share in zip(places, degree.flatten().tolist(), strict=True):
        moved = np.flatnonzero(rng.random(16) < share)
        row[moved] = row[rng.permutation(moved)]
    pieces = x.unflatten(3, (4, -1)).unflatten(2, (4, -1)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # [B, 16, 3, h/4, w/4]
    pieces = pieces[torch.arange(len(x))[:, None], torch.from_numpy(places)]
    return pieces.unflatten(1, (4, 4)).permute(0, 3, 1, 4, 2, 5).reshape(x.shape)


def _tensor(images: np.ndarray) -> Tensor:
    """uint8 [B, h, w, 3] -> [B, 3, h, w]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2)
