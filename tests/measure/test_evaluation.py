"""The script that measures evaluation: its peers agree with us, what rests is what was seen, and a failure is told."""

from __future__ import annotations

import re

import pytest

from benchmark.files import UserError
from benchmark.measure import evaluation


def test_peers_have_the_same_distance(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(evaluation, "WIDTH", 48)
    evaluation.frechet()
    values = [float(value) for value in re.findall(r"\((\d+\.\d{8})\)", capsys.readouterr().out)]
    assert len(values) == 4, "ours, with influences, torchmetrics, scipy"
    assert values == pytest.approx([values[0]] * 4, abs=2e-6)
    assert values[0] > 0


def test_the_memory_that_scoring_a_file_takes_is_told(capsys: pytest.CaptureFixture) -> None:
    evaluation.memory(500)
    said = capsys.readouterr().out
    peak, before = (float(value) for value in re.findall(r"(\d+) MiB,", said)[:1] + re.findall(r", (\d+) before", said))
    assert peak >= before > 0
    assert "memory N = 500" in said


def test_features_as_wide_as_inceptions(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(evaluation, "WIDTH", 64)
    evaluation.wide(500)
    said = capsys.readouterr().out
    assert "wide N = 500" in said
    assert float(said.rpartition("FID ")[2]) > 0, "noise is far from scenes"


def test_float16_moves_precision_and_recall_little(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(evaluation, "WIDTH", 64)
    evaluation.float16(200)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("moved by ")[1][:3] for line in lines] == ["0.0", "0.1", "0.3"]
    for line in lines:
        exact, half = (list(map(float, re.findall(rf"{kind} (\d\.\d+) (\d\.\d+)", line)[0])) for kind in ("exact", "float16"))
        assert half == pytest.approx(exact, abs=0.05)


def test_features_at_rest_score_the_same(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(evaluation, "WIDTH", 64)
    evaluation.rest(300)
    said = capsys.readouterr().out
    sizes = [int(size) for size in re.findall(r"(\d+) bytes an image", said)]
    assert len(sizes) == 4
    assert sizes[1] < 0.5 * sizes[0], "half the bits, and no logits"
    for name, value, moved in re.findall(r"^  (\S+) (\S+), at rest (\S+)$", said, re.MULTILINE):
        assert abs(float(moved)) <= 1e-3 * max(abs(float(value)), 1), name
    assert len(re.findall(r"^  fid ", said, re.MULTILINE)) == 2


def test_a_part_is_known_and_its_failure_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"unknown part 'memry'; did you mean 'memory'\?"):
        evaluation.measure(["memry"])
    monkeypatch.setitem(evaluation.PARTS, "rest", [(evaluation.clock, None)])  # not a function to be called
    with pytest.raises(UserError, match="rest: the process that measures it ended with exit code 1"):
        evaluation.measure(["rest"])
