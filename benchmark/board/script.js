"use strict";
// Tables stand in the page as they are; this adds tabs, one control for all of a tab, themes and the choice of samples.
// Everything that is chosen but the theme stands in the address, so that a link shows the same.
const root = document.documentElement;
root.classList.add("js");
const all = (what, where = document) => [...where.querySelectorAll(what)];

// --- Theme
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
  theme(themes[(themes.indexOf(button.dataset.now) + 1) % themes.length]);
  keep("theme", button.dataset.now);
});

// --- State
const tabs = new Map(all("section.tab").map(tab => [tab.dataset.tab, tab]));
const select = document.getElementById("tabs");
let state = new URLSearchParams();
const read = () => {
  const hash = location.hash.slice(1);
  if (hash === "main") return state;
  return new URLSearchParams(hash.includes("=") ? hash : hash && "tab=" + hash);
};
const current = () => tabs.get(state.get("tab")) || tabs.values().next().value;
const change = entries => {
  state.set("tab", current().dataset.tab);
  for (const [key, value] of Object.entries(entries)) if (value) state.set(key, value); else state.delete(key);
  history.replaceState(null, "", "#" + state.toString().replaceAll("%2C", ","));
  show();
};
const list = key => (state.get(key) || "").split(",").filter(Boolean);

// --- One control for the tables, plots and samples of a tab
const filter = tab => {
  const words = (state.get("q") || "").toLowerCase().split(/[\s,]+/).filter(Boolean);
  const out = new Set();
  const rows = all("table.lead tbody tr", tab);
  for (const { dataset: row } of rows) {
    const hit = (!words.length || words.some(word => row.words.includes(word)))
      && (!state.get("kind") || row.kind === state.get("kind")) && +row.seeds >= +(state.get("seeds") || 0)
      && +row.year >= +(state.get("since") || 0) && (!state.get("complete") || row.complete === "1");
    if (!hit) out.add(row.m);
  }
  for (const item of all("[data-m]", tab)) item.classList.toggle("out", out.has(item.dataset.m));
  const count = tab.querySelector(".tools output");
  const left = rows.length - out.size;
  if (count) count.value = left + (left === 1 ? " method" : " methods");
  for (const group of ["below", "at", "beyond", "mean"]) tab.classList.toggle("no-" + group, list("hide").includes(group));
};
const places = new WeakMap();  // of rows as they were sent: by rank
const sort = tab => {
  const asked = state.get("sort") || "", key = asked.replace(/^-/, "");
  const head = all("th[data-key]", tab).find(item => item.dataset.key === key);
  for (const item of all("th[data-key]", tab))
    item.setAttribute("aria-sort", item !== head ? "none" : asked.startsWith("-") ? "descending" : "ascending");
  const order = new Map();
  const table = head && head.closest("table");
  if (head) {
    const value = row => row.cells[head.cellIndex].dataset.v;
    const words = [...table.tBodies[0].rows].some(row => isNaN(value(row) ?? 0)), sign = asked.startsWith("-") ? -1 : 1;
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const x = value(a), y = value(b);
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);  // empty cells last
      return sign * (words ? x.localeCompare(y, "en") : x - y) || places.get(a) - places.get(b);
    });
    rows.forEach((row, place) => order.set(row.dataset.m || row, place));
  }
  const together = head && table.classList.contains("methods");
  for (const body of [...all("tbody", tab), ...all(".sheets", tab)]) {
    const rows = [...body.children].filter(row => !row.classList.contains("real"));
    const mine = together ? row => order.get(row.dataset.m) : table && table.contains(body) ? row => order.get(row) : () => undefined;
    const place = row => mine(row) ?? order.size + places.get(row);
    body.append(...rows.sort((a, b) => place(a) - place(b)));
  }
};
const samples = tab => {
  const part = tab.querySelector(".samples");
  if (!part) return;
  const size = part.querySelector("[data-state=size]"), seed = part.querySelector("[data-state=seed]").value;
  const option = size.selectedOptions[0], sheets = part.querySelector(".sheets"), real = part.querySelector(".real");
  const picked = state.has("pick") ? list("pick") : part.dataset.pick.split(",");
  sheets.style.setProperty("--w", option.dataset.w);
  sheets.style.setProperty("--h", option.dataset.h);
  const room = sheets.clientWidth, share = room > 700 ? (room - 16) / 2 : room;
  sheets.style.setProperty("--k", state.get("zoom") || Math.min(4, Math.max(1, Math.floor(share / option.dataset.w))));
  real.hidden = !option.dataset.real;
  if (option.dataset.real) real.querySelector("img").setAttribute("src", "grids/" + option.dataset.real);
  for (const sheet of all(".sheet", sheets)) {
    const names = sheet.dataset.files.trim().split(" ").filter(name => name.includes("/" + size.value + "-s"));
    const name = names.find(item => item.includes("-s" + seed + ".")) || names[0];
    sheet.classList.toggle("unpicked", !picked.includes(sheet.dataset.m) || !name);
    if (!name) continue;
    const image = sheet.querySelector("img"), own = /-s(\d+)\.\w+$/.exec(name)[1];
    if (image.getAttribute("src") !== "grids/" + name) image.setAttribute("src", "grids/" + name);
    sheet.querySelector("small").textContent = own === seed ? "" : "seed " + own;
  }
  for (const box of all("input[data-pick]", part)) box.checked = picked.includes(box.dataset.pick);
  part.querySelector(".picked").textContent = picked.length + " of " + all(".sheet", sheets).length;
};
const show = () => {
  const tab = current();
  for (const item of tabs.values()) item.hidden = item !== tab;
  for (const link of all("[data-to]"))
    if (link.dataset.to === tab.dataset.tab) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
  select.value = tab.dataset.tab;
  for (const item of all("[data-state]", tab)) {
    const value = state.get(item.dataset.state);
    if (item.type === "checkbox") item.checked = Boolean(value);
    else if (item !== document.activeElement || item.type !== "search")
      item.value = value || tab.querySelector(".samples")?.dataset[item.dataset.state] || "";
    if (item.selectedIndex === -1) item.selectedIndex = 0;  // also of what an address asks for and there is not
  }
  for (const box of all("[data-group]", tab)) box.checked = !list("hide").includes(box.dataset.group);
  for (const item of all("details[data-open]", tab)) item.open = list("open").includes(item.dataset.open);
  filter(tab);
  sort(tab);
  samples(tab);
};
const arrive = () => {
  state = read();
  const at = state.get("at");
  if (at) {  // a second click on the same link arrives, too
    state.delete("at");
    history.replaceState(null, "", "#" + state);
  }
  show();
  const part = at && current().querySelector(`[data-part="${CSS.escape(at)}"]`);
  if (part) {
    if (at === "findings" || !part.querySelector("h2")) part.querySelector("details")?.setAttribute("open", "");
    const tools = current().querySelector(".tools"), bar = document.querySelector("header").offsetHeight;
    root.style.scrollPaddingTop = bar + 8 + (tools && getComputedStyle(tools).position === "sticky" ? tools.offsetHeight : 0) + "px";
    part.scrollIntoView();
  } else if (!at && location.hash !== "#main") scrollTo(0, 0);
};
for (const tab of tabs.values()) {
  for (const body of [...all("tbody", tab), ...all(".sheets", tab)]) [...body.children].forEach((row, place) => places.set(row, place));
  for (const head of all("th[data-key]", tab)) {
    const press = document.createElement("button");
    press.type = "button";
    press.append(...head.childNodes);
    head.append(press);
    press.addEventListener("click", () => {
      const first = ("falls" in head.dataset ? "-" : "") + head.dataset.key;
      const second = first.startsWith("-") ? head.dataset.key : "-" + head.dataset.key;
      change({ sort: state.get("sort") === first ? second : first });
    });
  }
  for (const item of all("[data-state]", tab))
    item.addEventListener("input", () => change({ [item.dataset.state]: item.type === "checkbox" && !item.checked ? "" : item.value }));
  for (const box of all("[data-group]", tab))
    box.addEventListener("input", () => change({ hide: all("[data-group]", tab).filter(b => !b.checked).map(b => b.dataset.group).join() }));
  for (const item of all("details[data-open]", tab))
    item.addEventListener("toggle", () => {
      const open = all("details[data-open]", tab).filter(other => other.open).map(other => other.dataset.open).join();
      if (tab === current() && open !== (state.get("open") || "")) change({ open });
    });
  const sheets = all(".sheets figure > div", tab);  // wider than a phone's screen: they scroll together
  for (const sheet of sheets)
    sheet.addEventListener("scroll", () => { for (const other of sheets) other.scrollLeft = sheet.scrollLeft; }, { passive: true });
  const pick = names => change({ pick: names.join() || "none" });
  for (const box of all("input[data-pick]", tab))
    box.addEventListener("input", () => pick(all("input[data-pick]:checked", tab).map(item => item.dataset.pick)));
  tab.querySelector("[data-all]")?.addEventListener("click", () => pick(all("input[data-pick]", tab).map(item => item.dataset.pick)));
  tab.querySelector("[data-none]")?.addEventListener("click", () => pick([]));
  for (const form of all("form", tab)) {
    form.addEventListener("submit", event => event.preventDefault());
    form.addEventListener("reset", event => {
      event.preventDefault();
      change({ q: "", kind: "", seeds: "", since: "", sort: "", hide: "", complete: "" });
    });
  }
  for (const item of all(".key-list [data-m]", tab)) {  // a line stands out while its name is pointed at
    const mark = on => all(".plots g[data-m]", tab).forEach(line => {
      line.classList.toggle("hot", on && line.dataset.m === item.dataset.m);
      line.classList.toggle("cold", on && line.dataset.m !== item.dataset.m);
    });
    item.addEventListener("pointerenter", () => mark(true));
    item.addEventListener("pointerleave", () => mark(false));
  }
}
document.addEventListener("load", event => {  // a grid of other measures than its neighbours' keeps its own
  if (event.target.tagName !== "IMG" || !event.target.naturalWidth) return;
  event.target.style.setProperty("--w", event.target.naturalWidth);
  event.target.style.setProperty("--h", event.target.naturalHeight);
}, true);
select.addEventListener("input", () => { location.hash = "tab=" + select.value; });
addEventListener("hashchange", arrive);
addEventListener("resize", () => samples(current()));
if (tabs.size) arrive();
