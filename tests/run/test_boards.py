"""A run's own leaderboard, and submitting a row: complete, of a ranked protocol, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from synthetic import value_of

from benchmark import protocol, registry
from benchmark.board import generate, plots, published, view
from benchmark.cli import stages as verbs
from benchmark.files import UserError, write_json
from benchmark.plan import layout, stages
from benchmark.plan.place import Run
from benchmark.results import record
from benchmark.run import boards, sample


@pytest.fixture
def committed(tmp_path, monkeypatch) -> Path:
    """A leaderboards folder of its own, with a row of YaRN."""
    folder = tmp_path / "leaderboards"
    shapes = protocol.load("shapes")
    for pair in shapes.pairs():
        record.write(value_of(shapes, "yarn", pair, 0, 30.0), folder / "records")
    made = generate.generate
    monkeypatch.setattr(boards, "BOARDS", folder)
    monkeypatch.setattr(plots, "draw", lambda board, style: {})  # nobody looks at them here
    monkeypatch.setattr(
        boards.generate, "generate", lambda *paths, **more: made(*(paths or (folder / "records", folder)), **more)
    )
    return folder


def files(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_row(run: Run, method: str, pairs: list[tuple[str, str]], seed: int = 0) -> None:
    shapes = protocol.load("shapes")
    for pair in pairs:
        record.write(value_of(shapes, method, pair, seed, 20.0), stages.records_folder(shapes, run))


def test_an_incomplete_row_is_refused_before_anything_is_copied(committed, tmp_path):
    shapes, run = protocol.load("shapes"), Run(tmp_path / "runs", devices="1")
    write_row(run, "ntk", shapes.pairs()[:-2])
    before = files(committed)
    bench = "make bench METHOD=ntk PROTOCOL=shapes OUT="
    with pytest.raises(UserError, match=f"the row of ntk with seed 0 lacks 2 of 5 cells .*: run `{bench}.*`"):
        boards.submit(shapes, "ntk", 0, run)
    with pytest.raises(UserError, match="the row of ntk with seed 1 lacks 5 of 5 cells"):
        boards.submit(shapes, "ntk", 1, run)
    assert files(committed) == before


@pytest.mark.parametrize(
    ("name", "overrides", "kind"),
    [("shapes", ["train.steps=5"], "a custom run"), ("smoke", [], "protocol 'smoke', which is not ranked,")],
)
def test_what_belongs_to_no_leaderboard_is_refused(name, overrides, kind, committed, tmp_path):
    found, run = protocol.load(name, overrides), Run(tmp_path / "runs", devices="1")
    for pair in found.pairs():
        record.write(value_of(found, "ntk", pair, 0), stages.records_folder(found, run))
    before = files(committed)
    with pytest.raises(UserError, match=f"records of {kind} have no leaderboard"):
        boards.submit(found, "ntk", 0, run)
    assert boards.board(found, run) is None
    assert files(committed) == before
    assert not (run.out / "leaderboards").exists()


def test_a_damaged_record_is_refused_before_anything_is_copied(committed, tmp_path):
    shapes, run = protocol.load("shapes"), Run(tmp_path / "runs", devices="1")
    write_row(run, "ntk", shapes.pairs())
    path = next(stages.records_folder(shapes, run).rglob("32x32-48x64-s0.json"))
    path.write_text(path.read_text().replace('"fid"', '"fit"'))
    before = files(committed)
    with pytest.raises(UserError):
        boards.submit(shapes, "ntk", 0, run)
    assert files(committed) == before


def test_a_complete_row_is_copied_and_the_tables_follow(committed, tmp_path):
    shapes, run = protocol.load("shapes"), Run(tmp_path / "runs", devices="1")
    write_row(run, "ntk", shapes.pairs())
    write_row(run, "ntk", shapes.pairs(), seed=1)
    written, changes = boards.submit(shapes, "ntk", 0, run)
    copied = [committed / "records" / record.place("shapes", "ntk", *pair, 0) for pair in shapes.pairs()]
    assert set(copied) <= set(written)
    source = stages.records_folder(shapes, run)
    assert all(path.read_bytes() == (source / path.relative_to(committed / "records")).read_bytes() for path in copied)
    assert not list(committed.rglob("*-s1.json")), "the seed that was named, and no other"
    assert len(list((committed / "records").rglob("*.json"))) == 2 * len(shapes.pairs())
    assert "5 new, 0 changed, 0 removed" in changes
    assert "`ntk`" in changes
    assert any(path.suffix == ".html" for path in written)


def test_a_stale_row_is_refused(committed, tmp_path, monkeypatch):
    shapes, run = protocol.load("shapes"), Run(tmp_path / "runs", devices="1")
    write_row(run, "ntk", shapes.pairs())
    monkeypatch.setattr(record.revision, "SCORE", record.revision.SCORE + 1)
    before = files(committed)
    with pytest.raises(UserError, match="the row of ntk with seed 0 was made by code that has changed since"):
        boards.submit(shapes, "ntk", 0, run)
    assert files(committed) == before


def test_a_row_of_a_training_that_broke_down_is_refused(committed, tmp_path):
    shapes, run = protocol.load("shapes"), Run(tmp_path / "runs", devices="1")
    before = files(committed)
    for lowest, refused in ((0.11, True), (0.6, False)):
        for pair in shapes.pairs():
            value = value_of(shapes, "ntk", pair, 0)
            value["training"] |= {"loss": 1.0, "lowest": lowest}
            record.write(value, stages.records_folder(shapes, run))
        if refused:
            with pytest.raises(UserError, match=r"ended at a loss of 1, and its lowest was 0\.11; lower train"):
                boards.submit(shapes, "ntk", 0, run)
            assert files(committed) == before
    assert boards.submit(shapes, "ntk", 0, run)


def test_a_row_of_code_that_was_not_committed_is_refused(committed, tmp_path):
    shapes, run = protocol.load("shapes"), Run(tmp_path / "runs", devices="1")
    before = files(committed)
    for pair in shapes.pairs():
        value = value_of(shapes, "ntk", pair, 0)
        value["code"]["dirty"] = pair == ("32x32", "48x64")
        record.write(value, stages.records_folder(shapes, run))
    with pytest.raises(UserError, match=r"the row of ntk with seed 0 .* not committed \(32x32-48x64-s0\.json\): commit them"):
        boards.submit(shapes, "ntk", 0, run)
    assert files(committed) == before


def test_a_row_whose_cells_are_of_two_trainings_is_refused(committed, tmp_path):
    """A method that was edited, and its row run again but stopped after some cells."""
    shapes, run = protocol.load("shapes"), Run(tmp_path / "runs", devices="1")
    write_row(run, "ntk", shapes.pairs())
    value = value_of(shapes, "ntk", shapes.pairs()[0], 0, 20.0)
    value["training"]["fingerprint"] = "a" * len(value["training"]["fingerprint"])
    record.write(value, stages.records_folder(shapes, run))
    before = files(committed)
    with pytest.raises(UserError, match="the row of ntk with seed 0 holds cells of different code or trainings: run `make"):
        boards.submit(shapes, "ntk", 0, run)
    assert files(committed) == before


def test_a_row_of_which_only_some_cells_are_of_this_code_is_refused(committed, tmp_path, monkeypatch):
    """The same of a training-free method, whose training is not its own."""
    shapes, run = protocol.load("shapes"), Run(tmp_path / "runs", devices="1")
    complete = {"48x48"}
    monkeypatch.setattr(stages.Score, "state", lambda self: stages.COMPLETE if self.cell.test in complete else stages.MISSING)
    for pair in shapes.pairs():
        value = value_of(shapes, "ntk", pair, 0)
        value["code"]["commit"] = ("a" if pair[1] in complete else "b") * 40
        record.write(value, stages.records_folder(shapes, run))
    with pytest.raises(UserError, match="holds cells of different code"):
        boards.submit(shapes, "ntk", 0, run)
    complete = {test for _, test in shapes.pairs()}
    assert boards.submit(shapes, "ntk", 0, run), "two commits, and no change of what the cells depend on"


def test_a_row_of_one_commit_needs_its_samples_no_more(committed, tmp_path, monkeypatch):
    shapes, run = protocol.load("shapes"), Run(tmp_path / "runs", devices="1")
    write_row(run, "ntk", shapes.pairs())
    state = {"48x48": stages.COMPLETE}
    monkeypatch.setattr(stages.Score, "state", lambda self: state.get(self.cell.test, stages.MISSING))
    assert boards.submit(shapes, "ntk", 0, run)


def test_leaderboards_that_cannot_be_locked_can_be_changed(committed, tmp_path, monkeypatch, capsys):
    def locked(*_):
        raise UserError("a file system without locks: choose another OUT")

    monkeypatch.setattr(boards, "locked", locked)
    write_row(run := Run(tmp_path / "runs", devices="1"), "ntk", protocol.load("shapes").pairs())
    assert boards.submit(protocol.load("shapes"), "ntk", 0, run)
    assert "cannot be locked: change it by one command at a time" in capsys.readouterr().out


def test_a_row_of_an_unknown_commit_is_refused_with_what_git_says(committed, tmp_path, monkeypatch):
    shapes, run = protocol.load("shapes"), Run(tmp_path / "runs", devices="1")
    for pair in shapes.pairs():
        value = value_of(shapes, "ntk", pair, 0)
        value["code"] = {"commit": None, "dirty": False}
        record.write(value, stages.records_folder(shapes, run))
    for state, told in (
        (record.GitState("0" * 40, False), "so its code is unknown: run `make bench .*`, which scores it anew"),
        (record.GitState(None, False, "git is not installed"), r"git cannot do so here either \(git is not installed\)"),
    ):
        monkeypatch.setattr(record, "git_state", lambda *folders, state=state: state)
        with pytest.raises(UserError, match=told):
            boards.submit(shapes, "ntk", 0, run)


def test_the_committed_leaderboards_are_no_place_for_a_run(tmp_path):
    for out in (boards.BOARDS.parent, boards.BOARDS, boards.BOARDS / "notes"):
        with pytest.raises(UserError, match="leaderboards/ holds the committed ones; give another folder"):
            Run(out)
    assert Run(boards.BOARDS.parent / "runs")
    (tmp_path / "loop").symlink_to("loop")
    assert Run(tmp_path / "loop"), "whoever writes there says what is wrong with it"


def test_a_broken_file_of_another_method_does_not_stop_the_board(committed, tmp_path, monkeypatch):
    """Whether its row is committed, or of an earlier run in the same OUT."""
    shapes, run = protocol.load("shapes"), Run(tmp_path / "runs", devices="1")
    for method in ("ntk", "yarn"):
        write_row(run, method, shapes.pairs())
    read = registry.trained_name

    def trained_name(name: str) -> str:
        if name == "yarn":
            raise UserError("methods/yarn.py, line 1: invalid syntax")
        return read(name)

    monkeypatch.setattr(registry, "trained_name", trained_name)
    assert boards.board(shapes, run) == run.out / "leaderboards"


def test_what_fails_on_the_way_leaves_the_leaderboards_as_they_were(committed, tmp_path, monkeypatch):
    shapes, run = protocol.load("shapes"), Run(tmp_path / "runs", devices="1")
    write_row(run, "ntk", shapes.pairs())
    before = files(committed)

    def fail(*_, **__) -> None:
        raise UserError("no table")

    monkeypatch.setattr(boards.generate, "generate", fail)
    with pytest.raises(UserError, match="no table"):
        boards.submit(shapes, "ntk", 0, run)
    assert files(committed) == before


def test_an_old_grid_does_not_stay_beside_a_new_record(committed, tmp_path):
    shapes, run = protocol.load("shapes"), Run(tmp_path / "runs", devices="1")
    write_row(run, "ntk", shapes.pairs())
    old, other = (committed / f"grids/shapes/{name}/32x32-48x64-s0" for name in ("ntk", "yarn"))
    old, other, rival = old.with_suffix(".png"), other.with_suffix(".png"), old.with_suffix(".webp")
    for path in (old, other, rival):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    boards.submit(shapes, "ntk", 0, run)
    assert (old.exists(), rival.exists(), other.exists()) == (False, False, True)


def test_the_board_of_a_run_of_a_read_only_clone_can_be_written_again(committed, tmp_path):
    shapes, run = protocol.load("shapes"), Run(tmp_path / "runs", devices="1")
    write_row(run, "ntk", shapes.pairs())
    everything = [committed, *committed.rglob("*")]
    for path in everything:
        path.chmod(0o555 if path.is_dir() else 0o444)
    made = boards.board(shapes, run)
    for path in everything:
        path.chmod(0o755 if path.is_dir() else 0o644)
    assert all(path.stat().st_mode & 0o200 for path in [made, *made.rglob("*")])


def test_a_run_has_its_board_beside_it(committed, tmp_path):
    shapes, run = protocol.load("shapes"), Run(tmp_path / "runs", devices="1")
    write_row(run, "ntk", shapes.pairs())
    before = files(committed)
    for _ in range(2):  # the second finds all as it should be
        assert boards.board(shapes, run) == run.out / "leaderboards"
        assert (run.out / "leaderboards" / "index.html").is_file()
    methods = {path.parent.name for path in (run.out / "leaderboards" / "records" / "shapes").rglob("*.json")}
    assert methods == {"ntk", "yarn"}, "the run's own among the committed"
    assert files(committed) == before
    for path in stages.records_folder(shapes, run).rglob("*.json"):
        path.unlink()
    assert boards.board(shapes, run) is None, "without records there is no board"


def test_records_of_a_protocol_with_the_same_rules_lie_beside(committed, tmp_path):
    """They share a folder, which is named after the rules alone."""
    shapes, run = protocol.load("shapes"), Run(tmp_path / "runs", devices="1")
    write_row(run, "ntk", shapes.pairs())
    other = stages.records_folder(shapes, run) / "mine" / "ntk" / "32x32-32x32-s0.json"
    write_json(other, {"protocol": {"name": "mine"}})
    boards.board(shapes, run)
    assert {path.name for path in (run.out / "leaderboards" / "records").iterdir()} == {"shapes"}


def test_a_row_without_a_known_commit_is_refused(committed, tmp_path):
    shapes, run = protocol.load("shapes"), Run(tmp_path / "runs", devices="1")
    for pair in shapes.pairs():
        value = value_of(shapes, "ntk", pair, 0) | {"code": {"commit": None, "dirty": False}}
        record.write(value, stages.records_folder(shapes, run))
    with pytest.raises(UserError, match="was made where git could not name the commit"):
        boards.submit(shapes, "ntk", 0, run)


def test_the_board_of_a_run_shows_its_own_samples(committed, tmp_path, monkeypatch):
    """Of a cell whose record is new; the committed picture of a cell that was not run stays."""
    shapes, run = protocol.load("shapes"), Run(tmp_path / "runs", devices="1")
    ours, theirs = "32x32-48x64-s0.webp", "32x32-64x64-s0.webp"
    write_row(run, "ntk", [("32x32", "48x64")])
    for name in (ours, theirs):
        path = committed / "grids/shapes/ntk" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    cell = tmp_path / "cell"
    sample.save_grid([np.full((48, 64, 3), 8 * number, np.uint8) for number in range(sample.GRID_IMAGES)], cell / "grid.png")
    write_json(cell / layout.DONE, {"count": 32})
    monkeypatch.setattr(stages.Sample, "state", lambda stage: "complete")
    monkeypatch.setattr(stages.Sample, "folder", property(lambda stage: cell))
    boards.board(shapes, run)
    shown = run.out / "leaderboards/grids/shapes/ntk"
    assert Image.open(shown / ours).size == (8 * 64 + 7 * 2, 2 * 48 + 2)
    assert Image.open(shown / theirs).size == (8, 8)


def test_a_run_keeps_the_records_of_a_method_whose_file_has_gone(committed, tmp_path):
    """It was renamed, say: its row stays, marked as stale, and the boards of others are made."""
    shapes, run = protocol.load("shapes"), Run(tmp_path / "runs", devices="1")
    write_row(run, "ntk", shapes.pairs())
    for pair in shapes.pairs():
        value = value_of(shapes, "ntk", pair, 0)
        value["method"] |= {"name": "renamed", "title": "Renamed"}
        record.write(value, stages.records_folder(shapes, run))
    assert boards.board(shapes, run)
    assert "Renamed" in (run.out / "leaderboards/shapes.md").read_text()


def test_the_first_rows_of_a_grid_are_kept(tmp_path, monkeypatch):
    """Also of a cell whose images are those of another one."""
    shapes, run = protocol.load("shapes"), Run(tmp_path / "runs", devices="1")
    images = [np.full((48, 64, 3), 8 * number, np.uint8) for number in range(sample.GRID_IMAGES)]
    base, cell = tmp_path / "cells" / "base", tmp_path / "cells" / "cell"
    sample.save_grid(images, base / "grid.png")
    write_json(cell / layout.DONE, {"count": 32, "same_as": "base"})
    monkeypatch.setattr(stages.Sample, "state", lambda stage: "complete" if stage.cell.test == "48x64" else "missing")
    monkeypatch.setattr(stages.Sample, "folder", property(lambda stage: cell))
    row = [record.from_value(value_of(shapes, "yarn", pair, 1), shapes) for pair in shapes.pairs()]
    (path,) = boards.keep_grids(shapes, row, run, tmp_path / "leaderboards")
    assert path == tmp_path / "leaderboards/grids/shapes/yarn/32x32-48x64-s1.webp"
    kept = np.asarray(Image.open(path).convert("RGB")).astype(int)
    complete = np.asarray(Image.open(base / "grid.png").convert("RGB"))
    assert kept.shape == (2 * 48 + 2, 8 * 64 + 7 * 2, 3)
    assert np.abs(kept - complete[: len(kept)]).mean() < 2
    monkeypatch.setattr(boards, "WEBP_SIDE", 300)
    boards.keep_grids(shapes, row, run, tmp_path / "leaderboards")
    assert Image.open(path).size == (263, 49), "half of 526 x 98: the format has a largest side"
    shutil.rmtree(base)


@pytest.fixture
def shown(committed, tmp_path, monkeypatch):
    """Makes a run's rows of a colour; (pictures that a board has, the first pixel of each of them) at the training size."""
    cell = tmp_path / "cell"
    monkeypatch.setattr(boards.generate, "generate", lambda *paths, **more: [])  # seconds of plots that nobody looks at here
    monkeypatch.setattr(stages.Sample, "state", lambda stage: "complete")
    monkeypatch.setattr(stages.Sample, "folder", property(lambda stage: cell))

    def row(run: Run, method: str, fid: float, colour: int, name: str = "shapes") -> None:
        shutil.rmtree(cell, ignore_errors=True)
        sample.save_grid([np.full((32, 32, 3), colour, np.uint8)] * sample.GRID_IMAGES, cell / "grid.png")
        write_json(cell / layout.DONE, {"count": 32})
        rules = protocol.load(name)
        for pair in rules.pairs():
            record.write(value_of(rules, method, pair, 0, fid), stages.records_folder(rules, run))

    def pictures(folder: Path) -> tuple[set[str], dict[str, int]]:
        rules = protocol.load("shapes")
        board = generate.tables_of(record.read_all(folder / "records"), published.load(), folder)["shapes"]
        sheets = view._gallery(board, view._methods(board, {}), folder / "grids").sheets
        found = {sheet.method.method: sheet.files["32x32-32x32"][0] for sheet in sheets if "32x32-32x32" in sheet.files}
        first = {name: Image.open(folder / "grids" / path).convert("L").getpixel((3, 3)) for name, path in found.items()}
        kept = (folder / "grids" / rules.name).glob("*/32x32-32x32-s0.webp")
        return {path.parent.name for path in kept}, first

    return row, pictures


def test_images_of_a_base_have_one_picture_whatever_is_submitted_first(shown, committed, tmp_path):
    row, pictures = shown
    for number, methods in enumerate((("extrapolation", "ntk"), ("ntk", "extrapolation"))):
        shutil.rmtree(committed)
        committed.mkdir()
        run = Run(tmp_path / f"runs{number}", devices="1")
        for method in methods:
            row(run, method, 30.0, 100)
            boards.submit(protocol.load("shapes"), method, 0, run)
        assert pictures(committed) == ({"extrapolation"}, {"extrapolation": 100, "ntk": 100})
        row(run, "yarn", 20.0, 100)  # the same first rows, not the same images
        boards.submit(protocol.load("shapes"), "yarn", 0, run)
        assert pictures(committed)[0] == {"extrapolation", "yarn"}


def test_a_new_base_leaves_the_others_their_picture(shown, committed, tmp_path):
    row, pictures = shown
    run = Run(tmp_path / "runs", devices="1")
    for method in ("extrapolation", "yarn", "ntk"):
        row(run, method, 30.0, 100)
        boards.submit(protocol.load("shapes"), method, 0, run)
    assert pictures(committed)[0] == {"extrapolation"}
    again = Run(tmp_path / "again", devices="1")
    row(again, "extrapolation", 31.0, 200)
    boards.submit(protocol.load("shapes"), "extrapolation", 0, again)
    assert pictures(committed) == (
        {"extrapolation", "yarn", "ntk"},
        {"extrapolation": 200, "yarn": 100, "ntk": 100},
    )


def test_a_runs_board_shows_no_picture_of_its_other_protocol(shown, committed, tmp_path):
    """The picture of a committed record is its base's, and not one that a run of another protocol left in the same OUT."""
    row, pictures = shown
    made, run = Run(tmp_path / "made", devices="1"), Run(tmp_path / "runs", devices="1")
    for method in ("extrapolation", "yarn"):
        row(made, method, 30.0, 100)
        boards.submit(protocol.load("shapes"), method, 0, made)
    row(run, "yarn", 25.0, 200)
    boards.board(protocol.load("shapes"), run)
    assert pictures(run.out / "leaderboards") == ({"extrapolation", "yarn"}, {"extrapolation": 100, "yarn": 200})
    row(run, "yarn", 25.0, 50, "shapes-long")
    boards.board(protocol.load("shapes-long"), run)
    assert pictures(run.out / "leaderboards") == ({"extrapolation"}, {"extrapolation": 100, "yarn": 100})


def test_a_row_outside_of_the_band_of_its_base_is_told(committed, tmp_path):
    """Plain RoPE's FID of 20, 21 and 22 at the training size: one more seed is expected within 21 +- 4.30 * sqrt(4 / 3)."""
    shapes = protocol.load("shapes")
    at, *_ = (pair for pair in shapes.pairs() if pair[0] == pair[1])

    def row(fid: float) -> list[record.Record]:
        return [record.from_value(value_of(shapes, "ntk", at, 0, fid), shapes)]

    (said,) = boards.outside(shapes, row(21.0))
    assert said.startswith("No reference band at 32x32: Extrapolation has 0 of the 3 required seeds")
    for seed in range(3):
        record.write(value_of(shapes, "extrapolation", at, seed, 20.0 + seed), committed / "records")
    reach = 4.3027 * (4 / 3) ** 0.5
    assert boards.outside(shapes, row(21 + 0.99 * reach)) == []
    (said,) = boards.outside(shapes, row(21 + 1.01 * reach))
    assert "is outside the reference band of Extrapolation, 16 to 26" in said
    assert len(boards.outside(shapes, row(21 - 1.01 * reach))) == 1


def test_rows_of_a_run_are_new_until_they_are_the_committed_ones(committed, tmp_path):
    shapes, run = protocol.load("shapes"), Run(tmp_path / "runs", devices="1")
    write_row(run, "ntk", shapes.pairs())
    assert {place.parts[:2] for place in boards.new_records(shapes, run)} == {("shapes", "ntk")}
    boards.board(shapes, run)
    text = (run.out / "leaderboards" / "shapes.md").read_text(encoding="utf-8")
    assert any(" new |" in line for line in text.splitlines() if "ntk.py" in line)
    assert not any(" new |" in line for line in text.splitlines() if "yarn.py" in line)
    boards.submit(shapes, "ntk", 0, run)
    assert boards.new_records(shapes, run) == []
    assert " new |" not in (committed / "shapes.md").read_text(encoding="utf-8")


def test_the_band_is_that_of_the_family_and_leaves_the_row_itself_out(committed, tmp_path):
    shapes, run = protocol.load("shapes"), Run(tmp_path / "runs", devices="1")
    at = ("32x32", "32x32")

    def told(method: str, fid: float, seed: int = 5) -> list[str]:
        return boards.outside(shapes, [record.from_value(value_of(shapes, method, at, seed, fid), shapes)])

    for method, fids in (("extrapolation", (3.0, 4.0, 5.0)), ("sincos", (30.0, 31.0, 32.0))):
        for seed, fid in enumerate(fids):
            record.write(value_of(shapes, method, at, seed, fid), committed / "records")
    assert told("sincos_interp", 31.0) == [], "the checkpoint that it uses"
    assert "outside the reference band of Extrapolation" in told("sincos", 31.0)[0], "a training of its own: plain RoPE"
    assert told("extrapolation", 31.0, seed=2) == ["No reference band at 32x32: Extrapolation has 2 of the 3 required seeds."]
    write_row(run, "rpe2d", shapes.pairs())
    _, changes = boards.submit(shapes, "rpe2d", 0, run)
    assert changes.splitlines()[-1].startswith(
        "- FID 20 at the training size 32x32 is outside the reference band of Extrapolation"
    )


def test_a_runs_table_does_not_mix_what_cannot_be_compared(tmp_path, capsys):
    """As two runs of a protocol of one's own in one OUT, on other images."""
    smoke, run = protocol.load("smoke"), Run(tmp_path)
    values = [value_of(smoke, name, pair, 0, 20.0) for name in ("nope", "yarn") for pair in smoke.pairs()]
    for value in values:
        record.write(value, stages.records_folder(smoke, run))
    verbs.show_board(smoke, run)
    assert "YaRN" in capsys.readouterr().out
    for value in values:
        if value["method"]["name"] == "yarn":
            record.write(value | {"data": value["data"] | {"hash": "e" * 12}}, stages.records_folder(smoke, run))
    verbs.show_board(smoke, run)
    said = capsys.readouterr()
    assert "YaRN" not in said.out
    assert "cannot share" in said.out + said.err
    assert "data.hash is" in said.out + said.err
