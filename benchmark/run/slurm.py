"""A sweep as jobs, on SLURM or on this machine: trainings once, each cell after its training, then the leaderboards.

Jobs run the ordinary verbs, so that a job that is killed, requeued or run twice continues or finds its work done. Jobs without
a bond between them are submitted together, as arrays, with submitit.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import submitit
import yaml
from rich.console import Console
from rich.table import Table
from submitit.helpers import DelayedSubmission

from benchmark import lazy, progress
from benchmark.files import Stopped, UserError, handled, unknown
from benchmark.inputs import Loader
from benchmark.plan import place
from benchmark.plan.place import Run, gpus
from benchmark.plan.stages import graph
from benchmark.protocol import Protocol

sampling = lazy.Module("benchmark.run.sample")  # torch

CLUSTERS = ("slurm", "local")
KINDS = ("data", "latents", "reference", "train", "cell", "end")
# submitit's parameters for every job; a file of resources overrides them, for all jobs or for one kind.
DEFAULTS: dict[str, Any] = {"timeout_min": 24 * 60, "cpus_per_task": 8}
SAVED = 128 + signal.SIGTERM  # exit code of a command that was asked to end, and can go on
NOTICE = 90.0  # seconds before a job's end at which submitit has it told, unless slurm_signal_delay_s is given
QUEUEING = 15.0  # of which so many are left for queueing it again
REQUEUES = 100  # how often a job may reach its time limit and be queued again


# --- The graph -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """One job: commands that run one after another.

    Attributes:
        kind: data, latents, train, reference, cell or end.
        commands: arguments of `python -m benchmark`.
        needs, after: names of tasks: those that must have succeeded before, and those that must have ended, however they did.
        distributed: whether the first command runs in as many processes as the run has devices; the others run in one.
    """

    name: str
    kind: str
    commands: tuple[tuple[str, ...], ...]
    needs: tuple[str, ...] = ()
    distributed: bool = False
    after: tuple[str, ...] = ()


def tasks(protocol: Protocol, methods: Sequence[str], seed: int, run: Run) -> list[Task]:
    """The jobs of what is missing, each after those that it needs; a cell's samples and record are one job."""
    stages = [stage for stage in graph(protocol, methods, seed, run) if not stage.is_complete()]
    names = {id(stage): f"cell {stage.title}" if stage.kind in ("sample", "score") else str(stage) for stage in stages}
    found: dict[str, Task] = {}
    for stage in stages:
        name = names[id(stage)]
        kind = {"shards": "data", "sample": "cell", "score": "cell"}.get(stage.kind, stage.kind)
        before = found.get(name, Task(name, kind, (), distributed=stage.distributed))  # of a cell's stages the first one's
        needs, after = (
            tuple(other for other in dict.fromkeys([*known, *(names[id(s)] for s in more if id(s) in names)]) if other != name)
            for known, more in ((before.needs, stage.needs), (before.after, stage.after))
        )
        found[name] = replace(before, commands=(*before.commands, tuple(stage.command())), needs=needs, after=after)
    about = [*protocol.overrides, "--methods", ",".join(methods), "--seed", str(seed), *run.where]
    board = ["board", "--protocol", protocol.source, *protocol.overrides, *run.where]
    commands = [board, ["plan", protocol.source, *about]]
    return [*found.values(), Task("end", "end", tuple(map(tuple, commands)), after=tuple(found))]


# --- What a job runs -------------------------------------------------------------------------------------------------


class Commands:
    """Runs commands one after another; the first that fails ends the job.

    When the scheduler announces the end of a job's time, the running command is asked to save (SIGTERM), and the same
    commands are queued again.
    """

    notice = NOTICE  # of jobs that were queued before it was kept

    def __init__(self, commands: Sequence[Sequence[str]], notice: float = NOTICE) -> None:
        self.commands = [list(command) for command in commands]
        self.notice = notice
        self.child: subprocess.Popen | None = None

    def __call__(self) -> None:
        if os.environ.get("SUBMITIT_EXECUTOR") == "local":  # on SLURM an announcement comes with it, and submitit passes over it
            signal.signal(signal.SIGTERM, self.end)
        for number, command in enumerate(self.commands):
            if number and submitit.JobEnvironment().global_rank:
                return  # only the first command is shared by the processes
            print("$", " ".join(command), flush=True)
            # The scheduler's announcement goes to every process of the job; only this one may act on it.
            environment = {name: value for name, value in os.environ.items() if not (number and name in place.STEP)}
            self.child = subprocess.Popen(command, preexec_fn=ignore_announcement, env=environment)
            code = self.child.wait()
            if code == SAVED and submitit.JobEnvironment().global_rank:
                return  # the first process was told of the end, and is about to queue the job again: no failure
            if code:
                raise subprocess.CalledProcessError(code, command)

    def end(self, *_: Any) -> NoReturn:
        """Asks the running command to save, and ends the job: the sweep that it belongs to was stopped (`cancel`)."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if self.child is not None:
            self.child.send_signal(signal.SIGTERM)
            os.waitid(os.P_PID, self.child.pid, os.WEXITED | os.WNOWAIT)  # see `checkpoint`
        raise SystemExit(SAVED)

    def __getstate__(self) -> dict[str, Any]:
        return {"commands": self.commands, "notice": self.notice, "child": None}

    def checkpoint(self) -> Any:
        """submitit's hook before the time limit or a preemption."""
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
            # This runs inside the wait above, which holds the lock of another one: the system is asked instead, and leaves the
            # child's exit code to it. A job that is still saving when its time is up would not be queued again.
            end = time.monotonic() + max(self.notice - QUEUEING, self.notice / 2)
            while os.waitid(os.P_PID, self.child.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
                if time.monotonic() > end:
                    print(
                        "still saving, but the time is nearly up: the next job continues from the previous checkpoint", flush=True
                    )
                    break
                time.sleep(0.1)
        return DelayedSubmission(Commands(self.commands, self.notice))


def ignore_announcement() -> None:
    """Makes a command ignore the announcement that submitit reacts to; its name is in submitit's variable, or USR2."""
    signal.signal(getattr(signal, "SIG" + os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2")), signal.SIG_IGN)


def command_lines(task: Task) -> list[list[str]]:
    return [[sys.executable, "-m", "benchmark", *command] for command in task.commands]


# --- Submitting ------------------------------------------------------------------------------------------------------


def resources(file: Path | str | None) -> dict[str, dict[str, Any]]:
    """submitit's parameters by kind of task, from a YAML file such as

    all:       {slurm_partition: gpu, slurm_account: me, timeout_min: 1440}
    train:     {mem_gb: 200, slurm_constraint: h100}
    cell:      {timeout_min: 600}

    Processes and GPUs of a job follow the devices and nodes of the sweep; gpus_per_node: 0 asks for none.
    """
    content: Any = {}
    if file:
        try:  # not read_yaml, which refuses what belongs here: aliases, and ${...} in slurm_setup
            content = yaml.load(Path(file).read_text(encoding="utf-8"), Loader) or {}
        except FileNotFoundError:
            raise UserError(f"{file} does not exist") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{file} is not YAML ({' '.join(str(error).split())})") from None
    if isinstance(content, dict):
        content = {kind: {} if value is None else value for kind, value in content.items()}  # its one line was taken out
    if not isinstance(content, dict) or not all(isinstance(value, dict) for value in content.values()):
        raise UserError(f"{file} must map job kinds to submitit parameters, such as 'all: {{slurm_partition: gpu}}'")
    for kind in content:
        if kind not in ("all", *KINDS):
            raise unknown(f"kind of job in {file}", str(kind), ("all", *KINDS))
    return {kind: {**DEFAULTS, **content.get("all", {}), **content.get(kind, {})} for kind in KINDS}


UNFINISHED = ("waiting", "submitted")  # states of a task that has not ended


@dataclass
class Submitted:
    """A task on its way: its job, once it has one, and how it ended."""

    task: Task
    job: Any = None
    state: str = "waiting"  # then submitted, done, failed, or skipped where something that it needs failed
    reason: str = ""


@dataclass
class Queue:
    """Submits tasks to one cluster.

    Args:
        cluster: "slurm" or "local".
        folder: for submitit's files: pickles and every job's output.
        parameters: from `resources`.
        devices: of one job of the kinds that use them, on each node: one process for each.
        nodes: of such a job.
        gpus: whether jobs that compute ask for GPUs.
    """

    cluster: str
    folder: Path
    parameters: dict[str, dict[str, Any]]
    devices: int = 1
    nodes: int = 1
    gpus: bool = False

    def executor(self) -> submitit.AutoExecutor:
        """A new one: what has been set in an executor stays, and one kind's parameters would hold for the next."""
        try:
            return submitit.AutoExecutor(
                folder=self.folder, cluster=self.cluster, local_max_num_timeout=REQUEUES, slurm_max_num_timeout=REQUEUES
            )
        except RuntimeError as error:
            raise UserError(f"cannot submit to {self.cluster}: {error}") from None

    def configured(self, task: Task, after: str = "") -> tuple[submitit.AutoExecutor, float]:
        """An executor for tasks such as this one, and the seconds before a job's end at which it has that announced.

        Args:
            after: SLURM's dependency, such as "afterok:17:18_0,afterany:19".

        Raises:
            UserError: the resources of its kind are not submitit's parameters.
        """
        kind = task.kind
        chosen = {"name": f"posbench-{kind}", **self.placement(task), **self.parameters[kind]}
        if self.cluster == "slurm":
            extra = {**chosen.get("slurm_additional_parameters", {})}
            if after:
                extra |= {"dependency": after, "kill_on_invalid_dep": "yes"}
            chosen["slurm_additional_parameters"] = extra
            # A process that fails ends the others, which would wait for it until the time limit.
            given = chosen.get("slurm_srun_args") or []
            if not isinstance(given, list):
                raise UserError(f"resources for {kind} jobs: slurm_srun_args is a list, such as [--mpi=pmix]")
            # Those that are done early wait for none, and the first goes on to score: some clusters would end it a while later.
            ours = ["--kill-on-bad-exit=1", "--wait=0"]
            if cpus := chosen.get("slurm_cpus_per_task") or chosen.get("cpus_per_task"):
                ours.append(f"--cpus-per-task={cpus}")  # which srun does not take over from its job in every version
            chosen["slurm_srun_args"] = [*ours, *given]
        executor = self.executor()
        try:
            executor.update_parameters(**chosen)
            return executor, float(chosen.get("slurm_signal_delay_s") or NOTICE)
        except (NameError, AssertionError, ValueError, TypeError) as error:
            raise UserError(f"resources for {kind} jobs: {' '.join(str(error).split())}") from None

    def submit(self, group: Sequence[Task], after: str = "") -> list[Any]:
        """Submits tasks of one kind, all distributed or none, together: as an array of several. `after`: as in `configured`."""
        executor, notice = self.configured(group[0], after)
        # What starts here ignores a terminal's signals, which go to all of its processes: `cancel` ends it instead.
        terminal = handled(signal.SIG_IGN, (signal.SIGINT, signal.SIGHUP))
        with terminal if self.cluster == "local" else contextlib.nullcontext():
            return executor.submit_array([Commands(command_lines(task), notice) for task in group])

    def placement(self, task: Task) -> dict[str, int]:
        """Nodes, processes and GPUs of a job: what uses several devices gets a process for each, as Lightning expects."""
        if task.kind in ("data", "end"):
            return {"nodes": 1, "tasks_per_node": 1, "gpus_per_node": 0}
        if task.kind == "latents" or (task.distributed and self.cluster == "local"):  # they start their own processes
            return {"nodes": 1, "tasks_per_node": 1, "gpus_per_node": self.devices if self.gpus else 0}
        if not task.distributed:
            return {"nodes": 1, "tasks_per_node": 1, "gpus_per_node": int(self.gpus)}
        return {"nodes": self.nodes, "tasks_per_node": self.devices, "gpus_per_node": self.devices if self.gpus else 0}


def start(
    protocol: Protocol,
    methods: Sequence[str],
    seed: int,
    run: Run,
    cluster: str,
    file: Path | str | None = None,
    wait: bool = False,
) -> list[Submitted]:
    """Submits what is missing of a sweep.

    On this machine jobs run one after another, and this function returns when all have ended. On SLURM they are submitted at
    once with their dependencies, and it returns then, or with `wait` when all have ended.

    Args:
        file: of `resources`.

    Returns:
        every task with its job and how it ended.
    """
    if cluster not in CLUSTERS:
        raise unknown("cluster", cluster, CLUSTERS)
    sampling.check_settings(protocol, methods)
    folder = run.out.resolve() / "jobs" / protocol.name / time.strftime("%Y%m%d-%H%M%S")
    count = run.count if cluster == "local" else 1 if run.devices == "auto" else int(run.devices)
    queue = Queue(cluster, folder, resources(file), count, run.nodes, cluster == "slurm" or bool(gpus()))
    todo = [Submitted(task) for task in tasks(protocol, methods, seed, run)]
    for group in groups(todo):
        queue.configured(group[0].task)  # resources that are wrong are said before any work
    progress.say(f"{len(todo)} jobs, with output in {folder}")
    if cluster == "local":
        wait_for(todo, queue, every=0.2)
        return todo
    try:
        submit_all(todo, queue)
        if wait:
            wait_for(todo, queue, every=30)
    except Stopped as stopped:  # the same command would submit all of them again
        raise Stopped(told_of(todo), stopped.code) from None
    return todo


def told_of(todo: Sequence[Submitted]) -> str:
    """What to say where a sweep is stopped whose jobs go on: SLURM has all of them, or some."""
    numbers = " ".join(dict.fromkeys(item.job.job_id.partition("_")[0] for item in todo if item.job is not None))
    if all(item.job is not None for item in todo):
        return f"stopped waiting; the jobs go on, and `scancel {numbers}` ends them"
    before = f"; end the submitted jobs before you submit again: `scancel {numbers}`" if numbers else ""
    return f"stopped while submitting{before} (`squeue --me` lists what SLURM has)"


def groups(todo: Sequence[Submitted]) -> list[list[Submitted]]:
    """Tasks of one kind that wait for the same others, distributed alike, in an order in which everything comes after those."""
    found: dict[tuple[Any, ...], list[Submitted]] = {}
    for item in todo:
        waits = tuple(sorted(item.task.needs)), tuple(sorted(item.task.after))
        found.setdefault((item.task.kind, *waits, item.task.distributed), []).append(item)
    return sorted(found.values(), key=lambda group: KINDS.index(group[0].task.kind))


def submit_all(todo: Sequence[Submitted], queue: Queue) -> None:
    """Submits every task at once; the scheduler keeps the order."""
    jobs: dict[str, str] = {}
    for group in groups(todo):
        rules = {"afterok": group[0].task.needs, "afterany": group[0].task.after}
        waits = [":".join([rule, *(jobs[name] for name in names)]) for rule, names in rules.items() if names]
        try:
            made = queue.submit([item.task for item in group], ",".join(waits))
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            said = f"SLURM rejected a job ({' '.join(str(error).split())[:200]})"
            before = dict.fromkeys(number.partition("_")[0] for number in jobs.values())  # arrays, not their jobs
            raise UserError(f"{said}; cancel those before it: scancel {' '.join(before)}" if before else said) from None
        for item, job in zip(group, made, strict=True):
            item.job, item.state = job, "submitted"
            jobs[item.task.name] = job.job_id


def cancel(jobs: Sequence[Any]) -> None:
    """Ends jobs of this machine, whose commands are asked to save, and waits for that.

    By SIGTERM, which submitit passes on; `job.cancel` would kill after a second. Again and again, as a job that has just started
    passes over it (see `Commands`).
    """
    while running := [job for job in jobs if not job.done()]:
        for job in running:
            job._process.send_signal(signal.SIGTERM)
        time.sleep(0.5)


def wait_for(todo: Sequence[Submitted], queue: Queue, every: float) -> None:
    """Waits until every task has ended, one way or another; on this machine it also starts each when its turn comes.

    A task whose needs failed is skipped; the others go on. Whatever ends this function early ends this machine's job with it;
    SLURM's jobs go on.
    """
    states = {item.task.name: item for item in todo}
    try:
        with progress.stage("sweep", len(todo), "job") as stage:
            while any(item.state in UNFINISHED for item in todo):
                for item in todo:
                    if item.state == "submitted":
                        check(item)
                    elif item.state == "waiting":
                        advance(item, states, queue)
                ended = [item for item in todo if item.state not in UNFINISHED]
                if len(ended) != stage.done:
                    stage.set(len(ended), f"last: {ended[-1].task.name} {ended[-1].state}")
                if len(ended) < len(todo):
                    time.sleep(every)
    except BaseException:
        if queue.cluster == "local":
            cancel([item.job for item in todo if item.job is not None])
        raise


def advance(item: Submitted, states: dict[str, Submitted], queue: Queue) -> None:
    """Skips a waiting task whose needs failed, or starts it where its turn has come and no other runs."""
    needs, after = ([states[name] for name in names] for names in (item.task.needs, item.task.after))
    if lost := [need.task.name for need in needs if need.state in ("failed", "skipped")]:
        item.state, item.reason = "skipped", f"needs {lost[0]}"
        return
    ready = all(need.state == "done" for need in needs) and not any(other.state in UNFINISHED for other in after)
    if ready and not any(other.state == "submitted" for other in states.values()):
        (item.job,) = queue.submit([item.task])
        item.state = "submitted"


def check(item: Submitted) -> None:
    """Notes whether a submitted job has ended, and how."""
    if not item.job.done():
        return
    problem = item.job.exception()
    item.state = "failed" if problem else "done"
    if problem:
        said = [line for line in (item.job.stderr() or "").splitlines() if line.startswith("error: ")]
        item.reason = said[-1].removeprefix("error: ") if said else str(problem).strip().splitlines()[-1]


def print_summary(todo: Sequence[Submitted], console: Console) -> None:
    """Prints every job with its number, state and output."""
    table = Table(title=", ".join(f"{sum(i.state == s for i in todo)} {s}" for s in dict.fromkeys(i.state for i in todo)))
    for column in ("job", "number", "after", "state", "output or reason"):
        table.add_column(column, overflow="fold")
    for item in todo:
        output = str(item.job.paths.stdout) if item.job is not None else ""
        after = "all others" if item.task.kind == "end" else ", ".join([*item.task.needs, *item.task.after])
        table.add_row(item.task.name, getattr(item.job, "job_id", ""), after, item.state, item.reason or output)
    console.print(table)
