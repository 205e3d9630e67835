"""Cards: what a data set is, read from a YAML file in datasets/."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmark.files import ROOT, UserError, unknown

CARDS = ROOT / "datasets"


# --- Cards -----------------------------------------------------------------------------------------------------------


def card_names() -> list[str]:
    """The data sets there are: the files of datasets/."""
    return sorted(path.stem for path in CARDS.glob("*.yaml"))


def load_card(name: str) -> Card:
    """Reads a card.

    Args:
        name: a file name in datasets/ without its ending, or the path of a YAML file elsewhere.

    Raises:
        UserError: unknown name or field, or a value of the wrong kind.
    """
    import yaml

    path = Path(name) if name.endswith((".yaml", ".yml")) else CARDS / f"{name}.yaml"
    if not path.is_file():
        raise unknown("data set", name, card_names())
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold fields such as `name: ...`")
    for key in values:
        if key not in Card.__dataclass_fields__:
            raise unknown(f"field of {path.name}", str(key), Card.__dataclass_fields__)
    values = {"name": path.stem, **values}
    if values.get("kind") not in KINDS:
        raise unknown(f"kind of {path.name}", str(values.get("kind")), KINDS)
    for key in ("size", "range", "classes"):
        if isinstance(values.get(key), list):
            values[key] = tuple(values[key])
    result = Card(**values)
    if not isinstance(result.count, int) or result.count < 0 or not isinstance(result.classes, int | tuple):
        raise UserError(f"{path}: `count` is a number of images; `classes` is a list of names or a number")
    if result.size is not None and (len(result.size) != 2 or min(result.size) < 1):
        raise UserError(f"{path}: `size` is [height, width]")
    return result


# --- Cards -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Card:
    """What a data set is: the fields of a file in datasets/, explained in datasets/README.md."""

    name: str
    kind: str  # shapes: rendered here; folder: written from pictures that you have; shards: already written elsewhere
    description: str = ""
    classes: tuple[str, ...] | int = 0  # names in the order of labels, or how many; 0 takes what the source has
    count: int = 0  # training images; 0 takes what the source has
    size: tuple[int, int] | None = None  # stored (h, w); None where pictures keep their own sizes
    range: tuple[int, int] = (0, 255)
    splits: dict[str, str] | None = None
    reference: str = ""
    licence: str = ""
    source: str = ""  # how to get it
    autoencoder: str = ""  # whose latents stand for its pictures: a name on the Hugging Face hub or a folder

    @property
    def class_count(self) -> int:
        return self.classes if isinstance(self.classes, int) else len(self.classes)


KINDS = ("shapes", "folder", "shards")
