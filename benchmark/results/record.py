"""Records: one JSON per (protocol, method, training size, test size, seed), checked by name before anybody believes it.

    leaderboards/records/<protocol>/<method>/<training size>-<test size>-s<seed>.json

`scores` null means that the cell failed; a file that is absent means that it was not run. Tables are made from records
alone, so this file knows neither torch nor methods.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmark import files, protocol, revision
from benchmark.files import UserError

SCHEMA = 2
FOLDER = files.ROOT / "leaderboards" / "records"
MANY = 20  # replicates whose mean says something
HUGE = 1e5  # no measure of pictures comes near it
DIGITS = 18  # of a whole number
CLASSES = {"shapes": 8, "inception": 1008}  # of the detectors that give an inception score
LIBRARIES = ("torch", "torchvision", "lightning", "torchmetrics", "timm", "diffusers", "torch-fidelity", "numpy")


@dataclass(frozen=True)
class Metric:
    """A measure: its title, which way is better ("↓" or "↑"), the values that are possible, and how tables show it."""

    title: str
    arrow: str
    low: float = -HUGE
    high: float = HUGE
    required: bool = False  # with low, high and replicates
    meaning: str = ""  # in a sentence, above its table
    section: str = ""  # the heading that its table stands under; "" for the measures that come first


QUALITY, STRUCTURE = "Further measures of quality", "Structure"
METRICS = {
    "fid": Metric("FID", "↓", low=0, required=True, meaning="Fréchet distance between features of samples and of real images."),
    "is": Metric("IS", "↑", low=1, required=True, meaning="Inception score: how clear and varied the classes of samples are."),
    "sfid": Metric("sFID", "↓", low=0, meaning="FID of spatial features: layout rather than content."),
    "precision": Metric("Precision", "↑", 0, 1, meaning="The share of samples that look like real images.", section=QUALITY),
    "recall": Metric("Recall", "↑", 0, 1, meaning="The share of real images that the samples cover.", section=QUALITY),
    # KID and FID∞ may lie a little below zero: one is unbiased, the other extrapolated.
    "kid": Metric("KID", "↓", meaning="Kernel distance, which does not depend on N on average.", section=QUALITY),
    "fid_inf": Metric("FID∞", "↓", meaning="FID extrapolated to infinitely many samples.", section=QUALITY),
    "spectrum": Metric(
        "Spectrum", "↓", low=0, section=STRUCTURE,
        meaning="Distance of the radial power spectrum to the reference's: blur and ringing.",
    ),
    "top1": Metric(
        "Top-1", "↑", 0, 1, section=STRUCTURE,
        meaning="The share of samples in which the detector sees the class that was asked for.",
    ),
    "objects": Metric(
        "Object error", "↓", low=0, section=STRUCTURE,
        meaning="How far the number of objects that the detector sees is from the one that there should be: copies and losses.",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Record:
    """A validated record. `value` is the whole JSON; the fields repeat what tables ask for all the time."""

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


# ---------------------------------------------------------------------------------------------------------------------
# The schema: sections are exact sets of keys, leaves are (what is expected, how to see it).

Leaf = tuple[str, Callable[[Any], bool]]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(value: Any, count: int) -> bool:
    """Whether `value` is a list of `count` finite numbers; quick, since a record has thousands."""
    if not isinstance(value, list) or len(value) != count or not set(map(type, value)) <= {int, float}:
        return False
    return all(map(math.isfinite, value))


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _matches(pattern: str) -> Callable[[Any], bool]:
    compiled = re.compile(pattern)
    return lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None


def _optional(leaf: Leaf) -> Leaf:
    return f"{leaf[0]} or null", lambda value: value is None or leaf[1](value)


def _plain(value: Any) -> bool:
    """Numbers are finite and texts short, at any depth: what a method's options may hold."""
    if isinstance(value, dict):
        return all(len(key) <= 100 and _plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_plain, value))
    return value is None or isinstance(value, bool) or _number(value) or (isinstance(value, str) and len(value) <= 300)


NAME: Leaf = ("a name of [a-z0-9_]+", _matches(r"[a-z0-9_]{1,64}"))
TITLE: Leaf = ("one line of 1 to 80 characters", lambda v: isinstance(v, str) and 1 <= len(v) <= 80 and v.isprintable())
TEXT: Leaf = ("one line of at most 300 characters", lambda v: isinstance(v, str) and len(v) <= 300 and v.isprintable())
HASH: Leaf = ("8 to 64 hexadecimal digits", _matches(r"[0-9a-f]{8,64}"))
SIZE: Leaf = ("HEIGHTxWIDTH in pixels", _matches(r"[1-9]\d{0,4}x[1-9]\d{0,4}"))
COUNT: Leaf = ("a whole number of at least 1", lambda v: _whole(v) and v >= 1)
NATURAL: Leaf = ("a whole number of at least 0", lambda v: _whole(v) and v >= 0)
HOURS: Leaf = ("a number of hours of at least 0", lambda v: _number(v) and v >= 0)
OPTIONS: Leaf = ("an object of plain JSON values", lambda v: isinstance(v, dict) and _plain(v))
FLAG: Leaf = ("true or false", lambda v: isinstance(v, bool))
VERSIONS: Leaf = (
    "an object of versions",
    lambda v: isinstance(v, dict) and all(TITLE[1](key) and TITLE[1](item) for key, item in v.items()),
)


def _is_revisions(value: Any) -> bool:
    """What `revision.current` gives; None of a record of schema 1 whose code the ledger does not know."""
    if value is None:
        return True
    if not isinstance(value, dict) or set(value) != {"train", "sample", "score", "method"}:
        return False
    methods = value["method"]
    if not isinstance(methods, dict) or not all(NAME[1](name) and COUNT[1](number) for name, number in methods.items()):
        return False
    return all(COUNT[1](value[part]) for part in ("train", "sample", "score"))


SHAPE: dict[str, Any] = {
    "schema": (f"the number {SCHEMA}", lambda v: _whole(v) and v == SCHEMA),
    "protocol": {"name": ("a protocol's name", _matches(r"[a-z0-9_-]{1,64}")), "hash": HASH},
    "method": {"name": NAME, "title": TITLE, "trained_as": NAME, "options": OPTIONS, "note": TEXT},
    "cell": {"train": SIZE, "test": SIZE},
    "seed": NATURAL,
    "revisions": ("the revisions of train, sample, score and method", _is_revisions),
    "code": {"commit": _optional(HASH), "dirty": FLAG},
    "training": {
        "fingerprint": HASH,
        "steps": NATURAL,
        "parameters": COUNT,
        "hours": _optional(HOURS),
        "loss": _optional(("a number", _number)),
    },
    "data": {"card": ("a card's name", _matches(r"[a-z0-9_-]{1,64}")), "hash": HASH},
    "reference": {"hash": HASH, "count": COUNT},
    "detector": {"name": ("a detector's name", _matches(r"[a-z0-9_-]{1,64}")), "hash": HASH},
    "count": COUNT,
    "scores": ("an object or null", lambda v: v is None or isinstance(v, dict)),
    "uncertainty": {
        "method": TEXT,
        "resamples": COUNT,
        "level": ("a number between 0 and 1", lambda v: _number(v) and 0 < v < 1),
    },
    "hours": {"sample": HOURS, "score": HOURS},
    "hardware": {"device": TITLE, "name": TEXT, "count": COUNT},
    "libraries": VERSIONS,
}


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _keys(value: Any, expected: Iterable[str], where: str, optional: Iterable[str] = ()) -> None:
    """Exactly the expected keys, and perhaps the optional ones."""
    if not isinstance(value, dict):
        raise UserError(f"{where} must be an object, not {_show(value)}")
    missing = [key for key in expected if key not in value]
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}")
    extra = sorted(set(value) - set(expected) - set(optional))
    if extra:
        raise UserError(f"{where} has unknown keys: {', '.join(map(_show, extra))}")


def _fit(value: Any, shape: Any, where: str) -> None:
    if isinstance(shape, dict):
        _keys(value, shape, where)
        for key, inner in shape.items():
            _fit(value[key], inner, key if where == "the record" else f"{where}.{key}")
    elif not shape[1](value):
        raise UserError(f"{where} must be {shape[0]}, not {_show(value)}")


def _fit_scores(scores: dict[str, Any], resamples: int, classes: int) -> None:
    required = [name for name, metric in METRICS.items() if metric.required]
    _keys(scores, required, "scores", METRICS)
    for name, score in scores.items():
        metric, where = METRICS[name], f"scores.{name}"
        interval = ("low", "high", "replicates")
        _keys(score, ("value", *interval) if metric.required else ("value",), where, (*interval, "deviation"))
        if ("low" in score) != ("high" in score):
            raise UserError(f"{where} has one end of its interval only")
        for key in ("value", "low", "high", "deviation"):
            if key in score and not _number(score[key]):
                raise UserError(f"{where}.{key} must be a finite number, not {_show(score[key])}")
        if not metric.low <= score["value"] <= metric.high:  # replicates may overshoot, a value cannot
            possible = f"a {metric.title} lies in [{metric.low:g}, {metric.high:g}]"
            raise UserError(f"{where}.value is {score['value']:g}: {possible}")
        if name == "is" and score["value"] > classes:
            raise UserError(f"{where}.value is {score['value']:g}: the detector knows {classes} classes, and no IS is above that")
        if "replicates" in score and not _numbers(score["replicates"], resamples):
            raise UserError(f"{where}.replicates must be a list of {resamples} finite numbers")
        if score.get("low", 0) > score.get("high", math.inf):
            raise UserError(f"{where} has an interval with its ends the wrong way round")
        if "low" in score:  # an interval lies around its value; with a width of slack, since it need not be symmetric
            low, high, width = score["low"], score["high"], score["high"] - score["low"]
            if not low - width <= score["value"] <= high + width:
                raise UserError(f"{where}.value is {score['value']:g}, far outside its own interval {low:g} to {high:g}")
            drawn = score.get("replicates", [])
            if len(drawn) >= MANY and abs(math.fsum(drawn) / len(drawn) - score["value"]) > 2 * width + 1e-5 * abs(high):
                raise UserError(f"{where}.value is {score['value']:g}, far from the mean of its own replicates")


def validate(value: Any, rules: protocol.Protocol) -> None:
    """Raises a UserError that names the first key which breaks the schema or the rules of the contest."""
    if isinstance(value, dict) and "schema" in value and value["schema"] != SCHEMA:
        raise UserError(f"schema {_show(value['schema'])} is unknown: this version reads schemas 1 and {SCHEMA}")
    _fit(value, SHAPE, "the record")
    if value["protocol"]["name"] != rules.name:
        raise UserError(f"protocol.name is '{value['protocol']['name']}', expected '{rules.name}'")
    if value["protocol"]["hash"] != rules.hash:
        raise UserError(
            f"protocol.hash is {value['protocol']['hash']}, but the rules of '{rules.name}' now have {rules.hash}: "
            "the record belongs to other rules, run the cell again or remove it"
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
            raise UserError(f"{where} is {_show(found)}, but protocol '{rules.name}' says {_show(expected)}")
    if value["scores"] is not None:
        _fit_scores(value["scores"], value["uncertainty"]["resamples"], CLASSES.get(rules.score.detector, 10**6))


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


def git_state(*folders: str) -> tuple[str | None, bool]:
    """(commit, whether tracked or new files in `folders` differ from it); (None, False) outside a repository."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=files.ROOT, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "--verify", "HEAD")
    return commit, commit is not None and bool(git("status", "--porcelain", "--", *folders))


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
        rules: the contest; its name, hash, data card and number of samples are filled in from it.
        scores: {metric: {"value", and perhaps "low", "high", "replicates"}}, or None for a cell that failed.

    Raises:
        UserError: a section breaks the schema, e.g. a score that is NaN.
    """
    commit, dirty = git_state("benchmark", "methods", "datasets")
    libraries = {name: metadata.version(name) for name in LIBRARIES}
    value = rounded(
        {
            "schema": SCHEMA,
            "protocol": {"name": rules.name, "hash": rules.hash},
            "method": method,
            "cell": {"train": train, "test": test},
            "seed": seed,
            "revisions": revision.current(method["name"]),
            "code": {"commit": commit, "dirty": dirty},
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
    name = f"{cell['train']}-{cell['test']}-s{value['seed']}.json"
    return Path(value["protocol"]["name"], value["method"]["name"], name)


def write(value: dict[str, Any], folder: Path | str = FOLDER) -> Path:
    """Writes a record to its place below `folder`, atomically, and returns its path."""
    path = Path(folder) / location(value)
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False)
    # A list without lists or objects in it goes on one line: records are mostly replicates. Strings hold no raw line end.
    text = re.sub(r"\[\n([^\[\]{}]*)\n *\]", lambda found: f"[{' '.join(map(str.strip, found[1].splitlines()))}]", text)
    files.write_text(path, text + "\n")
    return path


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def _no_constant(text: str) -> float:
    raise UserError(f"holds {text}, which is not a number")


def _whole_number(text: str) -> int:
    """Python reads numbers of any length, which nothing after it can add or compare with a float."""
    if len(text) > DIGITS:
        raise UserError(f"holds a whole number of {len(text)} digits, more than any count or score has")
    return int(text)


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise UserError("has a key twice")
    return value


def upgraded(value: Any) -> Any:
    """A record of schema 1, which holds a hash of the code behind it, as one of schema 2: the ledger says which revisions
    that code was. A hash that is not in the ledger leaves them unknown, and the record stale."""
    if not (isinstance(value, dict) and value.get("schema") == 1 and isinstance(value.get("code"), dict)):
        return value
    code = dict(value["code"])
    version, sources = code.pop("version", None), code.pop("files", None)
    if not (isinstance(sources, list) and HASH[1](version)):
        raise UserError(f"code.version must be {HASH[0]} and code.files a list, as in records of schema 1")
    return {**value, "schema": SCHEMA, "code": code, "revisions": revision.ledger().get(version)}


def parse(text: str, rules: protocol.Protocol) -> Record:
    """The validated record in a JSON text."""
    try:
        value = json.loads(text, parse_constant=_no_constant, parse_int=_whole_number, object_pairs_hook=_no_twins)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"is not valid JSON ({error})") from None
    return from_value(value, rules)


def from_value(value: Any, rules: protocol.Protocol) -> Record:
    """A record from its JSON value, validated."""
    value = upgraded(value)
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
        rules: the contest; by default the committed protocol that the record's folder names.

    Raises:
        UserError: names the file and what is wrong with it.
    """
    path = Path(path)
    try:
        found = parse(path.read_text(encoding="utf-8"), rules or protocol.load(path.parts[-3]))
    except FileNotFoundError:
        raise UserError(f"{path} is not there") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error})") from None
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
                raise UserError(f"{path} holds another cell: its place would be {location(record.value)}")
            found.append(record)
        except UserError as error:
            problems.append(str(error).replace("\n", "\\n"))  # a file's name may hold a line end
    problems += _disagreements(found)
    if problems:
        more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise UserError(f"{len(problems)} refused: {'; '.join(problems[:10])}{more}")
    order = {name: {pair: place for place, pair in enumerate(rules[name].pairs())} for name in rules}
    return sorted(found, key=lambda r: (r.protocol, r.method, order[r.protocol][r.pair], r.seed))


def _disagreements(records: list[Record]) -> list[str]:
    """Records that may not share a table with the others of their contest, in the words of a refusal.

    The side with fewer records is named (the later in the order of paths where both have as many).
    """
    groups: dict[tuple[str, str], dict[str, list[Record]]] = {}
    for record in records:
        value = record.value
        for where, shown in (
            ("data.hash", value["data"]["hash"]),
            ("detector.hash", value["detector"]["hash"]),
            ("uncertainty", json.dumps(value["uncertainty"], sort_keys=True)),
            (f"reference.hash at {record.test}", value["reference"]["hash"]),
        ):
            groups.setdefault((record.protocol, where), {}).setdefault(shown, []).append(record)
    problems = []
    for (_, where), sides in groups.items():
        _, *others = sorted(sides.items(), key=lambda side: -len(side[1]))
        for shown, members in others:
            problems += [f"{location(r.value)}: {where} is {shown}, unlike the other records'" for r in members]
    owners: dict[tuple[str, str], str] = {}
    for record in records:
        owner = owners.setdefault((record.protocol, record.title), record.method)
        if owner != record.method:
            problems.append(f"{location(record.value)}: method.title is {_show(record.title)}, which is the title of '{owner}'")
    return problems
