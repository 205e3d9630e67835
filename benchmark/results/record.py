"""Records: one JSON per (protocol, method, training size, test size, seed), validated field by field.

    leaderboards/records/<protocol>/<method>/<training size>-<test size>-s<seed>.json

`scores` null means that the cell failed; a file that is absent means that it was not run. Tables are made from records
alone, so this file knows neither torch nor methods.
"""

from __future__ import annotations

import functools
import json
import math
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import pydantic

from benchmark import files, protocol, registry, revision
from benchmark.files import UserError, shown
from benchmark.inputs import reason
from benchmark.results.schema import BROKEN, DIGITS, METRICS, QUALITY, SCHEMA, STRUCTURE, Metric, method_model, model

__all__ = ["METRICS", "QUALITY", "SCHEMA", "STRUCTURE", "Metric", "Record", "build", "read", "read_all", "write"]

FOLDER = files.ROOT / "leaderboards" / "records"
MANY = 20  # replicates whose mean says something
LARGEST = 1 << 26  # bytes of a record; ours have about 8,000
LIBRARIES = ("torch", "torchvision", "lightning", "torchmetrics", "timm", "diffusers", "torch-fidelity", "numpy")


@dataclass(frozen=True)
class Record:
    """A validated record. `value` is all of the JSON; the fields repeat what tables ask for all the time."""

    protocol: str
    method: str
    title: str
    note: str
    train: str
    test: str
    seed: int
    count: int
    scores: dict[str, dict[str, Any]] | None  # None: the cell failed
    stale: bool  # the code behind the number is no longer the code in this checkout
    value: dict[str, Any]

    @property
    def pair(self) -> tuple[str, str]:
        """(training size, test size)."""
        return self.train, self.test

    @property
    def broken(self) -> str:
        """What is wrong with its training, or "": its loss ended far above its lowest.

        Averaged weights may still give fair scores then: a network that fails at a narrow band of noise levels, which the sampler
        and the levels of the denoising loss step over, shows in its training loss alone.
        """
        loss, lowest = (self.value["training"].get(name) for name in ("loss", "lowest"))
        if loss is None or lowest is None or loss <= BROKEN * lowest:
            return ""
        return (
            f"the training of {self.value['method']['trained_as']} ended at a loss of {loss:.3g}, and its lowest was {lowest:.3g}"
        )


def _plain(value: Any, depth: int = 8) -> bool:
    """Numbers are finite, texts short and nothing deep: what a method's options may hold."""
    if isinstance(value, dict):
        return depth > 0 and all(len(key) <= 100 and _plain(item, depth - 1) for key, item in value.items())
    if isinstance(value, list):
        return depth > 0 and all(_plain(item, depth - 1) for item in value)
    if isinstance(value, str):
        return len(value) <= 300
    return value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value))


def _fit_scores(scores: dict[str, Any], resamples: int, classes: int) -> None:
    for name, score in scores.items():
        metric, where = METRICS[name], f"scores.{name}"
        if name == "loss":
            _fit_levels(score, where)
        if ("low" in score) != ("high" in score):
            raise UserError(f"{where} has only one end of its interval")
        if not metric.low <= score["value"] <= metric.high:  # replicates may overshoot, a value cannot
            possible = f"a {metric.title} lies in [{metric.low:g}, {metric.high:g}]"
            raise UserError(f"{where}.value is {score['value']:g}: {possible}")
        if name == "is" and score["value"] > classes:
            raise UserError(f"{where}.value is {score['value']:g}: the detector knows {classes} classes, which bounds the IS")
        if len(score.get("replicates", [0.0] * resamples)) != resamples:
            raise UserError(f"{where}.replicates must be a list of {resamples} finite numbers")
        if score.get("low", 0) > score.get("high", math.inf):
            raise UserError(f"{where} has an interval with its ends swapped")
        if "low" in score:  # an interval lies around its value; with a width of slack, since it need not be symmetric
            low, high, width = score["low"], score["high"], score["high"] - score["low"]
            if not low - width <= score["value"] <= high + width:
                raise UserError(f"{where}.value is {score['value']:g}, far outside its own interval {low:g} to {high:g}")
            drawn = score.get("replicates", [])
            if len(drawn) >= MANY and abs(math.fsum(drawn) / len(drawn) - score["value"]) > 2 * width + 1e-5 * abs(high):
                raise UserError(f"{where}.value is {score['value']:g}, far from the mean of its own replicates")


def _fit_levels(score: dict[str, Any], where: str) -> None:
    """The denoising loss is the mean of those at its noise levels, which ascend."""
    levels, times = score["levels"], score["times"]
    if len(times) != len(levels) or times != sorted(times) or not 0 <= times[0] <= times[-1] <= 1:
        raise UserError(f"{where}.times must be {len(levels)} ascending numbers between 0 and 1, one per level")
    if abs(math.fsum(levels) / len(levels) - score["value"]) > 1e-4 * abs(score["value"]):
        raise UserError(f"{where}.value is {score['value']:g}, which is not the mean of its levels")


def validate(value: Any, rules: protocol.Protocol) -> None:
    """Raises a UserError that names the first key which breaks the schema or the rules of the protocol."""
    if isinstance(value, dict) and "schema" in value and value["schema"] != SCHEMA:
        raise UserError(f"schema {shown(value['schema'])} is unknown: this version reads schema {SCHEMA}")
    try:
        model().validate_python(value)
    except pydantic.ValidationError as error:
        raise UserError(reason(error, whole="the record")) from None
    _check_options(value["method"])
    if value["protocol"]["name"] != rules.name:
        raise UserError(f"protocol.name is '{value['protocol']['name']}', expected '{rules.name}'")
    if value["protocol"]["hash"] != rules.hash:
        raise UserError(
            f"protocol.hash is {value['protocol']['hash']}, but '{rules.name}' now has {rules.hash}: "
            "the record belongs to another version of the protocol; run the cell again or remove it"
        )
    cell = (value["cell"]["train"], value["cell"]["test"])
    if cell not in rules.pairs():
        raise UserError(f"cell {cell[0]} -> {cell[1]} is not in protocol '{rules.name}'")
    for where, found, expected in (
        ("count", value["count"], rules.sample.count),
        ("reference.count", value["reference"]["count"], rules.score.reference),
        ("detector.name", value["detector"]["name"], rules.score.detector),
        ("data.card", value["data"]["card"], Path(rules.data.card).stem),
        ("training.steps", value["training"]["steps"], rules.train.steps),
    ):
        if found != expected:
            raise UserError(f"{where} is {shown(found)}, but protocol '{rules.name}' says {shown(expected)}")
    if value["scores"] is not None:
        _fit_scores(value["scores"], value["uncertainty"]["resamples"], registry.detector_facts(rules.score.detector).classes)


def validate_method(value: dict[str, Any]) -> None:
    """Raises a UserError where a record could not hold this as its `method`."""
    try:
        method_model().validate_python(value)
    except pydantic.ValidationError as error:
        raise UserError(reason(error)) from None
    _check_options(value)


def _check_options(method: dict[str, Any]) -> None:
    if not _plain(method["options"]):
        raise UserError("method.options must be an object of plain JSON values: finite numbers, short strings, no deep nesting")


# ---------------------------------------------------------------------------------------------------------------------
# Building and writing


def rounded(value: Any) -> Any:
    """`value` with every float at 6 significant digits, at any depth. Done once, when a record is built."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.6g}")
    return value


CODE = ("benchmark", "methods", "datasets")  # folders that numbers depend on


class GitState(NamedTuple):
    """What git says of the code.

    Attributes:
        commit: that is checked out; None where git cannot tell.
        dirty: whether tracked or new files differ from it.
        why: git could not tell the commit.
    """

    commit: str | None
    dirty: bool
    why: str = ""


@functools.cache  # of the code that this process has loaded: a commit or an edit of a later hour is not of its records
def git_state(*folders: str) -> GitState:
    """The state of the repository when first asked."""

    def git(*arguments: str) -> tuple[str | None, str]:
        try:
            done = subprocess.run(["git", *arguments], cwd=files.ROOT, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return None, "git is not installed"
        if done.returncode:
            return None, (done.stderr.strip().splitlines() or ["no reason given"])[0].removeprefix("fatal: ")
        return done.stdout.strip(), ""

    commit, why = git("rev-parse", "--verify", "HEAD")
    changed, _ = git("status", "--porcelain", "--untracked-files=normal", "--", *folders)  # whatever the user's settings
    return GitState(commit, commit is not None and changed != "", why)


def is_committed() -> bool:
    """Whether the code that numbers depend on is that of a commit, as far as git can tell."""
    state = git_state(*CODE)
    return state.commit is not None and not state.dirty


def build(
    rules: protocol.Protocol,
    *,
    method: dict[str, Any],
    train: str,
    test: str,
    seed: int,
    training: dict[str, Any],
    data_hash: str,
    reference: dict[str, Any],
    detector: dict[str, Any],
    scores: dict[str, Any] | None,
    uncertainty: dict[str, Any],
    hours: dict[str, float],
    hardware: dict[str, Any],
) -> dict[str, Any]:
    """A validated record, rounded once; the arguments are the sections of the schema that only the caller knows.

    Args:
        rules: the protocol; its name, hash, data card and number of samples are filled in from it.
        scores: {metric: {"value", and perhaps "low", "high", "replicates"}}, or None for a cell that failed.

    Raises:
        UserError: a section breaks the schema, e.g. a score that is NaN.
    """
    state = git_state(*CODE)
    libraries = {name: metadata.version(name) for name in LIBRARIES}
    value = rounded(
        {
            "schema": SCHEMA,
            "protocol": {"name": rules.name, "hash": rules.hash},
            "method": method,
            "cell": {"train": train, "test": test},
            "seed": seed,
            "revisions": revision.current(method["name"]),
            "code": {"commit": state.commit, "dirty": state.dirty},
            "training": training,
            "data": {"card": Path(rules.data.card).stem, "hash": data_hash},
            "reference": reference,
            "detector": detector,
            "count": rules.sample.count,
            "scores": scores,
            "uncertainty": uncertainty,
            "hours": hours,
            "hardware": hardware,
            "libraries": libraries,
        }
    )
    validate(value, rules)
    return value


def location(value: dict[str, Any]) -> Path:
    """Where a record lies, relative to the folder of records."""
    cell = value["cell"]
    return place(value["protocol"]["name"], value["method"]["name"], cell["train"], cell["test"], value["seed"])


def place(protocol_name: str, method: str, train: str, test: str, seed: int) -> Path:
    """Where the record of a cell lies, relative to the folder of records."""
    return Path(protocol_name, method, f"{train}-{test}-s{seed}.json")


def text_of(value: dict[str, Any]) -> str:
    """A record as it is written, everywhere with the same bytes."""
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False)
    # A list without lists or objects in it goes on one line: records are mostly replicates. Strings hold no raw line end.
    return re.sub(r"\[\n([^\[\]{}]*)\n *\]", lambda found: f"[{' '.join(map(str.strip, found[1].splitlines()))}]", text) + "\n"


def write(value: dict[str, Any], folder: Path | str = FOLDER) -> Path:
    """Writes a record to its place below `folder`, atomically, and returns its path."""
    path = Path(folder) / location(value)
    files.write_text(path, text_of(value))
    return path


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def _no_constant(text: str) -> float:
    raise UserError(f"holds {text}, which is not a number")


def _whole_number(text: str) -> int:
    """Python reads numbers of any length, which nothing after it can add or compare with a float."""
    if len(text) > DIGITS:
        raise UserError(f"holds an integer of {len(text)} digits, more than any count or score has")
    return int(text)


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise UserError("has a duplicate key")
    return value


def same_images(fid: float | None, other: float | None) -> bool:
    """Whether two cells have the same images, as their FIDs tell."""
    return fid is not None and fid == other


def parse(text: str, rules: protocol.Protocol) -> Record:
    """The validated record in a JSON text."""
    try:
        value = json.loads(text, parse_constant=_no_constant, parse_int=_whole_number, object_pairs_hook=_no_twins)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"is not valid JSON ({error})") from None
    return from_value(value, rules)


def from_value(value: Any, rules: protocol.Protocol) -> Record:
    """A record from its JSON value, validated."""
    validate(value, rules)
    method, cell = value["method"], value["cell"]
    return Record(
        protocol=rules.name,
        method=method["name"],
        title=method["title"],
        note=method["note"],
        train=cell["train"],
        test=cell["test"],
        seed=value["seed"],
        count=value["count"],
        scores=value["scores"],
        stale=revision.is_stale(value["revisions"], method["name"]),
        value=value,
    )


def read(path: Path | str, rules: protocol.Protocol | None = None) -> Record:
    """Reads and validates one record, wherever it lies.

    Args:
        rules: the protocol; by default the committed one that the record's folder names.

    Raises:
        UserError: names the file and what is wrong with it.
    """
    path = Path(path)
    text = files.read_text(path, LARGEST)
    try:
        found = parse(text, rules or protocol.load(path.parts[-3]))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return found


def read_all(folder: Path | str = FOLDER) -> list[Record]:
    """Every record below a folder, in the order of protocol, method, cell and seed, whatever order the disk has.

    Raises:
        UserError: names every file that is not a valid record, that lies in another place than its content says, or
            that was made with other data, another detector or another reference than its neighbours.
    """
    folder = Path(folder)
    rules: dict[str, protocol.Protocol] = {}
    found: list[Record] = []
    problems: list[str] = []
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        if path.is_dir() or any(part.startswith(".") for part in place.parts):
            continue
        try:
            if len(place.parts) != 3 or path.suffix != ".json":
                raise UserError(f"{path} is not <protocol>/<method>/<training size>-<test size>-s<seed>.json")
            name = place.parts[0]
            if name not in rules:
                rules[name] = protocol.load(name)
            if not rules[name].ranked:
                raise UserError(f"{path} belongs to protocol '{name}', which is not ranked and has no leaderboard")
            record = read(path, rules[name])
            if location(record.value) != place:
                raise UserError(f"{path} holds another cell; it belongs at {location(record.value)}")
            found.append(record)
        except UserError as error:
            problems.append(str(error).replace("\n", "\\n"))  # a file's name may hold a line end
    problems += disagreements(found)
    if problems:
        more = f"; and {len(problems) - files.SHOWN} more" if len(problems) > files.SHOWN else ""
        raise UserError(f"{len(problems)} refused: {'; '.join(problems[: files.SHOWN])}{more}")
    order = {name: {pair: place for place, pair in enumerate(rules[name].pairs())} for name in rules}
    return sorted(found, key=lambda r: (r.protocol, r.method, order[r.protocol][r.pair], r.seed))


def disagreements(records: Sequence[Record]) -> list[str]:
    """Records that may not share a table with the others of their protocol, in the words of a refusal.

    The side with fewer records is named (the later in the order of paths where both have as many).
    """
    groups: dict[tuple[str, str], dict[str, list[Record]]] = {}
    for record in records:
        value = record.value
        for where, found in (
            ("data.hash", value["data"]["hash"]),
            ("detector.hash", value["detector"]["hash"]),
            ("uncertainty", json.dumps(value["uncertainty"], sort_keys=True)),
            (f"reference.hash at {record.test}", value["reference"]["hash"]),
        ):
            groups.setdefault((record.protocol, where), {}).setdefault(found, []).append(record)
        if loss := (record.scores or {}).get("loss"):
            images = groups.setdefault((record.protocol, f"scores.loss.images at {record.test}"), {})
            images.setdefault(loss["images"], []).append(record)
    problems = []
    for (_, where), sides in groups.items():
        _, *others = sorted(sides.items(), key=lambda side: -len(side[1]))
        for found, members in others:
            problems.append(f"{files.listed(location(r.value) for r in members)}: {where} is {found}, unlike the other records'")
    owners: dict[tuple[str, str], str] = {}
    for record in records:
        owner = owners.setdefault((record.protocol, record.title), record.method)
        if owner != record.method:
            problems.append(f"{location(record.value)}: method.title is {shown(record.title)}, which is the title of '{owner}'")
    return problems
