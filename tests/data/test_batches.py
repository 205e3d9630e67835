"""Reading: every batch is a function of the step, and pictures are cut as they should be."""

import dataclasses
import math
import multiprocessing
import os
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import small
import torch
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmark.data import batches, shapes, writer
from benchmark.data.batches import AUGMENTATIONS, Batches, Transform, order
from benchmark.data.card import Card, card_names, load_card
from benchmark.data.images import center_crop, decoded
from benchmark.data.index import Index
from benchmark.files import UserError
from benchmark.protocol import Data
from benchmark.streams import uniforms

COUNT, SIZE = 103, (24, 16)
FIRST_OF_0 = [40, 70, 32, 29, 33, 76, 44, 24]
FIRST_OF_7 = [49, 18, 21, 14, 51, 54, 60, 55]
UNIFORMS_OF_5 = [0.07082628388443701, 0.6756608758961902, 0.2229927802581121]  # sample 5 in epoch 7 under seed 3
UNIFORMS = [0.011546754286331562, 0.24154919656271812, 0.11142585551493822, 0.5644146216071337]
PLAIN = Transform((12, 8), flip=True)
RANDOM = Transform((12, 8), "random_resize_crop", {"largest": 1.5})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """13 shards of 8, the last of 7."""
    drawn = Card("drawn", "shapes", classes=8, count=COUNT, size=SIZE)
    return writer.prepare(drawn, None, tmp_path_factory.mktemp("data"), per_shard=8).folder


@pytest.fixture(scope="module")
def index(folder: Path) -> Index:
    return Index(folder)


def same(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(
        torch.equal(one[k], two[k]) if isinstance(one[k], torch.Tensor) else one[k] == two[k] for k in one
    )


def joined(parts: list[dict]) -> dict:
    """The global batch from the ranks' parts."""
    tensors = {k: torch.cat([part[k] for part in parts]) for k in ("image", "label", "crop")}
    return {**parts[0], **tensors, "key": [key for part in parts for key in part["key"]], "rows": (0, parts[0]["rows"][1])}


# --- Cards ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", card_names())
def test_shipped_cards(name: str) -> None:
    found = load_card(name)
    assert found.name == name
    assert found.class_count > 0 or found.kind == "own"
    assert found.licence


def test_card_of_the_embedded_set() -> None:
    found = load_card("shapes")
    assert found.classes == shapes.CLASSES
    assert found.kind == "shapes"
    assert found.size is not None


def test_wrong_cards(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown data set 'shape'; did you mean 'shapes'.*imagenet"):
        load_card("shape")
    for text, message in (
        ("kind: folder\nclases: 3", "x.yaml: unknown setting of the card 'clases'; did you mean 'classes'"),
        ("kind: magic", "unknown kind"),
        ("kind: [", "not valid YAML"),
        ("- a", "must hold fields"),
        ("kind: folder\ncount: many", "count must be a whole number, not 'many'"),
        ("kind: folder\ncount: -1", "count must be at least 0"),
        ("kind: folder\ncount: 1.5", "count must be a whole number"),
        ("kind: folder\ncount: .inf", "count must be a whole number"),
        ("kind: folder\nclasses: [a, a]", "a class is listed twice"),
        ("kind: folder\nclasses: [1, 2]", "classes must be a list of names"),
        ("kind: folder\nclasses: []", "classes must be a list of names"),
        ("kind: folder\nclasses: many", "classes must be a list of names"),
        ("kind: shapes\nsize: [64]", "size has too few items"),
        ("kind: shapes\nsize: 64", "size must be a list"),
        ("kind: shapes\nsize: 64x64", "size must be a list"),
        ("kind: shapes\nsize: [64.5, 64]", "size.0 must be a whole number"),
        ("kind: shapes\nsize: [0, 64]", "size.0 must be at least 1"),
        ("kind: shapes\nsize: [200000, 64]", "size.0 must be at most 16384"),
        ("kind: shapes\nrange: [0, 300]", "range.1 must be at most 255"),
        ("kind: shapes\nrange: [1, 255]", "range.0 must be at most 0"),
        ("kind: shapes\nsplits: [a]", "splits must be an object"),
        ("kind: shapes\nname: ../../evil", "name must be a name of"),
        ("kind: shapes\nname: /tmp/evil", "name must be a name of"),
        ("kind: shapes\nname: null", "name must be a name of"),
        ("kind: shapes\nname: 7", "name must be a name of"),
        ("kind: shapes\nname: ''", "name must be a name of"),
        ("kind: shapes\ndescription: ${oc.env:HOME}", "interpolation is not supported"),
        ("kind: shapes\ndescription: [a]", "description must be a text"),
        ("kind: [folder]", "unknown kind"),
        ("name: x", "lacks kind"),
        ("7", "must hold fields"),
    ):
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(UserError, match=message):
            load_card(str(tmp_path / "x.yaml"))


# --- Order ----------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 2**32 - 1), group=st.integers(1, 20))
@settings(max_examples=50, deadline=None)
def test_every_sample_exactly_once(index: Index, seed: int, epoch: int, group: int) -> None:
    assert sorted(order(index, seed, epoch, group).tolist()) == list(range(COUNT))


def test_every_epoch_and_seed_has_its_own_order(index: Index) -> None:
    orders = {tuple(order(index, seed, epoch).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
    assert tuple(order(index, 3, 4).tolist()) in orders


def test_order_stays_within_groups_of_shards_and_mixes_them(index: Index) -> None:
    """With groups of 3, the first 24 samples come from 3 shards, thoroughly mixed (unless the short shard is there)."""
    for epoch in range(20):
        shard = order(index, 0, epoch, group=3) // 8
        assert len(set(shard[:23].tolist())) == 3
        assert np.count_nonzero(np.diff(shard[:23])) > 5
    first = [order(index, 0, epoch, group=3)[0] // 8 for epoch in range(60)]
    assert len(set(first)) > 8, "shards are permuted too"


def test_order_is_fixed_for_ever(index: Index) -> None:
    """A change of these numbers breaks every resumed run."""
    assert order(index, 0, 0)[:8].tolist() == FIRST_OF_0
    assert order(index, 7, 3)[:8].tolist() == FIRST_OF_7
    np.testing.assert_allclose(uniforms(0, 0, 0, 4), UNIFORMS, rtol=0, atol=0)
    np.testing.assert_allclose(uniforms(3, 7, 5, 3), UNIFORMS_OF_5, rtol=0, atol=0)


def test_uniforms_of_several_threads_do_not_mix() -> None:
    wanted = [uniforms(0, 1, number, 5).tolist() for number in range(300)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(lambda number: uniforms(0, 1, number % 300, 5).tolist(), range(5_000)))
    finally:
        sys.setswitchinterval(before)
    assert all(values == wanted[number % 300] for number, values in enumerate(found))


def test_uniforms_are_uniform_and_unrelated() -> None:
    values = np.array([uniforms(seed, epoch, number, 4) for seed in (0, 1) for epoch in (0, 1) for number in range(500)])
    assert values.min() >= 0
    assert values.max() < 1
    assert abs(values.mean() - 0.5) < 0.02
    assert abs(values.var() - 1 / 12) < 0.005
    assert len(np.unique(values)) == values.size


def test_an_epoch_visits_each_sample_once_and_drops_another_rest(index: Index) -> None:
    batches = Batches(index, 10, transform=PLAIN)
    assert batches.epoch_steps == 10
    rests = []
    for epoch in range(4):
        seen = np.concatenate([batches.numbers(epoch * 10 + i) for i in range(10)])
        assert len(set(seen.tolist())) == 100
        rests.append(frozenset(range(COUNT)) - frozenset(seen.tolist()))
    assert len(set(rests)) == 4


# --- Batches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("augmentation", ["center_crop", "random_resize_crop"])
def test_kept_pictures_do_not_change_a_batch(index: Index, augmentation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are decoded once where all of them fit into memory; flips, crops and damage are as if they were read anew."""
    kept, anew = (Batches(index, 16, 3, transform=Transform((24, 32), augmentation)) for _ in range(2))
    read, opened = Index.__getitem__, []
    monkeypatch.setattr(Index, "__getitem__", lambda self, number: opened.append(number) or read(self, number))
    first = [kept[step] for step in range(2 * kept.epoch_steps)]
    assert len(opened) == len(set(opened)), "no picture was decoded twice"
    monkeypatch.setattr(batches, "KEPT_BYTES", 0)
    for step, batch in enumerate(first):
        again = anew[step]
        assert batch["key"] == again["key"]
        assert torch.equal(batch["crop"], again["crop"])
        assert torch.equal(batch["image"], again["image"])
    assert not anew._kept
    assert not any(image.info for _, _, image in kept._kept.values())
    assert len(opened) > 2 * len(first)
    assert not pickle.loads(pickle.dumps(kept))._kept


@pytest.mark.parametrize(("workers", "kept"), [(1, 4), (2, 0)])
def test_workers_share_the_bytes_of_kept_pictures(index: Index, workers: int, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "KEPT_BYTES", 4 * math.prod(SIZE) * COUNT)  # just those of one process
    monkeypatch.setattr(batches, "get_worker_info", lambda: SimpleNamespace(num_workers=workers))
    reader = Batches(index, 4, transform=Transform(SIZE))
    reader[0]
    assert len(reader._kept) == kept


@pytest.mark.parametrize("augmentation", [("center_crop", {}), ("random_resize_crop", {"largest": 2.0, "uncropped": 0.25})])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("rank", "world"), [(0, 1), (1, 2)])
def test_the_reader_has_the_seed_and_rank_of_the_training_and_the_augmentation_of_its_method(
    index: Index, augmentation: tuple[str, dict], flip: bool, rank: int, world: int
) -> None:
    rules = small.protocol(train={"batch": 12, "flip": flip})
    expected = Batches(index, 12, 5, rank, world, transform=Transform((16, 24), *augmentation, flip=flip))
    assert same(next(iter(small.reader(index, rules, "16x24", 3, 5, augmentation, rank, world))), expected[3])


def test_what_a_batch_holds(index: Index) -> None:
    batches = Batches(index, 10, seed=5, transform=Transform((12, 8), flip=False))
    batch = batches[17]
    assert batch.keys() == {"image", "label", "crop", "key", "step", "rows"}
    assert (batch["step"], batch["rows"]) == (17, (0, 10))
    assert (batch["image"].dtype, batch["label"].dtype, batch["crop"].dtype) == (torch.float32, torch.int64, torch.float32)
    assert batch["image"].shape == (10, 3, 12, 8)
    assert batch["image"].is_contiguous()
    assert (batch["crop"] == torch.tensor([12.0, 8, 0, 0, 12, 8])).all()
    for row, key in enumerate(batch["key"]):
        number = int(key)
        assert batch["label"][row] == shapes.label("train", number)
        half = Image.fromarray(shapes.render("train", number, SIZE)).reduce(2)  # an independent box average
        back = batch["image"][row].permute(1, 2, 0).numpy() * 127.5 + 127.5
        np.testing.assert_allclose(back, np.asarray(half), atol=1.01)
        np.testing.assert_allclose(back, back.round(), atol=1e-3)  # bytes, each at its place in [-1, 1]
    assert batch["image"].min() >= -1
    assert batch["image"].max() <= 1


@pytest.mark.parametrize("transform", [PLAIN, RANDOM])
@pytest.mark.parametrize("world", [1, 2, 3, 6, 12])
def test_world_size_does_not_change_the_global_batch(index: Index, transform: Transform, world: int) -> None:
    whole = Batches(index, 12, seed=3, transform=transform)
    ranks = [Batches(index, 12, seed=3, rank=rank, world=world, transform=transform) for rank in range(world)]
    for step in (0, 7, 8, 50):
        assert same(joined([rank[step] for rank in ranks]), whole[step])
    assert [rank[0]["rows"] for rank in ranks] == [(12 // world * rank, 12) for rank in range(world)]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_and_starting_step_do_not_change_a_batch(folder: Path, index: Index, workers: int) -> None:
    straight = Batches(index, 10, seed=1, transform=RANDOM)
    resumed = Batches(Index(folder), 10, seed=1, transform=RANDOM).loader(7, 23, workers=workers)
    got = list(resumed)
    assert [batch["step"] for batch in got] == list(range(7, 23))
    for batch in got:
        assert same(batch, straight[batch["step"]])


def test_spawned_workers(folder: Path) -> None:
    """As on macOS: what a worker needs travels by pickle."""
    index = Index(folder)
    batches = Batches(index, 10, seed=1, transform=RANDOM)
    batches[0]  # with open files
    copy = pickle.loads(pickle.dumps(batches))
    assert copy._order is None, "each process orders the set itself"
    assert same(copy[3], batches[3])
    assert len(pickle.dumps(batches)) < 10_000, "no sample table in it"


def test_forked_workers_share_nothing_that_moves(index: Index) -> None:
    """Files opened before a fork are read from both sides."""
    batches = Batches(index, 20, transform=PLAIN)
    expected = [batches[step] for step in range(5)]
    with multiprocessing.get_context("fork").Pool(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        keys = pool.map(lambda_free(batches), range(5))
    assert keys == [batch["key"] for batch in expected]


class lambda_free:
    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __call__(self, step: int) -> list[str]:
        return self.batches[step]["key"]


def test_loader_without_end(index: Index) -> None:
    steps = Batches(index, 50, transform=PLAIN).loader(start=9)
    assert [next(steps)["step"] for _ in range(5)] == [9, 10, 11, 12, 13]


def test_augmentations_depend_on_seed_epoch_and_sample_alone(index: Index) -> None:
    """The same sample in another batch size, hence at another step and row of the same epoch, looks the same."""
    one, two = Batches(index, 10, seed=2, transform=RANDOM), Batches(index, 25, seed=2, transform=RANDOM)
    by_key = {key: batch["image"][i] for batch in map(one.__getitem__, range(10)) for i, key in enumerate(batch["key"])}
    batch = two[1]
    for i, key in enumerate(batch["key"]):
        assert torch.equal(by_key[key], batch["image"][i])
    later = {key: b["image"][i] for b in map(one.__getitem__, range(10, 20)) for i, key in enumerate(b["key"])}
    assert sum(torch.equal(by_key[key], later[key]) for key in by_key.keys() & later.keys()) < 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch": 10, "world": 3}, "cannot be shared equally by 3"),
        ({"batch": COUNT + 1}, f"needs as many samples.*{COUNT}"),
        ({"batch": 10, "seed": -1}, "seed"),
        ({"batch": 10, "seed": 2**32}, "seed"),
    ],
)
def test_impossible_batches(index: Index, arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Batches(index, transform=PLAIN, **arguments)


# --- Damage ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(folder: Path, tmp_path: Path) -> tuple[Index, str]:
    """A copy of the set in which the data of sample 20 is garbage; (index, its key)."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    index = Index(tmp_path)
    row = index.rows[20]
    with open(tmp_path / index.where(20)[1], "r+b") as file:
        file.seek(int(row["offset"]))
        file.write(os.urandom(int(row["bytes"])))
    return Index(tmp_path), row["key"].decode()


@pytest.mark.parametrize("workers", [0, 1])
def test_corrupt_sample_is_an_error_that_names_shard_and_key(damaged: tuple[Index, str], workers: int) -> None:
    index, key = damaged
    loader = Batches(index, 10, transform=PLAIN).loader(0, 11, workers=workers)
    with pytest.raises(UserError, match=rf"train-000002\.tar: sample '{key}' is damaged") as error:
        list(loader)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("world", [1, 2])
def test_corrupt_sample_can_be_skipped_and_is_counted(
    index: Index, damaged: tuple[Index, str], world: int, caplog: pytest.LogCaptureFixture
) -> None:
    bad, key = damaged
    whole = Batches(index, 10, transform=PLAIN)
    ranks = [Batches(bad, 10, rank=rank, world=world, transform=PLAIN, on_corrupt="skip") for rank in range(world)]
    sequence = [k for step in range(11) for k in whole[step]["key"]][:COUNT]
    skips = 0
    for step in range(10):
        parts = [rank[step] for rank in ranks]
        skips += sum(len(part.get("skipped", [])) for part in parts)
        for row, got in enumerate(joined(parts)["key"]):
            wanted = sequence[10 * step + row]
            assert got == (sequence[10 * step + row + 1] if wanted == key else wanted)
    assert skips == (key in sequence[:100])
    assert skips == 1, "choose another sample for this test"
    assert key in caplog.text


def test_a_training_leaves_out_what_is_damaged_if_its_protocol_says_so(damaged: tuple[Index, str]) -> None:
    rules = [small.protocol(data=Data(on_corrupt=what), train={"batch": 10, "steps": 10}) for what in ("skip", "error")]
    found = list(small.reader(damaged[0], rules[0], "16x24"))
    expected = Batches(damaged[0], 10, transform=Transform((16, 24)), on_corrupt="skip")
    for step, batch in enumerate(found):
        assert same(batch, expected[step])
    assert [len(batch["skipped"]) for batch in found if "skipped" in batch] == [1], "choose another sample for this test"
    with pytest.raises(UserError, match="is damaged"):
        list(small.reader(damaged[0], rules[1], "16x24"))


def test_all_samples_corrupt_ends(damaged: tuple[Index, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError("broken")

    monkeypatch.setattr(batches, "decoded", broken)
    with pytest.raises(UserError, match="is damaged"):
        Batches(damaged[0], 10, transform=PLAIN, on_corrupt="skip")[0]


# --- Pictures -------------------------------------------------------------------------------------------------------


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def adm(image: Image.Image, side: int) -> np.ndarray:
    """What guided-diffusion does to a training picture, in its own terms: shorter side, squares, numpy."""
    while min(image.size) >= 2 * side:
        image = image.resize((image.size[0] // 2, image.size[1] // 2), resample=Image.BOX)
    scale = side / min(image.size)
    image = image.resize((round(image.size[0] * scale), round(image.size[1] * scale)), resample=Image.BICUBIC)
    pixels = np.array(image)
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    return pixels[top : top + side, left : left + side]


@pytest.mark.parametrize("stored", [(64, 64), (70, 131), (131, 70), (33, 500), (20, 25), (16, 16), (15, 40), (63, 64)])
def test_center_crop_is_adms_for_squares(stored: tuple[int, int]) -> None:
    np.testing.assert_array_equal(np.asarray(center_crop(noise(*stored), (16, 16))), adm(noise(*stored), 16))


@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 30), st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_center_crop_has_the_size_and_stays_inside(height: int, width: int, target_h: int, target_w: int) -> None:
    """On any rectangle; black would be pixels from outside the picture."""
    white = Image.new("RGB", (width, height), (255, 255, 255))
    result = np.asarray(center_crop(white, (target_h, target_w)))
    assert result.shape == (target_h, target_w, 3)
    assert (result == 255).all()


def ramp(height: int, width: int) -> Image.Image:
    """Red grows with y, green with x: a pixel tells where it comes from."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([y * 255 / (height - 1), x * 255 / (width - 1), 0 * x], -1).round().astype(np.uint8))


def test_center_crop_of_a_rectangle_is_central() -> None:
    pixels = np.asarray(center_crop(ramp(60, 200), (30, 40))).astype(float)
    np.testing.assert_allclose(pixels[::-1, ::-1, :2] + pixels[..., :2], 255, atol=3)
    # The height is covered wholly, of the width 40 of 100 pixels remain.
    assert pixels[0, 0, 0] < 5
    np.testing.assert_allclose(pixels[0, 0, 1], 255 * 0.305, atol=3)


@pytest.mark.parametrize("stored", [(60, 80), (80, 60), (24, 90), (10, 10)])
@pytest.mark.parametrize("target", [(16, 16), (12, 24), (24, 12)])
@pytest.mark.parametrize("flip", [False, True])
def test_random_resize_crop_cuts_what_its_record_says(stored: tuple[int, int], target: tuple[int, int], flip: bool) -> None:
    """Sampled at the places that the record names, an untouched ramp has the colours of the crop."""
    transform = Transform(target, "random_resize_crop", {"largest": 2.0}, flip)
    rng = np.random.default_rng(0)
    for _ in range(10):
        draws = rng.random(5)
        pixels, (full_h, full_w, top, left, height, width) = transform(ramp(*stored), draws)
        assert (height, width) == target == pixels.shape[:2]
        assert 0 <= top <= full_h - height
        assert 0 <= left <= full_w - width
        cover = max(target[0] / stored[0], target[1] / stored[1])
        for full, side in ((full_h, stored[0]), (full_w, stored[1])):
            assert math.isclose(full, side * cover * (1 + draws[1]), abs_tol=0.51)
        y = (top + np.arange(height) + 0.5) / full_h * 255
        x = (left + np.arange(width) + 0.5) / full_w * 255
        mirrored = flip and draws[0] < 0.5
        expected_x = 255 - x if mirrored else x
        tolerance = 255 / min(stored) * 0.75 + 1.5  # the ramp runs between pixel centres, and edges are flat
        np.testing.assert_allclose(pixels[..., 0].mean(1), y, atol=tolerance)
        np.testing.assert_allclose(pixels[..., 1].mean(0), expected_x, atol=tolerance)


def test_random_resize_crop_against_pillow_alone() -> None:
    """The crop is a window of the picture resized as a whole."""
    image, draws = noise(50, 70), np.array([0.9, 0.4, 0.999, 0.0, 0.5])
    pixels, record = Transform((20, 30), "random_resize_crop", {"largest": 1.5})(image, draws)
    scale = 30 / 70 * 1.2
    full = image.resize((round(70 * scale), round(50 * scale)), Image.Resampling.BICUBIC)
    assert record == (26, 36, 6, 0, 20, 30)
    np.testing.assert_array_equal(pixels, np.asarray(full)[6:26, 0:30])


def test_random_resize_crop_reaches_both_ends() -> None:
    low = Transform((16, 16), "random_resize_crop", {"largest": 1.5}, flip=False)(noise(40, 40), np.zeros(5))[1]
    high = Transform((16, 16), "random_resize_crop", {"largest": 1.5}, flip=False)(noise(40, 40), np.full(5, 1 - 2**-53))[1]
    assert low == (16, 16, 0, 0, 16, 16)
    assert high == (24, 24, 8, 8, 16, 16)


def test_random_resize_crop_halves_a_large_picture_first() -> None:
    """As a plain reading does, which the smallest crop therefore equals."""
    pixels, _ = Transform((16, 16), "random_resize_crop", {"largest": 1.0}, flip=False)(noise(40, 40), np.zeros(5))
    np.testing.assert_array_equal(pixels, np.asarray(center_crop(noise(40, 40), (16, 16))))


def test_uncropped_pictures_are_read_plainly_in_their_share(index: Index) -> None:
    options = {"largest": 1.5, "uncropped": 0.25}
    some = Transform((16, 16), "random_resize_crop", options, flip=False)
    always = Transform((16, 16), "random_resize_crop", {"largest": 1.5}, flip=False)
    image, draws = noise(40, 40), np.array([0.9, 0.4, 0.7, 0.2, 0.25 - 2**-53])
    pixels, record = some(image, draws)
    assert record == (16, 16, 0, 0, 16, 16)
    np.testing.assert_array_equal(pixels, np.asarray(center_crop(image, (16, 16))))
    draws[4] = 0.25
    np.testing.assert_array_equal(some(image, draws)[0], always(image, draws)[0])
    options = {"largest": 3.0, "uncropped": 0.75}
    crops = Batches(index, 100, transform=Transform(SIZE, "random_resize_crop", options, flip=False))[0]["crop"]
    assert 60 < int((crops[:, 0] == SIZE[0]).sum()) < 90
    with pytest.raises(UserError, match=r"uncropped is 1\.5, must be a probability"):
        Transform((8, 8), "random_resize_crop", {"uncropped": 1.5})(noise(8, 8), np.zeros(5))


def test_a_further_uniform_leaves_the_first_ones_alone() -> None:
    np.testing.assert_array_equal(uniforms(0, 0, 0, batches.DRAWS)[:4], UNIFORMS)


def test_flip_mirrors_half_of_the_samples(index: Index) -> None:
    flipped, straight = (Batches(index, 100, transform=Transform(SIZE, flip=flip))[0]["image"] for flip in (True, False))
    mirrored = sum(bool(torch.equal(a, b.flip(-1))) for a, b in zip(flipped, straight, strict=True))
    same_way = sum(bool(torch.equal(a, b)) for a, b in zip(flipped, straight, strict=True))
    assert mirrored + same_way == 100
    assert 30 < mirrored < 70


def test_unknown_augmentation_or_option() -> None:
    with pytest.raises(UserError, match=r"unknown augmentation 'center_crops'; did you mean 'center_crop'.*random_resize_crop"):
        Transform((8, 8), "center_crops")
    with pytest.raises(UserError, match="unknown option of random_resize_crop 'larges'; did you mean 'largest'"):
        Transform((8, 8), "random_resize_crop", {"larges": 2})
    with pytest.raises(UserError, match="unknown option of center_crop"):
        Transform((8, 8), "center_crop", {"largest": 2})
    with pytest.raises(UserError, match="must be at least 1"):
        Transform((8, 8), "random_resize_crop", {"largest": 0.5})(noise(8, 8), np.zeros(5))
    for name in AUGMENTATIONS:
        assert dataclasses.is_dataclass(Transform((8, 8), name))


def test_decoder_is_webdatasets(folder: Path, index: Index) -> None:
    plain = webdataset.WebDataset(str(folder / "train-000000.tar"), shardshuffle=False).decode("pilrgb")
    for number, sample in enumerate(plain):
        mine = index[number]
        np.testing.assert_array_equal(np.asarray(decoded(mine.data, mine.member)), np.asarray(sample["png"]))
