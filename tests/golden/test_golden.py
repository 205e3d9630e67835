"""The goldens hold: losses, batches, samples, detector outputs and scores are the recorded ones."""

from __future__ import annotations

import json
import shutil

import goldens
import pytest


@pytest.mark.parametrize("case", goldens.LOSSES)
def test_losses_are_those_recorded(case):
    """Relative tolerance 1e-4: other processors and threads round in another order."""
    assert case in goldens.stored("train"), "write the goldens of what is new: make goldens SET=--write"
    assert goldens.losses(*goldens.LOSSES[case]) == pytest.approx(goldens.stored("train")[case], rel=1e-4)


def test_numbers_rewritten_under_the_same_revision_are_told(tmp_path):
    """As CI asks of a pull request: a file that was edited, or deleted and written anew, agrees with its own code."""
    for part in goldens.parts():
        shutil.copy(goldens.FOLDER / f"{part}.json", tmp_path)
    assert goldens.rewritten(tmp_path) == []
    entries = json.loads((tmp_path / "train.json").read_text())
    entries["ledit"][1][-1] *= 1.01  # its revision stays
    entries["rpe2d"][1][-1] *= 1.01
    entries["rpe2d"][0][0] += 1
    del entries["learned"]
    (tmp_path / "train.json").write_text(json.dumps(entries))
    assert goldens.rewritten(tmp_path) == ["train: ledit"]


@pytest.mark.parametrize("part", goldens.parts())
def test_goldens_have_the_revisions_of_today(part):
    """Or a change would count as announced by a revision that was raised before."""
    for name, (revisions, _) in goldens._stored(part).items():
        assert revisions == goldens.revision_of(part, name), "write the goldens of what is announced: make goldens SET=--write"


def test_no_golden_is_of_what_is_gone():
    batches = {f"batch {name}" for name in ("center_crop", "random_resize_crop")}
    assert goldens.stored("train").keys() == goldens.LOSSES.keys() | batches | {"scenes"}


@pytest.mark.parametrize("augmentation", ["center_crop", "random_resize_crop"])
def test_batches_are_those_recorded(augmentation):
    assert goldens.batch(augmentation) == goldens.stored("train")[f"batch {augmentation}"]


def test_scenes_are_those_recorded():
    assert goldens.scenes() == goldens.stored("train")["scenes"]


@pytest.mark.parametrize("part", ["sample", "score"])
def test_parts_are_as_recorded(part):
    found, recorded = goldens.parts()[part](), goldens.stored(part)
    assert sorted(found) == sorted(recorded), "write the goldens of what is new: make goldens SET=--write"
    moved = [name for name in found if not goldens.close(found[name], recorded[name])]
    assert not moved, f"numbers of part '{part}' moved: raise its revision if that is meant"
