"""The plan: totals first, the same before any work and with part of it done, without torch."""

from __future__ import annotations

import io
import shlex
import subprocess
import sys

import pytest
import rich.console
from test_stages import graph, shards

from benchmark import protocol
from benchmark.evaluate.score import unit_file
from benchmark.files import ROOT, UserError, write_json
from benchmark.identity import Cell, Training
from benchmark.plan import report as plan
from benchmark.plan import stages
from benchmark.plan.cost import Cost, show_bytes
from benchmark.plan.layout import CHECKPOINTS, REPORT, WEIGHTS
from benchmark.plan.place import Run


def printed(chosen, stages, name="h100", **options) -> str:
    console = rich.console.Console(file=io.StringIO(), width=200)
    plan.print_plan(chosen, stages, name, console=console, **options)
    return console.file.getvalue()


def test_the_plan_says_what_it_rests_on(tmp_path):
    chosen = protocol.load("imagenet-256-xl2")
    found = graph(chosen, ["extrapolation", "yarn", "rpe2d"], tmp_path)
    text = printed(chosen, found, count=8)
    for words in ("imagenet-256-xl2", chosen.hash, "40% of 989", "rpe2d at 256x256 augments in pixel space", "On 8 devices",
                  "The detector takes 0.032 to 0.57 % of a cell's hours."):  # fmt: skip
        assert words in text, text
    listed = printed(chosen, found, cells=True)
    lines = [line for line in listed.splitlines() if "extrapolation at 256x256" in line]
    assert len(lines) == 1
    assert "51.2 h" in lines[0], lines  # 400,000 steps of 256 images at 3 x 237 GFLOP and 396 TFLOP/s
    assert "146 GB" in next(line for line in listed.splitlines() if "1,281,167 pictures" in line)
    dearer = printed(chosen, found, efficiency=0.2, cells=True)
    assert "102.3 h" in next(line for line in dearer.splitlines() if "extrapolation at 256x256" in line)
    assert "at 256x256" not in text.split("%")[0], "stages one by one only where they are asked for"
    assert "At 2 a" in printed(chosen, found, price=2.0)


def test_disk_is_what_stays_and_what_trainings_need_beside_it(tmp_path):
    chosen = protocol.load("imagenet-256-xl2")
    weights = 675.1e6  # of DiT-XL/2
    (training,) = [stage for stage in graph(chosen, ["nope"], tmp_path) if stage.kind == "train"]
    (kept,) = [stage for stage in graph(chosen, ["nope"], tmp_path, keep=True) if stage.kind == "train"]
    assert training.full_cost().bytes == pytest.approx(4 * weights, rel=1e-3)
    assert kept.full_cost().bytes == pytest.approx(4 * weights + 2 * 16 * weights, rel=1e-3)
    assert "checkpoints take up to 32.4 GB more" in printed(chosen, [training])
    assert "checkpoints" not in printed(chosen, [kept])


def test_a_protocol_that_wants_a_checkpoint_says_how_to_give_it(tmp_path):
    chosen = protocol.load("imagenet-256-xl2-ft")
    assert "train.init=PATH" in printed(chosen, graph(chosen, ["ledit"], tmp_path))


def test_bad_input_lists_the_choices(tmp_path):
    chosen = protocol.load("smoke")
    with pytest.raises(UserError, match=r"unknown device 'h1000'; did you mean 'h100'"):
        printed(chosen, [], "h1000")
    with pytest.raises(UserError, match="between 0 and 1"):
        printed(chosen, [], "h100", efficiency=3)


@pytest.mark.parametrize(
    ("count", "text"), [(999, "999 B"), (1e3, "1 kB"), (157e9, "157 GB"), (1.5e12, "1.5 TB"), (2e15, "2 PB")]
)
def test_bytes_for_people(count, text):
    assert show_bytes(count) == text


# --- Totals ----------------------------------------------------------------------------------------------------------


def rows(text: str) -> dict[str, tuple[int, int]]:
    """{kind: (complete, missing)} of the first table."""
    found = [line.split() for line in text.partition("by method")[0].splitlines() if line.strip()]
    return {row[0]: (int(row[1]), int(row[2])) for row in found if row[0] in (*plan.KINDS, "all")}


def test_totals_before_any_work_and_with_part_of_it_done(tmp_path):
    smoke = protocol.load("smoke")
    methods = ["extrapolation", "yarn", "nope"]
    found = graph(smoke, methods, tmp_path)
    before = plan.total(found)
    assert rows(printed(smoke, found)) == {
        "shards": (0, 1), "train": (0, 2), "reference": (0, 3), "sample": (0, 9), "score": (0, 9), "all": (0, 24),
    }  # fmt: skip
    assert before == sum((stage.full_cost() for stage in found), Cost())
    assert "1 cells are assumed to share" in printed(smoke, found)
    # Shards, one of two trainings, half of another, and half of a cell.
    data = shards(smoke, tmp_path).fingerprint
    one, other = (Training(smoke, name, "16x16", 0) for name in ("extrapolation", "nope"))
    for name in (WEIGHTS, REPORT):
        write_json(one.folder(tmp_path, data) / name, {})
    write_json(other.folder(tmp_path, data) / CHECKPOINTS / "step=10.ckpt", {})
    cell = Cell(smoke, "extrapolation", "16x16", "32x32", 0).folder(tmp_path, one.key(data))
    write_json(unit_file(stages.features_of(cell, smoke), 0), {})
    found = graph(smoke, methods, tmp_path)
    text = printed(smoke, found, cells=True)
    assert rows(text) == {
        "shards": (1, 0), "train": (1, 1), "reference": (0, 3), "sample": (0, 9), "score": (0, 9), "all": (2, 22),
    }  # fmt: skip
    assert "step 10 of 20" in text
    assert "16 of 32 images" in text
    full = {str(stage): stage.full_cost() for stage in found}
    done = full["train extrapolation at 16x16"] + full["train nope at 16x16"] * 0.5
    done += full["sample extrapolation 16x16 -> 32x32"] * 0.5
    assert plan.total(found).operations == pytest.approx(before.operations - done.operations)


def test_a_plan_needs_no_torch(tmp_path):
    code = "import sys, runpy; sys.argv = ['benchmark', 'plan', 'smoke', '--methods', 'yarn,nope', '--out', sys.argv[1]]\n"
    code += "try: runpy.run_module('benchmark', run_name='__main__')\nexcept SystemExit as ended: assert not ended.code\n"
    code += "assert 'torch' not in sys.modules, 'torch was imported'\n"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "18 of 18 stages missing" in done.stdout, done.stdout
    assert not list(tmp_path.iterdir())


def test_a_command_in_a_message_can_be_pasted(tmp_path):
    run = Run(tmp_path / "my runs", "/data/it's here")
    found = protocol.load("smoke", ["train.lr=1e-3", "core.width=64"])
    words = shlex.split(plan.make_bench(found, "ntk", 2, run))
    assert words == ["make", "bench", "METHOD=ntk", "PROTOCOL=smoke", "SEED=2", f"OUT={run.out}", f"DATA={run.data}",
                     "SET=train.lr=1e-3 core.width=64"]  # fmt: skip
    found.overrides = ['train.init="a $b"']
    assert shlex.split(plan.make_bench(found, "ntk"))[-1] == 'SET=train.init="a $b"'
