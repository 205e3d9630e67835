"""Pictures of one's own: which protocol they have, and what of its rules they decide."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from benchmark import protocol
from benchmark.files import UserError
from benchmark.plan.own import default_protocol, fitted
from benchmark.plan.place import Run


def pictures(root, classes: int = 3, each: int = 4):
    for label in range(classes):
        (root / str(label)).mkdir(parents=True)
        for number in range(each):
            pixels = np.random.default_rng(10 * label + number).integers(0, 256, (70, 90, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / str(label) / f"{number}.png")
    return root


def test_what_the_pictures_decide(tmp_path):
    root = pictures(tmp_path / "mine")
    run = Run(tmp_path / "runs", str(root))
    assert default_protocol(str(root)) == "folder"
    rules = fitted("folder", ["sample.count=64"], run)
    assert (rules.core.classes, rules.score.reference, rules.score.nearest, rules.train.batch) == (3, 12, 12, 12)
    assert rules.custom
    assert not rules.ranked
    assert protocol.load(rules.source, rules.overrides).hash == rules.hash, "a launched process loads the same rules"
    assert fitted("folder", ["core.classes=5", "train.batch=2"], run).core.classes == 5, "what is given wins"
    (shards,) = (tmp_path / "runs/data").glob("own-*")
    assert default_protocol(str(shards)) == "folder"
    assert fitted("folder", [], Run(tmp_path / "runs", str(shards))).core.classes == 3


def test_other_protocols_stay_as_they_are(tmp_path):
    assert default_protocol("") == "shapes"
    assert fitted("smoke", [], Run(tmp_path)).hash == protocol.load("smoke").hash
    with pytest.raises(UserError, match="give their folder as DATA"):
        fitted("folder", [], Run(tmp_path))
    with pytest.raises(UserError, match="2 usable images; a reference needs at least 4"):
        fitted("folder", [], Run(tmp_path, str(pictures(tmp_path / "few", 1, 2))))


def test_published_hashes_know_no_convention():
    """A rule that came later is left out at its usual value: records of before keep their place."""
    assert "convention" not in protocol.load("shapes").rules()["objective"]
    assert protocol.load("imagenet-256-sit-ft").rules()["objective"]["convention"] == "sit"
