"""Reproducing a row: verdicts from intervals and seeds, the committed records untouched, the paper's figures beside ours."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import math

import numpy as np
import pytest
import rich.console
import scipy.stats
from synthetic import value_of

from benchmark import protocol
from benchmark.board import published, table
from benchmark.files import UserError
from benchmark.identity import Cell, cells_of
from benchmark.plan import stages
from benchmark.plan.place import Run
from benchmark.results import record, verified
from benchmark.run import local, reproduce
from benchmark.run.reproduce import DIFFERS, IDENTICAL, REPRODUCED, SPREAD, judge


def score(value: float, noise: float = 1.0, shift: int = 0) -> dict:
    """A score whose replicates scatter around it by `noise`; the same `shift` scatters in the same way."""
    draws = value + noise * np.random.RandomState(shift).standard_normal(200)
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"value": value, "low": float(low), "high": float(high), "replicates": draws.tolist()}


# --- Verdicts --------------------------------------------------------------------------------------------------------


def test_verdicts():
    assert judge(score(10.0), score(10.0)).word == IDENTICAL
    assert judge(score(10.5), score(10.0, shift=1)).word == REPRODUCED
    far = judge(score(20.0), score(10.0, shift=1))
    assert far.word == DIFFERS
    assert far.difference == 10.0
    assert judge(score(0.0), score(10.0, shift=1)).word == DIFFERS
    assert 5 < far.low < 10 < far.high < 15
    assert judge(score(20.0), score(10.0, shift=1), [10.0, 14.0, 18.0]).word == SPREAD
    assert judge(score(90.0), score(10.0, shift=1), [10.0, 14.0, 18.0]).word == DIFFERS


def test_pairs_see_what_intervals_alone_do_not():
    """Two models that generate nearly the same images scatter together: half a point is then a difference."""
    assert judge(score(10.5, shift=7), score(10.0, shift=7)).word == DIFFERS
    apart = {**score(10.5, shift=7), "replicates": []}
    assert judge(apart, score(10.0, shift=7)).word == REPRODUCED


def test_values_without_replicates_are_judged_as_independent():
    """Variances add: half-widths of 3 and 4 give one of 5."""
    found = judge({"value": 10.0, "low": 7.0, "high": 13.0}, {"value": 11.0, "low": 7.0, "high": 15.0})
    assert (found.low, found.high) == pytest.approx((-1 - 5, -1 + 5))


def test_a_row_of_many_values_is_judged_as_one():
    """Honest runs, drawn from the distribution of the committed row: one row of twenty differs somewhere, whatever its length."""
    random = np.random.RandomState(0)
    values, rows = 14, 150
    differs = {1: 0, values: 0}
    for _ in range(rows):
        drawn = [score(random.standard_normal(), shift=random.randint(10**6)) for _ in range(2 * values)]
        pairs = list(zip(drawn[::2], drawn[1::2], strict=True))
        for judged in differs:
            differs[judged] += any(judge(ours, theirs, values=judged).word == DIFFERS for ours, theirs in pairs)
    assert 0.02 < differs[values] / rows < 0.1
    assert differs[1] / rows > 0.4, "each at 95 % by itself"
    half = scipy.stats.norm.ppf(1 - 0.025 / values) / scipy.stats.norm.ppf(0.975)  # Bonferroni's, of normal intervals
    one, many = (judge(score(10.5), score(10.0, shift=1), values=number) for number in (1, values))
    assert (many.high - 0.5) / (one.high - 0.5) == pytest.approx(half)
    assert (0.5 - many.low) / (0.5 - one.low) == pytest.approx(half)


def test_seeds_allow_what_a_prediction_interval_allows():
    """Against scipy: mean ± t s sqrt(1 + 1/n)."""
    values = [3.0, 4.0, 4.5, 6.0]
    half = scipy.stats.t.ppf(0.975, 3) * np.std(values, ddof=1) * math.sqrt(1 + 1 / 4)
    for sign in (-1, 1):
        assert reproduce.expected(np.mean(values) + sign * 0.999 * half, values)
        assert not reproduce.expected(np.mean(values) + sign * 1.001 * half, values)
    assert not reproduce.expected(3.0, [3.0]), "one seed has no spread"
    wide = scipy.stats.t.ppf(1 - 0.05 / 14 / 2, 3) * np.std(values, ddof=1) * math.sqrt(1 + 1 / 4)
    level = reproduce.level_of(14)
    assert reproduce.expected(np.mean(values) + 0.999 * wide, values, level=level)
    assert not reproduce.expected(np.mean(values) + 1.001 * wide, values, level=level)


def test_the_usual_spread_of_a_column_stands_in_for_that_of_few_seeds():
    """Two seeds that happen to lie together do not make an honest third one differ."""
    half = scipy.stats.t.ppf(0.975, 8) * 2.0 * math.sqrt(1 + 1 / 2)
    for sign in (-1, 1):
        assert reproduce.expected(3.0 + sign * 0.999 * half, [2.9, 3.1], (2.0, 8))
        assert not reproduce.expected(3.0 + sign * 1.001 * half, [2.9, 3.1], (2.0, 8))
    assert reproduce.expected(8.0, [3.0], (2.0, 8)), "one seed"
    values = [1.0, 5.0, 9.0]  # a row that varies more than usual: by its own degrees of freedom
    own = scipy.stats.t.ppf(0.975, 2) * np.std(values, ddof=1) * math.sqrt(1 + 1 / 3)
    assert reproduce.expected(5.0 + 0.999 * own, values, (2.0, 8))
    assert not reproduce.expected(5.0 + 1.001 * own, values, (2.0, 8))
    assert judge(score(8.0, 0.1), score(3.0, 0.1, 1), [3.0], 14, (2.0, 8)).word == SPREAD


def test_how_a_column_spreads_is_that_of_its_table(tmp_path):
    shapes = protocol.load("shapes")
    for method, step in (("yarn", 1.0), ("ledit", 3.0), ("rpe2d", 5.0)):
        for pair in shapes.pairs():
            for seed in range(3):
                record.write(value_of(shapes, method, pair, seed, 20 + step * seed), tmp_path)
    known = reproduce.usual_of(shapes, "yarn", tmp_path)
    assert set(known) == {(*pair, metric) for pair in shapes.pairs() for metric in reproduce.METRICS}
    spread, freedom = known[(*shapes.pairs()[0], "fid")]
    assert (spread, freedom) == (pytest.approx(3.0 / table.median_of_spread(2)), 6)
    assert reproduce.usual_of(shapes, "ntk", tmp_path) == {}


# --- A row -----------------------------------------------------------------------------------------------------------


def make(shapes, method: str, train: str, test: str, seed: int) -> dict:
    """A valid record, another one for every seed."""
    return value_of(shapes, method, (train, test), seed, 20.0 + seed)


def committed_row(shapes, method: str, seeds=(0,)) -> dict:
    found = {}
    for train, test in shapes.pairs():
        for seed in seeds:
            value = make(shapes, method, train, test, seed)
            found[train, test, seed] = record.from_value(value, shapes)
    return found


def test_a_row_beside_its_records():
    shapes = protocol.load("shapes")
    committed = committed_row(shapes, "yarn")
    cells = cells_of(shapes, ["yarn"], 0)
    values = {cell: copy.deepcopy(committed[cell.train, cell.test, 0].value) for cell in cells}
    moved, failed = cells[1], cells[2]
    values[moved]["scores"]["fid"]["value"] += 1000
    values[moved]["scores"]["fid"]["replicates"] = [x + 1000 for x in values[moved]["scores"]["fid"]["replicates"]]
    del values[failed]
    lines = reproduce.compare_row(shapes, values, cells, committed, published.load(), {})
    words = {(line.cell, line.metric): line.word for line in lines}
    assert len(words) == 2 * len(cells)
    assert words[moved, "fid"] == DIFFERS
    assert words[moved, "is"] == IDENTICAL
    assert words[failed, "fid"] == words[failed, "is"] == reproduce.FAILED
    assert set(words.values()) == {DIFFERS, IDENTICAL, reproduce.FAILED}
    console = rich.console.Console(file=io.StringIO(), width=200)
    console.print(reproduce.show(lines, shapes, "yarn", 0))
    assert "+1000" in console.file.getvalue()
    said = " ".join(reproduce.summary(lines))
    assert "1 differs" in said
    assert "No paper reports numbers" in said


def test_another_seed_is_held_against_the_spread():
    shapes = protocol.load("shapes")
    committed = committed_row(shapes, "yarn", seeds=(0, 1, 2))
    (train, test) = shapes.pairs()[0]
    cell = Cell(shapes, "yarn", train, test, 7)
    seen = [committed[train, test, seed].scores["fid"]["value"] for seed in (0, 1, 2)]
    value = make(shapes, "yarn", train, test, 7)
    for offset, word in ((0.0, SPREAD), (100 * np.std(seen) + 1000, DIFFERS)):
        value["scores"]["fid"]["value"] = float(np.mean(seen) + offset)
        line = reproduce.compare_row(shapes, {cell: value}, [cell], committed, published.load(), {})[0]
        assert line.word == word
        assert line.verdict.difference == pytest.approx(offset)


@pytest.mark.parametrize("seed", [1, 7])
def test_a_row_is_held_against_the_usual_spread_as_one(seed):
    """A recorded seed and another one: between the band of one value and that of all of them together, and beyond the latter."""
    shapes = protocol.load("shapes")
    committed = committed_row(shapes, "yarn", seeds=(0, 1, 2))  # 20, 21 and 22
    cells = cells_of(shapes, ["yarn"], seed)
    usual = {(*pair, metric): (3.0, 8) for pair in shapes.pairs() for metric in reproduce.METRICS}
    reach = [scipy.stats.t.ppf(1 - 0.025 / values, 8) * 3.0 * math.sqrt(1 + 1 / 3) for values in (1, 2 * len(cells))]
    value = make(shapes, "yarn", cells[0].train, cells[0].test, seed)
    for offset, word in ((1.01 * reach[0], SPREAD), (0.99 * reach[1], SPREAD), (1.01 * reach[1], DIFFERS)):
        value["scores"]["fid"] |= {"value": 21.0 + offset, "replicates": [21.0 + offset] * 20}
        line = reproduce.compare_row(shapes, {cells[0]: value}, cells, committed, published.load(), usual)[0]
        assert line.word == word


def test_what_a_committed_row_took_names_each_machine():
    shapes, committed = protocol.load("shapes"), {}
    for number, pair in enumerate(shapes.pairs()):
        value = value_of(shapes, "yarn", pair, 1)
        value["hours"] = {"sample": 0.1, "score": 0.02}
        value["hardware"] |= {"name": "A card" if number else "A processor"}
        value["training"] |= {"hours": 2.0}
        del value["training"]["machine"]  # older records do not say
        committed[*pair, 1] = record.from_value(value, shapes)
    cells = "36 min to sample and score on A card, A processor"
    assert reproduce.spent(committed, 1) == f"2.0 h to train and {cells}"
    first = next(iter(committed.values())).value["training"]
    first["machine"] = "Another card"
    assert reproduce.spent(committed, 1) == f"2.0 h to train on Another card and {cells}"
    first["precision"] = "bf16"
    assert reproduce.spent(committed, 1) == f"2.0 h to train on Another card in bf16 and {cells}"
    first["hours"] = None
    assert reproduce.spent(committed, 1) == cells


def test_a_row_that_was_reproduced_prints_its_entry_for_the_verified_ones():
    shapes = protocol.load("shapes")
    committed = committed_row(shapes, "yarn", seeds=(0, 1, 2))
    cells = cells_of(shapes, ["yarn"], 1)
    values = {cell: copy.deepcopy(committed[cell.train, cell.test, 1].value) for cell in cells}
    for value in values.values():
        value["hardware"]["name"] = "another machine"

    def entry(committed: dict = committed) -> str:
        return reproduce.entry(
            reproduce.compare_row(shapes, values, cells, committed, published.load(), {}), values, committed, 1
        )

    row = verified.row_hash(item for (_, _, seed), item in committed.items() if seed == 1)
    told = f'seed: 1, by: "?", hardware: "another machine", verdict: "identical", row: "{row}"'
    assert entry() == f"shapes:\n  yarn:\n    - {{{told}}}\n"
    fid = values[cells[3]]["scores"]["fid"]
    fid["value"] += 0.001
    assert entry() == f"shapes:\n  yarn:\n    - {{{told}}}\n".replace("identical", verified.SPREAD), "the worst of the verdicts"
    stale = {key: dataclasses.replace(item, stale=True) for key, item in committed.items()}
    assert entry(stale) == ""
    fid |= {"value": fid["value"] + 900, "replicates": [item + 900 for item in fid["replicates"]]}
    assert entry() == "", "a value differs"
    del values[cells[3]]
    assert entry() == "", "a cell is missing"


def test_the_papers_figures_stand_beside_their_own_protocol_only():
    figures, own = published.load(), protocol.load("imagenet-256-xl2-ft")
    cell = Cell(own, "ledit", "256x256", "512x512", 0)
    tuned, where = reproduce.figure(own, cell, "fid", figures)
    assert tuned == 33.25  # LEDiT, arXiv 2503.04344 v3, table 2, fine-tuned
    assert "table 2" in where
    assert "samples" not in where
    assert reproduce.figure(own, cell, "is", figures)[0] == 138.01
    scratch = protocol.load("imagenet-256-xl2")
    trained, _ = reproduce.figure(scratch, Cell(scratch, "yarn", "256x256", "512x512", 0), "fid", figures)
    assert trained == 109.0
    for name in ("imagenet-256-s2", "imagenet-256-b2", "shapes"):
        assert reproduce.figure(protocol.load(name), cell, "fid", figures) == (None, "")
    unpublished = Cell(own, "nope", "256x256", "512x512", 0)
    assert reproduce.figure(own, unpublished, "fid", figures) == (None, "")


def test_the_row_runs_beside_the_leaderboards_and_leaves_them_alone(tmp_path, monkeypatch):
    """The stages are replaced; where their records go is not."""
    shapes, written = protocol.load("shapes"), []

    def run_all(graph):
        for stage in graph:
            if stage.kind == "score":
                value = make(shapes, stage.cell.method, stage.cell.train, stage.cell.test, stage.cell.seed)
                written.append(record.write(value, stages.records_folder(shapes, stage.context.run)))
                written.append(tmp_path / f"{stage.cell.test}.json")
                written[-1].write_text(record.text_of(value))
        return []

    monkeypatch.setattr(local, "run_all", run_all)
    monkeypatch.setattr(stages.Score, "file", property(lambda stage: tmp_path / f"{stage.cell.test}.json"))
    values, failures = reproduce.run_row(shapes, "yarn", 0, Run(tmp_path, "", "1", 1))
    assert failures == []
    assert [value["cell"]["test"] for value in values.values()] == [test for _, test in shapes.pairs()]
    assert len(written) == 2 * len(shapes.pairs())
    assert all(path.is_relative_to(tmp_path) for path in written)
    assert shapes.ranked


def test_committed_records_are_those_of_ranked_protocols(tmp_path):
    shapes = protocol.load("shapes")
    for (train, test, seed), _ in committed_row(shapes, "yarn").items():
        record.write(make(shapes, "yarn", train, test, seed), tmp_path)
    assert len(reproduce.committed_of(shapes, "yarn", tmp_path)) == len(shapes.pairs())
    assert reproduce.committed_of(shapes, "ntk", tmp_path) == {}
    assert reproduce.committed_of(protocol.load("shapes", ["train.steps=5"]), "yarn", tmp_path) == {}
    assert reproduce.committed_of(protocol.load("smoke"), "yarn", tmp_path) == {}


def test_without_a_record_nothing_runs(tmp_path, monkeypatch):
    """Said before any work, with what would be right."""
    monkeypatch.setattr(local, "run_all", lambda *_: pytest.fail("a stage ran"))
    monkeypatch.setattr(record, "FOLDER", tmp_path / "records")
    run = Run(tmp_path / "runs", "", "1", 1)
    for found, kind in (
        (protocol.load("smoke"), "protocol 'smoke'"),
        (protocol.load("shapes", ["train.steps=5"]), "custom settings"),
    ):
        with pytest.raises(UserError, match=f"nope has no committed record for {kind}, so there is nothing to reproduce"):
            reproduce.reproduce(found, "nope", None, run)
    assert not (tmp_path / "runs").exists()


def test_weights_that_were_there_verify_nothing(tmp_path, monkeypatch, capsys):
    """But those of a reproduction do: of one that was stopped and goes on, and of another row's."""
    shapes, trained = protocol.load("shapes"), []
    monkeypatch.setattr(stages.Stage, "is_complete", lambda stage: trained[-1])
    monkeypatch.setattr(reproduce, "committed_of", lambda _, method: committed_row(shapes, method))
    monkeypatch.setattr(reproduce, "usual_of", lambda *_: {})

    def said(method: str, before: bool, *, stopped: bool = False) -> tuple[bool, bool]:
        trained.append(before)
        committed = committed_row(shapes, method)
        values = {cell: committed[cell.train, cell.test, 0].value for cell in cells_of(shapes, [method], 0)}

        def run_row(*_):
            if stopped:
                raise KeyboardInterrupt
            return values, []

        monkeypatch.setattr(reproduce, "run_row", run_row)
        with pytest.raises(KeyboardInterrupt) if stopped else contextlib.nullcontext():
            reproduce.reproduce(shapes, method, 0, Run(tmp_path, "", "1", 1))
        text = capsys.readouterr().out
        return "already existed" in text, "verified.yaml" in text

    assert said("yarn", before=True) == (True, False)
    assert said("yarn", before=False, stopped=True) == (False, False)
    assert said("yarn", before=True) == (False, True)
    assert said("ntk", before=True) == (False, True), "with the same weights"
    assert said("ledit", before=True) == (True, False)


def test_the_seed_is_one_that_is_recorded(tmp_path, monkeypatch, capsys):
    shapes = protocol.load("shapes")
    committed = committed_row(shapes, "yarn", seeds=(3, 4))
    ran = []
    monkeypatch.setattr(reproduce, "committed_of", lambda *_: committed)
    monkeypatch.setattr(reproduce, "usual_of", lambda *_: {})
    monkeypatch.setattr(reproduce, "run_row", lambda protocol, method, seed, run: (ran.append(seed), ({}, []))[1])
    run = Run(tmp_path, "", "1", 1)
    with pytest.raises(UserError, match="yarn has committed records for seed 3, 4, but none for 5"):
        reproduce.reproduce(shapes, "yarn", 5, run)
    assert ran == []
    for seed in (4, None):
        reproduce.reproduce(shapes, "yarn", seed, run)
    assert ran == [4, 3], "the first that is recorded, unless one is named"
    assert "failed" in capsys.readouterr().out
