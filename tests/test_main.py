"""How a process ends: what a person can put right is one line and exit code 2, a fault in the code is a traceback and 1."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys

import pytest

import benchmark
from benchmark import __main__ as command_line
from benchmark.files import Stopped, UserError, stop_signals


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in stop_signals()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def app() -> None:
        raise error

    monkeypatch.setattr(command_line, "app", app)
    monkeypatch.setattr(sys, "stdout", sys.__stdout__)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("unknown method 'x'"), 2, "error: unknown method 'x'"),
        (Stopped("stopped; run the same command to continue", 143), 143, "stopped; run the same command to continue"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 2, "error: no space left on the device (/x/y); free some"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), 2, "error: '/x/y': Permission denied"),
        (MemoryError(), 2, "error: out of memory (no details); use a smaller batch or image size"),
        (RuntimeError("CUDA out of memory.\nmore"), 2, "error: out of memory (CUDA out of memory.); use a smaller batch"),
    ],
)
def test_what_a_person_can_put_right_is_one_line(error, code, said, monkeypatch, capsys):
    raising(monkeypatch, error)
    assert command_line.main() == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(said)


def test_a_container_does_not_make_float32_products_tf32(monkeypatch):
    monkeypatch.setenv("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1")
    importlib.reload(benchmark)
    assert "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE" not in os.environ


def test_a_fault_in_the_code_is_a_traceback(monkeypatch, capsys):
    raising(monkeypatch, RuntimeError("shapes do not match"))
    with pytest.raises(SystemExit) as ended:
        command_line.run()
    assert ended.value.code == 1
    assert "Traceback" in (said := capsys.readouterr().err)
    assert "shapes do not match" in said


@pytest.mark.parametrize(("code", "ends"), [(None, 0), (3, 3), ("no", 1)])
def test_typers_exits_are_those_of_the_process(code, ends, monkeypatch):
    raising(monkeypatch, SystemExit(code))
    with pytest.raises(SystemExit) as ended:
        command_line.run()
    assert ended.value.code == ends
