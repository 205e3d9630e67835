"""Runs stages locally: one after another, or several single-threaded processes in parallel; failures do not stop the others."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark import lazy, progress
from benchmark.files import (
    PARENT,
    STOP_SIGNALS,
    UNWRITABLE,
    Stopped,
    UserError,
    handled,
    is_full,
    is_memory,
    listed,
    stop_signals,
)
from benchmark.plan.place import Run, check_ranks, check_single, fix_workspace, gpus, processors, torch
from benchmark.plan.stages import Sample, Stage, Train, graph
from benchmark.protocol import Protocol
from benchmark.registry import told, trained_name
from benchmark.results import record

# Both import torch: what is refused before any work need not wait for it.
estimate, sampling = lazy.Module("benchmark.run.estimate"), lazy.Module("benchmark.run.sample")


def bench(protocol: Protocol, methods: Sequence[str], seed: int, run: Run) -> list[tuple[Stage, str]]:
    """All stages for some methods: shards, references, trainings, samples, records.

    Returns:
        (stage, reason) of every stage that failed, and of one stage of each method that could not be tried out; what needs one
        of them was left out.

    Raises:
        UserError: the location of the images was not given, a setting is not what it must be, or no method can be tried out.
    """
    check(run)
    stages = graph(protocol, methods, seed, run)
    stages[0].context.data.require()  # before the machine is measured
    stages[0].context.data.real()  # the references' images, which nothing would ask for before the end of a training
    missing = [stage for stage in stages if stage.distributed and not stage.is_complete()]
    if missing:
        check_ranks(run)
    sampling.check_settings(protocol, methods)
    firsts: dict[str, Stage] = {}  # of each method that has cells to sample
    for stage in missing:
        if isinstance(stage, Sample):
            firsts.setdefault(stage.cell.method, stage)
    lost = faulty(protocol, list(firsts), seed) if firsts else {}
    if lost and len(lost) == len(methods):
        raise UserError("; ".join(lost.values()))
    for method, reason in lost.items():
        progress.say(f"failed: {method}: {reason}")
    failures = [(firsts[method], reason) for method, reason in lost.items()]
    if lost:
        methods = [method for method in methods if method not in lost]
        stages = graph(protocol, methods, seed, run)
    estimate.announce(protocol, stages, run)
    if len(methods) > 1 and run.devices == "auto" and not gpus() and processors() > 1:
        run_in_parallel(stages, methods, seed, run)
    return failures + run_all(stages)


def check(run: Run) -> None:
    """What holds for whole rows, before any stage computes: one process, and the workspace that deterministic products need.

    Raises:
        UserError: this process is one of several ranks.
    """
    check_single(run)
    if run.deterministic:
        fix_workspace()


def faulty(protocol: Protocol, methods: Sequence[str], seed: int) -> dict[str, str]:
    """{method: what is wrong with it}, found by trying methods out before hours are spent on them."""
    found: dict[str, str] = {}
    with progress.stage("try out", len(methods), "method") as shown:
        for method in methods:
            try:
                sampling.try_out(protocol, method, seed)
            except Exception as error:
                found[method] = told(error)
            shown.advance()
    return found


def run_all(stages: Iterable[Stage]) -> list[tuple[Stage, str]]:
    """Runs stages in their order; those that depend on one that failed are skipped.

    An exception that no one expected ends its own stage only, after its traceback: a method's fault costs the others nothing.
    """
    record.git_state(*record.CODE)  # now, before hours in which someone may commit
    failures: list[tuple[Stage, str]] = []
    lost: set[int] = set()
    for stage in stages:
        if any(id(need) in lost for need in stage.needs):
            lost.add(id(stage))
            continue
        try:
            run_one(stage)
        except Exception as error:
            lost.add(id(stage))
            failures.append((stage, tell(stage, error)))
    return failures


def tell(stage: Stage, error: Exception) -> str:
    """Says that a stage failed, and why; raises again what whatever comes next would meet as well, such as a full disk."""
    if is_full(error) or getattr(error, "errno", None) in UNWRITABLE:
        raise error
    if not isinstance(error, UserError):  # a fault in the code, most often a new method's
        traceback.print_exception(error)
    reason = told(error)
    progress.say(f"failed: {stage}: {reason}")
    return reason


def run_one(stage: Stage) -> None:
    """Runs a stage here; one that is for several devices in processes of its own, which its launcher multiplies."""
    missing = stage.distributed and not stage.is_complete()
    if missing:
        check_ranks(stage.context.run)
    if missing and stage.context.run.several and "LOCAL_RANK" not in os.environ:
        code = run_group([sys.executable, "-m", "benchmark", *stage.command()])
        stage.context.changed()  # latents may be there now
        if code in {128 + number for number in STOP_SIGNALS} | {-number for number in STOP_SIGNALS}:
            raise Stopped(f"stopped while running {stage}; run the same command to continue", code if code > 0 else 128 - code)
        if code:
            raise UserError(f"{stage} on {stage.context.run.devices} devices ended with exit code {code}; see its message above")
        return
    try:
        stage.run()
    except (MemoryError, RuntimeError) as error:
        if not is_memory(error):
            raise
        advice = "use more devices, which share the batch" if stage.kind == "train" else "sample.batch is part of the protocol"
        reason = (str(error).splitlines() or ["out of memory"])[0]
        raise UserError(f"{stage}: out of memory ({reason}); {advice}") from None
    finally:
        if stage.context.run.several and gpus():
            release()


def release() -> None:
    """Gives back what stages that ran here hold of the first GPU: the first rank of the next one needs it."""
    if autoencoder := sys.modules.get("benchmark.model.autoencoder"):
        autoencoder.load_autoencoder.cache_clear()
    gc.collect()
    torch.cuda.empty_cache()


def run_in_parallel(stages: Sequence[Stage], methods: Sequence[str], seed: int, run: Run) -> None:
    """Trainings first, then cells, in as many one-thread processes as there are processors.

    Two of them do a quarter more than one process with two threads.

    What fails here fails again, with its reason, when the stages are walked afterwards.
    """
    for stage in stages:
        if stage.kind in ("shards", "latents", "reference") and not stage.is_complete():
            try:
                run_one(stage)
            except Exception as error:
                tell(stage, error)
    trainings = [stage for stage in stages if isinstance(stage, Train) and not stage.is_complete()]
    # One thread and one decoder each, however many processors would be for a training that is alone.
    protocol = stages[0].protocol
    logs = run.out / "log" / f"{protocol.name}-s{seed}"  # sweeps of other seeds may share OUT
    side_by_side([Job(f"train {stage.title}", [*stage.command(), "--workers", "1"]) for stage in trainings], logs)
    where = [*protocol.overrides, "--protocol", protocol.source, "--seed", str(seed), *run.where, *(["--keep"] * run.keep)]
    left = {stage.cell.method for stage in stages if stage.kind == "score" and not stage.is_complete()}
    # Methods with one checkpoint may share images: the first of them makes these, the others wait.
    ordered = sorted((name for name in methods if name in left), key=lambda name: trained_name(name) != name)
    first = {trained_name(name): f"cells of {name}" for name in reversed(ordered)}
    side_by_side([Job(f"cells of {name}", ["score", name, *where], first[trained_name(name)]) for name in ordered], logs)


@dataclass(frozen=True)
class Job:
    """A command to run beside others.

    Attributes:
        words: after `python -m benchmark`.
        after: the title of the job that must have ended before, if it is one of them; its own for none.
    """

    title: str
    words: list[str]
    after: str = ""


def side_by_side(jobs: Sequence[Job], logs: Path) -> None:
    """Runs jobs in one-thread processes, as many at once as there are processors; their output goes to the folder of logs."""
    waiting, running = list(jobs), {}
    logs.mkdir(parents=True, exist_ok=True)
    with progress.stage("jobs", len(jobs), "job") as shown:
        try:
            while waiting or running:
                unfinished = {job.title for job in waiting} | running.keys()
                for job in [job for job in waiting if job.after == job.title or job.after not in unfinished]:
                    if len(running) < processors():
                        waiting.remove(job)
                        running[job.title] = start(job, logs)
                for title in [title for title, child in running.items() if child.poll() is not None]:
                    running.pop(title)
                    shown.advance(1, f"last: {title}")
                time.sleep(0.2)
        finally:  # Ctrl-C above all: a training saves what it has
            for child in running.values():
                child.send_signal(signal.SIGTERM)
            for child in running.values():
                child.wait()


def start(job: Job, logs: Path) -> subprocess.Popen:
    """Starts a job in one thread."""
    words = [sys.executable, "-m", "benchmark", *job.words]
    with open(logs / f"{job.title.replace(' ', '-').replace('/', '-')}.txt", "w") as log:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TERM": "dumb", PARENT: str(os.getpid())}
        return subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, env=environment)


def run_group(command: list[str]) -> int:
    """Runs a command in a process group of its own and returns its exit code.

    Signals such as Ctrl-C are passed to the entire group, once per process, and their saving is awaited. A terminal
    that closes asks them to save as SIGTERM does; under nohup it does not.
    """
    child: subprocess.Popen | None = None
    early: list[int] = []  # signals that arrive before there are processes to pass them to
    asked: list[int] = []  # those that were passed to them

    def hand_on(number: int, frame: Any) -> None:
        if child is None:
            early.append(number)
        else:
            asked.append(number)
            os.killpg(child.pid, signal.SIGTERM if number == signal.SIGHUP else number)

    with handled(hand_on, stop_signals()):
        child = subprocess.Popen(command, process_group=0, env=os.environ | {PARENT: str(os.getpid())})
        for number in early:
            hand_on(number, None)
        code = child.wait()
    return 128 + asked[0] if asked and code == -signal.SIGKILL else code  # Lightning kills ranks that end late


def raise_for(failures: Sequence[tuple[Stage, str]]) -> None:
    """One line for all that failed, each reason once."""
    if failures:
        reasons: dict[str, list[str]] = {}
        for stage, reason in failures:
            reasons.setdefault(reason, []).append(str(stage))
        told = "; ".join(f"{listed(stages)}: {reason}" for reason, stages in list(reasons.items())[:5])
        raise UserError(f"{len(failures)} stage{'s' * (len(failures) > 1)} failed: {told}")
