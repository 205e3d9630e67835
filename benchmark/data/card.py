"""Cards: what a data set is, read from a YAML file in datasets/."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import pydantic
from annotated_types import Interval, Len

from benchmark.files import ROOT, UserError, checked_name, unknown
from benchmark.inputs import STRICT, matching, parsed, read_yaml
from benchmark.protocol import SIDE

CARDS = ROOT / "datasets"
CLASSES = 10**6  # labels are below it

Kind = Literal["shapes", "folder", "own", "shards"]
Line = Annotated[str, matching(r"[^\p{C}]*", "one line", 1000)]
Side = Annotated[int, Interval(ge=1, le=SIDE)]


@dataclass(frozen=True)
class Card:
    """What a data set is: the fields of a file in datasets/, explained in datasets/README.md."""

    __pydantic_config__ = STRICT

    name: str
    kind: Kind  # shapes: drawn here; folder: pictures that you have; own: any that you have; shards: already written
    description: Line = ""
    # Names in the order of labels, or how many; 0 takes what the source has.
    classes: Annotated[tuple[Line, ...], Len(1, CLASSES)] | Annotated[int, Interval(ge=0, le=CLASSES)] = 0
    count: Annotated[int, Interval(ge=0, le=10**9)] = 0  # training images; 0 takes what the source has
    size: tuple[Side, Side] | None = None  # stored (h, w); None where pictures keep their own sizes
    range: tuple[Annotated[int, Interval(ge=0, le=0)], Annotated[int, Interval(ge=255, le=255)]] = (0, 255)  # uint8
    splits: dict[str, Line] | None = None
    reference: Line = ""
    licence: Line = ""
    source: Line = ""  # how to get it
    # Classes that `classes` does not name; "dropped" where this is a part of a larger set.
    others: Literal["error", "dropped"] = "error"
    labels: Annotated[int, Interval(ge=0, le=CLASSES)] = 0  # of a subset: classes in the complete set, whose first these are
    smallest: Annotated[int, Interval(ge=0, le=SIDE)] = 0  # pixels: pictures with a shorter side are left out
    grey: Literal["kept", "dropped"] = "kept"  # pictures without colour
    autoencoder: Line = ""  # whose latents stand for its pictures: a name on the Hugging Face hub or a folder

    @property
    def class_count(self) -> int:
        return self.classes if isinstance(self.classes, int) else len(self.classes)


KINDS = get_args(Kind)


def card_names() -> list[str]:
    """The data sets there are: the files of datasets/."""
    return sorted(path.stem for path in CARDS.glob("*.yaml"))


@functools.cache
def _model() -> pydantic.TypeAdapter[Card]:
    return pydantic.TypeAdapter(Card)


def load_card(name: str) -> Card:
    """Reads a card.

    Args:
        name: a file name in datasets/ without its ending, or the path of a YAML file elsewhere.

    Raises:
        UserError: unknown name or field, or a value of the wrong type or out of its range.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else CARDS / f"{name}.yaml"
    if not os.path.isfile(path):
        raise unknown("data set", name, card_names())
    values = {"name": path.stem, **read_yaml(path)}
    checked_name(values["name"], f"{path}: name")  # shards lie in a folder that is called so
    checked_name(path.stem, "the name of a card's file")  # and records call the data set by its file
    if "kind" not in values:
        raise UserError(f"{path}: lacks kind (one of {', '.join(KINDS)})")
    wanted = {"classes": f"a list of names in one line each, or a number up to {CLASSES}"}
    card = parsed(_model(), values, str(path), tuple(Card.__dataclass_fields__), "the card", wanted)
    if isinstance(card.classes, tuple) and len(set(card.classes)) < len(card.classes):
        raise UserError(f"{path}: a class is listed twice")
    if card.others == "dropped" and not isinstance(card.classes, tuple):
        raise UserError(f"{path}: `others: dropped` needs `classes` as a list of names, of which the source has more")
    return card


def autoencoder_of(card: Card) -> str:
    """Whose latents stand for a data set's pictures: a name on the Hugging Face hub, or a folder.

    The environment's AUTOENCODER takes precedence: it names where the same weights lie on a machine without network.
    """
    name = os.environ.get("AUTOENCODER") or card.autoencoder
    if not name:
        raise UserError(f"card {card.name} has no autoencoder; give one as AUTOENCODER=folder")
    return name
