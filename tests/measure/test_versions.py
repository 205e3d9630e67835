"""Two checkouts side by side: a slower one is told, each runs its own code, and what is no checkout is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmark.files import ROOT, UserError
from benchmark.measure import versions


def test_the_slower_checkout_is_told(tmp_path: Path) -> None:
    for folder in ("benchmark", "methods", "datasets"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    file = tmp_path / "methods" / "nope.py"
    file.write_text(f"{file.read_text()}\n\nimport time\n\nplain = NoPE.encode\n\n\ndef slow(self, *args, **kwargs):\n"
                    "    time.sleep(0.5)\n    return plain(self, *args, **kwargs)\n\n\nNoPE.encode = slow\n")  # fmt: skip
    found = versions.compare(tmp_path, ["nope"], "smoke", rounds=3)
    assert set(found["nope"]) == set(versions.KINDS)
    assert found["nope"]["training step"] < 0.5


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
