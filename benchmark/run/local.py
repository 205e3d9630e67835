"""Running stages here: one after another, or several one-thread processes side by side; failures do not stop the others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from benchmark import progress
from benchmark.files import PARENT, Stopped, UserError, is_memory, listed
from benchmark.protocol import Protocol
from benchmark.run.place import Run, check_nodes, gpus
from benchmark.run.stages import Stage, Train, graph, processors


def bench(protocol: Protocol, methods: Sequence[str], seed: int, run: Run) -> list[tuple[Stage, str]]:
    """All stages for some methods: shards, trainings, references, samples, records.

    Returns:
        (stage, reason) of every stage that failed; what needs one of them was left out.
    """
    stages = graph(protocol, methods, seed, run)
    if len(methods) > 1 and run.devices == "auto" and not gpus() and processors() > 1:
        abreast(stages, methods, seed, run)
    return run_all(stages)


def run_all(stages: Iterable[Stage]) -> list[tuple[Stage, str]]:
    """Runs stages in their order; who needs one that failed is passed over."""
    failures: list[tuple[Stage, str]] = []
    lost: set[int] = set()
    for stage in stages:
        if any(id(need) in lost for need in stage.needs):
            lost.add(id(stage))
            continue
        try:
            run_one(stage)
        except UserError as error:
            lost.add(id(stage))
            failures.append((stage, str(error)))
            progress.say(f"failed: {stage}: {error}")
    return failures


def run_one(stage: Stage) -> None:
    """Runs a stage here; one that is for several devices in processes of its own, which its launcher multiplies."""
    check_nodes(stage.context.run)
    if stage.spread and stage.context.run.several and "LOCAL_RANK" not in os.environ and not stage.is_complete():
        code = follow([sys.executable, "-m", "benchmark", *stage.command()])
        if code in (130, 143, -signal.SIGINT, -signal.SIGTERM):
            raise Stopped(f"stopped while it ran {stage}; the same command continues", code if code > 0 else 128 - code)
        if code:
            raise UserError(
                f"{stage} on {stage.context.run.devices} devices ended with exit code {code}: its message stands above"
            )
        return
    try:
        stage.run()
    except (MemoryError, RuntimeError) as error:
        if not is_memory(error):
            raise
        advice = "more devices share a training's batch" if stage.kind == "train" else "sample.batch is part of the protocol"
        reason = (str(error).splitlines() or ["out of memory"])[0]
        raise UserError(f"{stage}: the memory is full ({reason}); {advice}") from None


def abreast(stages: Sequence[Stage], methods: Sequence[str], seed: int, run: Run) -> None:
    """Trainings first, then cells, in as many one-thread processes as there are processors.

    Two of them do a quarter more than one process with two threads.

    What fails here fails again, with its reason, when the stages are walked afterwards.
    """
    for stage in stages:
        if stage.kind in ("shards", "reference") and not stage.is_complete():
            run_one(stage)
    trainings = [stage for stage in stages if isinstance(stage, Train) and not stage.is_complete()]
    side_by_side([(f"train {stage.title}", stage.command()) for stage in trainings], run)
    protocol = stages[0].protocol
    where = [*protocol.overrides, "--protocol", protocol.source, "--seed", str(seed), "--out", str(run.out)]
    where += ["--data", run.data] if run.data else []
    left = {stage.cell.method for stage in stages if stage.kind == "score" and not stage.is_complete()}
    side_by_side([(f"cells of {name}", ["score", name, *where]) for name in methods if name in left], run)


def side_by_side(jobs: Sequence[tuple[str, list[str]]], run: Run) -> None:
    """Runs commands in one-thread processes, as many at once as there are processors; their output goes to OUT/log."""
    waiting, running = list(jobs), {}
    (run.out / "log").mkdir(parents=True, exist_ok=True)
    with progress.stage("jobs", len(jobs), "job") as shown:
        try:
            while waiting or running:
                while waiting and len(running) < processors():
                    title, command = waiting.pop(0)
                    log = open(run.out / "log" / f"{title.replace(' ', '-').replace('/', '-')}.txt", "w")  # noqa: SIM115
                    environment = os.environ | {"OMP_NUM_THREADS": "1", "TERM": "dumb"}
                    words = [sys.executable, "-m", "benchmark", *command]
                    running[title] = subprocess.Popen(
                        words, stdout=log, stderr=subprocess.STDOUT, env=environment | {PARENT: str(os.getpid())}
                    )
                for title in [title for title, child in running.items() if child.poll() is not None]:
                    running.pop(title)
                    shown.advance(1, f"last: {title}")
                time.sleep(0.2)
        finally:  # Ctrl-C above all: a training saves what it has
            for child in running.values():
                child.send_signal(signal.SIGTERM)
            for child in running.values():
                child.wait()


def follow(command: list[str]) -> int:
    """Runs a command in a process group of its own and returns its exit code.

    Ctrl-C and the like are handed to the whole group, once to every process, and what these then save is waited for.
    """
    child: subprocess.Popen | None = None
    early: list[int] = []  # signals that come before there is somebody to hand them to

    def hand_on(number: int, frame: Any) -> None:
        if child is None:
            early.append(number)
        else:
            os.killpg(child.pid, number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        child = subprocess.Popen(command, process_group=0, env=os.environ | {PARENT: str(os.getpid())})
        for number in early:
            os.killpg(child.pid, number)
        return child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_for(failures: Sequence[tuple[Stage, str]]) -> None:
    """One line for all that failed, each reason once."""
    if failures:
        reasons: dict[str, list[str]] = {}
        for stage, reason in failures:
            reasons.setdefault(reason, []).append(str(stage))
        told = "; ".join(f"{listed(stages)}: {reason}" for reason, stages in list(reasons.items())[:5])
        raise UserError(f"{len(failures)} stages failed: {told}")
