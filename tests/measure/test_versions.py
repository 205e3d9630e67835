"""Two checkouts side by side: a slower one is told, each runs its own code, and what is no checkout is refused."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from benchmark.files import ROOT, UserError
from benchmark.measure import versions


def test_a_worker_answers_with_seconds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["-c", "smoke"])
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"nope;{kind}\n" for kind in versions.KINDS)))
    exec(versions.WORKER, {})
    assert len([float(line) for line in capsys.readouterr().out.split()]) == len(versions.KINDS)


def test_the_slower_checkout_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By processes that run in their own checkout, and do nothing there but look whether it is the slow one."""
    monkeypatch.setattr(versions, "WORKER", """
import sys, time
from pathlib import Path
for line in sys.stdin:
    began = time.perf_counter()
    time.sleep(0.05 if Path("slow").exists() else 0.005)
    print(time.perf_counter() - began, flush=True)
""")  # fmt: skip
    (tmp_path / "benchmark").mkdir()
    (tmp_path / "benchmark" / "registry.py").touch()
    (tmp_path / "slow").touch()
    found = versions.compare(tmp_path, ["nope"], "smoke", rounds=3)
    assert set(found["nope"]) == set(versions.KINDS)
    assert 0 < found["nope"]["training step"] < 0.5


def test_what_is_no_checkout_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(UserError, match="is not a checkout"):
        versions.compare(tmp_path, ["nope"])
    assert versions.main([]) == 2
    assert versions.main([str(ROOT), "nosuch"]) == 2
    said = capsys.readouterr().err
    assert "give the checkout" in said
    assert "unknown method 'nosuch'" in said


def test_a_checkout_without_the_method_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "WORKER", "raise SystemExit('no such method')")
    with pytest.raises(UserError, match="did not run a training step of nope"):
        versions.compare(ROOT, ["nope"], "smoke", rounds=2)
