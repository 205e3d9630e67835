"""The campaign of a user who means no good: `make faults`. Bad inputs by the table, then SIGKILL at random moments and resume.

    PYTHONPATH=.:tests python tests/faults/campaign.py [inputs|kills] [words of a case's name]

Every bad input goes through the real command line and has to end with exit code 2, one line that says what was expected, no
traceback, within a minute, and nothing written outside OUT. Every killed run is started again, is killed again, and ends with
the bits of a run that nobody disturbed, no drafts, and no process that outlives its parent.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import safetensors.numpy

from benchmark.files import ROOT
from faults import table
from faults.driver import Command, Ran

STAY = 10.0  # seconds that a process may outlive the one that started it
CHAIN, CHAINS = 4, 2  # kills in a row, and rows, for each stage and number of processes
SMOKE = ["--protocol", "smoke"]


def tree(folder: Path, *left_out: str) -> set[str]:
    """Every path below a folder, but for some that lie directly in it."""
    found = set()
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        if parts[0] not in left_out:
            found.add("/".join(parts))
    return found


def run(words: list[str], folder: Path, limit: float = 60.0, log: str = "log") -> Ran:
    return Command(words, folder / log, {"CWD": str(folder / "cwd")}).wait(limit)


def base(home: Path) -> None:
    """The complete smoke run that cases damage and kills are compared with."""
    folder = home / "base"
    (folder / "cwd").mkdir(parents=True)
    made = run(["bench", "extrapolation", *SMOKE, "--out", str(folder / "runs")], folder, 600)
    if made.code:
        raise SystemExit(f"the run that everything is compared with failed:\n{made.out}\n{made.err}")
    shutil.copytree(next((folder / "runs" / "data").glob("shapes-*")), folder / "shards")
    shutil.copy(next((folder / "runs" / "trainings").glob("*/weights.safetensors")), folder / "weights.safetensors")
    table.BASE = folder


# --- Bad inputs ------------------------------------------------------------------------------------------------------


def verdict(case: table.Case, ran: Ran, strays: set[str]) -> str:
    """ "clean", or what is wrong."""
    if ran.code is None:
        return "endless"
    if "Traceback" in ran.err or "Traceback" in ran.out or ran.code not in (0, 2):
        return "traceback"
    if ran.code == 0:
        return "accepted"
    if strays:
        return f"wrote {sorted(strays)[:3]}"
    lines = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    if len(lines) != 1 or "Usage:" in ran.err:
        return "not one line"
    if len(max(lines, default="")) > 1200:
        return "a line of more than 1200 characters"
    if case.said not in " ".join(ran.err.split()):
        return f"does not say '{case.said}'"
    return "clean"


def inputs(home: Path, words: str) -> Counter[str]:
    counts: Counter[str] = Counter()
    slowest = (0.0, "")
    for number, case in enumerate(case for case in table.CASES if words in case.name):
        folder = home / f"case-{number:03}"
        (folder / "cwd").mkdir(parents=True)
        command = case.words(folder)
        if "--out" not in command and command[0] != "@records" and "--samples" not in command:
            command = [*command, "--out", str(folder / "out")]
        before = tree(folder, "out", "log")
        ran = run(command, folder)
        found = verdict(case, ran, tree(folder, "out", "log") - before)
        counts[found if found in ("clean", "endless", "traceback", "accepted") else "other"] += 1
        slowest = max(slowest, (ran.seconds, case.name))
        if found != "clean":
            print(f"{found}: {case.name}\n    {' '.join(command)[:200]}\n    {ran.err.strip()[-600:]}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
    print(f"slowest: {slowest[1]} ({slowest[0]:.1f} s)")
    return counts


# --- Kill and resume -------------------------------------------------------------------------------------------------

# {stage: (words, what of the complete run it starts from, what it makes)}
STAGES = {
    "train": (["train", "extrapolation", "--every-steps", "3"], ("data",), "trainings/*/weights.safetensors"),
    "sample": (["sample", "extrapolation"], ("data", "trainings"), "cells/*/*/features/*/*.safetensors"),
    "score": (["score", "extrapolation"], ("data", "trainings", "cells"), "records/**/*.json"),
    "board": (["@records"], (), "out/**/*"),  # of the committed records, for the smoke protocol has none
}
VOLATILE = ("hours", "code")  # of a record: what the clock says, and the state of the checkout


def content(path: Path) -> object:
    """What a result holds, without the clock."""
    if path.suffix == ".safetensors":
        return {k: hashlib.sha256(np.ascontiguousarray(v)).hexdigest() for k, v in safetensors.numpy.load_file(path).items()}
    if path.suffix == ".json" and "records" in path.parts:
        value = json.loads(path.read_text())
        value["training"].pop("hours", None)
        return {key: value[key] for key in value if key not in VOLATILE}
    return hashlib.sha256(path.read_bytes()).hexdigest()


def results(out: Path, pattern: str) -> dict[str, object]:
    found = {str(path.relative_to(out)): content(path) for path in sorted(out.glob(pattern)) if path.is_file()}
    return {name: value for name, value in found.items() if not Path(name).name.startswith(".")}


def start(stage: str, out: Path, home: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    for name in STAGES[stage][1]:
        shutil.copytree(home / "base" / "runs" / name, out / name)
    if stage == "board":
        shutil.copytree(ROOT / "leaderboards" / "records", out / "records")
    for path in out.glob("cells/*/*/record-*.json") if stage == "score" else ():
        path.unlink()


def kills(home: Path, words: str) -> Counter[str]:
    counts: Counter[str] = Counter()
    chance = random.Random(0)
    folder = home / "kills"
    (folder / "cwd").mkdir(parents=True)
    for stage in (name for name in STAGES if words in name):
        verb, _, pattern = STAGES[stage]
        for processes in (1, 2):
            # Stages of several devices run on two; the others as two commands at once in one OUT.
            spread = processes > 1 and stage in ("train", "sample")
            out = folder / "out"
            command = [*verb, *SMOKE, "--out", str(out), *(["--devices", "2"] if spread else [])]
            command = ["@records", str(out / "records")] if stage == "board" else command
            start(stage, out, home)
            whole = run(command, folder, 300)
            if whole.code:
                raise SystemExit(f"{stage} with {processes}: {whole.err}")
            wanted = results(out, pattern)
            assert wanted, (stage, pattern)
            for _ in range(CHAINS):
                start(stage, out, home)
                struck = tries = 0
                while struck < CHAIN and tries < 4 * CHAIN:
                    tries += 1
                    side = 1 if spread or processes == 1 else 2
                    running = [Command(command, folder / f"log-{n}", {"CWD": str(folder / "cwd")}) for n in range(side)]
                    time.sleep(chance.uniform(0, 0.9) * whole.seconds)
                    ended = False
                    for one in running:
                        done = one.poll()
                        if done is None:
                            one.kill()
                            counts["killed"] += 1
                            struck += 1
                        elif done != 0 and side == 1:
                            counts["failed"] += 1
                            print(f"{stage} with {processes}: {(one.log / 'err').read_text()[-500:]}", flush=True)
                        else:
                            counts["had ended"] += 1
                            ended = True
                    limit = time.monotonic() + STAY
                    while (left := [pid for one in running for pid in one.orphans()]) and time.monotonic() < limit:
                        time.sleep(0.1)
                    if left:
                        counts["outlived"] += len(left)
                        print(f"{stage} with {processes}: {len(left)} processes outlive their parent", flush=True)
                        for pid in left:
                            os.kill(pid, signal.SIGKILL)
                    if ended and struck < CHAIN:
                        start(stage, out, home)  # nothing is left to be interrupted
                end = run(command, folder, 300)
                drafts = list(out.rglob(".*.part"))
                same = results(out, pattern) == wanted
                counts["equal" if end.code == 0 and same else "different"] += 1
                counts["drafts"] += len(drafts)
                if end.code or not same or drafts:
                    found = f"code {end.code}, equal {same}, drafts {drafts[:3]}"
                    print(f"{stage} with {processes}: {found}\n{end.err[-800:]}", flush=True)
    return counts


def main(part: str = "", words: str = "") -> int:
    began = time.monotonic()
    bad = 0
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
        base(home)
        if part in ("", "inputs"):
            counts = inputs(home, words)
            bad += counts.total() - counts["clean"]
            print(", ".join([f"bad inputs: {counts.total()} tried", *(f"{counts[n]} {n}" for n in
                  ("clean", "accepted", "traceback", "endless", "other"))]), flush=True)  # fmt: skip
        if part in ("", "kills"):
            counts = kills(home, words)
            bad += sum(counts[name] for name in ("failed", "outlived", "different", "drafts"))
            print(", ".join([f"kills: {counts['killed']}", *(f"{counts[n]} {n}" for n in
                  ("had ended", "failed", "outlived", "equal", "different", "drafts"))]), flush=True)  # fmt: skip
    print(f"{time.monotonic() - began:.0f} s")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
