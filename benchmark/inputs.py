"""Validation of user input: restricted YAML, and values checked against a declared model, with one-line errors."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import pydantic
import yaml
from pydantic import StringConstraints

from benchmark.files import UserError, read_text, shown, unknown

T = TypeVar("T")

# What every declared model says: no conversions, no unknown fields, and numbers that are finite.
STRICT = pydantic.ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

# --- YAML ------------------------------------------------------------------------------------------------------------

DEPTH = 20  # lists and mappings in each other; ours have 4
LARGEST = 1 << 20  # bytes of a file written by hand
BITS = 32  # of a seed, and of an epoch: together they are one word of a generator's key (streams.py)


class Loader(yaml.SafeLoader):
    """Plain values: numbers such as 1e-4 as YAML 1.2 reads them, no dates, no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for name, _ in node.value:
            key = self.construct_object(name, deep=True)
            if isinstance(key, list | dict):
                raise yaml.YAMLError("a key is a list or a mapping")
            if key in seen:
                raise yaml.YAMLError(f"the key {shown(key)} stands there twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] not in ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:merge")]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+"), list("-+.0123456789")
)


def yaml_value(text: str, where: str) -> Any:
    """The plain value of a YAML text.

    Raises:
        UserError: it is not YAML; or has aliases (a few lines of which can stand for billions), tags (which name types),
            interpolation, or is nested too deep.
    """
    try:
        _check_events(text)
        return yaml.load(text, Loader)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
            reason = f"{error.problem} in line {error.problem_mark.line + 1}"
        else:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{where} is not valid YAML ({reason[:200]})") from None


def _check_events(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise UserError(f"has the alias *{event.anchor}; write it out in full")
        if getattr(event, "tag", None) is not None:
            raise UserError(f"has the tag {shown(event.tag)}; use plain values")
        if isinstance(event, yaml.ScalarEvent) and "${" in event.value:
            raise UserError(f"holds {shown(event.value)}: interpolation is not supported, write the value itself")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEPTH:
            raise UserError(f"is nested more than {DEPTH} deep")


def read_yaml(path: Path | str) -> dict[str, Any]:
    """The fields in a YAML file."""
    values = yaml_value(read_text(path, LARGEST), str(path))
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{path} must hold fields such as `name: value`")
    return values


# --- Values ----------------------------------------------------------------------------------------------------------

_WORDS: dict[str, str] = {}


def matching(pattern: str, words: str, longest: int = 300) -> StringConstraints:
    """Strings that match a pattern in full, and their name in error messages."""
    known = _WORDS.setdefault(f"^(?:{pattern})$", words)
    assert known == words, "one pattern, one name"
    return StringConstraints(pattern=f"^(?:{pattern})$", max_length=longest)


EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a text",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "an object",
    "dataclass_type": "a section of fields",
    "greater_than_equal": "at least {ge}",
    "greater_than": "above {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "below {lt}",
    "too_short": "of at least {min_length} items",
    "too_long": "of at most {max_length} items",
    "string_too_long": "a text of at most {max_length} characters",
    "string_too_short": "a text of at least {min_length} characters",
}
UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")


def reason(error: pydantic.ValidationError, known: tuple[str, ...] = (), whole: str = "it") -> str:
    """The first of the errors in one line: which field, what it must be, what it is.

    Args:
        known: the fields that there are, for a suggestion where one is unknown.
        whole: what the value is called where it is wrong altogether.
    """
    first = error.errors(include_url=False)[0]
    kind, context, value = first["type"], first.get("ctx", {}), first["input"]
    parts = [str(part) for part in first["loc"]]
    where = ".".join(parts) if parts else whole
    where = where if where.isprintable() and len(where) <= 80 else shown(where, 80)
    if kind == "missing" and isinstance(first["loc"][-1], int):
        return f"{'.'.join(parts[:-1])} has too few items: {shown(value)}"
    if kind in ("missing", "missing_argument"):
        return f"{'.'.join(parts[:-1]) or whole} lacks {parts[-1]}"
    if kind in UNKNOWN:
        return str(unknown(f"setting of {'.'.join(parts[:-1]) or whole}", parts[-1], known)) if known else f"{where} is unknown"
    if kind == "literal_error":
        given = value if isinstance(value, str) and value.isprintable() else shown(value)
        return str(unknown(where, given[:60], re.findall(r"'([^']*)'", context["expected"])))
    if kind == "string_pattern_mismatch":
        expected = _WORDS.get(context["pattern"], f"a match of {context['pattern']}")
    else:
        expected = EXPECTED.get(kind, "").format(**context) or first["msg"].lower().removeprefix("input should be ")
    return f"{where} must be {expected}, not {shown(value)}"


def parsed(model: pydantic.TypeAdapter[T], values: Any, where: str, known: tuple[str, ...] = (), whole: str = "it",
           wanted: Mapping[str, str] = MappingProxyType({})) -> T:  # fmt: skip
    """Plain values, such as those of a YAML file, as an instance of the model.

    Args:
        model: the declared type; strict.
        where: begins the message.
        known, whole: as in `reason`.
        wanted: what fields must be, for those whose types give a poor message.

    Raises:
        UserError: a value is not of its type or out of its range, or cannot be written as JSON.
    """
    try:
        return model.validate_json(json.dumps(values))  # of JSON, strict validation takes objects for sections
    except pydantic.ValidationError as error:
        field = next(iter(error.errors()[0]["loc"]), None)
        said = f"{field} must be {wanted[field]}" if field in wanted else reason(error, known, whole)
        raise UserError(f"{where}: {said}") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {str(error).splitlines()[0]}") from None
