"""The page: what it holds, and what it does in a real browser without a network."""

from __future__ import annotations

import base64
import hashlib
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
from synthetic import TINY, protocols, tiny, value_of

from benchmark import files, protocol
from benchmark.board import generate, plots, real, view
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
        protocols(folder.parent / "protocols", patch, shapes_tiny=TINY)
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
        real = folder / "grids" / "real" / "32x32.png"
        real.parent.mkdir()
        real.write_bytes(png(64, 128))
        generate.generate(folder / "records", folder)
    return folder.parent


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of its own for every test."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    protocols(tmp_path / "protocols", monkeypatch)
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
    assert len(images) == 3  # two methods and the real images, at the size that is shown first
    assert all((home / str(image["src"])).is_file() and image["alt"] for image in images)
    names = [attributes["id"] for _, attributes in parts.found if "id" in attributes]
    assert len(names) == len(set(names))
    tabs = {attributes["data-tab"] for _, attributes in parts.found if "data-tab" in attributes}
    targets = {str(a["href"])[1:] for tag, a in parts.found if tag == "a" and str(a.get("href")).startswith("#")} - {"main"}
    assert {re.fullmatch(r"tab=([\w-]+)(&at=\w+)?", target)[1] for target in targets} == tabs


def test_the_policy_knows_the_script_by_its_hash(home: Path) -> None:
    text = (home / "index.html").read_text()
    script = (Path(generate.__file__).parent / "script.js").read_bytes()
    digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
    assert f"default-src 'none'; img-src 'self' file: data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in text
    assert f"<script>{script.decode()}</script>" in text


def test_the_page_shows_the_same_numbers_as_the_table(home: Path) -> None:
    text = (home / "index.html").read_text()
    assert '<td class="g-beyond best" data-v="20.0"><b>20.0</b><small>19.2 to 20.8</small></td>' in text
    assert '<td class="g-beyond" data-v="41.0">41.0<small>± 1.4</small></td>' in text
    assert '<td class="g-beyond none">failed</td>' in text
    assert "reports results on ImageNet at 384" in text


def test_rows_link_to_their_paper_and_their_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (home / "index.html").read_text()
    assert '<a href="../methods/ledit.py">LEDiT</a>' in text
    assert '<a href="https://arxiv.org/abs/2503.04344">2025</a><small>trained</small>' in text
    monkeypatch.setattr(view, "repository", lambda: "https://example.org/posbench/blob/main/")
    monkeypatch.setattr(plots, "draw", lambda board, style: {})
    generate.generate(home / "records", home)
    text = (home / "index.html").read_text()
    assert '<a href="https://example.org/posbench/blob/main/methods/ledit.py">LEDiT</a>' in text
    assert '<a href="https://example.org/posbench/blob/main/CONTRIBUTING.md">' in text


def test_a_grid_that_is_no_picture_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = home / "grids" / "shapes-tiny" / "yarn" / "16x16-32x32-s0.png"
    assert view.picture_size(grid) == (128, 64)
    (home / "grids" / "shapes-tiny" / "ledit" / "16x16-32x32-s0.png").write_bytes(b"GIF89a")
    monkeypatch.setattr(plots, "draw", lambda board, style: {})
    with pytest.raises(UserError, match=r"s0\.png is not an image"):
        generate.generate(home / "records", home)


def test_without_real_images_it_is_said_that_there_are_none(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = "Real images are not shown: this data set"
    assert told not in (home / "index.html").read_text()
    shutil.rmtree(home / "grids" / "real")
    monkeypatch.setattr(real, "is_rendered", lambda rules: False)
    monkeypatch.setattr(plots, "draw", lambda board, style: {})
    generate.generate(home / "records", home)
    assert told in (home / "index.html").read_text()
    assert not (home / "grids" / "real").exists()


def test_the_samples_of_the_seed_that_most_methods_have_are_shown(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = home / "grids" / "shapes-tiny"
    (folder / "yarn" / "16x16-32x32-s1.png").write_bytes((folder / "yarn" / "16x16-32x32-s0.png").read_bytes())
    monkeypatch.setattr(plots, "draw", lambda board, style: {})
    generate.generate(home / "records", home)
    assert 'data-size="16x16-32x32" data-seed="0"' in (home / "index.html").read_text()
    (folder / "ledit" / "16x16-32x32-s0.png").rename(folder / "yarn" / "16x16-16x32-s1.png")
    generate.generate(home / "records", home)
    assert 'data-size="16x16-32x32" data-seed="0"' in (home / "index.html").read_text()  # as many: the first
    (folder / "yarn" / "16x16-32x32-s0.png").unlink()
    generate.generate(home / "records", home)
    assert 'data-size="16x16-32x32" data-seed="1"' in (home / "index.html").read_text()


def test_a_page_without_anything_is_still_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    protocols(tmp_path / "protocols", monkeypatch, shapes_tiny=TINY)
    generate.generate(tmp_path / "none", tmp_path / "leaderboards")
    Parts((tmp_path / "leaderboards" / "index.html").read_text())


DRIVER = """<!doctype html><title>driver</title>
<iframe id="page" src="index.htmlHASH" width="WIDTH" height="900"></iframe><pre id="out"></pre>
<script>
const frame = document.getElementById("page");
frame.addEventListener("load", async () => {
  const doc = frame.contentDocument, view = frame.contentWindow, out = {};
  const wait = () => new Promise(done => setTimeout(done, 50));
  try { BODY } catch (error) { out.error = String(error); }
  document.getElementById("out").textContent = "RESULT" + JSON.stringify(out) + "END";
});
</script>"""


def browse(home: Path, body: str, width: int = 1200, address: str = "") -> dict[str, Any]:
    """Runs a script against the page in a headless browser; what it puts into `out` comes back."""
    files.write_text(home / "driver.html", DRIVER.replace("WIDTH", str(width)).replace("HASH", address).replace("BODY", body))
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--allow-file-access-from-files",
        "--enable-logging=stderr", "--v=0",
        f"--user-data-dir={home / 'profile'}", "--virtual-time-budget=20000", "--dump-dom", f"file://{home / 'driver.html'}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="out">RESULT(.*?)END</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    said = re.findall(r"INFO:CONSOLE.*", done.stderr)
    result = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert "error" not in result, result
    return result | {"console": said}


needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
HELPERS = """
  const tab = () => doc.querySelector("section.tab:not([hidden])");
  const table = key => tab().querySelector(`th[data-key="${key}"]`).closest("table");
  const names = (lead = table("rank")) => [...lead.tBodies[0].rows].filter(row => row.offsetParent).map(row => row.dataset.m);
  const press = key => tab().querySelector(`th[data-key="${key}"] button`).click();
  const set = (key, value) => {
    const item = tab().querySelector(`[data-state="${key}"]`);
    if (item.type === "checkbox") item.checked = value; else item.value = value;
    item.dispatchEvent(new view.Event("input", {bubbles: true}));
  };
  const seen = what => [...tab().querySelectorAll(what)].filter(item => item.getClientRects().length).map(item => item.dataset.m);
"""


@needs_browser
def test_tabs_sorting_filter_and_their_state_in_the_address(home: Path) -> None:
    result = browse(home, HELPERS + """
      out.title = doc.title; out.tab = tab().dataset.tab;
      out.first = names();
      press("fid.16x16"); out.up = names(); out.address = view.location.hash;
      out.state = tab().querySelector('th[data-key="fid.16x16"]').getAttribute("aria-sort");
      tab().querySelector('[data-open="is"]').open = true; await wait();
      out.together = names(table("is.32x32"));
      out.opened = view.location.hash;
      press("fid.16x16"); out.down = names();
      press("fid.16x32"); out.missing_last = names().slice(-2);
      press("is.32x32"); out.by_is = names();  // the larger the better: from the top down
      out.sheets = seen("figure.sheet");
      set("sort", ""); out.again = names();
      set("q", "yarn, LEDiT"); out.filtered = names(); out.count = tab().querySelector("output").value;
      out.lines = [...new Set(seen(".plots g[data-m]"))].sort(); out.figures = seen("figure.sheet");
      out.keys = seen(".key-list li[data-m]").sort();
      set("q", ""); set("kind", "trained"); out.trained = names();
      set("kind", ""); set("seeds", "2"); out.seeds = names();
      set("seeds", ""); set("since", "2025"); out.since = names();
      set("since", ""); set("complete", true); out.complete = names();
      tab().querySelector("button[type=reset]").click(); out.reset = names().length; out.clean = view.location.hash;
      const heads = () => [...table("rank").tHead.rows[0].cells].filter(head => head.offsetParent).length;
      out.columns = [heads()];
      const box = tab().querySelector("[data-group=beyond]"); box.checked = false;
      box.dispatchEvent(new view.Event("input", {bubbles: true})); out.columns.push(heads());
      view.location.hash = "tab=imagenet-256"; await wait();
      out.other = tab().dataset.tab; out.shown = doc.querySelectorAll("section.tab:not([hidden])").length;
      out.current = doc.querySelector("nav [aria-current]").dataset.to;
      const paper = () => [...tab().querySelector("tbody").rows].map(row => row.cells[0].dataset.v);
      const before = paper();
      tab().querySelectorAll("th[data-key] button")[2].click(); out.paper_moves = paper()[0] !== before[0];
      out.numbers = [...tab().querySelector("tbody").rows].map(row => row.cells[2].dataset.v).filter(Boolean).map(Number);
      view.location.hash = "shapes-tiny"; await wait(); out.old_links = tab().dataset.tab;
      out.unreachable = [...doc.querySelectorAll("button, input, select, summary, .scroll, a[href]")]
        .filter(item => item.tabIndex < 0).length;
      out.unnamed = [...doc.querySelectorAll("input, select")].filter(item => !item.labels.length).length;
    """)  # fmt: skip
    assert result["console"] == []
    assert result["title"] == "PosBench leaderboards"  # the attack did not run
    assert result["tab"] == "shapes-tiny"
    assert result["first"] == ["ledit", "yarn", "ntk", "attack", "rpe2d"]
    assert result["up"] == result["together"] == ["ntk", "ledit", "yarn", "rpe2d", "attack"]
    assert result["address"] == "#tab=shapes-tiny&sort=fid.16x16"
    assert result["opened"] == "#tab=shapes-tiny&sort=fid.16x16&open=is"
    assert result["state"] == "ascending"
    assert result["down"] == result["up"][::-1]
    assert result["missing_last"] == ["attack", "rpe2d"]
    assert result["by_is"] == ["ledit", "yarn", "ntk", "attack", "rpe2d"]
    assert result["sheets"] == ["ledit", "yarn"]
    assert result["again"] == result["first"]
    assert sorted(result["filtered"]) == result["figures"] == result["keys"] == result["lines"] == ["ledit", "yarn"]
    assert result["count"] == "2 methods"
    assert sorted(result["trained"]) == ["attack", "ledit", "rpe2d"]
    assert result["seeds"] == ["yarn"]
    assert result["since"] == ["ledit", "rpe2d"]
    assert "rpe2d" not in result["complete"]
    assert len(result["complete"]) == 4
    assert result["reset"] == 5
    assert result["clean"] == "#tab=shapes-tiny&open=is"
    assert result["columns"] == [9, 7]
    assert (result["other"], result["shown"], result["current"]) == ("imagenet-256", 1, "imagenet-256")
    assert result["paper_moves"]
    assert result["numbers"] == sorted(result["numbers"])
    assert result["old_links"] == "shapes-tiny"
    assert result["unreachable"] == result["unnamed"] == 0


@needs_browser
def test_an_address_shows_what_it_says(home: Path) -> None:
    address = "#tab=shapes-tiny&q=yarn,ledit&sort=-name&hide=below,at&open=sfid&size=16x16-16x32&zoom=3&pick=ledit&at=samples"
    result = browse(home, HELPERS + """
      await wait();
      out.names = names(); out.words = tab().querySelector("[data-state=q]").value;
      out.open = [...tab().querySelectorAll("details[open][data-open]")].map(item => item.dataset.open);
      out.boxes = [...tab().querySelectorAll("[data-group]")].map(box => [box.dataset.group, box.checked]);
      out.size = tab().querySelector("[data-state=size]").value; out.sheets = seen("figure.sheet");
      out.scrolled = view.scrollY > 200;
    """, address=address)  # fmt: skip
    assert result["console"] == []
    assert (result["names"], result["words"]) == (["yarn", "ledit"], "yarn,ledit")
    assert result["open"] == ["sfid"]
    assert result["boxes"] == [["mean", True], ["beyond", True], ["at", False]]
    assert result["size"] == "16x16-16x32"
    assert result["sheets"] == ["ledit"]
    assert result["scrolled"]


@needs_browser
def test_samples_at_native_size_times_a_whole_number_beside_the_real_ones(home: Path) -> None:
    result = browse(home, HELPERS + """
      const image = () => tab().querySelector("figure.sheet[data-m=ledit] img"), real = () => tab().querySelector("figure.real");
      const settle = async () => { image().scrollIntoView(); await new Promise(done => setTimeout(done, 500)); };
      set("zoom", "1"); await settle();
      out.native = [image().naturalWidth, image().naturalHeight, image().width, image().height];
      out.real = [real().offsetParent !== null, real().querySelector("img").getAttribute("src")];
      set("zoom", "3"); await wait(); out.zoomed = [image().width, image().height, view.getComputedStyle(image()).imageRendering];
      set("zoom", ""); await wait(); out.fit = [image().width / 128, image().height / 64];
      set("size", "16x16-16x32"); await settle();
      out.other = [image().getAttribute("src"), image().naturalHeight, image().height / image().naturalHeight];
      out.other_real = real().querySelector("img").getAttribute("src");
      out.on_top = real().getBoundingClientRect().bottom <= image().getBoundingClientRect().top;
      out.picked = seen("figure.sheet"); out.words = tab().querySelector(".picked").textContent;
      tab().querySelector("[data-pick=yarn]").click(); out.one = seen("figure.sheet"); out.address = view.location.hash;
      tab().querySelector("[data-none]").click(); out.none = seen("figure.sheet");
      tab().querySelector("[data-all]").click(); out.all = seen("figure.sheet");
    """)  # fmt: skip
    assert result["console"] == []
    assert result["native"] == [128, 64, 128, 64]
    assert result["real"] == [True, "grids/real/32x32.png"]
    assert result["zoomed"] == [384, 192, "pixelated"]
    assert result["fit"] == [4, 4]
    assert result["other"] == ["grids/shapes-tiny/ledit/16x16-16x32-s0.png", 32, 4]
    assert result["other_real"] == "grids/real/16x32.png"
    assert result["on_top"]
    assert (result["picked"], result["words"]) == (["ledit", "yarn"], "2 of 2")
    assert (result["one"], result["none"], result["all"]) == (["ledit"], [], ["ledit", "yarn"])
    assert "pick=ledit" in result["address"]


@needs_browser
def test_light_and_dark(home: Path) -> None:
    result = browse(home, HELPERS + """
      const theme = doc.getElementById("theme"), ground = () => view.getComputedStyle(doc.body).backgroundColor;
      out.themes = [];
      for (let step = 0; step < 3; step++) {
        theme.click(); await wait(); out.themes.push([theme.textContent, doc.documentElement.dataset.theme || "", ground()]);
      }
    """)  # fmt: skip
    names, states, grounds = zip(*result["themes"], strict=True)
    assert names == ("Theme: light", "Theme: dark", "Theme: auto")
    assert states == ("light", "dark", "")
    assert grounds[:2] == ("rgb(255, 255, 255)", "rgb(13, 17, 23)")


@needs_browser
def test_the_page_fits_a_phone_and_its_policy_stops_foreign_scripts(home: Path) -> None:
    text = (home / "index.html").read_text()
    (home / "index.html").write_text(text.replace("</main>", "<script>document.title = 'run'</script></main>"))
    result = browse(home, HELPERS + """
      out.width = doc.documentElement.scrollWidth;
      out.theme = doc.getElementById("theme").getBoundingClientRect().right;
      out.title = doc.title;
      const sheets = [...tab().querySelectorAll(".sheets figure > div")];
      set("zoom", "4"); await wait();
      sheets[1].scrollLeft = 40; sheets[1].dispatchEvent(new view.Event("scroll"));  // headless, no frame sends it
      out.scrolled = sheets.map(sheet => sheet.scrollLeft);
      set("zoom", ""); await wait();
      out.wide = [...doc.querySelectorAll("body *")].filter(item => item.getBoundingClientRect().right > 391
        && !item.closest(".scroll, .sheets figure div, .skip, .phone span, .plots svg g")).map(item => item.outerHTML);
      out.first = [...table("rank").tHead.rows[0].cells].map(head => head.innerText.replace(/\\s+/g, " "));
      const select = doc.getElementById("tabs");
      out.reachable = [...select.options].map(option => option.value); out.visible = select.offsetParent !== null;
      select.value = "imagenet-512"; select.dispatchEvent(new view.Event("input")); await wait(); out.tab = tab().dataset.tab;
    """, width=390)  # fmt: skip
    assert result["wide"] == []
    assert result["scrolled"] == [40, 40, 40]  # the real images and two methods: the same columns of all are in view
    assert result["width"] <= 390
    assert result["theme"] <= 390
    assert result["title"] == "PosBench leaderboards"
    assert result["first"][3:6] == ["mean beyond", "2x 32x32", "1x by 2x 16x32"]  # larger sizes before the training size
    assert result["visible"]
    assert result["reachable"] == ["shapes-tiny", "imagenet-256", "imagenet-512"]
    assert result["tab"] == "imagenet-512"
    assert len(result["console"]) == 1  # the script that was refused


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


def test_the_first_words_of_a_protocol_say_who_is_first_and_how_to_read(home: Path) -> None:
    text = (home / "index.html").read_text()
    section = text[text.index('data-tab="shapes-tiny"') :]
    told = "No winner is named yet: only one complete row has more than one seed."
    assert section.index(told) < section.index("all values not significantly different from it") < section.index("<table")
