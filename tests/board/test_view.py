"""The view model: what is said of rows, verdicts, columns and samples, before any form is given to it."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import pytest
import synthetic
from PIL import Image
from rich.console import Console
from synthetic import TINY, board_of, protocols, tiny, value_of

from benchmark import protocol
from benchmark.board import generate, published, ranking, table, view
from benchmark.board.facts import facts
from benchmark.results import record


def built(home: Path) -> view.Board:
    """The view of shapes-tiny."""
    tables = generate.tables_of(record.read_all(home / "records"), published.load())
    return next(board for board in view.build(tables, published.load(), home) if board.name == "shapes-tiny")


def test_a_verdict_names_rows_of_several_seeds_only(rules: protocol.Protocol) -> None:
    several = {(name, seed): (1, fid + seed, fid) for name, fid in (("a", 20.0), ("b", 50.0)) for seed in range(3)}
    told = view.verdict(board_of(rules, several | {("lucky", 0): (1, 1, 1)}))
    assert told == (
        "a has the lowest mean FID beyond the training size (20.5 ± 0.5). b (50.5) follows. "
        "Only the 2 of 3 rows with several seeds are compared."
    )
    assert view.verdict(board_of(rules, several)) == (
        "a has the lowest mean FID beyond the training size (20.5 ± 0.5). b (50.5) follows."
    )
    alone = {("lucky", 0): (1, 1, 1), ("other", 0): (1, 2, 2)}
    assert view.verdict(board_of(rules, alone)) == "No winner is named yet: no complete row has more than one seed."
    one = {key: row for key, row in several.items() if key[0] == "a"}
    assert view.verdict(board_of(rules, alone | one)) == "No winner is named yet: only one complete row has more than one seed."
    assert view.verdict(board_of(rules, {("a", 0): (1, 2, None), ("a", 1): (1, 2, 3)})) == ""


def test_the_front_table_prefers_rows_of_several_seeds(rules: protocol.Protocol) -> None:
    """One seed, however good, takes no place from a row that is judged; it fills up a table that has room."""
    several = {(name, seed): (1, fid + seed, fid) for fid, name in enumerate(("a", "b", "c"), 20) for seed in range(2)}
    board = board_of(rules, several | {("lucky", 0): (1, 1, 1)})
    methods = view._methods(board, {})

    def front(most: int) -> tuple[list[str], str]:
        grid = view._front(board, methods, most)
        return [line.cells[0].text for line in grid.rows], grid.text

    assert front(3) == (["a", "b", "c"], "")
    assert front(2) == (["a", "b"], "the best 2 of 3 methods with several seeds")
    assert front(4) == (["lucky", "a", "b", "c"], "")


def test_a_rehearsal_says_what_it_is_and_follows_its_protocol(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its verdict; it is held against no paper's order, and comes after what it rehearses though its name is first."""
    short = TINY + "rehearses: shapes-tiny\n"
    protocols(home.parent / "protocols", monkeypatch, shapes_tiny=TINY, shapes_quick=short.replace("steps: 10", "steps: 3"))
    for name in ("shapes-tiny", "shapes-quick"):
        rules = protocol.load(name)
        for method, fid in (("yarn", 30.0), ("ntk", 40.0), ("ledit", 20.0)):
            for pair, seed in itertools.product(rules.pairs(), (0, 1)):
                record.write(value_of(rules, method, pair, seed, fid), home / "records")
    tables = generate.tables_of(record.read_all(home / "records"), published.load())
    assert [name for name in tables if name.startswith("shapes-")] == ["shapes-tiny", "shapes-quick"]
    tiny_board, quick = (board for board in view.build(tables, published.load(), home) if board.name.startswith("shapes-"))
    assert quick.verdict == (
        f"A rehearsal of shapes-tiny, too short to converge: its ranking is only indicative. {tiny_board.verdict}"
    )
    assert tiny_board.agreement
    assert quick.agreement == []
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(ranking.rich_table("shapes-quick", record.read_all(home / "records")))
    assert "a rehearsal of shapes-tiny: its ranking is only indicative" in " ".join(console.export_text().split())


def test_a_verdict_names_what_is_not_shown_to_differ(rules: protocol.Protocol) -> None:
    rows = {(name, seed): (1, fid + seed, fid) for name, fid in (("a", 20.0), ("same", 20.0), ("b", 50.0)) for seed in range(3)}
    assert view.verdict(board_of(rules, rows)).endswith("(20.5 ± 0.5), not significantly lower than same. b (50.5) follows.")
    unsure = {("b", seed): (1, fid, fid) for seed, fid in enumerate((10.0, 50.0, 90.0))}
    assert view.verdict(board_of(rules, rows | unsure)).endswith(", not significantly lower than same and b.")
    rows |= {(f"worse{fid}", seed): (1, fid + seed, fid) for seed in range(3) for fid in (60, 70, 80)}
    assert view.verdict(board_of(rules, rows)).endswith(". b (50.5), worse60 (60.5) and worse70 (70.5) follow.")


def test_a_variant_stands_in_brackets_in_a_sentence(rules: protocol.Protocol, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "TITLES", {"a": "a, large", "b": "b (small)", "c": "c(2D)"})
    rows = {(name, seed): (1, fid + seed, fid) for name, fid in (("a", 20.0), ("b", 50.0), ("c", 60.0)) for seed in range(3)}
    assert view.verdict(board_of(rules, rows)) == (
        "a (large) has the lowest mean FID beyond the training size (20.5 ± 0.5). b (small, 50.5) and c(2D) (60.5) follow."
    )


def test_rows_are_ranked_by_fid_and_by_sfid(home: Path, rules: protocol.Protocol) -> None:
    for name, fid, sfid in (("ledit", 10.0, 90.0), ("yarn", 20.0, 10.0), ("ntk", 30.0, 20.0)):
        for pair in rules.pairs():
            record.write(value_of(rules, name, pair, 0, fid, sfid={"value": sfid}), home / "records")
    board = built(home)
    assert [(item.method, item.rank, item.second) for item in board.methods] == [("ledit", 1, 3), ("yarn", 2, 1), ("ntk", 3, 2)]
    grid = board.measures[0].grid
    assert [head.key for head in grid.heads[:3]] == ["name", "rank", "rank-2"]
    assert [[cell.text for cell in row.cells[:3]] for row in grid.rows] == [
        ["LEDiT", "1", "3"],
        ["YaRN", "2", "1"],
        ["NTK-aware", "3", "2"],
    ]


def test_what_is_said_of_a_row_comes_from_its_file_or_else_from_its_records(home: Path, rules: protocol.Protocol) -> None:
    tiny(home / "records", rules)
    for pair in rules.pairs():
        record.write(value_of(rules, "elsewhere", pair, 0, 99.0), home / "records")
    known = {item.method: item for item in built(home).methods}
    assert (known["yarn"].kind, known["yarn"].year, known["yarn"].paper) == (
        "training-free",
        2023,
        "https://arxiv.org/abs/2309.00071",
    )
    assert known["yarn"].file.endswith("methods/yarn.py")
    assert (known["ledit"].kind, known["ledit"].seeds, known["ledit"].marks) == ("trained", (0,), "¹")
    other = known["elsewhere"]
    assert (other.kind, other.year, other.paper, other.file) == ("trained", None, "", "")


def test_columns_go_from_the_headline_and_the_largest_size_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    protocols(
        tmp_path / "protocols",
        monkeypatch,
        shapes_tiny=TINY.replace("[16x16, 32x32, 16x32]", "[8x8, 12x12, 16x16, 24x24, 32x32]"),
    )
    rules = protocol.load("shapes-tiny")
    for pair in rules.pairs():
        record.write(value_of(rules, "yarn", pair, 0, 10.0), tmp_path / "leaderboards" / "records")
    heads = built(tmp_path / "leaderboards").measures[1].grid.heads
    assert [(head.title, head.below, head.key) for head in heads[1:]] == [
        ("mean", "beyond", "is.mean-beyond"),
        ("2x", "32x32", "is.32x32"),
        ("1.5x", "24x24", "is.24x24"),
        ("1x", "16x16", "is.16x16"),
        ("mean", "below", "is.mean-below"),
        ("0.75x", "12x12", "is.12x12"),
        ("0.5x", "8x8", "is.8x8"),
    ]
    assert all(head.falls for head in heads[1:])  # the larger the better


def test_a_measure_is_one_entry_in_one_place(home: Path, rules: protocol.Protocol, monkeypatch: pytest.MonkeyPatch) -> None:
    """Title, meaning and section come from METRICS; a measure without a section stands in the markdown too."""
    monkeypatch.setitem(record.METRICS, "recall", record.Metric("Fresh measure", "↓", meaning="What it means."))
    monkeypatch.setitem(record.METRICS, "top1", record.Metric("Rare measure", "↑", section=record.STRUCTURE))
    for pair in rules.pairs():
        record.write(value_of(rules, "yarn", pair, 0, 10.0, top1={"value": 0.5}), home / "records")
    generate.generate(home / "records", home)
    text, page = (home / "shapes-tiny.md").read_text(), (home / "index.html").read_text()
    assert "## Fresh measure ↓\n\nWhat it means.\n\n| Method | mean<br>beyond |" in text
    assert "Rare measure" not in text  # further measures are for the page and the long tables
    assert page.index("Fresh measure ↓") < page.index("<h3>Structure</h3>") < page.index("Rare measure ↑")


def test_the_denoising_loss_stands_beside_fid_and_its_levels_in_the_long_table(home: Path, rules: protocol.Protocol) -> None:
    resamples = [0.19, 0.21] * 10
    loss = {"value": 0.2, "low": 0.1, "high": 0.3, "replicates": resamples, "times": [0.25, 0.75], "levels": [0.3, 0.1]}
    for pair in rules.pairs():
        record.write(value_of(rules, "yarn", pair, 0, 10.0, loss={**loss, "images": "a" * 12}), home / "records")
    generate.generate(home / "records", home)
    assert "## Denoising loss ↓" in (home / "shapes-tiny.md").read_text()
    assert "Denoising loss ↓" in (home / "index.html").read_text()
    rows = [line.split(",")[-4:] for line in (home / "shapes-tiny.csv").read_text().splitlines() if ",32x32," in line]
    assert rows[-3:] == [["loss", "0.2", "0.1", "0.3"], ["loss@0.25", "0.3", "", ""], ["loss@0.75", "0.1", "", ""]]


def test_samples_in_any_format_with_the_real_ones(home: Path, rules: protocol.Protocol) -> None:
    tiny(home / "records", rules)
    for name in ("yarn/16x16-32x32-s0.webp", "yarn/16x16-32x32-s1.png", "ledit/16x16-16x16-s0.png"):
        path = home / "grids" / "shapes-tiny" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 12)).save(path)
    gallery = built(home).gallery
    assert [(size.name, size.width, size.height, size.real) for size in gallery.sizes] == [
        ("16x16-32x32", 24, 12, "real/32x32.png"),
        ("16x16-16x16", 24, 12, "real/16x16.png"),
    ]
    assert (gallery.size, gallery.seed, gallery.seeds) == ("16x16-32x32", 0, [0, 1])
    assert {sheet.method.method: sheet.files for sheet in gallery.sheets} == {
        "ledit": {"16x16-16x16": {0: "shapes-tiny/ledit/16x16-16x16-s0.png"}},
        "yarn": {"16x16-32x32": {0: "shapes-tiny/yarn/16x16-32x32-s0.webp", 1: "shapes-tiny/yarn/16x16-32x32-s1.png"}},
    }


def test_a_cell_without_a_picture_shows_its_bases_where_the_images_are_the_same(home: Path, rules: protocol.Protocol) -> None:
    near, far = ("16x16", "16x16"), ("16x16", "32x32")
    for pair in rules.pairs():
        record.write(value_of(rules, "extrapolation", pair, 0, 20.0), home / "records")
        record.write(value_of(rules, "yarn", pair, 0, 10.0 if pair == far else 20.0), home / "records")
    for train, test in (near, far):
        path = home / "grids" / "shapes-tiny" / "extrapolation" / f"{train}-{test}-s0.webp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 12)).save(path)
    files = {sheet.method.method: sheet.files for sheet in built(home).gallery.sheets}
    assert files["yarn"] == {"16x16-16x16": {0: "shapes-tiny/extrapolation/16x16-16x16-s0.webp"}}
    own = home / "grids" / "shapes-tiny" / "yarn" / "16x16-16x16-s0.png"
    own.parent.mkdir()
    Image.new("RGB", (24, 12)).save(own)
    files = {sheet.method.method: sheet.files for sheet in built(home).gallery.sheets}
    assert files["yarn"] == {"16x16-16x16": {0: "shapes-tiny/yarn/16x16-16x16-s0.png"}}


def test_the_repository_is_what_the_project_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view.files, "ROOT", tmp_path)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\n')
    assert view.repository() == ""
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\nurls = {Repository = "https://example.org/a/b/"}\n')
    assert view.repository() == "https://example.org/a/b/blob/main/"


def test_facts_say_what_all_numbers_have_in_common(home: Path, rules: protocol.Protocol) -> None:
    tiny(home / "records", rules)
    found = dict(facts(table.build(rules, record.read_all(home / "records"))))
    assert found["Protocol"] == f"shapes-tiny, hash {rules.hash}"
    assert found["Samples"] == "N = 100 per cell"
    assert found["Intervals"] == "bootstrap over images, 20 resamples, 95 %"
    assert found["Labels"] == "every class equally often, in turn"
    rules.sample.labels = "random"
    drawn = dict(facts(table.build(rules, [])))
    assert drawn["Labels"] == "sampled uniformly for every image"
    assert found["Precision, recall"] == "200 real images, exact distances"  # all of the reference
    assert found["Inception score"] == "10 splits"
    assert found["Training"].endswith(f" objective, AdamW, learning rate {rules.train.lr:g}")


def test_facts_give_the_size_of_the_core(home: Path, rules: protocol.Protocol) -> None:
    dit = "DiT: 2 blocks, width 32, 2 heads, patch 4, RoPE base 10000, 4x4 tokens at 16x16"
    assert dict(facts(table.build(rules, [])))["Core"] == dit
    tiny(home / "records", rules)
    records = record.read_all(home / "records")
    for count, item in zip([1_884_096, 2_024_752] * len(records), records, strict=False):
        item.value["training"]["parameters"] = count
    assert dict(facts(table.build(rules, records)))["Core"] == f"{dit}; 1.88 to 2.02 million parameters"
    for item in records:
        item.value["training"]["parameters"] = 1_884_096
    assert dict(facts(table.build(rules, records)))["Core"] == f"{dit}; 1.88 million parameters"


def test_links_of_a_note_lead_from_the_page_where_they_led_from_the_note() -> None:
    note = "[a](convergence.md#steps), [b](../shapes.md), [c](https://example.org/x), [d](#here), [e](mailto:x@y.org)"
    page = "[a](notes/convergence.md#steps), [b](shapes.md), [c](https://example.org/x), [d](#here), [e](mailto:x@y.org)"
    assert view._relinked(note) == page
    code = "`x[i](j)`\n\n    y[i](j)\n\n```sh\nz[i](j)\n```\n"
    assert view._relinked(code) == code


def test_facts_name_every_learning_rate(home: Path, rules: protocol.Protocol) -> None:
    rules.train.optimizer, rules.train.lr, rules.train.lr_of = "muon", 1e-3, {"ledit": 5e-4}
    rules.score.splits = 1
    found = dict(facts(table.build(rules, [])))
    rates = "Muon at 0.02 for attention and MLP matrices, AdamW at 0.001 for the rest; ledit at 0.5 times these"
    assert found["Training"].endswith(rates)
    rules.train.optimizer = "adamw"
    assert dict(facts(table.build(rules, [])))["Training"].endswith("AdamW, learning rate 0.001; ledit at 0.0005")
    assert found["Inception score"] == "1 split"
