"""Many command lines on one interpreter: everything is imported once, and each command runs in a forked child of its own.

A child starts where `python -m benchmark` starts, in `__main__.main()`, with its own arguments, output files and process group.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmark import __main__ as command_line
from benchmark.board import generate
from benchmark.files import ROOT
from benchmark.plan import stages  # noqa: F401 (what verbs import late, so that no child pays for it)
from benchmark.run import local, sample, score, train  # noqa: F401

LIMIT = 60.0  # seconds, for a command


@dataclass(frozen=True)
class Ran:
    """What came of a command."""

    code: int | None  # None: it had to be killed
    out: str
    err: str
    seconds: float


class Command:
    """A command line in a forked child, whose process group is its own."""

    def __init__(self, words: list[str], log: Path, environment: dict[str, str] | None = None) -> None:
        self.log, self.began = log, time.monotonic()
        log.mkdir(parents=True, exist_ok=True)
        self.pid = os.fork()
        if self.pid == 0:
            self._child(words, environment or {})

    def _child(self, words: list[str], environment: dict[str, str]) -> None:
        code = 1
        try:
            os.setsid()
            for number, name in ((1, "out"), (2, "err")):
                target = os.open(self.log / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(target, number)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1, errors="backslashreplace")
            os.environ.update(environment)
            os.chdir(os.environ.pop("CWD", "."))
            torch.set_num_threads(1)
            if words[0] == "@records":  # what `leaderboards` does, from a folder of records of one's own
                command_line.app = lambda: generate.generate(Path(words[1]), Path(words[1]).parent / "out")
            sys.argv = [str(ROOT / "benchmark" / "__main__.py"), *words]
            code = command_line.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def poll(self) -> int | None:
        """The exit code, once there is one."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def wait(self, limit: float = LIMIT) -> Ran:
        code = self.poll()
        while code is None and time.monotonic() - self.began < limit:
            time.sleep(0.02)
            code = self.poll()
        seconds = time.monotonic() - self.began
        if code is None:
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        text = [(self.log / name).read_text(encoding="utf-8", errors="replace") for name in ("out", "err")]
        return Ran(code, *text, seconds)

    def kill(self) -> None:
        """SIGKILL to the main process alone."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def orphans(self) -> list[int]:
        """Processes of the command's session that are still there."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                if int(fields[3]) == self.pid and fields[0] != "Z":
                    found.append(int(entry.name))
        return found
