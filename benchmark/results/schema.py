"""The contents of a record: its measures, and the schema of its JSON."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NotRequired

import pydantic
from annotated_types import Interval, Len
from pydantic import with_config
from typing_extensions import TypedDict  # pydantic needs this one below Python 3.12

from benchmark.inputs import STRICT, matching
from benchmark.protocol import Precision

SCHEMA = 2
HUGE = 1e5  # no measure of pictures comes near it
DIGITS = 18  # of an integer
BROKEN = 2.0  # times its lowest value: a running loss above that says that a training has broken down


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
    # Whether the spread over seeds grows in proportion to the value: in `shapes-long` the slope of its logarithm over the value's
    # is 0.9 or more (`python -m benchmark.measure.stability --spread`; 0.4 for FID and sFID, at most 0.7 for the others).
    proportional: bool = False

    @property
    def sign(self) -> int:
        """1 where less is better, -1 where more is."""
        return 1 if self.arrow == "↓" else -1

    def ends(self, score: Mapping[str, Any]) -> tuple[float, float] | None:
        """The interval of a score of a record, within what is possible; None where it has none.

        Replicates move a share near 1 beyond it, as they are linear in the images.
        """
        return (max(score["low"], self.low), min(score["high"], self.high)) if "low" in score else None


QUALITY, STRUCTURE = "Further measures of quality", "Structure"
METRICS = {
    "fid": Metric("FID", "↓", low=0, required=True, meaning="Fréchet distance between features of samples and of real images."),
    "is": Metric(
        "IS", "↑", low=1, required=True, proportional=True,
        meaning="Inception score: how clear and varied the classes of samples are.",
    ),
    "sfid": Metric("sFID", "↓", low=0, meaning="FID of spatial features: layout rather than content."),
    "precision": Metric("Precision", "↑", 0, 1, meaning="The share of samples that resemble real images.", section=QUALITY),
    "recall": Metric("Recall", "↑", 0, 1, meaning="The share of real images that the samples cover.", section=QUALITY),
    # KID and FID∞ may lie a little below zero: one is unbiased, the other extrapolated.
    "kid": Metric("KID", "↓", meaning="Kernel distance between features; an unbiased estimate at any N.", section=QUALITY),
    "fid_inf": Metric("FID∞", "↓", meaning="FID extrapolated to infinitely many samples; noisier than FID.", section=QUALITY),
    "spectrum": Metric(
        "Spectrum", "↓", low=0, section=STRUCTURE, proportional=True,
        meaning="Distance of the radial power spectrum to the reference's: blur and ringing.",
    ),
    "top1": Metric(
        "Top-1", "↑", 0, 1, section=STRUCTURE,
        meaning="The share of samples that the detector assigns to the requested class.",
    ),
    "objects": Metric(
        "Object error", "↓", low=0, section=STRUCTURE, proportional=True,
        meaning="Deviation of the detected number of objects from the correct one: duplicated or missing objects.",
    ),
    "loss": Metric(
        "Denoising loss", "↓", low=0, proportional=True,
        meaning="The training loss on images of the test size, held out where available; the same noise for every method.",
    ),
}  # fmt: skip


# --- The schema ------------------------------------------------------------------------------------------------------

Name = Annotated[str, matching(r"[a-z0-9_]{1,64}", "a name of [a-z0-9_]+")]
Slug = Annotated[str, matching(r"[a-z0-9_-]{1,64}", "a name of [a-z0-9_-]+")]  # of protocols, cards and detectors
Title = Annotated[str, matching(r"(?:[^\p{C}\p{Z}]| )+", "one line, not empty", 80)]
Text = Annotated[str, matching(r"(?:[^\p{C}\p{Z}]| )*", "one line")]
Hash = Annotated[str, matching(r"[0-9a-f]{8,64}", "8 to 64 hexadecimal digits")]
Size = Annotated[str, matching(r"[1-9][0-9]{0,4}x[1-9][0-9]{0,4}", "HEIGHTxWIDTH in pixels")]
Natural = Annotated[int, Interval(ge=0, le=10**DIGITS)]
Count = Annotated[int, Interval(ge=1, le=10**DIGITS)]
Hours = Annotated[float, Interval(ge=0, le=1e9)]


@with_config(STRICT)
class _Protocol(TypedDict):
    name: Slug
    hash: Hash


@with_config(STRICT)
class _Method(TypedDict):
    name: Name
    title: Title
    trained_as: Name
    options: dict[str, Any]
    note: Text


@with_config(STRICT)
class _Cell(TypedDict):
    train: Size
    test: Size


@with_config(STRICT)
class _Revisions(TypedDict):
    """What `revision.current` gives."""

    train: Count
    sample: Count
    score: Count
    method: dict[Name, Count]


@with_config(STRICT)
class _Code(TypedDict):
    commit: Hash | None
    dirty: bool


@with_config(STRICT)
class _Training(TypedDict):
    fingerprint: Hash
    steps: Natural
    parameters: Count
    hours: Hours | None
    loss: float | None
    lowest: NotRequired[float]  # of that running loss over the training; absent from older records
    machine: NotRequired[Title]  # that it ended on; absent from older records
    precision: NotRequired[Precision]  # in which it ended: float32 where the machine lacks what the protocol asks for
    compiled: NotRequired[bool]  # whether the core went through torch.compile, if only for a part; absent from older records


@with_config(STRICT)
class _Data(TypedDict):
    card: Slug
    hash: Hash


@with_config(STRICT)
class _Reference(TypedDict):
    hash: Hash
    count: Count


@with_config(STRICT)
class _Detector(TypedDict):
    name: Slug
    hash: Hash


@with_config(STRICT)
class _Score(TypedDict):
    value: float
    low: NotRequired[float]
    high: NotRequired[float]
    deviation: NotRequired[float]
    replicates: NotRequired[list[float]]


@with_config(STRICT)
class _FullScore(TypedDict):
    value: float
    low: float
    high: float
    deviation: NotRequired[float]
    replicates: list[float]


@with_config(STRICT)
class _Loss(_FullScore):
    levels: Annotated[list[float], Len(1)]  # the mean at each noise level
    times: Annotated[list[float], Len(1)]
    images: Hash  # of what it was taken on
    trained_on: NotRequired[bool]  # whether trainings read those images; older records do not say


@with_config(STRICT)
class _Uncertainty(TypedDict):
    method: Text
    resamples: Count
    level: Annotated[float, Interval(gt=0, lt=1)]


@with_config(STRICT)
class _Hours(TypedDict):
    sample: Hours
    score: Hours


@with_config(STRICT)
class _Hardware(TypedDict):
    device: Title
    name: Text
    count: Count
    precision: NotRequired[Precision]  # of sampling; absent from older records


@with_config(STRICT)
class Schema(TypedDict):
    """A record's JSON, schema 2."""

    schema: Annotated[int, Interval(ge=SCHEMA, le=SCHEMA)]
    protocol: _Protocol
    method: _Method
    cell: _Cell
    seed: Natural
    revisions: _Revisions
    code: _Code
    training: _Training
    data: _Data
    reference: _Reference
    detector: _Detector
    count: Count
    scores: dict[str, Any] | None  # of METRICS, see `model`
    uncertainty: _Uncertainty
    hours: _Hours
    hardware: _Hardware
    libraries: dict[Title, Title]


def model() -> pydantic.TypeAdapter[Any]:
    """What records are validated against: Schema, with the scores of METRICS."""
    return _model(tuple((name, metric.required) for name, metric in METRICS.items()))


@functools.cache
def method_model() -> pydantic.TypeAdapter[Any]:
    """What the part of a record about its method is validated against."""
    return pydantic.TypeAdapter(_Method)


def _strict(name: str, fields: dict[str, Any]) -> Any:
    make: Any = TypedDict  # of fields that are known when this runs
    return with_config(STRICT)(make(name, fields))


@functools.cache
def _model(measures: tuple[tuple[str, bool], ...]) -> pydantic.TypeAdapter[Any]:
    """Built when the first record is read: that takes a tenth of a second."""
    fields: dict[str, Any] = {name: _FullScore if required else NotRequired[_Score] for name, required in measures}
    scores = _strict("Scores", fields | {"loss": NotRequired[_Loss]})
    return pydantic.TypeAdapter(_strict("Record", Schema.__annotations__ | {"scores": scores | None}))
