"""Goldens: what today's numbers are, part by part, and the one place that writes them anew.

    make goldens                compare, and say what moved
    make goldens SET=--write   write the goldens that moved
    make goldens SET="--base FOLDER"   of another commit's golden files, name those that have moved since under the same revisions

Weights, data and the random numbers of training come from numpy's Philox, so that no version of torch changes them. A refactor
moves none of these. A change that is meant to move one has to raise the revision of its part first, and says why in its commit.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import small
import torch

from benchmark import registry, revision
from benchmark.data import batches, shapes, writer
from benchmark.data.card import Card
from benchmark.data.index import Index
from benchmark.evaluate import detectors, reference, score
from benchmark.evaluate.samples import open_images, write_chunk
from benchmark.identity import features_folder
from benchmark.model import method
from benchmark.model.draws import Draws

FOLDER = Path(__file__).parent
FLOW, DDPM = {}, {"name": "ddpm"}
TRAINED = [name for name in registry.names() if registry.trained_name(name) == name]
LOSSES = {name: (name, {}, FLOW) for name in TRAINED} | {
    "extrapolation ddpm": ("extrapolation", {}, DDPM),
    "ledit_finetune": ("ledit_finetune", {"dilated": 0.5}, FLOW),
}
GRIDS = ("32x48", "24x20")  # beyond the trained 16x24 on both axes, and beyond it on one of them
PROBES = 8  # values of a tensor that are kept, evenly spaced, beside its mean and deviation


class PhiloxDraws(Draws):
    """A training step's random numbers from numpy."""

    def __init__(self, seed, step, rows, count, device="cpu", *purpose):
        self.source = np.random.Generator(np.random.Philox(key=[seed, step]))
        self.total = rows[1]

    def normal(self, *shape):
        return torch.from_numpy(self.source.standard_normal((self.total, *shape), dtype=np.float32))

    def uniform(self, *shape):
        return torch.from_numpy(self.source.random((self.total, *shape), dtype=np.float32))

    def once(self):
        return float(self.source.random())

    def subsets(self, size, of):
        return torch.from_numpy(np.sort(self.source.random((self.total, of)).argsort(1)[:, :size], axis=1))


def summary(values: torch.Tensor) -> list[float]:
    """Mean, deviation and a few values of a tensor."""
    flat = values.detach().double().flatten()
    probes = flat[torch.linspace(0, len(flat) - 1, PROBES).long()]
    return [float(f"{v:.7g}") for v in (flat.mean(), flat.std(), *probes)]


def losses(name: str, options: dict, objective: dict) -> list[float]:
    """Twenty steps of the protocol's optimizer in float32 on the CPU."""
    rules = small.protocol(objective=objective, core={"depth": 3}, train={"warmup": 3, "decay": 5, "weight_decay": 0.01})
    with mock.patch.object(method, "Draws", PhiloxDraws):
        model = small.fill(registry.load(name)(rules, "16x24", 0, options), 0.15).train()
        setup = model.configure_optimizers()
        optimizer, schedule = setup["optimizer"], setup["lr_scheduler"]["scheduler"]
        found = []
        for step in range(20):
            loss = small.loss(model, step)
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            found.append(float(f"{loss.item():.7g}"))
    return found


def samples(name: str, size: str, objective: dict) -> list[float]:
    """What a method with arbitrary weights generates at a size in three guided steps, from fixed noise."""
    solver = {"solver": "ddim"} if objective else {}
    switches = {"attention_scale": "jin" if objective else "none"}  # off, so that temperatures of a method's own count
    rules = small.protocol(objective=objective, core={"depth": 3}, sample=solver, switches=switches)
    model = small.fill(registry.load(name)(rules, "16x24", 0), 0.15).eval()
    noise = iter(small.normal(77, 4, 3, *rules.latent_hw(size)))
    with mock.patch.object(torch, "randn", side_effect=lambda *shape, **options: next(noise)):
        return summary(model.generate(size, 0, range(4)))


def batch(augmentation: str) -> str:
    """A digest of a batch of the embedded data set: pixels, labels and crops."""
    card = Card("golden", "shapes", classes=8, count=96, size=(64, 64))
    with tempfile.TemporaryDirectory() as folder:
        written = writer.prepare(card, None, folder, per_shard=24)
        index = Index(written.folder)
        found = batches.Batches(index, 8, 3, transform=batches.Transform((32, 32), augmentation))[17]
        index.close()
    content = b"".join(found[key].numpy().tobytes() for key in ("image", "label", "crop"))
    return hashlib.sha256(content + " ".join(found["key"]).encode()).hexdigest()


def scenes() -> str:
    """A digest of rendered scenes of every split."""
    content = b"".join(shapes.render_batch(split, range(16), (24, 40)).tobytes() for split in shapes.SPLITS)
    return hashlib.sha256(content).hexdigest()


def detector(name: str, size_hw: tuple[int, int]) -> dict[str, list[float]]:
    """What a detector whose weights are committed returns for held-out scenes of a size."""
    images = torch.from_numpy(shapes.render_batch("heldout", range(16), size_hw)).permute(0, 3, 1, 2)
    return {output: summary(value) for output, value in detectors.load(name)(images).items()}


def scores() -> dict[str, Any]:
    """Every score of 96 held-out scenes, brightened so that they differ from the reference, with replicates and intervals."""
    network = detectors.load("shapes")
    real = reference.make(reference.Scenes(), (24, 32), network, 200, 96, None)
    images = np.minimum(shapes.render_batch("heldout", range(96), (24, 32)).astype(int) + 24, 255).astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "chunks").mkdir()
        write_chunk(Path(folder) / "chunks" / "chunk-00000.tar", images, 0)
        opened = open_images(folder)
        place = features_folder(folder, network.name, network.hash)
        score.extract(opened, network, place)
        options = score.Options(splits=4, nearest=96, all_samples=True, resamples=5)
        found = score.score(score.Features(place, opened), real, np.arange(96) % 8, options)
    digits = lambda v: [float(f"{x:.6g}") for x in v] if isinstance(v, list) else float(f"{v:.6g}")  # noqa: E731
    return {name: {key: digits(value) for key, value in entry.items()} for name, entry in found.items()}


def parts() -> dict[str, Callable[[], dict[str, Any]]]:
    """Part -> what computes its goldens."""
    return {
        "train": lambda: (
            {case: losses(*setting) for case, setting in LOSSES.items()}
            | {f"batch {name}": batch(name) for name in ("center_crop", "random_resize_crop")}
            | {"scenes": scenes()}
        ),
        "sample": lambda: {
            f"{name} {size}{' ddpm' if objective else ''}": samples(name, size, objective)
            for objective in (FLOW, DDPM)
            for name in registry.names()
            for size in GRIDS
        },
        "score": lambda: (
            {f"detector {h}x{w}": detector("shapes", (h, w)) for h, w in ((24, 24), (64, 48))}
            | {f"photos {h}x{w}": detector("photos", (h, w)) for h, w in ((24, 24), (96, 128))}
            | {"scores": scores()}
        ),
    }


def close(a: Any, b: Any, rel: float = 1e-4, scale: float = 1e-2) -> bool:
    """Whether two goldens agree: other processors and threads round in another order.

    Values of one tensor by its largest, since rounding is of that order in all of them: to 2e-5 of it.
    """
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key], rel) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        size = 0.2 * max(map(abs, b), default=1.0)
        return len(a) == len(b) and all(close(x, y, rel, size) for x, y in zip(a, b, strict=True))
    if isinstance(a, float | int) and isinstance(b, float | int):
        return abs(a - b) <= rel * max(abs(b), scale, 1e-6)
    return a == b


def revision_of(part: str, name: str) -> list[Any]:
    """The declared revisions that stand behind one golden: of its part, and of the method whose golden it is."""
    method_name = name.split()[0]
    own = registry.revisions(method_name) if method_name in registry.names() else {}
    return [{"train": revision.TRAIN, "sample": revision.SAMPLE, "score": revision.SCORE}[part], own]


def stored(part: str) -> dict[str, Any]:
    """{name: golden} of a part."""
    return {name: value for name, (_, value) in _stored(part).items()}


def _stored(part: str, folder: Path = FOLDER) -> dict[str, list[Any]]:
    path = folder / f"{part}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def moved(part: str, found: dict[str, Any]) -> list[str]:
    """The goldens of a part that are new or are not as they were."""
    return sorted(name for name in found if not close(found[name], stored(part).get(name)))


def unannounced(part: str, found: dict[str, Any]) -> list[str]:
    """Those of them that moved although no revision behind them was raised."""
    before = _stored(part)
    return [name for name in moved(part, found) if name in before and before[name][0] == revision_of(part, name)]


def rewritten(base: Path, folder: Path = FOLDER) -> list[str]:
    """The goldens whose recorded numbers are not those in a base's folder, although the revisions recorded with them are."""
    found = []
    for part in parts():
        before, now = _stored(part, base), _stored(part, folder)
        found += [
            f"{part}: {name}"
            for name in sorted(before.keys() & now.keys())
            if before[name][0] == now[name][0] and not close(now[name][1], before[name][1])
        ]
    return found


def write(part: str, found: dict[str, Any]) -> None:
    before = _stored(part)
    kept = {name: before[name][1] for name in found if name in before and name not in moved(part, found)}
    entries = {name: [revision_of(part, name), kept.get(name, value)] for name, value in found.items()}
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in sorted(entries.items())]
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{part}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    if "--base" in sys.argv:
        base = Path(sys.argv[sys.argv.index("--base") + 1])
        if not all((base / f"{part}.json").is_file() for part in parts()):
            sys.exit(f"{base} does not hold the goldens of {', '.join(parts())}")
        if silent := rewritten(base):
            sys.exit(f"recorded numbers moved under the same revisions: {', '.join(silent)}; raise one of them")
        sys.exit()
    torch.set_num_threads(1)
    changed = []
    for part, compute in parts().items():
        found = compute()
        changed += moved(part, found)
        print(f"{part}: {', '.join(moved(part, found)) or 'as recorded'}")
        if (silent := unannounced(part, found)) and "--write" in sys.argv:
            sys.exit(f"part '{part}' moved under the same revisions: {', '.join(silent)}; raise one of them first")
        if "--write" in sys.argv:
            write(part, found)
    sys.exit(1 if changed and "--write" not in sys.argv else 0)
