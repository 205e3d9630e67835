"""Where and on which devices a stage runs; nothing here changes a number."""

from __future__ import annotations

import math
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from benchmark import lazy, progress
from benchmark.files import ROOT, UserError, shown

torch = lazy.Module("torch")  # takes a second, which a plan and `--help` need not spend


@dataclass(frozen=True)
class Run:
    """Where and on what a stage runs.

    Attributes:
        out: the folder of runs.
        data: the source of the data set, or a folder of shards; "" where the card needs none.
        devices: "auto", every GPU of the machine, or how many on each node.
        nodes: machines.
        workers: processes on each node that decode pictures; 0 takes half of its processors.
        compile: whether a training's core goes through torch.compile.
        deterministic: whether a training on GPUs takes kernels that add in one order alone, and refuses others.
        keep: whether all images of a cell and the checkpoints of a complete training stay on disk, or only the first images.
        every_steps, every_minutes: a training is saved whenever one of them has passed; by minutes for 2 % of the time at most.
    """

    out: Path = Path("runs")
    data: str = ""
    devices: str = "auto"
    nodes: int = 1
    workers: int = 0
    compile: bool = False
    deterministic: bool = False
    keep: bool = False
    every_steps: int = 5000
    every_minutes: float = 2.0

    def __post_init__(self) -> None:
        if self.devices != "auto" and not re.fullmatch(r"[1-9][0-9]{0,4}", self.devices):
            raise UserError(f"DEVICES must be 'auto' or the number of devices per node, not {shown(self.devices)}")
        if not 1 <= self.nodes <= 10_000:
            raise UserError(f"NODES must be a number of machines, not {self.nodes}")
        if not 0 <= self.workers <= 4096:
            raise UserError(f"workers must be a number of processes, not {self.workers}")
        if not (math.isfinite(self.every_minutes) and 0 < self.every_minutes <= 1e6 and 0 < self.every_steps <= 10**9):
            raise UserError("checkpoint intervals must be 0.01 to 1000000 minutes and 1 to 1000000000 steps")
        own, committed = (os.path.realpath(folder / "leaderboards") for folder in (self.out, ROOT))
        if Path(own).is_relative_to(committed):  # the run's would take the place of the committed ones
            raise UserError(f"OUT is {shown(str(self.out), 300)}: leaderboards/ holds the committed ones; give another folder")

    @property
    def where(self) -> list[str]:
        """The words of a command that say where it runs."""
        return ["--out", str(self.out), *(["--data", self.data] if self.data else [])]

    @property
    def count(self) -> int:
        """Devices on each node; "auto" is every GPU, or the processor as one."""
        there = gpus()
        if self.devices == "auto":
            return max(there, 1)
        if there and int(self.devices) > there:
            raise UserError(f"DEVICES is {self.devices}, but this machine has {there}")
        if not there and int(self.devices) > (most := max(8, os.cpu_count() or 1)):
            raise UserError(f"DEVICES is {self.devices}, but this machine has no GPU: use at most {most} processes")
        return int(self.devices)

    @property
    def decoders(self) -> int:
        """Processes that decode for one device: half of the processors that are ours, unless `workers` says."""
        tasks, own = (int(os.environ.get(f"SLURM_{name}") or 0) for name in ("NTASKS", "CPUS_PER_TASK"))
        if tasks > 1 and own and not self.workers:  # srun started the ranks, and these processors are of this one alone
            return max(1, own // 2)
        return max(1, (self.workers or processors() // 2) // self.count)

    @property
    def writers(self) -> int:
        """Processes that decode for a stage of one process, whatever devices the run asks for."""
        return self.workers or max(1, processors() // 2)

    @property
    def several(self) -> bool:
        """Whether a stage runs in several processes."""
        return self.nodes * self.count > 1


STEP = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE")  # what tells a process that it is one of several


def tasks() -> int:
    """Processes that srun has started, of which this is one; 1 without srun, as in a batch script or an allocation.

    A shell that srun started (--pty bash) has that step's variables as well, but is alone.
    """
    return 1 if os.environ.get("SLURM_JOB_NAME") == "bash" else int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1)


def check_ranks(run: Run) -> None:
    """Refuses to wait for processes that were not started, and to leave devices idle because srun started too few.

    Tasks of srun with one device each, asked for as DEVICES=1, are runs of their own: each speaks for itself.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return
    if tasks() > 1:
        if not run.several and run.devices != "auto":
            progress.speak_alone()
        elif tasks() != run.nodes * run.count or os.environ.get("SLURM_NTASKS_PER_NODE") != str(run.count):
            raise UserError(
                f"srun started {tasks()} tasks for {run.nodes} x {run.count} devices: use `srun --nodes {run.nodes} "
                f"--ntasks-per-node {run.count} --kill-on-bad-exit=1` and let each task see all devices of its node, or "
                "DEVICES=1 for separate runs"
            )
    elif run.nodes > 1 and "MASTER_ADDR" not in os.environ:
        raise UserError(
            f"NODES is {run.nodes}, but the run was not started on the other machines: use srun, torchrun --nnodes {run.nodes}, "
            "or --cluster slurm"
        )


def check_single(run: Run) -> None:
    """Refuses to run whole rows as one of several ranks: each would score them, and one that failed would leave the others."""
    if ("TORCHELASTIC_RUN_ID" in os.environ or tasks() > 1) and run.several:  # the last may import torch
        raise UserError(
            "a row on several devices starts its own processes: run it without srun and torchrun, or with these its stages one "
            "by one (python -m benchmark train, sample, score)"
        )


def gpus() -> int:
    """GPUs of this machine."""
    return torch.cuda.device_count()


def fix_workspace() -> None:
    """Gives cuBLAS the workspace that deterministic products need. It looks for it once, at a process' first product."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def device() -> str:
    """What a stage of one process computes on."""
    return "cuda" if gpus() else "cpu"


def machine() -> str:
    """The name of what a stage of one process computes on: the GPU's, or else the processor's with its cores."""
    return torch.cuda.get_device_name() if gpus() else processor()


def processor() -> str:
    """The processor's name, as the operating system gives it, and its cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def processors() -> int:
    """Processes with one thread each that keep the processors busy that are ours: a job has a share of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
