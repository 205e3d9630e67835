"""Latents: pictures that the autoencoder has seen in advance, as shards.

Legend: N samples in the set, [h, w] pixels, y before x.
"""

from __future__ import annotations

import io
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmark.data.images import center_crop, decoded
from benchmark.data.index import FORMAT, Index, Sample
from benchmark.data.pool import own_device, parallel
from benchmark.data.tars import write_tar
from benchmark.data.writer import Written, claimed
from benchmark.files import UserError, below, digest
from benchmark.model.autoencoder import autoencoder_identity, latent_range, load_autoencoder


def write_latents(
    index: Index,
    out: str | Path,
    autoencoder: str,
    size_hw: tuple[int, int],
    *,
    devices: Sequence[str] = ("cpu",),
    batch: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> Written:
    """Encodes pictures, centrally cropped to one size, as shards of latents; may be killed at any time and continues.

    A sample's member `npy` is float16 [2, 2, C, h, w]: the picture and its mirror image, each as mean and standard deviation of
    the posterior, which is sampled anew at every step of training. The manifest's `scale` and `shift` bring them to the
    model's range: (mean - shift) * scale.

    Args:
        index: shards of pictures; shard k of the latents holds the samples of its shard k.
        out: the folder.
        autoencoder: of diffusers, AutoencoderKL: a name on the Hugging Face hub or a local folder.
        size_hw: pixels (h, w).
        devices: torch devices, one process each.
        batch: pictures in a forward pass; each goes through it twice, once mirrored.
        progress: called with (samples done, samples in all).

    Raises:
        UserError: the autoencoder cannot be loaded or does not fit the size, or gives numbers that are not finite.
    """
    if index.kind != "images":
        raise UserError(f"{index.folder} holds {index.kind}; latents are made from images")
    config, weights = autoencoder_identity(autoencoder)
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    if size_hw[0] % factor or size_hw[1] % factor:
        raise UserError(f"size {size_hw[0]}x{size_hw[1]} is not a multiple of the autoencoder's {factor} pixels")
    scale, shift = latent_range(config)
    fingerprint = latents_fingerprint(index, weights, size_hw)
    with claimed(Path(out), fingerprint, 0.0, progress) as work:
        if work.done:
            return work.done
        names = [shard["name"].removesuffix(".tar") for shard in index.manifest["shards"]]
        starts, counts = index.starts.tolist(), index.counts.tolist()
        jobs = [
            _EncodeJob(str(work.out / f"{names[i]}.tar"), index, starts[i], starts[i] + counts[i], autoencoder, size_hw, batch)
            for i in work.missing(names, counts)
        ]
        work.collect(parallel(_encode_shard, jobs, len(devices), devices))
        return work.finish({
            "card": index.manifest["card"], "kind": "latents", "classes": index.classes,
            "class_names": index.manifest["class_names"], "source": "images", "ignored": 0, "images": index.fingerprint,
            "size": list(size_hw), "factor": factor, "scale": scale, "shift": shift,
            "autoencoder": {"name": autoencoder, "hash": weights},
        })  # fmt: skip


def latents_fingerprint(index: Index, weights: str, size_hw: tuple[int, int]) -> str:
    """Identity of the latents of some pictures under an autoencoder of hash `weights`."""
    return digest([FORMAT, "latents", index.fingerprint, weights, list(size_hw)])


def prepare_latents(index: Index, root: str | Path, autoencoder: str, size_hw: tuple[int, int], **options: Any) -> Written:
    """`write_latents` into the folder under `root` that is named after the card and the fingerprint."""
    fingerprint = latents_fingerprint(index, autoencoder_identity(autoencoder)[1], size_hw)
    return write_latents(index, below(root, f"{index.manifest['card']}-latents-{fingerprint}"), autoencoder, size_hw, **options)


@dataclass(frozen=True)
class _EncodeJob:
    tar: str
    index: Index
    start: int
    stop: int
    autoencoder: str
    size_hw: tuple[int, int]
    batch: int


def _encode_shard(job: _EncodeJob) -> tuple[int, list[list[str]]]:
    """Writes the latents of one shard; returns its samples and no failures."""
    device = own_device()
    model = load_autoencoder(job.autoencoder, device)

    def pictures() -> Iterator[tuple[Sample, np.ndarray]]:
        """Samples with their crops, uint8 [h, w, 3], decoded ahead in threads while the device works."""
        with ThreadPoolExecutor(4) as pool:
            waiting: deque[tuple[Sample, Any]] = deque()
            for number in range(job.start, job.stop):
                sample = job.index[number]
                waiting.append((sample, pool.submit(crop, sample)))
                if len(waiting) > 4 * job.batch:
                    sample, result = waiting.popleft()
                    yield sample, result.result()
            for sample, result in waiting:
                yield sample, result.result()

    def crop(sample: Sample) -> np.ndarray:
        return np.asarray(center_crop(decoded(sample.data, sample.member), job.size_hw))

    def samples() -> Iterator[tuple[str, int, str, bytes]]:
        queue = pictures()
        while part := list(itertools.islice(queue, job.batch)):
            images = torch.from_numpy(np.stack([image for _, image in part])).to(device).permute(0, 3, 1, 2)
            images = images.float().div_(127.5).sub_(1)
            with torch.inference_mode():
                posterior = model.encode(torch.cat([images, images.flip(-1)])).latent_dist
                pairs = torch.stack([posterior.mean, posterior.std], dim=1).half().cpu()  # [2 B, 2, C, h, w]
            if not pairs.isfinite().all():
                raise UserError(f"the autoencoder '{job.autoencoder}' produces latents outside the range of float16")
            for (sample, _), value in zip(part, torch.stack(pairs.chunk(2), dim=1).numpy(), strict=True):
                stream = io.BytesIO()
                np.save(stream, value)
                yield sample.key, sample.label, "npy", stream.getvalue()

    write_tar(Path(job.tar), samples(), [])
    return job.stop - job.start, []
