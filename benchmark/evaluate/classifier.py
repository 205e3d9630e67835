"""The detector of the embedded data set: features, spatial features, class and number of objects, at any size.

A small convolutional network with its weights beside it. Pictures are first brought to a short side of 64 pixels, so
that a shape has one scale whatever the size of its picture. The features have two parts:

- averages over the picture of activations without upper bound, which notice colours, textures and outlines, and forgive
  where and how large things are;
- the degrees of failure: how blurred, noisy, bent, mixed, shuffled, torn or empty a picture is, how many copies it shows,
  and by how much its object is too large, too small or out of place. They come from a second stage that has coordinates
  and the complete picture in its receptive field. Each is learnt by regression and has the same unit of length in the
  features, so that in a Frechet distance all failures of structure count about as much as a missing object.

Shapes: B batch, (h, w) pixels, (m, n) cells of the map, F = 64 features, S = 128 spatial features, C = 8 classes,
K = 11 degrees.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from benchmark.data import shapes
from benchmark.evaluate import spoil
from benchmark.files import UserError, atomic

WEIGHTS = Path(__file__).parent / "shapes.safetensors"
CLASSES = len(shapes.CLASSES)
FEATURES, SPATIAL_CHANNELS, SPATIAL_GRID = 64, 8, 4
SHORT_SIDE = 64  # pixels, of what the network sees
# Degrees of failure, 0 in a scene as it should be. Scale is the logarithm to base 2 of the object's; copies is half that of
# their number; shifts are in halves of the short side; empty is 0.6, because an empty picture also lacks what the averages
# see of an object; all others go from 0 to 1.
DEGREES = ("blur", "noise", "bent", "mixture", "shuffled", "torn", "empty", "copies", "scale", "down", "right")
UNIT = 8.0  # of a degree, in features: the square is what a failure of degree 1 in all pictures adds to FID
SIZES = ((16, 16), (24, 24), (32, 32), (48, 48), (64, 64), (64, 48), (48, 64))  # where the accuracy is stated
# Larger pictures are reduced to the short side first, and look like these.
TRAINING_SIZES = (*SIZES, (16, 16), (16, 24), (24, 16), (20, 20), (32, 24), (24, 32), (40, 40), (32, 48), (64, 32))
STEPS, BATCH = 4000, 64

Network = TypeVar("Network", bound=nn.Module)


class Classifier(nn.Module):
    """uint8 pictures -> features, spatial features, logits and number of objects."""

    def __init__(self) -> None:
        super().__init__()
        widths, strides = (3, 24, 48, 48, 96, 96, 96), (2, 2, 1, 2, 1, 1)
        layers = zip(widths[:-1], widths[1:], strides, strict=True)
        self.body = nn.Sequential(*(layer(before, after, 3, stride) for before, after, stride in layers))
        self.neck = layer(96, FEATURES - len(DEGREES), 1, 1)
        # Its receptive field is 103 pixels: the complete picture, unless it is a long rectangle.
        self.overview = nn.Sequential(layer(96 + 2, 80, 3, 2), layer(80, 80, 3, 1))
        self.degrees = nn.Sequential(nn.Linear(2 * 80, 64), nn.SiLU(), nn.Linear(64, len(DEGREES)))
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
        features = self.pool(seen)
        spatial = F.adaptive_avg_pool2d(self.layout(seen), SPATIAL_GRID).flatten(1)
        # A sum over the map, whose cells are of one scale: twice the picture with twice the objects counts twice.
        objects = F.softplus(self.density(seen)).sum((1, 2, 3))
        return {"features": features, "spatial": spatial, "logits": self.head(features), "objects": objects}

    def pool(self, seen: Tensor) -> Tensor:
        """The features [B, F] of a map [B, 96, m, n]; the last K are the degrees of failure times UNIT."""
        number, _, rows, columns = seen.shape
        y, x = (torch.arange(1 - cells, cells, 2).to(seen) / min(rows, columns) for cells in (rows, columns))
        place = torch.stack([y[:, None].expand(rows, columns), x.expand(rows, columns)])  # 1: half the short side
        scene = self.overview(torch.cat([seen, place.expand(number, -1, -1, -1)], 1))
        degrees = self.degrees(torch.cat([scene.mean((2, 3)), scene.amax((2, 3))], 1))
        return torch.cat([self.neck(seen).mean((2, 3)), UNIT * degrees], 1)

    def look(self, images: Tensor) -> Tensor:
        """The map under all heads: uint8 [B, 3, h, w] -> [B, 96, m, n], 8 cells on the short side."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise UserError(f"the shapes detector takes uint8 [B, 3, h, w], not {images.dtype} {list(images.shape)}")
        height, width = images.shape[-2:]
        if min(height, width) < shapes.SIDE_MIN:
            raise UserError(f"the shapes detector needs at least {shapes.SIDE_MIN} pixels per side, not {height}x{width}")
        x = images.to(self.head.weight.dtype) / 127.5 - 1
        short = min(height, width)
        target = tuple(round(side * SHORT_SIDE / short) for side in (height, width))
        if target != (height, width):
            x = F.interpolate(x, target, mode="bilinear", align_corners=False, antialias=True)
        return self.body(x.contiguous(memory_format=torch.channels_last))


def layer(before: int, after: int, kernel: int, stride: int) -> nn.Sequential:
    """Convolution, batch norm and SiLU, which has no upper bound."""
    conv = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after), nn.SiLU())


def load(path: Path | str = WEIGHTS, device: torch.device | str = "cpu") -> Classifier:
    """The detector with its weights, ready to use.

    Raises:
        UserError: the file is not there, or is not the weights of this network.
    """
    return filled(Classifier(), path, device, "shapes", "python -m benchmark detector")


def filled(model: Network, path: Path | str, device: torch.device | str, name: str, command: str) -> Network:
    """A detector's network with the weights of a file, ready to use; `command` is what writes such a file.

    Raises:
        UserError: the file is not there, or is not the weights of this network.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist: {command} writes the weights of the {name} detector")
    try:
        with safe_open(path, "pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        model.load_state_dict(state)  # copies into float32
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"{path} does not hold the {name} detector ({str(error).splitlines()[0]})") from None
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
        self.colours = nn.Linear(FEATURES, 6)  # mean and deviation of R, G, B
        self.where = nn.Conv2d(SPATIAL_CHANNELS, 3 * 4, 1)  # a small picture, 2 x 2 pixels a cell
        self.which = nn.Linear(SPATIAL_CHANNELS * SPATIAL_GRID**2, CLASSES)

    def forward(self, model: Classifier, images: Tensor, target: Tensor, count: Tensor, degrees: Tensor) -> Tensor:
        """Loss of pictures [B, 3, h, w] with class probabilities [B, C], numbers of objects [B], degrees [B, K]; NaN: any."""
        seen = model.look(images)
        features, layout = model.pool(seen), model.layout(seen)
        counted = ~count.isnan()
        errors = features[:, -len(DEGREES) :] / UNIT - degrees
        objects = F.softplus(model.density(seen)).sum((1, 2, 3))
        picture = images.float() / 127.5 - 1
        colours = torch.cat([picture.mean((2, 3)), picture.std((2, 3))], 1)
        small = F.interpolate(picture, [2 * side for side in layout.shape[-2:]], mode="bilinear", antialias=True)
        spatial = F.adaptive_avg_pool2d(layout, SPATIAL_GRID).flatten(1)
        return (
            F.cross_entropy(model.head(features), target)
            + 0.3 * F.cross_entropy(self.which(spatial), target)
            + 1.0 * F.smooth_l1_loss(objects[counted], count[counted])
            + 40.0 * errors[~degrees.isnan()].square().mean()
            + 1.0 * F.mse_loss(self.colours(features), colours)
            + 1.0 * F.mse_loss(F.pixel_shuffle(self.where(layout), 2), small)
        )


def _batches(seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Endless training batches, each of one size, as `_Auxiliary` takes them."""
    rng = np.random.Generator(np.random.Philox(seed))
    start = 0
    while True:
        size_hw = TRAINING_SIZES[rng.integers(len(TRAINING_SIZES))]
        index = start + rng.permutation(BATCH)
        start += BATCH
        yield _corrupt(*_scenes(index, size_hw, rng), rng)


def _scenes(index: np.ndarray, size_hw: tuple[int, int], rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scenes as in the protocol, of which three in five have a failure of structure, and scenes with 0 to 4 objects.

    Scales around 0.7 are left out, and so are three copies on one ground, halves that mirror each other and pictures rolled
    by a quarter: on those one sees whether the detector knows more than it was taught.

    Returns:
        pictures uint8 [B, 3, h, w], class probabilities [B, C], numbers of objects [B], degrees [B, K].
    """
    many, placed, tiled, shuffled, torn, _ = np.split(np.arange(len(index)), np.cumsum((14, 8, 4, 8, 10)))
    images = shapes.render_batch("detector", index, size_hw)
    target = F.one_hot(torch.from_numpy(index % CLASSES), CLASSES).float().numpy()
    count, degrees = np.ones(len(index), np.float32), np.zeros((len(index), len(DEGREES)), np.float32)

    def degree(name: str) -> np.ndarray:
        return degrees[:, DEGREES.index(name)]

    objects = rng.integers(0, shapes.OBJECTS_MAX + 1, len(many))
    images[many] = shapes.render_batch("detector", index[many], size_hw, objects)
    count[many], target[many[objects == 0]] = objects, 1 / CLASSES
    degree("empty")[many], degree("copies")[many] = 0.6 * (objects == 0), np.log2(np.maximum(objects, 1)) / 2
    for name in ("scale", "down", "right"):
        degree(name)[many[objects > 0]] = np.nan  # they have objects of any size anywhere

    short = min(size_hw)
    low, high = ((0.4, 0.6), (0.47, 0.53), (0.85, 1.0), (1.25, 1.7))[rng.integers(4)]
    wanted = short * rng.uniform(low, high)
    scale = spoil.scaled_size((short, short), wanted / short)[0] / short
    room = np.maximum(np.array(size_hw) / short - 0.6 * scale, 0.3) / 2  # mostly inside
    shift = rng.uniform(-1, 1, (len(placed), 2)) * room
    cornered = rng.random(len(placed)) < 0.4
    shift[cornered] = np.sign(shift[cornered]) * abs(1 - scale) / 2 * np.array(size_hw) / short
    pasted = rng.random() < 0.5
    images[placed] = spoil.placed("detector", index[placed], size_hw, scale, shift, pasted)
    degree("scale")[placed], degrees[placed, -2:] = np.log2(scale), 2 * shift

    times = ((2, 2), (2, 2), (1, 2), (2, 1))[rng.integers(4)]
    images[tiled] = spoil.tiled("detector", index[tiled], size_hw, times)
    count[tiled] = times[0] * times[1]
    degree("copies")[tiled] = np.log2(times[0] * times[1]) / 2
    degree("scale")[tiled] = np.log2(min(side / part for side, part in zip(size_hw, times, strict=True)) / short)

    share = rng.choice([0.25, 0.5, 0.75, 1.0, 1.0], len(shuffled))
    images[shuffled] = spoil.shuffled(images[shuffled], share, rng, short // rng.integers(2, 5))
    target[shuffled] += (0.7 * share[:, None]) * (1 / CLASSES - target[shuffled])
    degree("shuffled")[shuffled], count[shuffled] = share, np.nan

    axis, at = int(rng.integers(2)), rng.uniform(0.4, 0.6)
    swapped, joined = np.split(torn, [5])
    images[swapped] = spoil.swapped(images[swapped], axis, at)
    others = np.roll(joined, 1)
    images[joined] = spoil.joined(images[joined], images[others], 1 - axis, at)
    target[joined] = at * target[joined] + (1 - at) * target[others]
    degree("torn")[torn], count[torn] = 1, np.nan
    return _tensor(images), torch.from_numpy(target), torch.from_numpy(count), torch.from_numpy(degrees)


def _corrupt(images: Tensor, target: Tensor, count: Tensor, degrees: Tensor,
             rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Failures of quality: each of the first four degrees, from 0 to 1, in 15 % of the pictures.

    Args and returns:
        pictures uint8 [B, 3, h, w], class probabilities (flatter where a picture is bent or mixed), counts, degrees [B, K].
    """
    number, _, height, width = images.shape
    short = min(height, width)
    hit = rng.random((4, number)) < 0.15
    sampled = rng.random((4, number)) * hit
    sampled[1] *= sampled[1]  # noise is mostly weak, so that the network learns to tell it from none
    sampled = torch.from_numpy(sampled).float()
    blurred, grainy, bent, mixed = (torch.from_numpy(np.flatnonzero(rows)) for rows in hit)
    blur, noise, bend, mixture = (degree[rows].view(-1, 1, 1, 1) for degree, rows in
                                  zip(sampled, (blurred, grainy, bent, mixed), strict=True))  # fmt: skip
    x, target, count, degrees = images.float().contiguous(), target.clone(), count.clone(), degrees.clone()

    other, share = torch.from_numpy(rng.integers(number, size=len(mixed))), 0.5 * mixture
    for value in (x, target, count, degrees):
        value[mixed] = torch.lerp(value[mixed], value[other], share.view(-1, *[1] * (value.ndim - 1)))
    degrees[:, :4] = sampled.T

    x[bent] = displaced(x[bent], bend, rng)
    target[bent] = torch.lerp(target[bent], torch.tensor(1 / CLASSES), 0.7 * bend.view(-1, 1))

    half = len(blurred) // 2  # a strong blur that shines through, or a full one of every radius
    radius, soft = max(1, round(short / 16)), x[blurred[:half]]
    for _ in range(2):
        soft = F.avg_pool2d(F.pad(soft, [radius] * 4, mode="replicate"), 2 * radius + 1, 1)
    x[blurred[:half]] = torch.lerp(x[blurred[:half]], soft, blur[:half])
    x[blurred[half:]] = _gaussian(x[blurred[half:]], blur[half:].flatten() * short / 16)

    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    grain = torch.randn((len(grainy), 3, height, width), generator=generator)
    blobs = 1.5 * F.interpolate(grain[..., : height // 4, : width // 4], (height, width), mode="bilinear")
    coarse = torch.from_numpy(rng.random(len(grainy)) < 0.5).view(-1, 1, 1, 1)
    x[grainy] += 64 * noise * torch.where(coarse, blobs, grain)
    return x.round().clamp(0, 255).to(torch.uint8), target, count, degrees


def _gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """Pictures [B, 3, h, w] blurred by `sigma` [B] pixels."""
    number, reach = len(x), min(x.shape[-2:]) // 4
    if not number:
        return x
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma.clamp(min=0.05)[:, None]).square())
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)[:, None, :, None]  # [3 B, 1, k, 1]
    y = F.pad(x, [reach] * 4, mode="replicate").flatten(0, 1)[None]
    y = F.conv2d(F.conv2d(y, kernel, groups=3 * number), kernel.mT, groups=3 * number)
    return y.view(x.shape)


def displaced(x: Tensor, degree: Tensor, rng: np.random.Generator) -> Tensor:
    """Pictures [B, 3, h, w] with their coordinates displaced by a smooth random field, `degree` [B, 1, 1, 1] strong."""
    field = torch.from_numpy(rng.standard_normal((len(x), 2, 4, 4))).float()
    field = F.interpolate(field, x.shape[-2:], mode="bicubic", align_corners=False) * degree * 0.25
    straight = F.affine_grid(torch.eye(2, 3).expand(len(x), 2, 3), x.shape, align_corners=False)
    return F.grid_sample(x, straight + field.permute(0, 2, 3, 1), padding_mode="reflection", align_corners=False)


def _tensor(images: np.ndarray) -> Tensor:
    """uint8 [B, h, w, 3] -> [B, 3, h, w]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2)
