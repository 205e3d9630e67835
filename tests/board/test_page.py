"""The page: what it holds, and what it does in a real browser without a network."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from synthetic import TINY, contests, tiny, value_of

from benchmark import files, protocol
from benchmark.board import generate, page, plots
from benchmark.files import UserError
from benchmark.results import record

BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
ATTACK = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"


def png(height: int, width: int) -> bytes:
    """A grey PNG."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\x80" * width) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Leaderboards with a page, grids of two methods, and a method whose title is an attack."""
    folder = tmp_path_factory.mktemp("page") / "leaderboards"
    with pytest.MonkeyPatch.context() as patch:
        contests(folder.parent / "protocols", patch, shapes_tiny=TINY)
        rules = protocol.load("shapes-tiny")
        tiny(folder / "records", rules)
        for pair in rules.pairs():
            value = value_of(rules, "attack", pair, 0, 500.0)
            value["method"] |= {"title": ATTACK[:80], "note": ATTACK}
            record.write(value, folder / "records")
            for method in ("yarn", "ledit"):
                height, width = protocol.size_hw(pair[1])
                grid = folder / "grids" / "shapes-tiny" / method / f"{pair[0]}-{pair[1]}-s0.png"
                grid.parent.mkdir(parents=True, exist_ok=True)
                grid.write_bytes(png(2 * height, 4 * width))
        generate.generate(folder / "records", folder)
    return folder.parent


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of its own for every test."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    contests(tmp_path / "protocols", monkeypatch)
    return tmp_path / "leaderboards"


class Parts(HTMLParser):
    """The elements of a page with their attributes; complains where tags do not match."""

    VOID = ("meta", "img", "input", "br", "link")

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_one_file_without_a_network_and_well_formed(home: Path) -> None:
    text = (home / "index.html").read_text()
    parts = Parts(text)
    tags = [tag for tag, _ in parts.found]
    assert tags.count("script") == 1
    assert "link" not in tags
    assert "iframe" not in tags
    for tag, attributes in parts.found:
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            target = attributes.get(name) or ""
            assert tag == "a" or not re.match(r"(https?:)?//", target), (tag, target)
        assert not any(name.startswith("on") for name in attributes), tag
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    images = [attributes for tag, attributes in parts.found if tag == "img"]
    assert len(images) == 6
    assert all((home / str(image["src"])).is_file() and image["alt"] for image in images)
    names = [attributes["id"] for _, attributes in parts.found if "id" in attributes]
    assert len(names) == len(set(names))
    targets = [str(a["href"])[1:] for tag, a in parts.found if tag == "a" and str(a.get("href")).startswith("#")]
    assert set(targets) <= set(names)


def test_the_page_shows_the_same_numbers_as_the_table(home: Path) -> None:
    text = (home / "index.html").read_text()
    assert '<td class="g-beyond best" data-v="20"><b>20.0</b><small>19.2 to 20.8</small></td>' in text
    assert '<td class="g-beyond" data-v="41">41.0<small>± 1.4</small></td>' in text
    assert '<td class="g-beyond none">failed</td>' in text
    assert "no number from its paper exists here" in text


def test_a_grid_that_is_no_picture_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = home / "grids" / "shapes-tiny" / "yarn" / "16x16-32x32-s0.png"
    assert page.png_size(grid) == (64, 128)
    grid.write_bytes(b"GIF89a")
    monkeypatch.setattr(plots, "draw", lambda board: {})
    with pytest.raises(UserError, match=r"s0\.png is not a PNG"):
        generate.generate(home / "records", home)


def test_the_samples_of_the_seed_that_most_methods_have_are_open(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = home / "grids" / "shapes-tiny"
    for name in ("16x16-16x16", "16x16-32x32", "16x16-16x32"):
        (folder / "ledit" / f"{name}-s0.png").rename(folder / "yarn" / f"{name}-s1.png")
    record.write(value_of(protocol.load("shapes-tiny"), "ledit", ("16x16", "32x32"), 1, 20.0), home / "records")
    (folder / "ledit" / "16x16-32x32-s1.png").write_bytes((folder / "yarn" / "16x16-32x32-s1.png").read_bytes())
    monkeypatch.setattr(plots, "draw", lambda board: {})
    generate.generate(home / "records", home)
    seeds = re.findall(r'<details class="seed"( open)?><summary>Training seed (\d)', (home / "index.html").read_text())
    assert seeds == [(" open", "0"), ("", "1"), ("", "0"), (" open", "1"), (" open", "0"), ("", "1")]


def test_a_page_without_anything_is_still_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contests(tmp_path / "protocols", monkeypatch, shapes_tiny=TINY)
    generate.generate(tmp_path / "none", tmp_path / "leaderboards")
    Parts((tmp_path / "leaderboards" / "index.html").read_text())


DRIVER = """<!doctype html><title>driver</title>
<iframe id="page" src="index.html" width="WIDTH" height="900"></iframe><pre id="out"></pre>
<script>
const frame = document.getElementById("page");
frame.addEventListener("load", async () => {
  const doc = frame.contentDocument, view = frame.contentWindow, out = {};
  const wait = () => new Promise(done => setTimeout(done, 50));
  try { BODY } catch (error) { out.error = String(error); }
  document.getElementById("out").textContent = "RESULT" + JSON.stringify(out) + "END";
});
</script>"""


def browse(home: Path, body: str, width: int = 1200) -> dict[str, Any]:
    """Runs a script against the page in a headless browser; what it puts into `out` comes back."""
    files.write_text(home / "driver.html", DRIVER.replace("WIDTH", str(width)).replace("BODY", body))
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--allow-file-access-from-files",
        f"--user-data-dir={home / 'profile'}", "--virtual-time-budget=20000", "--dump-dom", f"file://{home / 'driver.html'}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="out">RESULT(.*?)END</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    result = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert "error" not in result, result
    return result


needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")


@needs_browser
def test_sorting_filtering_themes_and_zoom_in_a_browser(home: Path) -> None:
    result = browse(home, """
      const section = doc.getElementById("shapes-tiny"), table = section.querySelector("table.sortable");
      const names = () => [...table.tBodies[0].rows].filter(row => !row.hidden).map(row => row.cells[0].dataset.v);
      const heads = [...table.tHead.rows[0].cells];
      const press = place => heads[place].querySelector("button").click();
      out.first = names();
      out.ranked = heads.map(head => head.getAttribute("aria-sort"));
      press(2); out.up = names(); out.state = heads.map(head => head.getAttribute("aria-sort"));
      press(2); out.down = names(); out.flipped = heads[2].getAttribute("aria-sort");
      press(3); out.missing_last = names().slice(-2);
      press(0); out.by_name = names();
      const words = section.querySelector("input[type=search]");
      words.value = "yarn, LEDiT"; words.dispatchEvent(new view.Event("input", {bubbles: true}));
      out.filtered = names(); out.count = section.querySelector("output").value;
      out.figures = [...section.querySelectorAll(".grids figure")].filter(item => !item.hidden).length;
      words.value = ""; section.querySelector("[data-complete]").click(); out.complete = names();
      section.querySelector("[data-group=beyond]").click();
      out.columns = heads.filter(head => !head.hidden).map(head => head.textContent.trim());
      section.querySelector("[data-group=beyond]").click();
      const theme = doc.getElementById("theme"), ground = () => view.getComputedStyle(doc.body).backgroundColor;
      out.themes = [];
      for (let step = 0; step < 3; step++) {
        theme.click(); await wait(); out.themes.push([theme.textContent, doc.documentElement.dataset.theme || "", ground()]);
      }
      const image = section.querySelector("details[open] .grids img");
      image.scrollIntoView(); await new Promise(done => setTimeout(done, 500));
      const zoom = section.querySelector("[data-zoom]");
      out.native = [image.naturalWidth, image.naturalHeight, image.width, image.height];
      zoom.value = "3"; zoom.dispatchEvent(new view.Event("input", {bubbles: true})); await wait();
      out.zoomed = [image.width, image.height, view.getComputedStyle(image).imageRendering];
      out.unreachable = [...doc.querySelectorAll("button, input, select, summary, .scroll, a[href]")]
        .filter(item => item.tabIndex < 0).length;
      out.unnamed = [...doc.querySelectorAll("input, select")].filter(item => !item.labels.length).length;
      out.title = doc.title;
    """)  # fmt: skip
    attack = ATTACK[:80]
    assert result["first"] == ["LEDiT", "YaRN", "NTK-aware", attack, "RPE-2D"]
    assert result["up"] == ["NTK-aware", "LEDiT", "YaRN", "RPE-2D", attack]
    assert result["ranked"] == ["none", "ascending", "none", "none", "none"]  # the mean beyond, by which rows are in order
    assert result["state"] == ["none", "none", "ascending", "none", "none"]
    assert result["down"] == ["NTK-aware", "LEDiT", "YaRN", "RPE-2D", attack][::-1]
    assert result["flipped"] == "descending"
    assert result["missing_last"] == [attack, "RPE-2D"]
    assert sorted(result["by_name"]) == sorted(result["first"])
    assert sorted(result["filtered"]) == ["LEDiT", "YaRN"]
    assert result["count"] == "2 methods"
    assert result["figures"] == 6
    assert "RPE-2D" not in result["complete"]
    assert len(result["complete"]) == 4
    assert len(result["columns"]) == 3
    names, states, grounds = zip(*result["themes"], strict=True)
    assert names == ("Theme: light", "Theme: dark", "Theme: auto")
    assert states == ("light", "dark", "")
    assert grounds[:2] == ("rgb(255, 255, 255)", "rgb(13, 17, 23)")
    assert result["native"] == [128, 64, 128, 64]
    assert result["zoomed"] == [384, 192, "pixelated"]
    assert result["unreachable"] == result["unnamed"] == 0
    assert result["title"] == "PosBench leaderboards"  # the attack did not run


@needs_browser
def test_the_page_fits_a_phone_and_its_policy_stops_foreign_scripts(home: Path) -> None:
    text = (home / "index.html").read_text()
    (home / "index.html").write_text(text.replace("</main>", "<script>document.title = 'run'</script></main>"))
    result = browse(home, """
      out.width = doc.documentElement.scrollWidth;
      out.theme = doc.getElementById("theme").getBoundingClientRect().right;
      out.title = doc.title;
      out.wide = [...doc.querySelectorAll("body *")].filter(item => item.getBoundingClientRect().right > 391
        && !item.closest(".scroll, .plots figure, .grids figure div, .nav span, .skip")).map(item => item.outerHTML.slice(0, 80));
    """, width=390)  # fmt: skip
    assert result["wide"] == []
    assert result["width"] <= 390
    assert result["theme"] <= 390
    assert result["title"] == "PosBench leaderboards"


def test_notes_by_hand_are_markdown_without_a_script(home: Path) -> None:
    note = "### A heading\n\n| a | b |\n|---|---:|\n| 1 & `x` | 2 |\n\n**Bold** <script>run</script> [x](javascript:run)"
    files.write_text(home / "notes" / "shapes-tiny.md", note)
    generate.generate(home / "records", home)
    text = (home / "index.html").read_text()
    parts = Parts(text)
    assert [tag for tag, _ in parts.found].count("script") == 1
    assert "<h4>A heading</h4>" in text
    assert "<code>x</code>" in text
    assert "<strong>Bold</strong> &lt;script&gt;" in text
    assert not any(str(attributes.get("href")).startswith("javascript") for _, attributes in parts.found)


def test_the_first_words_of_a_contest_say_who_is_first_and_how_to_read(home: Path) -> None:
    text = (home / "index.html").read_text()
    section = text[text.index('id="shapes-tiny"') :]
    told = "Lowest mean FID beyond the training size: LEDiT, 25.5 (24.7 to 26.3)."
    assert section.index(told) < section.index("all that is not different from it") < section.index("<table")
