"""The speed script and the figure of the bands."""

from __future__ import annotations

import itertools
import json
import xml.etree.ElementTree

import pytest

from benchmark import registry
from benchmark.files import UserError
from benchmark.measure import spectrum, speed
from benchmark.model import checkpoint


@pytest.mark.parametrize(("size", "billions"), [("S", 6.06), ("B", 23.01), ("L", 80.71), ("XL", 118.64)])
def test_operations_are_the_published_ones(size, billions):
    """Peebles and Xie 2023, table 1, counts a multiplication with its addition once."""
    assert speed.flop(size) / 2e9 == pytest.approx(billions, rel=0.01)


def test_contestants_take_turns_and_the_first_round_is_not_counted():
    order = []
    seconds = speed.paired({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 4, "cpu")
    assert order == ["a", "b"] * 4
    assert [len(values) for values in seconds.values()] == [3, 3]
    assert speed.ratio([2.0, 30.0, 4.0], [1.0, 3.0, 4.0]) == 2


def test_a_whole_run_on_a_tiny_core(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(checkpoint.SIZES, "S", checkpoint.Size(1, 16, 2))
    names = [next(name for name in registry.names() if registry.load(name).trains_as), registry.shared()]
    monkeypatch.setattr(speed.registry, "names", lambda: names)
    monkeypatch.setattr(registry, "shared", lambda: names[1])
    monkeypatch.setattr(speed, "_peak", lambda precision, device: 1e9)
    result = speed.measure(tmp_path, batch=2, rounds=2, device="cpu")
    steps = [f"{kind} {precision}" for kind, precision in itertools.product(("training step", "forward"), ("float32", "bf16"))]
    assert list(result["core"]) == steps
    assert list(result["methods"]) == names
    assert json.loads((tmp_path / "speed" / "S-cpu.json").read_text()) == result
    text = (tmp_path / "speed" / "S-cpu.txt").read_text()
    assert "trains none" in text
    assert names[1] in text
    assert "diffusers" in capsys.readouterr().out


def test_speed_refuses():
    with pytest.raises(UserError, match=r"unknown size 'M' \(choose from: B, L, S, XL\)"):
        speed.measure(None, size="M")
    with pytest.raises(UserError, match="at least 2 rounds"):
        speed.measure(None, rounds=1)


def test_spectra():
    panels = {panel.title: panel for panel in spectrum.spectra()}
    base = registry.load(registry.shared()).title
    assert next(iter(panels)) == base
    assert panels[base].tested == pytest.approx([2 * turns for turns in panels[base].trained])
    assert panels["Interpolation"].tested == pytest.approx(panels["Interpolation"].trained)
    assert panels["NTK"].tested[0] == pytest.approx(2 * panels["NTK"].trained[0])
    assert panels["NTK"].tested[-1] == pytest.approx(panels["NTK"].trained[-1])
    assert all(panel.trained == panels[base].trained for panel in panels.values()), "one checkpoint"
    assert panels["YaRN"].attention_factor == pytest.approx(1.0693, abs=1e-4)
    committed = spectrum.FILE.read_text(encoding="utf-8")
    assert not [title for title in panels if f">{title}</text>" not in committed], "`make spectrum` draws it anew"


def test_figure_is_drawn_the_same_twice(tmp_path):
    one, two = spectrum.draw(tmp_path / "a.svg"), spectrum.draw(tmp_path / "b.svg")
    assert one.read_bytes() == two.read_bytes()
    root = xml.etree.ElementTree.parse(one).getroot()
    assert root.tag.endswith("svg")
    assert "YaRN" in one.read_text(encoding="utf-8")
