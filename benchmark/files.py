"""Files, which are complete or absent on disk, and user errors, which are one line."""

from __future__ import annotations

import contextlib
import difflib
import errno
import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

ROOT = Path(__file__).resolve().parent.parent


class UserError(ValueError):
    """An error the user can fix. The message is one line: what is wrong, then how to fix it."""


class Stopped(BaseException):  # no `except Exception` may go on after it
    """A person or a scheduler asked for an end; everything was saved, and the next run continues."""

    def __init__(self, message: str, code: int = 130) -> None:
        super().__init__(message)
        self.code = code  # of the process: 128 + the signal's number


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, a scheduler, a terminal that closes


def stop_signals() -> list[signal.Signals]:
    """Those of STOP_SIGNALS that end this process: under nohup the last does not."""
    return [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]


@contextlib.contextmanager
def handled(handler: Any, numbers: Iterable[int]) -> Iterator[None]:
    """Lets `handler` have these signals while the block runs."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was or signal.SIG_DFL)


def exit_code(work: Callable[[], object]) -> int:
    """Runs a script's work: 0, or 2 after one line about what a person can put right."""
    try:
        work()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def unknown(kind: str, name: str, choices: Iterable[str]) -> UserError:
    """The error for a name that does not exist: suggests the nearest and lists what there is."""
    choices = sorted(choices)
    name = name if name.isprintable() and len(name) <= 60 else shown(name).strip("'")
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return UserError(f"unknown {kind} '{name}'{hint} (choose from: {', '.join(choices) or 'none'})")


PARENT = "POSBENCH_PARENT"  # in the environment of processes that must not outlive the one that started them
SHOWN = 5  # names of a list in a message


def listed(names: Iterable[object]) -> str:
    """A list for a message, cut at SHOWN names: "a, b, c, d, e and 12 more"."""
    names = [str(name) for name in names]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def shown(value: object, length: int = 60) -> str:
    """A value of whatever kind and size, for a message: on one line, and not long."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
        return "a number of more than 60 digits"  # which Python may refuse to print
    if isinstance(value, list | tuple | dict | set):
        value = f"{type(value).__name__} of {len(value)}" if len(value) > 8 else value
    try:
        text = repr(value) if not isinstance(value, str) or not value.isprintable() else f"'{value}'"
    except (RecursionError, ValueError):
        return type(value).__name__
    return text if len(text) <= length else f"{text[: length - 3]}..."


# --- Names and places ------------------------------------------------------------------------------------------------

NAME = re.compile(r"[a-z0-9_-]{1,64}")  # of protocols and cards, which become folders and stand in records
LONGEST = 255  # bytes that a file system takes for one name


def checked_name(name: object, kind: str) -> str:
    """A name from a file that becomes part of a path, itself; a UserError where it could lead anywhere else."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UserError(f"{kind} must be a name of 1 to 64 of a-z, 0-9, _ and -, not {shown(name)}")
    return name


def below(root: Path | str, *parts: str) -> Path:
    """The path of an output under `root`: every place that is made of names is made here, and none leaves `root`.

    Raises:
        UserError: a part is absolute, climbs, is empty, holds a NUL or is longer than a file system takes.
    """
    for part in parts:
        steps = part.split("/")
        if "\0" in part or any(step in ("", ".", "..") for step in steps):
            raise UserError(f"{shown(part)} points outside {root}: nothing is written there")
        if any(len(os.fsencode(step)) > LONGEST for step in steps):
            raise UserError(f"{shown(part)} is longer than {LONGEST} bytes, the limit for a file name")
    return Path(root, *parts)


# --- Writing ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is flushed to disk and renamed onto it, on failure removed.

    The block writes a file at the yielded path. Readers see the old state or the new one, never half.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    owner = f"{_here()}~{os.getpid()}"  # so that nobody sweeps what is still being written
    draft = Path(tempfile.mkdtemp(prefix=f".{path.name[:100]}.{owner}.", suffix=".part", dir=path.parent))
    inner = draft / path.name
    try:
        yield inner
        with open(inner, "rb") as file:
            os.fsync(file.fileno())
        os.replace(inner, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


_held: set[int] = set()  # descriptors of the locks of this process


@contextlib.contextmanager
def locked(path: Path, busy: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds a lock, which the system releases however the process ends.

    Args:
        path: a file for the lock alone; made where it is missing, and left.
        busy: called before waiting where another process holds the lock; it may raise instead.

    Raises:
        UserError: the file system has no locks.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    _held.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            busy()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                raise
            raise UserError(
                f"{path.parent} is on a file system without locks ({error.strerror}; Lustre has them with the mount option "
                "flock): choose another OUT"
            ) from None
        yield
    finally:
        if descriptor in _held:
            _held.remove(descriptor)
            os.close(descriptor)


def _leave_locks() -> None:
    """In a forked process, such as a loader's worker: a lock ends with the process that took it, not with its last child."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_leave_locks)


# Errors for a path that cannot be written, whatever it is: OUT is a file, or belongs to another user.
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)


def is_full(error: BaseException) -> bool:
    """Whether a write failed because the disk is full, or a quota on it used up. Libraries in Rust say so in words only."""
    codes = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in codes or any(os.strerror(code) in str(error) for code in codes)


def is_memory(error: BaseException) -> bool:
    """Whether something did not fit into memory. torch says so of a processor's in words only."""
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "out of memory" in str(error).lower()


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


# --- Reading ---------------------------------------------------------------------------------------------------------


def walk(root: Path | str) -> Iterator[tuple[str, list[str]]]:
    """Each folder at and below `root` with the names of its files, both in order; linked folders too, but none twice.

    Names that begin with a dot are passed over: what systems and editors leave (`._a.png`, `.ipynb_checkpoints`).

    Raises:
        UserError: a folder cannot be listed.
    """
    seen: set[str] = set()

    def lost(error: OSError) -> None:  # its files would not be missed: what is there would pass for all
        if error.errno != errno.ENOENT:
            raise UserError(f"{error.filename} cannot be listed: {error.strerror}") from None

    for folder, folders, names in os.walk(root, onerror=lost, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link to a folder above itself has no end
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield folder, sorted(name for name in names if not name.startswith("."))


def sweep(folder: Path | str, everywhere: bool = False) -> None:
    """Removes the drafts that killed processes left in a folder (`everywhere`: below it too), and no living one's.

    Of processes on other machines or in other containers nothing is known: their drafts go when they are a day old.
    """
    for place, names, _ in os.walk(folder):  # which passes over what goes meanwhile
        for draft in [Path(place, name) for name in names if name.startswith(".") and name.endswith(".part")]:
            host, _, process = draft.name.removesuffix(".part").rpartition(".")[0].rpartition("~")
            dead = False
            if host.endswith(f".{_here()}") and process.isdigit():
                dead = not _is_alive(int(process))
            else:
                with contextlib.suppress(FileNotFoundError):
                    dead = time.time() - draft.stat().st_mtime > 86400
            if dead:
                shutil.rmtree(draft, ignore_errors=True)
        if not everywhere:
            break


def _here() -> str:
    """Where a process number means something: this machine, and of containers that share its name the one that we are in."""
    try:
        space = os.stat("/proc/self/ns/pid").st_ino
    except OSError:  # not Linux
        space = 0
    return f"{socket.gethostname()[:40]}+{space}"


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True


def read_regular(path: Path | str) -> bytes:
    """The bytes of a regular file; an OSError for anything else, such as a pipe, which would be waited for without end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", str(path))
        return file.read()


def read_text(path: Path | str, limit: int = 1 << 30) -> str:
    """A UTF-8 file as text.

    Raises:
        UserError: it is not there, no regular file (a pipe would be waited for without end), too large, or not UTF-8.
    """
    try:
        state = os.stat(path)
        if not stat.S_ISREG(state.st_mode):
            raise UserError(f"{shown(str(path), 300)} is not a regular file")
        if state.st_size > limit:
            raise UserError(f"{path} has {state.st_size} bytes, too many for a file of this kind (at most {limit})")
        return Path(path).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} does not exist") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{shown(str(path), 300)} cannot be read ({error.strerror})") from None
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{shown(str(path), 300)} is not a valid path ({error})") from None


def read_json(path: Path | str) -> Any:
    """The JSON value in `path`; a UserError names the file when it is not there or is not JSON."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not valid JSON ({str(error).splitlines()[0]})") from None


def read_fields(path: Path | str, *keys: str) -> dict[str, Any]:
    """The JSON object in a file of ours, which has these keys; edited by hand it may not."""
    value = read_json(path)
    missing = [key for key in keys if key not in value] if isinstance(value, dict) else keys
    if missing:
        raise UserError(f"{path} lacks {listed(missing)}: it was edited; remove {Path(path).parent} and run the command again")
    return value


def digest(value: Any, length: int = 12) -> str:
    """The first `length` hexadecimal digits of SHA-256 over the canonical JSON of `value`."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def file_hash(path: Path | str) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def state_of(path: Path | str) -> tuple[str, int, int]:
    """Shows whether a file has changed since it was read: path, size, time."""
    state = os.stat(path)
    return str(path), state.st_size, state.st_mtime_ns


@functools.cache
def hash_of(path: str, size: int, changed: int) -> str:
    """`file_hash`, taken once while the file stays the same: hash_of(*state_of(path))."""
    return file_hash(path)


def changed(path: str | Path) -> int:
    """When a folder or file changed last, in nanoseconds; 0 where there is none."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:  # or what braces stand for, which may be too long for a name
        return 0
