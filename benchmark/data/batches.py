"""The data reader: samples, transforms and batches of a step, as a function of seed and step alone."""

from __future__ import annotations

import inspect
import io
import itertools
import logging
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, get_worker_info

from benchmark.data.choice import GROUP
from benchmark.data.images import DAMAGE, center_crop, decoded, resized
from benchmark.data.index import Damaged, Index
from benchmark.files import STOP_SIGNALS, UserError, unknown
from benchmark.inputs import BITS
from benchmark.model.method import Method
from benchmark.protocol import size_hw
from benchmark.streams import shuffled, uniforms

# --- Training --------------------------------------------------------------------------------------------------------


class Reader:
    """The training batches from a step on, made once the trainer knows this process' rank. Lightning iterates it once.

    Args:
        workers: processes that decode, a rank; the batches are the same for any number.
    """

    def __init__(self, method: Method, index: Index, start: int, workers: int) -> None:
        self.method, self.index, self.start, self.workers = method, index, start, workers

    def __iter__(self) -> Iterator[dict[str, Any]]:
        method, trainer = self.method, self.method.trainer
        config = method.protocol.train
        transform = None
        if self.index.kind != "latents":
            augmentation, options = method.augmentation
            transform = Transform(size_hw(method.train_size), augmentation, flip=config.flip, options=options)
        batches = Batches(
            self.index,
            config.batch,
            method.seed,
            trainer.global_rank,
            trainer.world_size,
            transform,
            flip=config.flip,
            on_corrupt=method.protocol.data.on_corrupt,
        )
        pin = method.device.type == "cuda"
        return batches.loader(self.start, config.steps, self.workers, worker_init_fn=ignore_signals, pin_memory=pin)


def ignore_signals(worker: int) -> None:
    """A terminal and SLURM signal the entire process group; a decoding worker must live until the main process has saved."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


# --- Order -----------------------------------------------------------------------------------------------------------


def order(index: Index, seed: int, epoch: int, group: int = GROUP) -> np.ndarray:
    """The samples of an epoch, int64 [N], each once: shards permuted, then samples mixed within groups of shards.

    It sorts raw words of a counter-based generator, which are the same on every platform and in every NumPy (`shuffled`).
    """
    _check(seed, epoch)
    key = (seed << BITS) | epoch
    shards = len(index.counts)
    place = np.empty(shards, np.int64)
    place[shuffled(shards, key, 2**64 - 1)] = np.arange(shards)  # the place of each shard in this epoch
    group_of_sample = np.repeat(place // group, index.counts)
    mixed = shuffled(len(index), key, 2**64 - 2)
    return mixed[np.argsort(group_of_sample[mixed], kind="stable")]


def _check(seed: int, epoch: int) -> None:
    if not (0 <= seed < 2**BITS and 0 <= epoch < 2**BITS):
        raise UserError(f"the reader's seed must be in [0, 2^{BITS}); it is {seed}")


# --- Augmentations ---------------------------------------------------------------------------------------------------

Crop = tuple[int, int, int, int, int, int]  # original h, w; top, left of the window in it; target h, w


def _center_crop(image: Image.Image, size_hw: tuple[int, int], draws: np.ndarray) -> tuple[Image.Image, Crop]:
    """Plain reading: ADM's crop, with a crop condition of the complete image."""
    return center_crop(image, size_hw), (*size_hw, 0, 0, *size_hw)


def _random_resize_crop(
    image: Image.Image, size_hw: tuple[int, int], draws: np.ndarray, largest: float = 1.5, uncropped: float = 0.0
) -> tuple[Image.Image, Crop]:
    """A random window of the picture at a random size: RPE-2D's augmentation, reimplemented from its abstract.

    The picture is resized to cover the target r times, r uniform in [1, `largest`] (for a square target: its short side
    in [S, largest S]); then a window of the target's size is cut anywhere. With probability `uncropped` the picture is read
    plainly instead, as sampling asks for it: "no crop" has probability zero otherwise.
    """
    if not largest >= 1:
        raise UserError(f"random_resize_crop: largest is {largest}, must be at least 1")
    if not 0 <= uncropped <= 1:
        raise UserError(f"random_resize_crop: uncropped is {uncropped}, must be a probability")
    if draws[3] < uncropped:
        return _center_crop(image, size_hw, draws)
    height, width = size_hw
    scale = max(height / image.height, width / image.width) * (1 + (largest - 1) * draws[0])
    full_h, full_w = max(round(image.height * scale), height), max(round(image.width * scale), width)
    top, left = int(draws[1] * (full_h - height + 1)), int(draws[2] * (full_w - width + 1))
    window = resized(image, (full_h, full_w)).crop((left, top, left + width, top + height))
    return window, (full_h, full_w, top, left, height, width)


Augmentation = Callable[..., tuple[Image.Image, Crop]]
AUGMENTATIONS: dict[str, Augmentation] = {"center_crop": _center_crop, "random_resize_crop": _random_resize_crop}
DRAWS = 5  # uniform numbers for one sample: the flip, and four for its augmentation
KEPT_BYTES = 2**32  # of decoded pictures that the processes which decode for one rank keep at most


@dataclass(frozen=True)
class Transform:
    """From a stored picture to the model's: augmentation and random flip.

    Args:
        size_hw: target (h, w).
        augmentation: a name in AUGMENTATIONS.
        options: of the augmentation.
        flip: whether to mirror half of the pictures.

    Raises:
        UserError: unknown augmentation or option.
    """

    size_hw: tuple[int, int]
    augmentation: str = "center_crop"
    options: dict[str, Any] = field(default_factory=dict)
    flip: bool = True

    def __post_init__(self) -> None:
        if self.augmentation not in AUGMENTATIONS:
            raise unknown("augmentation", self.augmentation, AUGMENTATIONS)
        _image, _size, _draws, *known = inspect.signature(AUGMENTATIONS[self.augmentation]).parameters
        for name in self.options:
            if name not in known:
                raise unknown(f"option of {self.augmentation}", name, known)

    def prepared(self, image: Image.Image) -> Image.Image:
        """What comes before all randomness, so that it may be done once: a plain reading is cropped the same way every time."""
        return center_crop(image, self.size_hw) if AUGMENTATIONS[self.augmentation] is _center_crop else image

    def __call__(self, image: Image.Image, draws: np.ndarray) -> tuple[np.ndarray, Crop]:
        """(uint8 [h, w, 3], crop record) from DRAWS uniform numbers; the image may be a prepared one."""
        picture, crop = AUGMENTATIONS[self.augmentation](image, self.size_hw, draws[1:], **self.options)
        if self.flip and draws[0] < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            full_h, full_w, top, left, height, width = crop
            crop = (full_h, full_w, top, full_w - width - left, height, width)  # the window's place in the mirrored picture
        return np.asarray(picture), crop


# --- Batches ---------------------------------------------------------------------------------------------------------


class Batches(Dataset):
    """Batches by global step: `batches[step]` is this rank's part of that step's batch, a function of the arguments alone.

    A decoded picture stays in memory, in each process that decodes, if as many of its size as the set holds would fit into
    KEPT_BYTES in all of these processes. A batch is a dict:
        image  float32 [B, C, h, w] in [-1, 1]; of latents: their mean, scaled, with `std` of the same shape beside it
        label  int64 [B]
        crop   float32 [B, 6]: original (h, w), the crop's (top, left) in it, target (h, w), in pixels after resizing
        key    list of B keys
        step   the global step
        rows   (first row of this rank, rows of the global batch)
    and with `on_corrupt="skip"`, where there were any: skipped, the names of the samples that were left out.

    Args:
        index: the shards.
        batch: over all ranks.
        seed: of the order and of the augmentations.
        rank: this process, of `world`, which must divide `batch`.
        transform: for pictures; None for latents, where the sizes are what they are and `flip` picks the stored mirror.
        on_corrupt: "error", or "skip": a sample that cannot be decoded is replaced by the next one in order.

    Raises:
        UserError: a batch that ranks cannot share or the set cannot fill.
    """

    def __init__(
        self,
        index: Index,
        batch: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        transform: Transform | None = None,
        flip: bool = True,
        on_corrupt: str = "error",
    ) -> None:
        assert on_corrupt in ("error", "skip"), "the protocol's field has no other value"
        if batch % world:
            raise UserError(f"a batch of {batch} cannot be shared equally by {world} processes")
        if not 1 <= batch <= len(index):
            raise UserError(f"a batch of {batch} needs as many samples; {index.folder} has {len(index)}")
        if index.remote and index.remote.limit < (need := GROUP * max(shard["bytes"] for shard in index.manifest["shards"])):
            raise UserError(f"a cache of {index.remote.limit} bytes would read shards over and over: {GROUP} of them need {need}")
        assert 0 <= rank < world
        assert (transform is None) == (index.kind == "latents"), "pictures have a transform, latents have none"
        _check(seed, 0)
        self.index, self.batch, self.seed, self.rank, self.world = index, batch, seed, rank, world
        self.transform, self.flip, self.on_corrupt = transform, flip, on_corrupt
        self.epoch_steps = len(index) // batch
        self._order: tuple[int, np.ndarray] | None = None
        self._kept: dict[int, tuple[str, int, Image.Image]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_order": None, "_kept": {}}  # each process makes its own

    def order(self, epoch: int) -> np.ndarray:
        """The samples of an epoch, int64 [N]; the latest is kept."""
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, order(self.index, self.seed, epoch))
        return self._order[1]

    def numbers(self, step: int) -> np.ndarray:
        """The samples of a step's global batch, int64 [B]."""
        epoch, position = divmod(step, self.epoch_steps)
        return self.order(epoch)[position * self.batch : (position + 1) * self.batch]

    def __getitem__(self, step: int) -> dict[str, Any]:
        epoch, position = divmod(step, self.epoch_steps)
        share = self.batch // self.world
        first = self.rank * share
        ordered = self.order(epoch)
        samples, skipped = [], []
        for row in range(share):
            place = position * self.batch + first + row
            while True:
                number = int(ordered[place % len(ordered)])
                try:
                    samples.append(self._sample(number, epoch))
                    break
                except Damaged as error:
                    if self.on_corrupt == "error" or len(skipped) >= len(ordered):
                        raise
                    skipped.append(str(error))
                    logging.getLogger(__name__).warning("skipped: %s", error)
                    place += 1
        keys, labels, images, crops = zip(*samples, strict=True)
        batch = {
            "label": torch.tensor(labels, dtype=torch.int64),
            "crop": torch.tensor(crops, dtype=torch.float32),
            "key": list(keys),
            "step": step,
            "rows": (first, self.batch),
        }
        stacked = torch.from_numpy(np.stack(images))
        if self.transform is None:
            manifest = self.index.manifest
            mean, std = stacked.float().unbind(1)
            batch |= {"image": (mean - manifest["shift"]) * manifest["scale"], "std": std * manifest["scale"]}
        else:
            batch["image"] = stacked.permute(0, 3, 1, 2).contiguous().float().div_(127.5).sub_(1)
        return batch | ({"skipped": skipped} if skipped else {})

    def _sample(self, number: int, epoch: int) -> tuple[str, int, np.ndarray, Crop]:
        """(key, label, pixels or latents, crop record)."""
        draws = uniforms(self.seed, epoch, number, DRAWS)
        if number in self._kept:
            key, label, image = self._kept[number]
            return key, label, *self.transform(image, draws)
        sample = self.index[number]
        try:
            if self.transform is None:
                pair = np.load(io.BytesIO(sample.data), allow_pickle=False)  # [mirrored or not, mean or std, C, h, w]
                size = tuple(self.index.manifest["size"])
                return sample.key, sample.label, pair[int(self.flip and draws[0] < 0.5)], (*size, 0, 0, *size)
            image = decoded(sample.data, sample.member)
        except DAMAGE as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise Damaged(f"{self.index.folder}/{sample.shard}: sample '{sample.key}' is damaged ({reason})") from None
        image = self.transform.prepared(image)
        workers = worker.num_workers if (worker := get_worker_info()) else 1
        if 4 * image.width * image.height * len(self.index) * workers <= KEPT_BYTES:  # Pillow has 4 bytes for a pixel of RGB
            image.info = {}  # profiles and other metadata can be larger than a picture
            self._kept[number] = sample.key, sample.label, image
        return sample.key, sample.label, *self.transform(image, draws)

    def loader(self, start: int = 0, stop: int | None = None, workers: int = 0, **options: Any) -> Iterator[dict[str, Any]]:
        """The batches of the steps `start` .. `stop` - 1 (without end for None), in order, through a torch DataLoader.

        Args:
            workers: processes that decode; 0 decodes in this one.
            options: further ones of DataLoader, such as pin_memory.
        """
        steps = itertools.count(start) if stop is None else range(start, stop)
        loader = DataLoader(_Guarded(self), batch_size=None, sampler=steps, num_workers=workers, collate_fn=_as_is, **options)
        for batch in loader:
            if isinstance(batch, UserError):
                raise type(batch)(str(batch))
            yield batch


class _Guarded(Dataset):
    """Hands errors for people over as values: raised in a worker, they would arrive wrapped in its traceback."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __getitem__(self, step: int) -> dict[str, Any] | UserError:
        try:
            return self.batches[step]
        except UserError as error:
            return error


def _as_is(batch: Any) -> Any:
    """Instead of torch's default, which would make lists of a batch's tuples."""
    return batch
