"""Files and errors: whole or absent on disk, one line for people when something is wrong."""

from __future__ import annotations

import contextlib
import difflib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

ROOT = Path(__file__).resolve().parent.parent


class UserError(ValueError):
    """Something the user can put right. The message is one line: what is wrong, then what would be right."""


class Stopped(Exception):
    """A person or a scheduler asked for an end; everything was saved, and the next run continues."""

    def __init__(self, message: str, code: int = 130) -> None:
        super().__init__(message)
        self.code = code  # of the process: 128 + the signal's number


def unknown(kind: str, name: str, choices: Iterable[str]) -> UserError:
    """The error for a name that does not exist: suggests the nearest and lists what there is."""
    choices = sorted(choices)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return UserError(f"unknown {kind} '{name}'{hint} (there are: {', '.join(choices) or 'none'})")


def listed(names: Iterable[str], most: int = 5) -> str:
    """Names for a message: at most five, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


@contextlib.contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is flushed to disk and renamed onto it, on failure removed.

    The block writes a file (or creates a folder) at the yielded path. Readers see the old state or the new one, never half.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    inner = draft / path.name
    try:
        yield inner
        if inner.is_file():
            with open(inner, "rb") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            shutil.rmtree(path)
        os.replace(inner, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def is_full(error: BaseException) -> bool:
    """Whether a write failed because the disk is full, or a quota on it used up. Libraries in Rust say so in words only."""
    codes = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in codes or any(os.strerror(code) in str(error) for code in codes)


def write_array(path: Path | str, array: np.ndarray) -> None:
    """Writes an array as .npy, atomically."""
    import numpy as np

    with atomic(path) as draft, open(draft, "wb") as file:
        # Given a real file, NumPy writes through a buffer of C's, and does not notice that its last part found the disk full.
        np.save(SimpleNamespace(write=file.write), array)


def write_text(path: Path | str, text: str) -> None:
    """Writes `text` as UTF-8 with Unix line ends, atomically."""
    with atomic(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path | str, value: Any) -> None:
    """Writes `value` as JSON with sorted keys, atomically. NaN and infinity are errors: JSON has no such numbers."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path | str) -> Any:
    """The JSON value in `path`; a UserError names the file when it is not there or is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is not there") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error})") from None


def digest(value: Any, length: int = 12) -> str:
    """The first `length` hexadecimal digits of SHA-256 over the canonical JSON of `value`."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def file_hash(path: Path | str) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
