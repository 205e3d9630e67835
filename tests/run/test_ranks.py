"""Which processes belong to a run: those of torchrun, of srun, or those that it starts itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lightning.fabric.plugins.environments import LightningEnvironment

from benchmark import progress, protocol
from benchmark.files import ROOT, UserError, read_json
from benchmark.identity import Cell, Training
from benchmark.plan import place
from benchmark.plan.layout import DONE, REPORT
from benchmark.plan.place import Run, check_ranks
from benchmark.run import ranks
from benchmark.run.local import bench
from benchmark.run.reproduce import reproduce
from benchmark.run.sample import sample
from benchmark.run.train import strategy, train

SLURM = (
    "JOB_ID",
    "NTASKS",
    "NTASKS_PER_NODE",
    "PROCID",
    "LOCALID",
    "NODEID",
    "STEP_NUM_TASKS",
    "NNODES",
    "JOB_NAME",
    "NODELIST",
    "STEP_NODELIST",
)


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*(f"SLURM_{name}" for name in SLURM), "MASTER_ADDR", "TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(progress, "_alone", False)
    monkeypatch.setattr(place, "gpus", lambda: 0)


def under(monkeypatch: pytest.MonkeyPatch, **variables: object) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))


BATCH = {"JOB_ID": 5, "NTASKS": 2, "PROCID": 0, "LOCALID": 0, "NODEID": 0}  # sbatch --ntasks 2, without srun
STEP = BATCH | {"STEP_NUM_TASKS": 2, "NTASKS_PER_NODE": 2}  # srun --ntasks-per-node 2


@pytest.mark.parametrize(
    ("variables", "run", "expected"),
    [
        ({}, Run(devices="2"), None),
        (BATCH, Run(devices="2"), LightningEnvironment),  # Lightning alone would wait for a second task
        (BATCH, Run(devices="1"), LightningEnvironment),
        (STEP, Run(devices="2"), ranks.Srun),
        (STEP | {"NTASKS": 6, "NNODES": 3}, Run(devices="2"), ranks.Srun),  # of the job: srun --preserve-env
        (STEP | {"JOB_NAME": "bash"}, Run(devices="2"), LightningEnvironment),  # a shell: srun --pty bash
        (STEP | {"JOB_NAME": "bash"}, Run(), LightningEnvironment),
        (STEP | {"PROCID": 1}, Run(devices="1"), LightningEnvironment),
    ],
)
def test_the_environment_of_a_run(variables, run, expected, monkeypatch):
    under(monkeypatch, **variables)
    check_ranks(run)
    found = ranks.environment(run)
    assert [type(item) for item in found] == ([expected] if expected else [])
    for item in found:
        item.validate_settings(run.count, run.nodes)
    if expected is ranks.Srun:
        assert not found[0].auto_requeue
        assert found[0].world_size() == 2


@pytest.mark.parametrize(("gpus", "variables"), [(1, {}), (2, STEP), (2, BATCH)])
def test_every_gpu_is_taken_unless_devices_say_otherwise(gpus, variables, monkeypatch):
    monkeypatch.setattr(place, "gpus", lambda: gpus)
    under(monkeypatch, **variables)
    check_ranks(Run())


def test_ranks_meet_on_a_node_of_their_step(monkeypatch):
    under(monkeypatch, **STEP)
    monkeypatch.setenv("SLURM_NODELIST", "node[1-2]")
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node2")
    monkeypatch.setenv("MASTER_ADDR", "")  # so that the value set below goes with this test
    monkeypatch.delenv("MASTER_ADDR")
    assert ranks.Srun().main_address == "node2"


def test_a_cell_that_shares_its_images_is_made_by_any_task(tmp_path, monkeypatch):
    """Its base's are complete: nothing but the note of it is to be written, by a task that is not the first."""
    rules, run = protocol.load("smoke"), Run(tmp_path, devices="1")
    train(Training(rules, "extrapolation", "16x16", 0), run)
    sample(Cell(rules, "extrapolation", "16x16", "16x16", 0), run)
    under(monkeypatch, **STEP | {"PROCID": 1})
    folder = sample(Cell(rules, "yarn", "16x16", "16x16", 0), run)
    assert read_json(folder / DONE)["same_as"].startswith("extrapolation")


@pytest.mark.parametrize(
    ("variables", "run", "told"),
    [
        (BATCH, Run(devices="1", nodes=2), "NODES is 2, but the run was not started on the other machines"),
        (STEP, Run(devices="4"), "2 tasks for 1 x 4 devices: use `srun --nodes 1 --ntasks-per-node 4 --kill-on-bad-exit=1`"),
        (STEP | {"NTASKS_PER_NODE": 1}, Run(devices="2"), "srun started 2 tasks"),
        (STEP, Run(), "or DEVICES=1 for separate runs"),  # each sees no GPU, or one
    ],
)
def test_processes_that_were_not_started_are_not_waited_for(variables, run, told, monkeypatch):
    under(monkeypatch, **variables)
    with pytest.raises(UserError, match=told):
        check_ranks(run)


@pytest.mark.parametrize("variables", [{"SLURM_STEP_NUM_TASKS": "8"}, {"TORCHELASTIC_RUN_ID": "1"}])
def test_whole_rows_are_not_for_one_of_several_ranks(variables, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    told = "starts its own processes: run it without srun and torchrun"
    with pytest.raises(UserError, match=told):
        bench(protocol.load("smoke"), ["nope"], 0, Run(devices="8"))
    with pytest.raises(UserError, match=told):
        reproduce(protocol.load("shapes"), "rpe2d", 0, Run(devices="8"))


RANK = """
import os, sys, time, types, torch
from benchmark import __main__ as main
from benchmark.files import Stopped
from benchmark.run.sample import barrier
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
import atexit; atexit.register(lambda: print("taken down", flush=True))  # as Lightning does with NCCL's groups
fabric = types.SimpleNamespace(world_size=2, device=torch.device("cpu"))
barrier(fabric)
def work():
    print("met", flush=True)
    if rank: time.sleep(60)
    barrier(fabric)
main.app = work
sys.argv = ["posbench", "sample"]
main.run()
"""


def test_a_rank_that_waits_for_others_hears_a_signal_and_leaves_alone(tmp_path):
    ranks = [subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True) for rank in range(2)]  # fmt: skip
    try:
        assert all(process.stdout.readline() == "met\n" for process in ranks)
        time.sleep(0.2)
        ranks[0].send_signal(signal.SIGTERM)
        output, errors = ranks[0].communicate(timeout=20)
        assert (ranks[0].returncode, output) == (128 + signal.SIGTERM, ""), "nothing is taken down in which it would wait"
        assert "run the same command to continue" in errors
        assert ranks[1].poll() is None
    finally:
        for process in ranks:
            process.kill()
            process.communicate()


@pytest.mark.parametrize(
    ("run", "told"),
    [
        (Run(devices="1", deterministic=True), "auto"),
        (Run(devices="2"), "ddp"),
        (Run(devices="2", deterministic=True), "ddp_find_unused_parameters_true"),
    ],
)
def test_buckets_of_gradients_stay_where_bits_matter(run, told):
    assert strategy(run) == told


def test_tasks_with_a_device_each_speak_for_themselves(monkeypatch):
    under(monkeypatch, **STEP | {"PROCID": 1})
    assert not progress.first_rank()
    check_ranks(Run(devices="1"))
    assert progress.first_rank()


def test_no_checkpoint_of_lightnings_own_is_saved_or_started_from(tmp_path, monkeypatch):
    """In a batch job, on SIGUSR1, Lightning would save to the working directory what any training then starts from."""
    monkeypatch.chdir(tmp_path)
    environ = os.environ | {f"SLURM_{name}": str(value) for name, value in BATCH.items()} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-u", "-m", "benchmark", "train", "extrapolation", "train.steps=100000", "--protocol", "smoke",
               "--out", str(tmp_path / "long"), "--devices", "1"]  # fmt: skip
    process = subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert any("steps" in line and "loss" in line for line in process.stdout), "it trains"
        process.send_signal(signal.SIGUSR1)  # unheard by anybody, it ends a process
        assert process.wait(60) == -signal.SIGUSR1
    finally:
        process.kill()
        process.stdout.close()
    assert not list(tmp_path.rglob("hpc_ckpt*"))
    under(monkeypatch, **BATCH)
    Path("hpc_ckpt_1.ckpt").write_bytes(b"of another training")
    folder = train(Training(protocol.load("smoke"), "extrapolation", "16x16", 1), Run(out=tmp_path / "own", devices="1"))
    assert (folder / REPORT).is_file()
