"""The stages: their order and needs, and every state from files laid out as the stages lay them out."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import test_dataset
from PIL import Image

from benchmark import identity, protocol, registry
from benchmark.data import writer
from benchmark.data.card import load_card
from benchmark.evaluate import detectors, reference
from benchmark.evaluate.score import unit_file
from benchmark.files import UserError, write_json
from benchmark.identity import Cell, Training, cells_of, detector_module, features_folder, methods_of
from benchmark.plan import cost, own, stages
from benchmark.plan.layout import CHECKPOINTS, DONE, REPORT, WEIGHTS
from benchmark.plan.place import Run
from benchmark.plan.stages import COMPLETE, MISSING, Sample, Stage, Train
from benchmark.protocol import Protocol
from benchmark.results import record
from benchmark.run import local, sample
from benchmark.run import score as scoring

METHODS = ["extrapolation", "yarn", "nope"]


def graph(found: Protocol, methods: list[str], out: Path, seed: int = 0, data: str = "", keep: bool = False) -> list[Stage]:
    return stages.graph(found, methods, seed, Run(out, data, "1", 1, keep=keep))


def shards(found: Protocol, out: Path) -> writer.Written:
    card = dataclasses.replace(load_card(found.data.card), count=found.data.count)
    return writer.prepare(card, None, out / "data", workers=1)


def kinds(found: list[Stage]) -> list[str]:
    return [stage.kind for stage in found]


def test_shared_trainings_are_planned_once_and_nothing_is_written(tmp_path):
    smoke = protocol.load("smoke")
    found = graph(smoke, METHODS, tmp_path)
    assert not any(stage.is_complete() for stage in found)
    assert all(stage.cost() == stage.full_cost() for stage in found)
    assert list(tmp_path.iterdir()) == []
    assert [stage.training.method for stage in found if stage.kind == "train"] == ["extrapolation", "nope"]
    cells = [stage.cell for stage in found if stage.kind == "score"]
    assert cells == cells_of(smoke, ["extrapolation", "nope", "yarn"], 0)
    assert kinds(found).count("reference") == len(smoke.pairs())
    references = ["reference"] * len(smoke.pairs())
    assert kinds(found)[: len(references) + 2] == ["shards", *references, "train"], "what references lack shows at once"
    for number, stage in enumerate(found):  # everything that a stage needs comes before it
        before = found[:number]
        assert all(any(need is one for one in before) for need in [*stage.needs, *stage.after]), stage
        if stage.kind == "sample":
            assert any(need.kind == "train" and need.training == stage.cell.training for need in stage.needs)
        if stage.kind == "score":
            assert any(need.kind == "sample" and need.cell == stage.cell for need in stage.needs)
            assert any(need.kind == "reference" and need.test == stage.cell.test for need in stage.needs)


@pytest.mark.parametrize("methods", [METHODS, ["yarn", "extrapolation"], ["yarn", "ntk"]])
def test_images_that_methods_share_have_one_maker(methods, tmp_path):
    found = [stage for stage in graph(protocol.load("smoke"), methods, tmp_path) if isinstance(stage, Sample)]
    shared = [stage for stage in found if stage.shared]
    expected = {"yarn"} if "extrapolation" in methods else {"ntk"}
    assert {(stage.cell.method, stage.cell.test) for stage in shared} == {(name, "16x16") for name in expected}
    for stage in shared:
        assert stage.base in stage.after
        assert stage.base not in stage.needs
        assert stage.base.cell.training == stage.cell.training
        assert not stage.base.shared
        assert stage.full_cost() == cost.Cost()
        assert stage.base.full_cost().operations > 0
    assert all(stage.full_cost().operations > 0 for stage in found if not stage.shared)


def test_what_is_there_is_found(tmp_path):
    """Every state from files laid out as the stages lay them out."""
    smoke = protocol.load("smoke")
    written = shards(smoke, tmp_path)
    training = Training(smoke, "extrapolation", "16x16", 0)
    folder = training.folder(tmp_path, written.fingerprint)
    keep = False

    def states() -> dict[str, str]:
        sizes = {}
        for stage in graph(smoke, ["extrapolation"], tmp_path, keep=keep):
            size = stage.training.size if stage.kind == "train" else getattr(getattr(stage, "cell", None), "test", "")
            sizes[f"{stage.kind} {size}".strip()] = stage.state()
        return sizes

    def left(kind: str) -> float:
        return next(s.cost().operations for s in graph(smoke, ["extrapolation"], tmp_path, keep=keep) if s.kind == kind)

    assert states()["shards"] == COMPLETE
    assert states()["train 16x16"] == MISSING
    all_of_it = left("train")
    (folder / CHECKPOINTS).mkdir(parents=True)
    for step in (5, 15):
        (folder / CHECKPOINTS / f"step={step}.ckpt").touch()
    assert states()["train 16x16"] == "step 15 of 20"
    assert left("train") == pytest.approx(all_of_it / 4)
    (folder / WEIGHTS).touch()
    write_json(folder / REPORT, {"fingerprint": training.key(written.fingerprint)})
    assert states()["train 16x16"] == COMPLETE
    assert left("train") == 0
    cell = Cell(smoke, "extrapolation", "16x16", "16x16", 0).folder(tmp_path, training.key(written.fingerprint))
    assert states()["sample 16x16"] == MISSING
    all_of_it = left("sample")
    place = stages.features_of(cell, smoke)
    place.mkdir(parents=True)
    unit_file(place, 0).touch()
    assert states()["sample 16x16"] == "16 of 32 images"
    assert left("sample") == pytest.approx(all_of_it / 2)
    unit_file(place, 1).touch()
    sample.chunk_path(cell, 0).parent.mkdir(parents=True)
    for k in (0, 1):
        sample.chunk_path(cell, k).touch()
    assert states()["sample 16x16"] == "32 of 32 images", "its end is not written"
    write_json(cell / DONE, {"count": 32})
    assert states()["sample 16x16"] == COMPLETE
    assert states()["sample 32x24"] == MISSING
    assert states()["score 16x16"] == MISSING
    (score,) = (s for s in graph(smoke, ["extrapolation"], tmp_path) if s.kind == "score" and s.cell.test == "16x16")
    assert score.file.parent == cell
    committed = {"code": {"commit": "0" * 40, "dirty": False}}
    write_json(score.file, committed)
    assert states()["score 16x16"] == "no record"
    written = tmp_path / "records" / smoke.hash / record.place("smoke", "extrapolation", "16x16", "16x16", 0)
    write_json(written, {"older": True})
    assert states()["score 16x16"] == "no record", "an older one lies there"
    write_json(written, committed)
    assert states()["score 16x16"] == COMPLETE
    score.file.rename(cell / "record-0123456789ab.json")
    assert states()["score 16x16"] == MISSING, "a record of other code or another revision"
    assert graph(smoke, ["extrapolation"], tmp_path, seed=1)[1].state() == MISSING
    # What a cell has lost since is missing again.
    place.rename(place.parent / "shapes-0123456789ab-012345")
    assert states()["sample 16x16"] == MISSING, "features of another detector"
    (place.parent / "shapes-0123456789ab-012345").rename(place)
    unit_file(place, 1).unlink()
    assert states()["sample 16x16"] == "16 of 32 images"


def test_a_record_follows_the_revisions(tmp_path, monkeypatch):
    smoke = protocol.load("smoke")
    shards(smoke, tmp_path)

    def key() -> str:
        return graph(smoke, ["extrapolation"], tmp_path)[-1].key()

    before = key()
    assert before == key()
    monkeypatch.setattr(stages.revision, "SCORE", stages.revision.SCORE + 1)
    assert key() != before


def test_a_record_follows_the_detectors_weights(tmp_path, monkeypatch):
    def key() -> str:
        return graph(protocol.load("smoke"), ["nope"], tmp_path)[-1].key()

    before = key()
    monkeypatch.setattr(registry, "detector_weights", lambda name: "f" * 12)
    assert key() != before


def test_the_detectors_code_is_part_of_what_is_made_with_it(tmp_path, monkeypatch):
    smoke = protocol.load("smoke")
    shards(smoke, tmp_path)
    run = Run(tmp_path, "", "1", 1)
    (stage,) = [s for s in stages.graph(smoke, ["nope"], 0, run) if s.kind == "reference" and s.test == "16x16"]
    score = next(s for s in stages.graph(smoke, ["nope"], 0, run) if s.kind == "score")
    stage.run()
    assert stage.state() == COMPLETE, "its name is that of the file which `make` writes"
    before, real = score.key(), identity.code_key
    monkeypatch.setattr(identity, "code_key", lambda *names: real(*[n for n in names if "detectors" not in n]))
    assert stage.state() == MISSING
    assert score.key() != before


def test_only_the_first_images_are_asked_for_without_keep(tmp_path, monkeypatch):
    smoke = protocol.load("smoke")
    folder = tmp_path / "cell"
    place = stages.features_of(folder, smoke)
    place.mkdir(parents=True)
    (folder / "chunks").mkdir()
    write_json(folder / DONE, {"count": 32})
    for k in (0, 1):
        unit_file(place, k).touch()
    sample.chunk_path(folder, 0).touch()
    assert not stages.is_sampled(folder, smoke, keep=False)
    monkeypatch.setattr(stages, "KEPT_IMAGES", 16)
    assert stages.is_sampled(folder, smoke, keep=False)
    assert not stages.is_sampled(folder, smoke, keep=True), "the second batch of images is not there"
    sample.chunk_path(folder, 1).touch()
    assert stages.is_sampled(folder, smoke, keep=True)
    # Of a cell whose images are another one's, these count.
    write_json(tmp_path / "same" / DONE, {"count": 32, "same_as": "cell"})
    assert stages.is_sampled(tmp_path / "same", smoke, keep=True)
    shutil.rmtree(folder)
    assert not stages.is_sampled(tmp_path / "same", smoke, keep=True)


def test_a_smaller_last_batch_is_waited_for(tmp_path):
    rules, folder = protocol.load("smoke", ["sample.count=40"]), tmp_path / "cell"  # batches of 16, 16 and 8
    place = stages.features_of(folder, rules)
    place.mkdir(parents=True)
    write_json(folder / DONE, {"count": 40})
    sample.chunk_path(folder, 0).parent.mkdir()
    for k in range(3):
        sample.chunk_path(folder, k).touch()
    for k in range(3):
        assert not stages.is_sampled(folder, rules, keep=False)
        unit_file(place, k).touch()
    assert stages.is_sampled(folder, rules, keep=False)


def test_features_lie_where_scoring_looks_for_them(tmp_path):
    """The plan knows the weights by the file's hash, without loading them."""
    detector = detectors.load("shapes")
    place = features_folder(tmp_path, detector.name, detector.hash)
    assert stages.features_of(tmp_path, protocol.load("smoke")) == place
    assert type(detector).__module__ == detector_module(detector.name)


def test_encoding_on_the_way_is_counted_for_those_who_augment(tmp_path):
    large = protocol.load("imagenet-256-xl2")
    found = {s.training.method: s for s in graph(large, ["rpe2d", "nope"], tmp_path) if isinstance(s, Train)}
    assert found["nope"].cost().tf32 == 0
    images = large.train.steps * large.train.batch
    assert found["rpe2d"].cost().tf32 == images * cost.autoencoder_flops(cost.ENCODE_PIXEL, 256, 256)
    assert found["rpe2d"].cost().bf16 == found["nope"].cost().bf16
    assert [kind for kind in kinds(graph(large, ["nope"], tmp_path)) if kind != "reference"][:3] == ["shards", "latents", "train"]
    assert "latents" not in kinds(graph(large, ["rpe2d"], tmp_path))
    plain = protocol.load("imagenet-256-xl2", ["options.rpe2d.resize=0"])
    assert "latents" in kinds(graph(plain, ["rpe2d"], tmp_path)), "without augmentation latents do"


@pytest.mark.parametrize("given", ["pictures", f"latents-{test_dataset.RIGHT}"])
def test_latents_are_found_beside_their_pictures(given, tmp_path):
    """Whichever of the two is given as DATA; latents of another size or of other pictures do not count."""
    test_dataset.manifests(tmp_path / "data")
    data = str(tmp_path / "data" / given)
    found = {s.kind: s for s in graph(protocol.load("imagenet-256-s2"), ["nope", "rpe2d"], tmp_path, data=data)}
    assert found["shards"].is_complete()
    assert found["latents"].is_complete()
    assert found["latents"].key() == test_dataset.RIGHT
    assert found["shards"].key() == test_dataset.PICTURES
    larger = {s.kind: s for s in graph(protocol.load("imagenet-512-xl2"), ["nope"], tmp_path, data=data)}
    assert larger["latents"].key() == test_dataset.OTHER


def test_commands_say_all_that_a_stage_needs(tmp_path):
    custom = protocol.load("smoke", ["train.steps=5"])
    run = Run(tmp_path, "", "2", 3, compile=True, deterministic=True, keep=True)
    by_kind = {stage.kind: stage for stage in stages.graph(custom, ["yarn"], 7, run)}
    where = ["train.steps=5", "--protocol", "smoke", "--out", str(tmp_path)]
    spread = ["--devices", "2", "--nodes", "3"]
    cell = ["yarn", "--train", "16x16", "--test", "32x24", "--seed", "7"]
    assert by_kind["shards"].command() == ["shards", *where]
    training = ["train", "extrapolation", "--train", "16x16", "--seed", "7"]
    assert by_kind["train"].command() == [*training, *where, "--compile", "--deterministic", *spread, "--keep"]
    assert by_kind["sample"].command() == ["sample", *cell, *where, *spread, "--keep"]
    assert by_kind["score"].command() == ["score", *cell, *where]
    assert by_kind["reference"].command()[:3] == ["reference", "shapes", "32x24"]


def test_a_reference_of_pictures_is_made_from_their_shards(tmp_path):
    """So that what the command writes has the name that the stage looks for."""
    pictures = tmp_path / "pictures"
    for number in range(6):
        (pictures / f"class-{number % 2}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (72, 72), (40 * number, 0, 0)).save(pictures / f"class-{number % 2}" / f"{number}.png")
    run = Run(tmp_path / "out", str(pictures), "1", 1)
    planned = own.fitted("folder", ["score.detector=shapes"], run, write=False)
    assert not run.out.exists(), "a plan writes nothing"
    found = own.fitted("folder", ["score.detector=shapes"], run)
    assert planned.hash == found.hash
    stage = next(stage for stage in stages.graph(found, ["nope"], 0, run) if stage.kind == "reference")
    _, source, size, _, count, _, nearest, *_ = stage.command()
    made = reference.identity(
        reference.open_source(source), protocol.size_hw(size), detectors.load("shapes"), int(count), int(nearest)
    )
    assert made == stage.key()


def test_a_reference_keeps_no_more_images_than_it_has(tmp_path, monkeypatch):
    seen, rules = [], protocol.load("smoke", ["score.nearest=100000"])
    monkeypatch.setattr(scoring, "make", lambda source, size, detector, count, nearest, *_, **__: seen.append((count, nearest)))
    scoring.reference(rules, "16x16", stages.Context(rules, Run(tmp_path)), detector=object())
    assert seen == [(rules.score.reference, rules.score.reference)]


def test_latents_are_encoded_unless_they_were_written_meanwhile(tmp_path, monkeypatch):
    large, run = protocol.load("imagenet-256-s2"), Run(tmp_path, str(tmp_path / "data" / "pictures"), "1", 1)
    test_dataset.manifests(tmp_path / "data")
    (tmp_path / "data" / f"latents-{test_dataset.RIGHT}").rename(tmp_path / "later")
    stage = next(stage for stage in stages.graph(large, ["nope"], 0, run) if stage.kind == "latents")
    encoded = []

    def encode(rules, where, sizes):
        encoded.append((rules.name, where, sizes))
        (tmp_path / "later").rename(tmp_path / "data" / f"latents-{test_dataset.RIGHT}")

    monkeypatch.setattr(stages.to_latents, "make_latents", encode)
    stage.run()
    assert encoded == [("imagenet-256-s2", run, [stage.size])]
    assert stage.is_complete()
    stage.context.changed()
    stage.run()
    assert len(encoded) == 1


def test_latents_that_another_process_wrote_are_seen_by_the_stages_after_it(tmp_path, monkeypatch):
    """With several devices a stage runs in processes of its own."""
    large, run = protocol.load("imagenet-256-s2"), Run(tmp_path, str(tmp_path / "data" / "pictures"), "2", 1)
    test_dataset.manifests(tmp_path / "data")
    written = tmp_path / "data" / f"latents-{test_dataset.RIGHT}"
    written.rename(tmp_path / "later")
    found = {stage.kind: stage for stage in stages.graph(large, ["nope"], 0, run)}
    assert not found["latents"].is_complete()
    assert found["train"].key() is None
    monkeypatch.setattr(local, "run_group", lambda words: (tmp_path / "later").rename(written) and 0)
    local.run_one(found["latents"])
    assert found["latents"].is_complete()
    assert found["train"].key()


def test_methods_of_a_protocol():
    assert methods_of(protocol.load("shapes"))[0] == "extrapolation"
    assert methods_of(protocol.load("smoke")) == registry.names()
    assert methods_of(protocol.load("smoke", ["methods=[yarn,nope,-yarn]"])) == ["nope"]
    without = methods_of(protocol.load("imagenet-256-xl2-ft"))
    assert without == [name for name in registry.names() if name != "ledit_finetune"]
    with pytest.raises(UserError, match="unknown method 'nowhere'"):
        methods_of(protocol.load("smoke", ["methods=[-nowhere]"]))


def test_a_record_stays_whatever_way_the_path_of_the_data_is_written(tmp_path):
    smoke = protocol.load("smoke")
    folder = shards(smoke, tmp_path).folder

    def keys(data: str) -> list[str]:
        return [stage.key() for stage in graph(smoke, ["nope"], tmp_path / "out", data=data) if stage.kind == "score"]

    assert len(set(keys(str(folder)))) == 1
    assert keys(str(folder)) == keys(f"{folder}/") == keys(f"{folder}/../{folder.name}") != keys("")


def test_a_record_follows_the_rules_of_scoring(tmp_path):
    keys = {
        graph(protocol.load("smoke", words), ["nope"], tmp_path)[-1].key()
        for words in ([], ["score.splits=1"], ["score.reference=32"], ["score.nearest=8"])
    }
    assert len(keys) == 4


def test_commands_say_where_the_data_lie(tmp_path):
    """Jobs and processes of several devices know nothing else of them."""
    test_dataset.manifests(tmp_path / "data")
    data = str(tmp_path / "data" / "pictures")
    for stage in graph(protocol.load("imagenet-256-s2"), ["nope"], tmp_path, data=data):
        words = stage.command()
        assert stage.kind == "reference" or words[words.index("--data") + 1] == data
