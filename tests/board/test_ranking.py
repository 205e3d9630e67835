"""The table in the terminal, and what a change of records does to the rankings."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from synthetic import tiny, value_of

from benchmark import files, protocol
from benchmark.board import ranking
from benchmark.files import UserError
from benchmark.results import record

# Long lines are the literal tables.
# ruff: noqa: W291


def test_the_table_in_the_terminal(home: Path, rules: protocol.Protocol) -> None:
    tiny(home / "records", rules)
    stream = io.StringIO()
    shown = ranking.rich_table("shapes-tiny", record.read_all(home / "records"))
    Console(file=stream, width=100, color_system=None).print(shown)
    assert (
        stream.getvalue().replace(rules.hash, "0123456789ab")
        == """\
shapes-tiny: FID ↓ (IS ↑ below), N = 100, 
 trained at 16x16, protocol 0123456789ab  
                             16x32        
              16x16   32x32  1x by    mean
Method           1x      2x     2x  beyond
──────────────────────────────────────────
LEDiT ¹        10.2    20.0   31.0    25.5
               7.75    7.50   7.22    7.36
YaRN           10.5    41.0   31.5    36.2
              ± 0.7   ± 1.4  ± 2.1   ± 1.8
               7.74    6.97   7.21    7.09
NTK-aware †¹   10.0    90.0   80.0    85.0
               7.75    5.75   6.00    5.88
RPE-2D ‡¹      12.5  failed      –       –
               7.69                       
    † stale; ‡ incomplete; ¹ one seed     
"""
    )


@pytest.mark.parametrize("name", ["shapes", "shapes-long", "imagenet-256-s2", "imagenet-512-xl2"])
def test_the_table_fits_80_columns(name: str) -> None:
    """With seeds, at all sizes: nothing is cut, no name is broken or left out."""
    rules = protocol.load(name)
    values = [
        value_of(rules, name, pair, seed, 116.8 + seed)
        for name in ("extrapolation", "yarn")
        for pair in rules.pairs()
        for seed in (0, 1)
    ]
    stream = io.StringIO()
    shown = ranking.rich_table(rules, [record.from_value(v, rules) for v in values])
    Console(file=stream, width=80, color_system=None).print(shown)
    assert len([line for line in stream.getvalue().splitlines() if line.startswith(("extrapolation ", "YaRN "))]) == 2
    assert "…" not in stream.getvalue()
    assert "± 0.7" in stream.getvalue()


def test_what_changes_in_the_ranking(home: Path, rules: protocol.Protocol) -> None:
    tiny(home / "records", rules)
    old = home / "old"
    for method in ("yarn", "ntk", "rpe2d"):
        for path in sorted((home / "records" / "shapes-tiny" / method).iterdir()):
            files.write_text(old / "shapes-tiny" / method / path.name, path.read_text())
    (old / "shapes-tiny" / "ntk" / "16x16-32x32-s0.json").unlink()
    assert (
        ranking.ranking_changes(old, home / "records")
        == """\
### Changes in the rankings

Records: 4 new, 0 changed, 0 removed.

**`shapes-tiny`**, by mean FID beyond the training size (lower is better)

| Method | Rank before | Rank now | FID before | FID now |
| --- | ---: | ---: | ---: | ---: |
| `ledit` | absent | 1 | – | 25.50 |
| `yarn` | 1 | 2 | 36.25 | 36.25 |
| `ntk` | incomplete (1 missing) | 3 | – | 85.00 |
"""
    )
    assert "None: the records are the same." in ranking.ranking_changes(old, old)
    assert "Records: 14 new, 0 changed, 0 removed." in ranking.ranking_changes(home / "absent", home / "records")


def test_old_records_of_other_rules_are_said_to_be_so(home: Path, rules: protocol.Protocol) -> None:
    tiny(home / "records", rules)
    value = value_of(rules, "yarn", rules.pairs()[0])
    value["protocol"]["hash"] = "0" * 12
    record.write(value, home / "old")
    assert "cannot be compared" in ranking.ranking_changes(home / "old", home / "records")
    with pytest.raises(UserError, match="another version of the protocol"):
        ranking.ranking_changes(home / "records", home / "old")
