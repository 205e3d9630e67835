"""A sweep as jobs: the graph, what SLURM is told, and whole sweeps through submitit's local executor."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from rich.console import Console

from benchmark import protocol
from benchmark.__main__ import app
from benchmark.files import ROOT, Stopped, UserError
from benchmark.identity import cells_of
from benchmark.plan import stages
from benchmark.plan.place import Run
from benchmark.plan.stages import COMPLETE, MISSING
from benchmark.run import slurm
from benchmark.run.slurm import Commands, Submitted, Task

SMOKE = ["extrapolation", "yarn", "nope"]
SHARDS, REAL = "shards shapes, 64 pictures", "64 of shapes at {}"


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> list[Task]:
    return slurm.tasks(protocol.load("smoke"), SMOKE, 3, Run(tmp_path_factory.mktemp("runs"), "", "2", 1))


@pytest.fixture(autouse=True)
def at_home(monkeypatch) -> None:
    """Jobs import this repository from where they were submitted."""
    monkeypatch.chdir(ROOT)


# --- The graph -------------------------------------------------------------------------------------------------------


def test_every_cell_comes_after_its_training_and_its_reference(graph):
    names = [task.name for task in graph]
    assert len(set(names)) == len(names)
    by_name = {task.name: task for task in graph}
    assert [name for name in names if name.startswith("train")] == ["train extrapolation at 16x16", "train nope at 16x16"]
    for cell in cells_of(protocol.load("smoke"), SMOKE, 3):
        task = by_name[f"cell {cell.method} {cell.train} -> {cell.test}"]
        trained = "nope" if cell.method == "nope" else "extrapolation"
        shared = {"cell extrapolation 16x16 -> 16x16"} if (cell.method, cell.test) == ("yarn", "16x16") else set()
        assert set(task.needs) == {f"train {trained} at 16x16", f"reference {REAL.format(cell.test)}"}
        assert set(task.after) == shared
        assert by_name[f"reference {REAL.format(cell.test)}"].needs == (SHARDS,)
    assert by_name["train nope at 16x16"].needs == (SHARDS,)
    assert by_name[SHARDS].needs == ()
    assert set(by_name["end"].after) == set(names) - {"end"}
    for number, task in enumerate(graph):
        assert set(task.needs) | set(task.after) <= set(names[:number])


def test_jobs_run_the_ordinary_verbs(graph):
    """Every command parses, and names the same run and protocol."""
    by_name = {task.name: task for task in graph}
    (train,) = by_name["train nope at 16x16"].commands
    assert train[:2] == ("train", "nope")
    sample, score = by_name["cell yarn 16x16 -> 32x24"].commands
    assert (sample[0], score[0]) == ("sample", "score")
    options = dict(zip(sample[2::2], sample[3::2], strict=True))
    assert options["--test"] == "32x24"
    assert (options["--protocol"], options["--seed"], options["--devices"]) == ("smoke", "3", "2")
    assert "--devices" not in score
    assert [command[0] for command in by_name["end"].commands] == ["board", "plan"]
    out = options["--out"]
    verbs = typer.main.get_command(app).commands
    for verb, *words in (command for task in graph for command in task.commands):
        assert out in words
        verbs[verb].make_context(verb, words)


def test_only_what_is_missing_becomes_a_job(tmp_path):
    from benchmark.data import writer
    from benchmark.data.card import load_card

    found = protocol.load("smoke")
    card = load_card(found.data.card)
    writer.prepare(dataclasses.replace(card, count=found.data.count), None, tmp_path / "data", workers=1)
    names = [task.name for task in slurm.tasks(found, ["nope"], 0, Run(tmp_path, "", "1", 1))]
    assert SHARDS not in names
    assert "train nope at 16x16" in names


def test_jobs_end_with_the_table_of_the_run_and_say_its_settings(tmp_path):
    run = Run(tmp_path, "", "1", 1)
    custom = slurm.tasks(protocol.load("shapes", ["train.steps=5"]), ["nope"], 0, run)
    for end in (slurm.tasks(protocol.load("shapes"), ["nope"], 0, run)[-1], custom[-1]):
        assert [command[0] for command in end.commands] == ["board", "plan"]
    for task in custom:
        for command in task.commands:
            assert ("train.steps=5" in command) == (command[0] != "reference"), command


def test_a_reference_needs_the_pictures(tmp_path):
    with pytest.raises(UserError, match="give their folder as DATA"):
        slurm.tasks(protocol.load("imagenet-256-s2"), ["nope"], 0, Run(tmp_path, "", "1", 1))


def test_trainings_wait_for_their_latents(tmp_path):
    run = Run(tmp_path, str(tmp_path / "pictures"), "4", 1)
    (tmp_path / "pictures" / "n01440764").mkdir(parents=True)
    (tmp_path / "pictures" / "n01440764" / "a.JPEG").write_bytes(b"a picture, which nobody reads")
    found = {task.name: task for task in slurm.tasks(protocol.load("imagenet-256-s2"), ["nope"], 0, run)}
    pictures, latents = (next(task for task in found.values() if task.kind == kind) for kind in ("data", "latents"))
    assert latents.needs == (pictures.name,)
    assert found["train nope at 256x256"].needs == (latents.name,)
    (command,) = latents.commands
    assert command[command.index("--train") + 1] == "256x256"
    assert command[command.index("--devices") + 1] == "4"


# --- What SLURM is told ----------------------------------------------------------------------------------------------


@pytest.fixture
def fake_slurm(tmp_path, monkeypatch) -> Path:
    """Stand-ins for SLURM's commands: sbatch keeps what it is given and numbers it."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "srun").write_text("#!/bin/sh\n")
    (programs / "sbatch").write_text(
        f'#!/bin/sh\nn=$(ls {programs} | grep -c sh$)\ncp "$1" {programs}/$((n + 100)).sh\n'
        'echo "Submitted batch job $((n + 100))"\n'
    )
    for name in ("srun", "sbatch"):
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return programs


def asked(script: Path) -> dict[str, str]:
    """The #SBATCH lines of a submitted script."""
    return dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", script.read_text(), flags=re.M))


def test_slurm_gets_arrays_with_dependencies(fake_slurm, tmp_path):
    pytest.importorskip("submitit")
    file = tmp_path / "cluster.yaml"
    file.write_text("all: {slurm_partition: gpu, timeout_min: 600}\ncell: {timeout_min: 60, slurm_qos: short}\n")
    with file.open("a") as more:
        more.write("train: {slurm_constraint: h100, mem_gb: 200}\n")
    run = Run(tmp_path / "runs", "", "2", 1)
    done = slurm.start(protocol.load("smoke"), SMOKE, 3, run, "slurm", file)
    assert {item.state for item in done} == {"submitted"}
    jobs = {item.task.name: item.job.job_id for item in done}
    scripts = {path.stem: asked(path) for path in fake_slurm.glob("*.sh")}
    # Shards, three references, two trainings, then arrays of the cells that need the same.
    assert jobs[SHARDS] == "100"
    assert {jobs["train extrapolation at 16x16"], jobs["train nope at 16x16"]} == {"102_0", "102_1"}
    assert scripts["100"]["partition"] == "gpu"
    assert "dependency" not in scripts["100"]
    assert scripts["102"]["dependency"] == "afterok:100"
    assert scripts["102"]["array"].startswith("0-1")
    assert scripts["102"]["ntasks-per-node"] == "2"
    assert scripts["102"]["gpus-per-node"] == "2"
    assert scripts["102"]["time"] == "600"
    assert (scripts["102"]["constraint"], scripts["102"]["mem"]) == ("h100", "200GB")
    others = {name: told for name, told in scripts.items() if name != "102"}
    assert not any({"constraint", "mem"} & told.keys() for told in others.values()), "what is asked for trainings is theirs alone"
    started = re.search(
        r"^srun .*--kill-on-bad-exit=1 --wait=0 --cpus-per-task=8 ", (fake_slurm / "102.sh").read_text(), flags=re.M
    )
    assert started, "what early ranks, failed ones and the others' processors need of srun"
    cell = jobs["cell yarn 16x16 -> 32x24"]
    assert cell.split("_")[0] == jobs["cell extrapolation 16x16 -> 32x24"].split("_")[0], "one array"
    told = scripts[cell.split("_")[0]]
    needed = {jobs["train extrapolation at 16x16"], jobs[f"reference {REAL.format('32x24')}"]}
    assert told["dependency"].split(":")[0] == "afterok"
    assert set(told["dependency"].split(":")[1:]) == needed
    assert told["kill-on-invalid-dep"] == "yes"
    assert (told["time"], told["qos"]) == ("60", "short")
    shared = scripts[jobs["cell yarn 16x16 -> 16x16"].split("_")[0]]["dependency"]
    assert f",afterany:{jobs['cell extrapolation 16x16 -> 16x16']}" in shared, "its images are likely the same"
    last = scripts[jobs["end"]]
    assert last["dependency"].startswith("afterany:")
    assert set(last["dependency"].split(":")[1:]) == set(jobs.values()) - {jobs["end"]}
    done[0].reason = "not in [/data/x]"
    shown = Console(file=io.StringIO(), width=200, markup=False)
    slurm.print_summary(done, shown)
    assert done[0].reason in shown.file.getvalue()


def test_a_cell_that_has_its_samples_is_scored_once(fake_slurm, tmp_path, monkeypatch):
    """The processes that share the sampling of a cell would each score it, and write over each other's records."""
    monkeypatch.setattr(stages.Sample, "state", lambda self: COMPLETE if self.cell.test == "32x24" else MISSING)
    done = slurm.start(protocol.load("smoke"), SMOKE, 3, Run(tmp_path / "runs", "", "2", 1), "slurm")
    scripts = {path.stem: asked(path) for path in fake_slurm.glob("*.sh")}
    for item in done:
        if item.task.kind == "cell":
            sampled = item.task.name.endswith("32x24")
            assert [command[0] for command in item.task.commands] == (["score"] if sampled else ["sample", "score"])
            told = scripts[item.job.job_id.split("_")[0]]
            count = "1" if sampled else "2"
            assert (told["ntasks-per-node"], told["gpus-per-node"]) == (count, count)


def test_a_rejected_job_names_those_before_it(fake_slurm, tmp_path):
    """They would run on, and nobody waits for them."""
    accept = (fake_slurm / "sbatch").read_text()
    reject = 'if grep -q posbench-train "$1"; then echo "Invalid account" >&2; exit 1; fi\n'
    (fake_slurm / "sbatch").write_text(accept.replace("#!/bin/sh\n", f"#!/bin/sh\n{reject}"))
    with pytest.raises(UserError, match=r"SLURM rejected a job \(.*Invalid account.*\); cancel .* scancel 100 101$"):
        slurm.start(protocol.load("smoke"), SMOKE, 3, Run(tmp_path / "runs", "", "2", 1), "slurm")


def test_who_stops_waiting_is_told_of_the_jobs(fake_slurm, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise Stopped("stopped; run the same command to continue", 130)

    monkeypatch.setattr(slurm, "wait_for", stop)
    with pytest.raises(Stopped, match=r"^stopped waiting; the jobs go on, and `scancel 100 101 .*` ends them$") as stopped:
        slurm.start(protocol.load("smoke"), SMOKE, 3, Run(tmp_path / "runs", "", "2", 1), "slurm", wait=True)
    assert stopped.value.code == 130


def test_who_stops_the_submitting_is_told_what_was_submitted(fake_slurm, tmp_path, monkeypatch):
    """The same command would submit trainings a second time, and these would find the first ones' locks."""
    original, groups = slurm.Queue.submit, []

    def stopped_at_third(self, group, after=""):
        groups.append(group)
        if len(groups) == 3:
            raise Stopped("stopped; finished work is kept, run the same command to continue", 129)
        return original(self, group, after)

    monkeypatch.setattr(slurm.Queue, "submit", stopped_at_third)
    told = r"^stopped while submitting; end the submitted jobs before you submit again: `scancel 100 101` \(`squeue --me`"
    with pytest.raises(Stopped, match=told) as stopped:
        slurm.start(protocol.load("smoke"), SMOKE, 3, Run(tmp_path / "runs", "", "2", 1), "slurm")
    assert stopped.value.code == 129


def test_without_slurm_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"cannot submit to slurm: .*srun"):
        slurm.start(protocol.load("smoke"), ["nope"], 0, Run(tmp_path, "", "1", 1), "slurm")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("everything: {mem_gb: 3}", "unknown kind of job in .*everything"),
        ("all: 3", "must map job kinds to submitit parameters"),
        ("- a", "must map job kinds"),
        ("all: {{", "is not YAML"),
        ("all: {slurm_partition: gpu}\nall: {mem_gb: 3}", "is not YAML .*the key 'all' stands there twice"),
    ],
)
def test_bad_resources_are_refused(text, message, tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        slurm.resources(file)


def test_an_empty_section_of_resources_changes_nothing(tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text("all: {slurm_partition: gpu}\nlatents:\n")
    assert slurm.resources(file)["latents"] == slurm.DEFAULTS | {"slurm_partition": "gpu"}


def test_an_unknown_parameter_is_refused_by_name(fake_slurm, tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text("all: {slurm_partitoin: gpu}")
    with pytest.raises(UserError, match=r"resources for data jobs: .*partitoin"):
        slurm.start(protocol.load("smoke"), ["nope"], 0, Run(tmp_path, "", "1", 1), "slurm", file)


@pytest.mark.parametrize("cluster", slurm.CLUSTERS)
def test_resources_of_a_later_job_are_refused_before_the_first(cluster, fake_slurm, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm.Queue, "submit", lambda *_: pytest.fail("a job was submitted"))
    file = tmp_path / "cluster.yaml"
    file.write_text("cell: {timeout_min: long}")
    with pytest.raises(UserError, match=r"resources for cell jobs: .*timeout_min"):
        slurm.start(protocol.load("smoke"), ["nope"], 0, Run(tmp_path, "", "1", 1), cluster, file)


def test_unknown_cluster_lists_the_choices(tmp_path):
    with pytest.raises(UserError, match=r"unknown cluster 'slrm'; did you mean 'slurm'"):
        slurm.start(protocol.load("smoke"), ["nope"], 0, Run(tmp_path, "", "1", 1), "slrm")


# --- Through submitit on this machine --------------------------------------------------------------------------------


def python(monkeypatch) -> None:
    """Lets the words of a task's commands be Python for a fresh interpreter."""
    monkeypatch.setattr(slurm, "command_lines", lambda task: [[sys.executable, "-c", *command] for command in task.commands])


def followed(tasks: list[Task], folder: Path) -> dict[str, Submitted]:
    queue = slurm.Queue("local", folder / "jobs", slurm.resources(None))
    todo = [Submitted(task) for task in tasks]
    slurm.wait_for(todo, queue, every=0.05)
    return {item.task.name: item for item in todo}


def test_a_failure_skips_what_needs_it_and_nothing_else(tmp_path, monkeypatch):
    python(monkeypatch)
    note = f"open({str(tmp_path / 'order')!r}, 'a').write('%s ')"
    ended = followed(
        [
            Task("a", "train", ((note % "a",),)),
            Task("b", "train", (("import sys; sys.exit('error: no such thing')",),)),
            Task("of a", "cell", ((note % "sample",), (note % "score",)), ("a",)),
            Task("of b", "cell", ((note % "never",),), ("b",)),
            Task("beside b", "cell", ((note % "beside",),), ("a",), after=("of b",)),
            Task("end", "end", ((note % "end",),), after=("a", "b", "of a", "of b", "beside b")),
        ],
        tmp_path,
    )
    assert {name: item.state for name, item in ended.items()} == {
        "a": "done", "b": "failed", "of a": "done", "of b": "skipped", "beside b": "done", "end": "done",
    }  # fmt: skip
    assert ended["b"].reason == "no such thing"
    assert ended["of b"].reason == "needs b"
    assert (tmp_path / "order").read_text() == "a sample score beside end "


SWEEP = """
import signal, sys, time
from pathlib import Path
from benchmark.__main__ import stop
from benchmark.files import Stopped, stop_signals
from benchmark.run import slurm
folder = Path(sys.argv[1])
code = '''
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def save(*_):
    time.sleep(2)  # longer than submitit waits before it kills
    (folder / "saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
(folder / "began").touch()
time.sleep(60)
'''
slurm.command_lines = lambda task: [[sys.executable, "-c", *command] for command in task.commands]
for number in stop_signals():
    signal.signal(number, stop)
todo = [slurm.Submitted(slurm.Task("a", "train", ((code, str(folder)),)))]
try:
    slurm.wait_for(todo, slurm.Queue("local", folder / "jobs", slurm.resources(None)), 0.05)
except Stopped as stopped:
    print("saved" if (folder / "saved").exists() else "not saved", stopped)
"""


@pytest.mark.parametrize("terminal", [False, True])
def test_a_sweep_that_is_stopped_stops_its_job(terminal, tmp_path):
    """The command saves before the sweep ends, whether the sweep alone is told or, as by Ctrl-C, all its processes."""
    sweep = subprocess.Popen(
        [sys.executable, "-c", SWEEP, str(tmp_path)], cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    until = time.monotonic() + 240
    while not (tmp_path / "began").exists() and time.monotonic() < until:
        time.sleep(0.05)
    if terminal:
        os.killpg(sweep.pid, signal.SIGINT)
    else:
        sweep.terminate()
    said, _ = sweep.communicate(timeout=120)
    assert said.startswith("saved stopped"), said


def test_the_first_failing_command_ends_a_job(tmp_path, monkeypatch):
    python(monkeypatch)
    ended = followed([Task("a", "cell", (("raise SystemExit(3)",), (f"open({str(tmp_path / 'x')!r}, 'w')",)))], tmp_path)
    assert ended["a"].state == "failed"
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("rank", "code", "fails"), [(0, 143, True), (1, 143, False), (1, 1, True), (1, 0, False)])
def test_a_process_that_has_saved_does_not_end_the_others(rank, code, fails, monkeypatch):
    """The first process is still putting the job back into the queue; what failed ends all."""
    monkeypatch.setattr(slurm.submitit, "JobEnvironment", lambda: SimpleNamespace(global_rank=rank))
    work = Commands([[sys.executable, "-c", f"import sys; sys.exit({code})"]])
    with pytest.raises(subprocess.CalledProcessError) if fails else contextlib.nullcontext():
        work()


def test_the_first_process_is_alone_after_the_command_that_all_share(monkeypatch, tmp_path):
    """Scoring, which follows sampling in a job of several tasks, is no task among several."""
    for name, value in (("STEP_NUM_TASKS", 4), ("NTASKS", 4), ("NTASKS_PER_NODE", 2), ("PROCID", 0)):
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    monkeypatch.setattr(slurm.submitit, "JobEnvironment", lambda: SimpleNamespace(global_rank=0))
    code = """
import sys
from benchmark.plan.place import Run, check_ranks, tasks
check_ranks(Run(devices=sys.argv[1], nodes=int(sys.argv[2])))
open(sys.argv[3], "a").write(f"{tasks()} ")
"""
    work = [[sys.executable, "-c", code, *words, str(tmp_path / "seen")] for words in (("2", "2"), ("auto", "1"))]
    monkeypatch.chdir(ROOT)
    Commands(work)()
    assert (tmp_path / "seen").read_text() == "4 1 "


def test_at_its_time_limit_a_job_saves_and_is_queued_again(tmp_path):
    """The command gets SIGTERM and nothing else, ends, and is run again by the same job."""
    import submitit

    starts, stops = tmp_path / "starts", tmp_path / "stops"
    code = f"""
import pathlib, signal, sys, time
starts, stops = pathlib.Path({str(starts)!r}), pathlib.Path({str(stops)!r})
def stop(*_):
    stops.write_text("saved")
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
starts.write_text((starts.read_text() if starts.exists() else "") + "x")
while not stops.exists():
    time.sleep(0.02)
"""
    executor = submitit.AutoExecutor(tmp_path / "jobs", cluster="local", local_max_num_timeout=5)
    executor.update_parameters(timeout_min=1)
    job = executor.submit(Commands([[sys.executable, "-c", code]]))
    until = time.monotonic() + 60
    while not starts.exists() and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.2)  # the handler of the command is in place once it has written
    (task,) = Path(f"/proc/{job.job_id}/task/{job.job_id}/children").read_text().split()
    (child,) = Path(f"/proc/{task}/task/{task}/children").read_text().split()
    for process in (child, task):  # as SLURM does: every process of the job is told
        os.kill(int(process), signal.SIGUSR2)
    while not stops.exists() and time.monotonic() < until:
        time.sleep(0.05)
    if not stops.exists():
        job.cancel()
    assert job.exception() is None
    assert stops.read_text() == "saved"
    assert starts.read_text() == "xx"


def test_a_job_that_is_still_saving_when_its_time_is_up_is_queued_again():
    """SLURM would end it before submitit has queued it; the next one continues from the previous checkpoint."""
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    work = Commands([[sys.executable, "-c", code]], notice=1.0)
    work.child = subprocess.Popen(*work.commands, stdout=subprocess.PIPE, text=True)
    try:
        assert work.child.stdout.readline() == "ready\n"
        began = time.monotonic()
        work.checkpoint()
        assert 0.4 < time.monotonic() - began < 20
        assert work.child.poll() is None
    finally:
        work.child.kill()
        work.child.communicate()


class Here(slurm.Queue):
    """Runs the commands of jobs in this process, where torch has been imported; submitit's own jobs are tested above."""

    def submit(self, group: Sequence[Task], after: str = "") -> list[SimpleNamespace]:
        for task in group:
            for words in task.commands:
                app(list(words), standalone_mode=False)
        ended = {"job_id": "7", "done": lambda: True, "exception": lambda: None, "paths": SimpleNamespace(stdout="")}
        return [SimpleNamespace(**ended) for _ in group]


def test_a_whole_sweep_as_jobs(tmp_path, monkeypatch, capsys):
    """The real verbs: shards, training, reference, a cell, and the plan that finds nothing missing."""
    monkeypatch.setattr(slurm, "Queue", Here)
    file = tmp_path / "tiny.yaml"
    text = (protocol.FOLDER / "smoke.yaml").read_text()
    text = text.replace("16x16: [16x16, 32x32, 32x24]", "16x16: [24x16]").replace("steps: 20", "steps: 2")
    file.write_text(text)
    out = tmp_path / "runs"
    arguments = ["sweep", "--protocol", str(file), "--methods", "nope", "--cluster", "local", "--devices", "1", "--out", str(out)]
    app(arguments, standalone_mode=False)
    assert "5 done" in capsys.readouterr().out
    found = protocol.load(str(file))
    assert [path.name for path in out.glob(f"records/{found.hash}/tiny/nope/*.json")] == ["16x16-24x16-s0.json"]
    assert len(list(out.glob("references/*.npz"))) == 1, "scoring used the reference that its own job had made"
    app(arguments, standalone_mode=False)
    assert "1 done" in capsys.readouterr().out, "nothing but the closing plan was left to run"


@pytest.mark.parametrize(("rank", "seen"), [(0, "ab"), (1, "a")])
def test_the_first_process_alone_goes_on_after_what_all_do(rank, seen, monkeypatch, tmp_path):
    """A cell is sampled by all processes and scored by one."""
    submitit = pytest.importorskip("submitit")
    monkeypatch.setattr(submitit, "JobEnvironment", lambda: SimpleNamespace(global_rank=rank))
    Commands([[sys.executable, "-c", f"open({str(tmp_path / 'x')!r}, 'a').write({letter!r})"] for letter in "ab"])()
    assert (tmp_path / "x").read_text() == seen


def test_where_jobs_are_placed(fake_slurm, tmp_path):
    queue = slurm.Queue("slurm", tmp_path, slurm.resources(None), devices=4, nodes=2, gpus=True)

    def placed(kind: str, distributed: bool) -> tuple[int, ...]:
        """Nodes, processes on each, GPUs of each."""
        return tuple(queue.placement(Task("x", kind, (), distributed=distributed)).values())

    assert placed("train", True) == placed("cell", True) == (2, 4, 4)
    assert placed("latents", True) == (1, 1, 4)
    assert placed("reference", False) == placed("cell", False) == (1, 1, 1)
    assert placed("data", False) == placed("end", False) == (1, 1, 0)
