"""What a newcomer meets first: the README's commands, make's verbs and variables, the notebook, the teaser, the workflows."""

from __future__ import annotations

import inspect
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from operator import itemgetter
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import pytest
import typer
import yaml
from PIL import Image
from rich.console import Console
from synthetic import value_of
from typer.testing import CliRunner

from benchmark import protocol, registry
from benchmark.__main__ import app
from benchmark.board import generate, ranking
from benchmark.cli import options
from benchmark.data import card
from benchmark.files import ROOT, UserError
from benchmark.measure import teaser
from benchmark.plan import own
from benchmark.results import record, verified
from benchmark.run import reproduce as reproduction
from benchmark.run import slurm

README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDES = ("README.md", "CONTRIBUTING.md", *(f"{folder}/README.md" for folder in ("datasets", "leaderboards", "methods")))
TEXTS = sorted(str(path.relative_to(ROOT)) for folder in (protocol.FOLDER, card.CARDS) for path in folder.glob("*.yaml"))
MAKE = shutil.which("make")


MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TAKES = {verb: names.split() for verb, names in re.findall(r"^TAKES_(\w+) *:= (.*)$", MAKEFILE, re.MULTILINE)}
GIVEN = {"KEEP": "1", "DEVICES": "3", "NODES": "2", "SEED": "1", "PRICE": "2.5", "DEVICE": "h200", "SET": ""}


def make(*words: str, dry: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """A dry run of make with this environment's Python, unless told otherwise: nothing is installed and nothing runs.

    An outer make hands down its own variables by the environment, so nothing but what programs are found by is kept.
    """
    command = [MAKE, *(["-n", "-o", ".venv/.installed"] if dry else []), *words]
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, env=kept | environment)


def parse(line: str) -> dict[str, object]:
    """The parameters that a command line gives to its verb of `python -m benchmark`, which has to know every option."""
    verb, *words = shlex.split(line.split("-m benchmark ", 1)[1])
    return typer.main.get_command(app).commands[verb].make_context(verb, words).params


def commands(text: str) -> list[str]:
    """The lines of a text's shell blocks, and its indented commands, without their comments."""
    blocks = re.findall(r"```sh\n(.*?)```", text.replace("\\\n", " "), re.DOTALL)
    indented = re.findall(r"^ {4}(?:make|python) .*$", text.replace("\\\n", " "), re.MULTILINE)
    lines = [*(line for block in blocks for line in block.splitlines()), *indented]
    return [line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()]


@pytest.mark.parametrize("file", [*GUIDES, *TEXTS])
def test_files_and_modules_that_a_text_names_are_there(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    folders, endings = "benchmark|tests|methods|datasets|leaderboards", "py|yaml|md|safetensors"
    named = re.findall(rf"(?<![\w/.])(?:{folders})/[\w./-]+\.(?:{endings})\b", text)
    named += [f"{module.replace('.', '/')}.py" for module in re.findall(r"python -m (benchmark\.[.\w]+)\b", text)]
    later = f"leaderboards/{verified.NAME}"  # which the first entry makes
    assert not [name for name in named if name != later and not (ROOT / name).is_file()]


@pytest.mark.skipif(not MAKE, reason="there is no make")
@pytest.mark.parametrize(
    "line", [line for file in GUIDES for line in commands((ROOT / file).read_text(encoding="utf-8")) if line.startswith("make ")]
)
def test_make_understands_every_command_of_the_guides(line):
    words = subprocess.run(["bash", "-c", f"P=shapes; printf '%s\\n' {line[5:]}"], capture_output=True, text=True, check=True)
    result = make(*words.stdout.splitlines())
    assert result.returncode == 0, result.stderr
    for command in result.stdout.splitlines():
        if "-m benchmark " in command:
            parse(command)


@pytest.mark.parametrize("file", GUIDES)
def test_python_understands_every_command_of_the_guides(file):
    lines = [line for line in commands((ROOT / file).read_text(encoding="utf-8")) if "-m benchmark " in line]
    assert lines or file not in ("README.md", "datasets/README.md")
    for line in lines:
        parse(line)


@pytest.mark.skipif(not MAKE, reason="there is no make")
@pytest.mark.parametrize("verb", [verb for verb in TAKES if verb not in ("test", "goldens", "faults")])
def test_every_variable_that_a_verb_reads_reaches_it(verb):
    given = {name: GIVEN.get(name, f"a {name.lower()}") for name in TAKES[verb]}
    result = make(verb, *(f"{name}={value}" for name, value in given.items()))
    assert result.returncode == 0, result.stderr
    seen = {name.removesuffix("_name"): str(value) for name, value in parse(result.stdout.splitlines()[-1]).items()}
    wanted = {name.lower(): "True" if name == "KEEP" else value for name, value in given.items() if value}
    assert {name: seen.get(name) for name in wanted} == wanted


@pytest.mark.skipif(not MAKE, reason="there is no make")
def test_exported_variables_change_no_run():
    """A job script's SEED or DATA would otherwise make another run of the README's command."""
    plain = make("bench", "METHOD=ntk").stdout
    assert make("bench", "METHOD=ntk", SEED="7", DATA="/elsewhere", OUT="there", KEEP="0", SET="train.steps=1").stdout == plain


@pytest.mark.skipif(not MAKE, reason="there is no make")
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("bench", "METOD=ntk"), "`make bench` does not read METOD"),
        (("sweep", "METHOD=ntk"), "`make sweep` does not read METHOD (it reads METHODS"),
        (("lint", "OUT=elsewhere"), "`make lint` does not read OUT"),
        (("bench", "KEEP=0"), "KEEP is 1 or empty, not 0"),
    ],
)
def test_a_variable_that_a_verb_does_not_read_is_an_error(words, told):
    result = make(*words)
    assert result.returncode == 2
    assert told in result.stderr


@pytest.mark.skipif(not MAKE, reason="there is no make")
def test_variables_reach_the_command_line():
    line = make("sweep", "METHODS=rpe2d yarn", "SEED=2", "KEEP=1", "SET=train.steps=5 sample.count=8").stdout
    for words in ("--methods 'rpe2d yarn'", "--seed '2'", "--keep", "train.steps=5 sample.count=8"):
        assert words in line
    assert """--data '/o'\\''brien/a b'""" in make("bench", "DATA=/o'brien/a b").stdout
    assert "--data '/a/$x'" in make("bench", "DATA=/a/$x").stdout
    line = make("reproduce", "METHOD=yarn").stdout
    assert "--seed" not in line  # a recorded one is taken
    assert "--protocol" not in line  # the data say which
    line = make("plan", "METHODS=ntk", "PRICE=2.5").stdout
    assert "--price '2.5'" in line
    assert "plan '' --methods 'ntk'" in line


@pytest.mark.skipif(not MAKE, reason="there is no make")
def test_help_lists_every_verb_in_80_columns():
    text = make("help", dry=False).stdout
    assert max(map(len, text.splitlines())) <= 80
    phony = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    for verb in " ".join(phony).split():
        assert f"make {verb} " in text, verb


def test_the_protocol_follows_the_data(tmp_path):
    assert own.default_protocol("") == "shapes"
    assert own.default_protocol(str(tmp_path)) == "folder"
    assert options.load("", None).name == "shapes"
    assert options.load("smoke", None).name == "smoke"


@pytest.mark.parametrize("words", [("list",), ("plan", "shapes", "--methods", "rpe2d yarn", "--price", "2", "--cells")])
def test_tables_fit_80_columns(words):
    result = CliRunner().invoke(app, [*words, "--out", "nowhere"])
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "…" not in result.stdout  # nothing is cut


def test_no_line_of_a_verbs_help_breaks_early():
    """Typer fills the first paragraph of a docstring, and keeps the line breaks of all others."""
    for command in app.registered_commands:
        for paragraph in inspect.cleandoc(command.callback.__doc__).split("\n\n")[1:]:
            assert "\n" not in paragraph, command.callback.__name__


def test_rows_of_this_run_are_new_in_the_terminal():
    shapes = protocol.load("shapes")
    made = [value_of(shapes, name, pair, 0, 20.0) for name in ("yarn", "ntk") for pair in shapes.pairs()]
    found = [record.from_value(value, shapes) for value in made]
    console = Console(width=160, file=io.StringIO())
    console.print(ranking.rich_table(shapes, found, {"ntk"}))
    text = console.file.getvalue()
    assert text.count("new") == 2  # at the row, and in the legend
    assert "new in this run" in text
    assert re.search(r"NTK\b.*\n.*new", text)


def test_list_says_of_every_method_what_it_is():
    text = CliRunner().invoke(app, ["list", "--out", "nowhere"]).stdout
    assert re.search(r"^ ?yarn +YaRN +training-free +2023 +2309\.00071", text, re.MULTILINE)
    assert re.search(r"^ ?rpe2d +RPE-2D +trained +2025 +2503\.18719", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "called", "seed"),
    [
        (("bench", "nope", "--protocol", "smoke"), "run.local.bench", itemgetter(2)),
        (("sweep", "--protocol", "smoke"), "run.local.bench", itemgetter(2)),
        (("sweep", "--protocol", "smoke", "--cluster", "local"), "run.slurm.start", itemgetter(2)),
        (("plan", "smoke"), "plan.stages.graph", itemgetter(2)),
        (("reproduce", "nope"), "run.reproduce.reproduce", itemgetter(2)),
        (("submit", "nope"), "run.boards.submit", itemgetter(2)),
        (("loss", "nope", "--protocol", "smoke"), "run.loss.compared", lambda arguments: arguments[0][0].seed),
        (("weights", "nope", "w.pt", "--protocol", "smoke"), "run.train.trained", lambda arguments: arguments[0].seed),
    ],
)
def test_a_command_hands_its_seed_on(words, called, seed, monkeypatch, tmp_path):
    """To what is called with it; the commands of single stages are followed to their files."""
    asked = []

    def remember(*arguments: object) -> None:
        asked.append(seed(arguments))
        raise UserError("far enough")

    monkeypatch.setattr(f"benchmark.{called}", remember)
    result = CliRunner().invoke(app, [*words, "--seed", "3", "--out", str(tmp_path)])
    assert str(result.exception) == "far enough"
    assert asked == [3]


@pytest.mark.parametrize(
    ("words", "code"), [(("identical", "reproduced", "within the seeds' spread"), 0), (("reproduced", "differs"), 1)]
)
def test_a_row_that_differs_fails_the_command(words, code, monkeypatch, tmp_path):
    lines = [SimpleNamespace(word=word) for word in words]
    monkeypatch.setattr(reproduction, "reproduce", lambda *_: lines)
    assert CliRunner().invoke(app, ["reproduce", "yarn", "--out", str(tmp_path)]).exit_code == code


def test_leaderboards_can_be_checked_or_compared_and_not_both(monkeypatch, tmp_path):
    """As CI does it; what `generate` finds is tested beside it."""
    seen = []
    monkeypatch.setattr(generate, "generate", lambda **options: seen.append(options) or ["a/table.md"])
    assert CliRunner().invoke(app, ["leaderboards", "--check"]).output == "a/table.md\n"
    assert seen == [{"check": True}]
    result = CliRunner().invoke(app, ["leaderboards", "--check", "--against", str(tmp_path)])
    assert isinstance(result.exception, UserError)
    same = CliRunner().invoke(app, ["leaderboards", "--against", str(ROOT / "leaderboards" / "records")])
    assert same.exit_code == 0, same.output


@pytest.fixture
def folders(tmp_path):
    from benchmark.data import shapes

    for name, start in (("a", 0), ("b", 64)):
        (tmp_path / name).mkdir()
        for number, image in enumerate(shapes.render_batch("heldout", range(start, start + 64), (32, 32))):
            Image.fromarray(image).save(tmp_path / name / f"{number:02}.png")
    return tmp_path


def test_score_prints_one_json_object_alone(folders):
    words = ["--samples", str(folders / "a"), "--reference", str(folders / "b"), "--detector", "shapes", "--json"]
    result = CliRunner().invoke(app, ["score", *words])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["count"] == 64
    assert found["scores"]["fid"]["low"] <= found["scores"]["fid"]["value"] <= found["scores"]["fid"]["high"]
    assert found["detector"]["name"] == "shapes"


def test_a_reference_is_made_of_all_images_and_names_its_file(folders):
    """As the README has it: no number is given, and `score` takes the file that was named."""
    words = [str(folders / "b"), "32x32", "--detector", "shapes", "--out", str(folders / "out")]
    made = CliRunner().invoke(app, ["reference", *words])
    assert made.exit_code == 0, made.output
    file = "".join(made.stdout.split(" in ")[-1].split())
    assert "reference of 64 images in" in made.stdout
    words = ["--samples", str(folders / "a"), "--reference", file, "--detector", "shapes", "--json"]
    assert json.loads(CliRunner().invoke(app, ["score", *words]).stdout)["reference"]["count"] == 64


@pytest.mark.parametrize("words", [["--seed", "0"], ["--out", "runs"], ["--test", "32x32"], ["--keep"]])
def test_score_refuses_what_files_do_not_need(words):
    result = CliRunner().invoke(app, ["score", "--samples", "a", "--reference", "b", *words])
    assert isinstance(result.exception, UserError)
    assert words[0] in str(result.exception)


def test_json_belongs_to_files():
    result = CliRunner().invoke(app, ["score", "yarn", "--json"])
    assert isinstance(result.exception, UserError)
    assert "--json belong to --samples" in str(result.exception)


def test_the_notebook_runs(monkeypatch):
    """Its code cells one after another, as a notebook program would run them."""
    matplotlib.use("Agg")
    monkeypatch.chdir(ROOT / "leaderboards")
    monkeypatch.setattr(sys, "path", list(sys.path))
    cells = json.loads((ROOT / "leaderboards" / "explore.ipynb").read_text(encoding="utf-8"))["cells"]
    scope: dict = {"__name__": "__main__"}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []  # committed without outputs: those go stale
            exec("".join(cell["source"]), scope)
    assert len(scope["table"]) == scope["records"].method.nunique() > 1
    assert scope["compared"].loc["fid", "blurred"] > 2 * scope["compared"].loc["fid", "sharp"]


def test_the_committed_teaser_is_what_the_grids_give(tmp_path):
    methods = re.search(r"benchmark\.measure\.teaser (.*)", (ROOT / "Makefile").read_text())[1].split()
    made = teaser.draw(methods, tmp_path / "teaser.webp")
    with Image.open(made) as ours, Image.open(teaser.FILE) as committed:
        assert ours.convert("RGB").tobytes() == committed.convert("RGB").tobytes()
    assert teaser.FILE.stat().st_size < 180_000


def test_a_method_without_a_grid_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(teaser, "FOLDER", tmp_path)
    with pytest.raises(UserError, match="made from committed sample grids"):
        teaser.draw(["yarn"], tmp_path / "teaser.webp")


def test_the_example_of_resources_is_accepted():
    """By our reader, and by submitit: unknown parameters of SLURM are refused when they are set."""
    from submitit.slurm.slurm import SlurmExecutor

    common = {"timeout_min", "cpus_per_task", "mem_gb", "gpus_per_node"}
    for chosen in slurm.resources(ROOT / "cluster.example.yaml").values():
        for name in chosen.keys() - common:
            assert name.startswith("slurm_")
            assert name.removeprefix("slurm_") in SlurmExecutor._valid_parameters()


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_forms_and_workflows_are_yaml(path):
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    known = {"label", "description", "placeholder", "value", "render", "options", "multiple", "default"}  # GitHub refuses others
    for item in content.get("body", []):
        assert set(item["attributes"]) <= known, item


def test_the_readme_counts_methods_and_records():
    paths = list((ROOT / "leaderboards/records").rglob("*.json"))
    recorded = {path.parent.name for path in paths}
    seeds = {(path.parent.name, path.stem.rpartition("-s")[2]) for path in paths if path.parent.parent.name == generate.FRONT[0]}
    front = Counter(method for method, _ in seeds)
    assert set(re.findall(r"(?:implements|all)\s\[?(\d+)\s+methods", README)) == {str(len(registry.names()))}
    text = " ".join(README.split())
    seeded = r"with three seeds each; (\d+), including these, in \[`shapes-long`\]"
    told = re.search(rf"All (\d+) methods have records: (\d+) in the table's protocol, {seeded}", text)
    assert told is not None
    longer = {path.parent.name for path in paths if path.parent.parent.name == "shapes-long"}
    assert [int(count) for count in told.groups()] == [len(recorded & set(registry.names())), len(front), len(longer)]
    assert set(front.values()) == {3}


PAGES = [
    ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "datasets" / "README.md", ROOT / "benchmark" / "evaluate" / "README.md",
    *sorted((ROOT / "leaderboards").glob("**/*.md")),
]  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("https://", "../../actions/", "#", "mailto:")):
            assert (page.parent / target.partition("#")[0]).exists(), target
