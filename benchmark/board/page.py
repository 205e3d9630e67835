"""The page: every contest's tables, plots and samples in one HTML file that needs no network and no server.

Tables are there without scripts; a script adds sorting, filtering and the choice of theme. Everything that comes from
records is escaped, and a content policy forbids every script but the page's own.
"""

from __future__ import annotations

import base64
import hashlib
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from benchmark.board import plots, published, table
from benchmark.board.published import Published, PublishedTable
from benchmark.board.table import Column, Row, Table
from benchmark.files import UserError
from benchmark.results.record import METRICS

FIRST = ("fid", "is")  # measures that are always open
GROUPS = {"below": "below", "at": "training size", "beyond": "beyond", "mean": "means"}

STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --raised: #f6f8fa; --ink: #1f2328; --quiet: #59636e;
  --line: #d1d9e0; --accent: #0a5fb4; --best: #d9f0e4; --best-ink: #0b5c38; }
@media (prefers-color-scheme: dark) { :root { --ground: #0d1117; --raised: #161b22; --ink: #dfe5ec; --quiet: #9aa4af;
  --line: #30363d; --accent: #6cb6ff; --best: #12352a; --best-ink: #8ee6bd; } }
:root[data-theme=light] { color-scheme: light; --ground: #ffffff; --raised: #f6f8fa; --ink: #1f2328; --quiet: #59636e;
  --line: #d1d9e0; --accent: #0a5fb4; --best: #d9f0e4; --best-ink: #0b5c38; }
:root[data-theme=dark] { color-scheme: dark; --ground: #0d1117; --raised: #161b22; --ink: #dfe5ec; --quiet: #9aa4af;
  --line: #30363d; --accent: #6cb6ff; --best: #12352a; --best-ink: #8ee6bd; }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 4rem; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
a { color: var(--accent); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; border-radius: 3px; }
.skip { position: absolute; left: -99rem; }
.skip:focus { left: 1rem; top: 1rem; z-index: 9; background: var(--ground); padding: .5rem 1rem; }
header, main, footer { max-width: 84rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.2rem; }
header p { max-width: 46rem; margin: .3rem 0 1rem; color: var(--quiet); }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0; letter-spacing: -.02em; }
h2 { font-size: 1.45rem; margin: 0 0 .4rem; letter-spacing: -.01em; }
h3 { font-size: 1.08rem; margin: 2.2rem 0 .5rem; }
.nav { position: sticky; top: 0; z-index: 5; background: var(--ground); border-bottom: 1px solid var(--line); }
.nav div { max-width: 84rem; margin: 0 auto; padding: .55rem 1.25rem; display: flex; gap: 1.1rem; align-items: center; }
.nav span { display: flex; gap: 1.1rem; overflow-x: auto; flex: 1; padding: .2rem; }
.nav a { white-space: nowrap; text-decoration: none; font-weight: 500; }
.nav button { white-space: nowrap; }
button, input, select { font: inherit; color: inherit; background: var(--raised); border: 1px solid var(--line);
  border-radius: 6px; padding: .28rem .7rem; }
button { cursor: pointer; }
button:hover { border-color: var(--accent); }
section.contest { padding: 2.2rem 0 1rem; border-bottom: 1px solid var(--line); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; margin: .6rem 0; font-size: .92rem; }
dt { color: var(--quiet); }
dd { margin: 0; overflow-wrap: anywhere; }
.tools { display: none; flex-wrap: wrap; gap: .5rem 1.3rem; align-items: center; margin: 1.1rem 0 .2rem; font-size: .92rem; }
.js .tools { display: flex; }
.tools input[type=search] { width: 13rem; }
.tools fieldset { border: 0; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: .3rem .9rem; }
.tools legend { float: left; margin-right: .8rem; color: var(--quiet); }
.tools output { color: var(--quiet); }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .38rem .55rem; text-align: right; white-space: nowrap; }
th { font-weight: 600; vertical-align: bottom; }
th:first-child { text-align: left; position: sticky; left: 0; z-index: 1; background: var(--ground); }
thead th, thead th:first-child { background: var(--raised); border-bottom: 1px solid var(--line); }
thead th small { display: block; font-weight: 400; color: var(--quiet); }
tbody tr + tr > * { border-top: 1px solid var(--line); }
tbody tr:hover > * { background: var(--raised); }
td small { display: block; color: var(--quiet); font-size: .76rem; line-height: 1.1; }
td.best b { color: var(--best-ink); background: var(--best); border-radius: 4px; padding: .05rem .3rem; margin: 0 -.3rem; }
td.none { color: var(--quiet); }
th small { font-weight: 400; color: var(--quiet); }
th.text { text-align: left; }
td.text { text-align: left; white-space: normal; min-width: 7rem; }
.mean { border-left: 1px solid var(--line); }
.mean + :not(.mean) { border-left: 1px solid var(--line); }
th button { border: 0; background: none; padding: 0; font-weight: 600; text-align: right; line-height: 1.35; }
th:first-child button { text-align: left; }
th[aria-sort] button::before { content: "↕ "; color: var(--quiet); font-weight: 400; }
th[aria-sort=ascending] button::before { content: "▲ "; color: var(--accent); }
th[aria-sort=descending] button::before { content: "▼ "; color: var(--accent); }
tbody th { vertical-align: middle; }
abbr { text-decoration: none; cursor: help; color: var(--accent); margin-left: .25rem; }
.legend, .hint { font-size: .88rem; color: var(--quiet); max-width: 60rem; }
.legend { margin: .5rem 0 .7rem; }
.told { margin: .2rem 0; font-size: 1.05rem; font-weight: 500; max-width: 60rem; }
.key { color: var(--best-ink); background: var(--best); border-radius: 4px; padding: .05rem .3rem; font-weight: 600; }
.notes { font-size: .92rem; max-width: 60rem; }
.notes .scroll { margin: .8rem 0; }
.notes th:first-child, .notes td:first-child { text-align: left; white-space: normal; min-width: 16rem; }
.notes code { font-size: .9em; }
.side thead small { white-space: normal; max-width: 6.5rem; margin-left: auto; }
.seed > summary { color: var(--quiet); font-size: .92rem; }
.more { margin-top: 1rem; }
details > summary { cursor: pointer; padding: .3rem 0; font-weight: 500; }
details > summary span { font-weight: 400; color: var(--quiet); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(34rem, 100%), 1fr)); gap: 1.4rem; }
.plots figure { margin: 0; border: 1px solid var(--line); border-radius: 8px; padding: .9rem; overflow-x: auto; }
.plots svg { width: 100%; min-width: 30rem; height: auto; display: block; }
figcaption { font-size: .9rem; }
.plots figcaption { font-weight: 600; margin-bottom: .4rem; }
.grids { display: flex; flex-wrap: wrap; gap: 1rem; padding: .6rem 0 1rem; }
.grids figure { margin: 0; max-width: 100%; }
.grids figure div { overflow-x: auto; border-radius: 4px; }
.grids img { display: block; image-rendering: pixelated; width: calc(var(--w) * var(--k, 1) * 1px);
  height: calc(var(--h) * var(--k, 1) * 1px); background: var(--raised); }
.papers { border-left: 3px solid var(--accent); padding-left: .9rem; }
footer { padding: 1.5rem 1.25rem 3rem; color: var(--quiet); font-size: .9rem; }
[hidden] { display: none !important; }
@media (max-width: 600px) {
  body { font-size: 15px; }
  header, main, footer { padding-left: .85rem; padding-right: .85rem; }
  .nav div { padding: .5rem .85rem; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .35rem; }
  th, td { padding: .34rem .55rem; }
  tbody th:first-child { max-width: 8.5rem; white-space: normal; }
  .plots figure { padding: .4rem; }
}
@media print { .nav, .tools { display: none !important; } }
"""

SCRIPT = """
"use strict";
const root = document.documentElement;
root.classList.add("js");
const keep = (name, value) => {
  try { if (value === undefined) return localStorage.getItem(name); localStorage.setItem(name, value); }
  catch { return null; }  // a page opened from a file may have no storage
};
const themes = ["auto", "light", "dark"];
const button = document.getElementById("theme");
const theme = name => {
  if (name === "auto") delete root.dataset.theme; else root.dataset.theme = name;
  button.textContent = "Theme: " + name;
  button.dataset.now = name;
};
const asked = keep("theme");
theme(themes.includes(asked) ? asked : "auto");
button.hidden = false;
button.addEventListener("click", () => {
  const next = themes[(themes.indexOf(button.dataset.now) + 1) % themes.length];
  theme(next);
  keep("theme", next);
});
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, place) => {
    const press = document.createElement("button");
    press.type = "button";
    press.append(...head.childNodes);
    head.append(press);
    head.setAttribute("aria-sort", head.dataset.sorted || "none");
    press.addEventListener("click", () => {
      const first = head.dataset.first || "ascending";
      const second = first === "ascending" ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") === first ? second : first;
      heads.forEach(other => other.setAttribute("aria-sort", other === head ? order : "none"));
      const sign = order === "ascending" ? 1 : -1;
      const key = row => row.cells[place].dataset.v;
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const x = key(a), y = key(b);
        if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);  // empty cells last
        return sign * (place ? x - y : x.localeCompare(y, "en"));
      });
      table.tBodies[0].append(...rows);
    });
  });
}
for (const section of document.querySelectorAll("section.contest")) {
  const tools = section.querySelector(".tools");
  if (!tools) continue;
  const words = tools.querySelector("input[type=search]"), complete = tools.querySelector("[data-complete]");
  const count = tools.querySelector("output");
  const apply = () => {
    const wanted = words.value.toLowerCase().split(/[\\s,]+/).filter(Boolean);
    const shown = new Set();
    for (const item of section.querySelectorAll("[data-method]")) {
      const hit = !wanted.length || wanted.some(word => item.dataset.method.includes(word));
      item.hidden = !hit || (complete.checked && item.dataset.incomplete === "1");
      if (!item.hidden && item.tagName === "TR") shown.add(item.dataset.method);
    }
    for (const box of tools.querySelectorAll("[data-group]"))
      for (const cell of section.querySelectorAll(`.g-${box.dataset.group}`)) cell.hidden = !box.checked;
    count.value = shown.size + (shown.size === 1 ? " method" : " methods");
  };
  tools.addEventListener("input", apply);
  apply();
  const zoom = section.querySelector("[data-zoom]");
  if (zoom) zoom.addEventListener("input", () => section.style.setProperty("--k", zoom.value));
}
"""


def _e(value: object) -> str:
    return escape(str(value), quote=True)


def _marks(row: Row) -> str:
    return "".join(f'<abbr title="{_e(table.MARKS[mark])}">{mark}</abbr>' for mark in table.marks(row))


def _group(column: Column) -> str:
    return "mean" if column.is_mean else column.group


def _keys(row: Row) -> str:
    """What the filter looks at."""
    return f'data-method="{_e(f"{row.title} {row.method}".lower())}" data-incomplete="{int(not row.complete)}"'


def _measure(board: Table, metric: str) -> str:
    known, places = METRICS[metric], table.digits(board, metric)
    first = "descending" if known.arrow == "↑" else "ascending"
    head = '<th scope="col">Method</th>'
    # What rows are ranked by stands first: on a phone the last columns are out of sight.
    columns = sorted(board.columns, key=lambda column: not (column.is_mean and column.group == "beyond"))
    one = len(board.rules.cells) == 1
    for column in columns:
        title, below = map(_e, table.column_title(column))
        title = _e(column.test) if one else title
        label = f"{below} <small>{title}</small>" if not column.is_mean else f"mean <small>{below}</small>"
        ranked = ' data-sorted="ascending"' if metric == "fid" and column.is_mean and column.group == "beyond" else ""
        head += f'<th scope="col" class="g-{_group(column)}{_edge(column)}" data-first="{first}"{ranked}>{label}</th>'
    body = ""
    for row in board.rows:
        body += f'<tr {_keys(row)}><th scope="row" data-v="{_e(row.title)}">{_e(row.title)}{_marks(row)}</th>'
        for column in columns:
            entry = row.entries[metric, column]
            value, detail = map(_e, table.show(entry, places))
            classes = f"g-{_group(column)}{_edge(column)}"
            if entry.value is None:
                body += f'<td class="{classes} none">{value}</td>'
                continue
            classes += " best" if entry.best else ""
            value = f"<b>{value}</b>" if entry.best else value
            body += f'<td class="{classes}" data-v="{entry.value:.6g}">{value}'
            body += f"<small>{detail}</small></td>" if detail else "</td>"
        body += "</tr>\n"
    label = _e(f"{known.title}, {board.rules.title}")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table class="sortable">'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n"
    )


def _edge(column: Column) -> str:
    return " mean" if column.is_mean else ""


def _plain(header: Sequence[str], rows: Iterable[Sequence[str]], label: str) -> str:
    """A table of finished HTML cells, nothing to sort."""
    head = "".join(f'<th scope="col" class="text">{cell}</th>' for cell in header)
    body = ""
    for first, *rest in rows:
        body += f'<tr><th scope="row">{first}</th>{"".join(rest)}</tr>\n'
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_e(label)}"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}</tbody></table></div>\n"
    )


def _tools(board: Table) -> str:
    groups = [name for name in GROUPS if any(_group(column) == name for column in board.columns)]
    boxes = "".join(f'<label><input type="checkbox" data-group="{name}" checked> {GROUPS[name]}</label>' for name in groups)
    return (
        '<div class="tools"><label>Filter methods <input type="search" placeholder="yarn, ledit" autocomplete="off">'
        f"</label><fieldset><legend>Columns</legend>{boxes}</fieldset>"
        '<label><input type="checkbox" data-complete> complete rows only</label><output aria-live="polite"></output></div>\n'
    )


def png_size(path: Path) -> tuple[int, int]:
    """(height, width) of a PNG from its first bytes."""
    with open(path, "rb") as file:
        head = file.read(24)
    if len(head) < 24 or head[:8] != b"\x89PNG\r\n\x1a\n" or head[12:16] != b"IHDR":
        raise UserError(f"{path} is not a PNG")
    width, height = struct.unpack(">II", head[16:24])
    return height, width


def _samples(board: Table, grids: Path) -> str:
    """A block for every cell: the same seeds of every method side by side."""
    blocks = []
    far = max((c.ratio for c in board.pairs if c.is_square), default=0.0)
    opened = False
    for column in board.pairs:
        seeds: dict[int, list[str]] = {}
        for row in board.rows:
            for seed in row.seeds:
                name = f"{board.rules.name}/{row.method}/{column.train}-{column.test}-s{seed}.png"
                if not (grids / name).is_file():
                    continue
                height, width = png_size(grids / name)
                alt = f"Samples of {row.title} at {column.test}, trained at {column.train}, seed {seed}"
                seeds.setdefault(seed, []).append(
                    f'<figure {_keys(row)}><figcaption>{_e(row.title)}</figcaption><div><img loading="lazy" '
                    f'src="grids/{_e(name)}" alt="{_e(alt)}" style="--w:{width};--h:{height}"></div></figure>\n'
                )
        if not seeds:
            continue
        is_open = column.ratio == far and column.is_square and not opened
        opened |= is_open
        inner = ""
        fullest = min(seeds, key=lambda seed: (-len(seeds[seed]), seed))
        for seed, figures in sorted(seeds.items()):
            row = f'<div class="grids">{"".join(figures)}</div>'
            if len(seeds) > 1:
                opened_row = " open" if seed == fullest else ""
                row = f'<details class="seed"{opened_row}><summary>Training seed {seed}</summary>{row}</details>'
            inner += row
        title = f"{_e(column.train)} → {_e(column.test)} <span>{_e(column.ratio_label)}</span>"
        blocks.append(
            f'<details{" open" if is_open else ""} class="g-{column.group}"><summary>{title}</summary>{inner}</details>\n'
        )
    if not blocks:
        return ""
    steps = "".join(f'<option value="{k}">{k}x</option>' for k in (1, 2, 3, 4))
    return (
        '<h3>Samples</h3>\n<p class="hint">The same places hold the same seed and class in every picture, so methods can be '
        "compared sample by sample. Pixels are shown as they are, at native size times the zoom.</p>\n"
        f'<div class="tools zoom"><label>Zoom <select data-zoom>{steps}</select></label></div>\n{"".join(blocks)}'
    )


def _side(item: table.Side) -> str:
    """A small table beside the main ones."""
    head = ""
    for place, cell in enumerate(item.header):
        above, _, below = cell.partition("|")
        text = ' class="text"' if place < item.words else ""
        head += f'<th scope="col"{text}>{_e(above)}{f" <small>{_e(below)}</small>" if below else ""}</th>'
    body = ""
    for row in item.rows:
        body += f'<tr><th scope="row">{_e(row[0][0])}</th>'
        for place, (value, detail, strong) in enumerate(row[1:], start=1):
            kind = "text" if place < item.words else "best" if strong else ""
            shown = f"<b>{_e(value)}</b>" if strong else _e(value)
            body += f"<td{f' class={kind}' if kind else ''}>{shown}{f'<small>{_e(detail)}</small>' if detail else ''}</td>"
        body += "</tr>\n"
    return (
        f'<h3>{_e(item.title)}</h3>\n<p class="hint">{_e(item.text)}</p>\n<div class="scroll" tabindex="0" role="region" '
        f'aria-label="{_e(item.title)}"><table class=side><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n'
    )


def _notes(text: str) -> str:
    """Notes written by hand, as HTML; markup inside them is shown and never run."""
    from markdown_it import MarkdownIt

    made = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    made = re.sub(r"<(/?)h[1-6]>", r"<\1h4>", made)
    return made.replace("<table>", '<div class="scroll" tabindex="0"><table>').replace("</table>", "</table></div>")


def _agreements(board: Table, figures: Published) -> str:
    rows = []
    titles = {row.method: row.title for row in board.rows}
    for item in published.agreements(board, figures):
        tau = "too few methods" if item.tau is None else f"{item.tau:.2f}"
        over = f"seed{'s' if len(item.seeds) > 1 else ''} {', '.join(map(str, item.seeds))}"
        ends = f"<small>{item.interval[0]:.2f} to {item.interval[1]:.2f}<br>{over}</small>" if item.interval else ""
        theirs = " &lt; ".join(f"{_e(titles[m])} {v:.4g}" for m, v in zip(item.methods, item.theirs, strict=True))
        order = sorted(zip(item.ours, item.methods, strict=True))
        ours = " &lt; ".join(f"{_e(titles[m])} {v:.4g}" for v, m in order)
        texts = [f"{tau}{ends}", theirs, ours, f"{_e(item.paper)}, {_e(item.size)}"]
        rows.append([_e(item.ratio), *(f'<td class="text">{text}</td>' for text in texts)])
    if not rows:
        return ""
    header = ["Ratio", "Kendall's tau", "The paper's FID", "FID here", "Source"]
    return (
        "<h3>Does this contest predict the large one?</h3>\n"
        '<p class="hint">The order of the methods by FID here, against the order that a paper printed. 1 is the same order, '
        "-1 the reverse. Ours and the interval are over the seeds that all compared methods have.</p>\n"
        + _plain(header, rows, "Agreement with published orders")
        + (_side(measures) if (measures := published.by_measure(board, figures)) else "")
    )


def _papers(name: str, figures: Published, boards: Mapping[str, Table | None]) -> str:
    if not figures.of(name):
        return ""
    out = (
        '<h3>Published figures</h3>\n<p class="papers"><b>The papers\' own numbers, as printed; this project measured none of '
        "them.</b> A number is to be compared within its table only.</p>\n"
    )
    for gap in figures.absent:
        if name in gap.leaderboards:
            out += f'<p class="papers">{_e(gap.name)} (<a href="{_e(gap.url)}">{_e(gap.paper)}</a>): {_e(gap.why)}.</p>\n'
    return out + "".join(_paper(source, figures, boards) for source in figures.of(name))


def _paper(source: PublishedTable, figures: Published, boards: Mapping[str, Table | None]) -> str:
    shown, beside = published.lines(source, figures, boards)
    head = '<th scope="col">Method</th>'
    for size in source.sizes:
        for here in ("", " here") if size in beside else ("",):
            for title, first in (("FID ↓", "ascending"), ("IS ↑", "descending")):
                head += f'<th scope="col" data-first="{first}">{title}{here} <small>{_e(size)}</small></th>'
    body = ""
    for line in shown:
        body += f'<tr><th scope="row" data-v="{_e(line.name)}">{_e(line.name)} <small>{_e(line.training)}</small></th>'
        for size in source.sizes:
            cell = line.cells.get(size)
            texts = [published.shown(cell, "fid"), published.shown(cell, "is")]
            texts += line.ours.get(size, ("–", "–")) if size in beside else ()
            body += "".join(map(_number, texts))
        body += "</tr>\n"
    title = f"{source.paper}, table {source.table}: trained at {source.train}"
    return (
        f"<details open><summary>{_e(title)}</summary>"
        f'<p class="hint"><a href="{_e(source.url)}">{_e(source.paper)}</a>, table {_e(source.table)}; {source.samples:,} '
        f"samples; {_e(source.protocol)}.</p>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_e(title)}"><table class="sortable"><thead><tr>'
        f"{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div></details>\n"
    )


def _number(text: str) -> str:
    """A cell that sorts by its number, or last."""
    if text in ("–", "failed"):
        return f'<td class="none">{_e(text)}</td>'
    return f'<td data-v="{_e(text)}">{_e(text)}</td>'


def _contest(
    name: str,
    title: str,
    boards: Mapping[str, Table | None],
    figures: Published,
    drawn: dict[str, str],
    notes: str,
    grids: Path,
) -> str:
    board = boards[name]
    out = f'<section class="contest" id="{_e(name)}" aria-labelledby="{_e(name)}-title">\n'
    out += f'<h2 id="{_e(name)}-title">{_e(title)}</h2>\n'
    if board is None or not board.rows:
        out += '<p class="hint">No records of this contest yet.</p>\n' if board else ""
        return out + _papers(name, figures, boards) + "</section>\n"
    known = "".join(f"<dt>{_e(what)}</dt><dd>{_e(text)}</dd>" for what, text in table.facts(board))
    told = table.verdict(board)
    out += f'<p class="told">{_e(told)}</p>\n' if told else ""
    used = "".join(table.marks(row) for row in board.rows)
    items = [f"{mark} {meaning}." for mark, meaning in table.MARKS.items() if mark in used]
    out += (
        '<p class="legend"><span class="key">Green</span>: the best of a column and all that is not different from it. 1x is the '
    )
    out += "training size. ±: standard deviation over seeds; a range: bootstrap interval over images of a single seed."
    out += "".join(f" {_e(item)}" for item in items) + "</p>\n"
    size = f"N = {board.rules.sample.count:,}, detector {board.rules.score.detector}, rules {board.rules.hash}"
    out += f"<details><summary>{_e(size)} <span>all rules</span></summary><dl>{known}</dl></details>\n"
    out += _tools(board)
    more = ""
    for metric in board.metrics:
        label = f"{METRICS[metric].title} {METRICS[metric].arrow}".strip()
        inner = _measure(board, metric)
        if metric in FIRST:
            out += f"<h3>{_e(label)}</h3>\n{inner}"
            continue
        more += f"<details><summary>{_e(label)}</summary>{inner}</details>\n"
    out += f'<div class="more">{more}</div>\n'
    if drawn:
        shown = "".join(
            f"<figure><figcaption>{_e(plots.CAPTIONS[plot.rpartition('-')[2]])}</figcaption>{plots.inline(svg)}</figure>\n"
            for plot, svg in drawn.items()
        )
        out += f'<h3>Plots</h3>\n<div class="plots">{shown}</div>\n'
    sides = [table.switches(board, boards), *table.parts(board)]
    out += _samples(board, grids) + "".join(_side(side) for side in sides if side) + _agreements(board, figures)
    if notes:
        out += f'<h3>Notes</h3>\n<div class="notes">{_notes(notes)}</div>\n'
    remarks = [
        [
            _e(row.title),
            f'<td class="text">{_e(row.method)}</td><td class="text">{_e(row.trained_as)}</td>',
            f'<td class="text">{_e(", ".join(map(str, row.seeds)))}</td><td class="text">{_e(row.note)}</td>',
        ]
        for row in board.rows
    ]
    header = ["Method", "File", "Checkpoint", "Seeds", "Note"]
    inner = _plain(header, remarks, "About the methods")
    out += f'<div class="more"><details><summary>About the methods</summary>{inner}</details></div>\n'
    out += f'<p class="hint">Data: <a href="{_e(name)}.csv">CSV</a>, <a href="{_e(name)}.json">JSON</a>.</p>\n'
    return out + _papers(name, figures, boards) + "</section>\n"


def render(
    titles: dict[str, str],
    boards: Mapping[str, Table | None],
    figures: Published,
    drawn: dict[str, dict[str, str]],
    notes: dict[str, str],
    grids: Path,
) -> str:
    """The whole page.

    Args:
        titles: name -> title of what is shown, in the order of the page.
        boards: our tables by name, at least those that are shown; None for a leaderboard that is the papers' alone.
        drawn: name -> plots, as `plots.draw` gives them.
        notes: name -> its hand-written notes, or "".
        grids: the folder of sample grids, <protocol>/<method>/<training size>-<test size>-s<seed>.png.

    Raises:
        UserError: a sample grid is not a PNG.
    """
    links = "".join(f'<a href="#{_e(name)}">{_e(name)}</a>' for name in titles)
    sections = "".join(
        _contest(name, title, boards, figures, drawn.get(name, {}), notes.get(name, ""), grids) for name, title in titles.items()
    )
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src 'self' file: data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return f"""<!doctype html>
<!-- Generated by `make leaderboards` from the records: edits here are lost. -->
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>PosBench leaderboards</title>
<style>{STYLE}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the tables</a>
<header>
<h1>PosBench leaderboards</h1>
<p>How well do Diffusion Transformers draw at sizes they were not trained at? Every strategy for positions, on one core,
at every training size → test size. FID (Fréchet distance, lower is better) tells how far samples are from real pictures,
IS (inception score, higher is better) how clear and varied their classes are. A method is one file:
<a href="../CONTRIBUTING.md">add yours</a>.</p>
</header>
<nav class="nav" aria-label="Contests"><div><span>{links}</span><button type="button" id="theme" hidden>Theme</button></div></nav>
<main id="main">
{sections}</main>
<footer>Made from the records in <a href="records/">records/</a> alone. <a href="README.md">How to read the tables and
submit a record</a>. Sample grids are the files in grids/, which belongs beside this page.</footer>
<script>{SCRIPT}</script>
</body>
</html>
"""
