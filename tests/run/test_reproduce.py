"""Reproducing a row: verdicts from intervals and seeds, the committed records untouched, the paper's figures beside ours."""

from __future__ import annotations

import copy
import io
import math
import subprocess
import sys

import numpy as np
import pytest
import rich.console
import scipy.stats
from synthetic import value_of

from benchmark import protocol
from benchmark.board import published
from benchmark.files import ROOT
from benchmark.identity import Cell
from benchmark.results import record
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
    """Two models that draw nearly the same images scatter together: half a point is then a difference."""
    assert judge(score(10.5, shift=7), score(10.0, shift=7)).word == DIFFERS
    apart = {**score(10.5, shift=7), "replicates": []}
    assert judge(apart, score(10.0, shift=7)).word == REPRODUCED


def test_seeds_allow_what_a_prediction_interval_allows():
    """Against scipy: mean ± t s sqrt(1 + 1/n)."""
    values = [3.0, 4.0, 4.5, 6.0]
    half = scipy.stats.t.ppf(0.975, 3) * np.std(values, ddof=1) * math.sqrt(1 + 1 / 4)
    for sign in (-1, 1):
        assert reproduce.expected(np.mean(values) + sign * 0.999 * half, values)
        assert not reproduce.expected(np.mean(values) + sign * 1.001 * half, values)
    assert not reproduce.expected(3.0, [3.0]), "one seed has no spread"


# --- A row -----------------------------------------------------------------------------------------------------------


def make(rules, method: str, train: str, test: str, seed: int) -> dict:
    """A valid record, another one for every seed."""
    return value_of(rules, method, (train, test), seed, 20.0 + seed)


def committed_row(rules, method: str, seeds=(0,)) -> dict:
    found = {}
    for train, test in rules.pairs():
        for seed in seeds:
            value = make(rules, method, train, test, seed)
            found[train, test, seed] = record.from_value(value, rules)
    return found


def test_a_row_beside_its_records():
    rules = protocol.load("shapes")
    committed = committed_row(rules, "yarn")
    cells = local.cells_of(rules, ["yarn"], 0)
    values = {cell: copy.deepcopy(committed[cell.train, cell.test, 0].value) for cell in cells}
    moved, failed = cells[1], cells[2]
    values[moved]["scores"]["fid"]["value"] += 1000
    values[moved]["scores"]["fid"]["replicates"] = [x + 1000 for x in values[moved]["scores"]["fid"]["replicates"]]
    del values[failed]
    lines = reproduce.compare_row(rules, values, cells, committed, published.load())
    words = {(line.cell, line.metric): line.word for line in lines}
    assert len(words) == 2 * len(cells)
    assert words[moved, "fid"] == DIFFERS
    assert words[moved, "is"] == IDENTICAL
    assert words[failed, "fid"] == words[failed, "is"] == reproduce.FAILED
    assert set(words.values()) == {DIFFERS, IDENTICAL, reproduce.FAILED}
    console = rich.console.Console(file=io.StringIO(), width=200)
    console.print(reproduce.show(lines, rules, "yarn", 0))
    assert "+1000" in console.file.getvalue()
    said = " ".join(reproduce.summary(lines, rules))
    assert "1 differs" in said
    assert "No paper has figures" in said


def test_another_seed_is_held_against_the_spread():
    rules = protocol.load("shapes")
    committed = committed_row(rules, "yarn", seeds=(0, 1, 2))
    (train, test) = rules.pairs()[0]
    cell = Cell("yarn", train, test, 7)
    seen = [committed[train, test, seed].scores["fid"]["value"] for seed in (0, 1, 2)]
    value = make(rules, "yarn", train, test, 7)
    for offset, word in ((0.0, SPREAD), (100 * np.std(seen) + 1000, DIFFERS)):
        value["scores"]["fid"]["value"] = float(np.mean(seen) + offset)
        line = reproduce.compare_row(rules, {cell: value}, [cell], committed, published.load())[0]
        assert line.word == word
        assert line.verdict.difference == pytest.approx(offset)


def test_the_papers_figures_stand_beside_the_contest_of_the_same_rules_only():
    figures = published.load()
    cell = Cell("ledit", "256x256", "512x512", 0)
    tuned, where = reproduce.figure(protocol.load("imagenet-256-xl2-ft"), cell, "fid", figures)
    assert tuned == 33.25  # LEDiT, arXiv 2503.04344 v3, table 2, fine-tuned
    assert "table 2" in where
    assert "samples" not in where
    assert reproduce.figure(protocol.load("imagenet-256-xl2-ft"), cell, "is", figures)[0] == 138.01
    scratch, _ = reproduce.figure(protocol.load("imagenet-256-xl2"), Cell("yarn", "256x256", "512x512", 0), "fid", figures)
    assert scratch == 109.0
    for name in ("imagenet-256-s2", "imagenet-256-b2", "shapes"):
        assert reproduce.figure(protocol.load(name), cell, "fid", figures) == (None, "")
    unpublished = Cell("nope", "256x256", "512x512", 0)
    assert reproduce.figure(protocol.load("imagenet-256-xl2-ft"), unpublished, "fid", figures) == (None, "")


def test_the_row_runs_beside_the_leaderboards_and_leaves_them_alone(tmp_path, monkeypatch):
    """The stages are replaced; where their records go is not."""
    from benchmark.run.train import Run

    rules = protocol.load("shapes")
    run = Run(tmp_path, "", "1", 1)
    written = []

    def bench(rules, methods, seed, run):
        for cell in local.cells_of(rules, methods, seed):
            written.append(record.write(make(rules, cell.method, cell.train, cell.test, seed), local.records_folder(rules, run)))
        return []

    monkeypatch.setattr(local, "bench", bench)
    values, failures = reproduce.run_row(rules, "yarn", 0, run)
    assert failures == []
    assert [value["cell"]["test"] for value in values.values()] == [test for _, test in rules.pairs()]
    assert written
    assert all(path.is_relative_to(tmp_path) for path in written)
    assert rules.ranked


def test_committed_records_are_those_of_ranked_rules(tmp_path):
    rules = protocol.load("shapes")
    for (train, test, seed), _ in committed_row(rules, "yarn").items():
        record.write(make(rules, "yarn", train, test, seed), tmp_path)
    assert len(reproduce.committed_of(rules, "yarn", tmp_path)) == len(rules.pairs())
    assert reproduce.committed_of(rules, "ntk", tmp_path) == {}
    assert reproduce.committed_of(protocol.load("shapes", ["train.steps=5"]), "yarn", tmp_path) == {}
    assert reproduce.committed_of(protocol.load("smoke"), "yarn", tmp_path) == {}


def test_reproduce_goes_through_every_stage_and_says_that_nothing_is_committed(tmp_path):
    """The real verb on a contest of one cell."""
    text = (protocol.FOLDER / "smoke.yaml").read_text()
    file = tmp_path / "tiny.yaml"
    file.write_text(text.replace("16x16: [16x16, 32x32, 32x24]", "16x16: [24x16]").replace("steps: 20", "steps: 2"))
    arguments = ["reproduce", "nope", "--protocol", str(file), "--out", str(tmp_path / "runs"), "--devices", "1"]
    done = subprocess.run([sys.executable, "-m", "benchmark", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "16x16 -> 24x16" in done.stdout
    assert "2 no committed record of 2 values" in done.stdout
    assert "There are no committed records of custom rules" in done.stdout


def test_a_seed_without_records_is_said_with_those_that_have_some(tmp_path, monkeypatch, capsys):
    from benchmark.run.train import Run

    rules = protocol.load("shapes")
    committed = committed_row(rules, "yarn")
    monkeypatch.setattr(reproduce, "committed_of", lambda *_: committed)
    monkeypatch.setattr(reproduce.plan, "stages", lambda *_: [])
    monkeypatch.setattr(reproduce, "run_row", lambda *_: ({}, []))
    for seed, word in ((5, "and none of seed 5: SEED=0"), (0, None)):
        reproduce.reproduce(rules, "yarn", seed, Run(tmp_path, "", "1", 1))
        said = capsys.readouterr()
        assert ((said.out + said.err).count("has committed records of seed") == 1) == (word is not None)
        assert word is None or word in said.out + said.err
