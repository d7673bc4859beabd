"use strict";
// The page's controls, its gallery and its table: each change is drawn at once.

const form = document.getElementById("controls"), main = document.getElementById("explore-picture");

function offer(name, options, wanted) {
  const select = form.elements[name], kept = select.value || wanted;
  select.replaceChildren(...options.map(([text, value]) => new Option(text, value)));
  select.value = options.some(([, value]) => value === kept) ? kept : options[0]?.[1] ?? "";
}

function state() { return Object.fromEntries([...form.elements].filter(e => e.name).map(e => [e.name, e.value])); }

function context(now) { return DATA.contexts.find(({values}) => Object.entries(values).every(([name, value]) => now[name] === value)); }

function refill() {
  const {options, shown} = context(state()) ?? {options: {}};
  for (const [name, offered] of Object.entries(options)) offer(name, offered, name === "optimization" ? shown : undefined);
}

function redraw() {
  const now = state(), found = context(now), wanted = DATA.controls[now.view] ?? [];
  for (const label of form.querySelectorAll("[data-for]"))
    label.hidden = !wanted.includes(label.dataset.for) || found?.options[label.dataset.for].length < 2;
  const key = found && [...Object.values(found.values), now.view, ...wanted.map(name => now[name])].join("/"), chart = DATA.charts[key];
  form.elements.scale.closest("label").hidden = Boolean(chart?.bars);
  show(main, key, now.scale);
  main.dataset.key = key; document.querySelector(".save").hidden = !chart?.title;
  document.getElementById("numbers").replaceChildren(...(chart?.title ? allPoints(chart) : []).map(point => {
    const row = document.createElement("tr");
    row.append(cell(point.name, "th"), cell(`${point.value} ${chart.unit}`), ...(document.getElementById("interval") ? [cell(point.interval || "none")] : []), cell(point.detail));
    return row;
  }));
}

function cell(text, tag = "td") { const made = element(tag, "", text); if (tag === "th") made.scope = "row"; return made; }

function gallery() {
  const draw = figure => { show(figure, figure.dataset.chart, form.elements.scale.value); figure.dataset.drawn = "yes"; };
  const seen = new IntersectionObserver(entries => entries.filter(e => e.isIntersecting)
    .forEach(e => { if (!e.target.dataset.drawn) draw(e.target); }), {rootMargin: "600px"});
  const figures = [...document.querySelectorAll("figure[data-chart]")];
  figures.forEach(figure => seen.observe(figure));
  addEventListener("beforeprint", () => figures.filter(f => !f.dataset.drawn).forEach(draw));
  return () => figures.filter(f => f.dataset.drawn).forEach(draw);
}

function sortable(table) {
  const body = table.tBodies[0], value = (row, i) => { const text = row.cells[i].dataset.value ?? row.cells[i].textContent; return text === "" || isNaN(text) ? text : +text; };
  table.querySelectorAll("th button").forEach(button => button.addEventListener("click", () => {
    const head = button.closest("th"), down = head.getAttribute("aria-sort") === "ascending", i = head.cellIndex;
    table.querySelectorAll("th[aria-sort]").forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const order = (a, b) => (a === "") - (b === "") || (down ? -1 : 1) * (typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "string" ? 1 : -1);
    body.append(...[...body.rows].sort((a, b) => order(value(a, i), value(b, i))));
  }));
}

function filterable(table) {
  const filters = document.getElementById("filters"), count = document.getElementById("count"), rows = [...table.tBodies[0].rows];
  const columns = new Map([...table.tHead.rows[0].cells].map(head => [head.dataset.name, head.cellIndex]));
  const chosen = [...filters.querySelectorAll("select")];
  const none = element("tr", ""), nothing = element("td", "word", "No point matches. ");
  const all = element("button", "", "Show all points"); all.type = "button"; all.addEventListener("click", () => filters.reset());
  nothing.colSpan = columns.size; nothing.append(all); none.append(nothing);
  const apply = () => {
    const words = filters.elements.words.value.toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(words)
      || chosen.some(select => select.value && select.value !== row.cells[columns.get(select.name)].textContent);
    const found = rows.filter(row => !row.hidden).length;
    count.textContent = `${found} of ${rows.length} rows`;
    filters.querySelector("[type=reset]").hidden = found === rows.length;
    if (found) none.remove(); else table.tBodies[0].append(none);
  };
  filters.addEventListener("reset", () => setTimeout(() => { apply(); remember(); }));
  filters.addEventListener("input", apply);
  apply();
}

// What to run: one context and one batch size at a time.
function answer() {
  const chosen = document.forms.which?.elements.answer.value ?? "1";
  for (const section of document.querySelectorAll("[data-answer]")) {
    section.hidden = section.dataset.answer !== chosen;
    const size = section.querySelector("[name=size]")?.value;
    for (const part of section.querySelectorAll("[data-size]")) part.hidden = size !== undefined && part.dataset.size !== size;
  }
}

// The address holds what differs from the page as it opens, so that a link keeps the view.
const places = () => [...document.forms].flatMap(one => [...one.elements].filter(e => e.name).map(e => [`${one.id}.${e.name}`, e]));
const first = {}, wanted = new URLSearchParams(location.search);

function remember() {
  const changed = new URLSearchParams(places().filter(([key, e]) => e.value !== first[key]).map(([key, e]) => [key, e.value]));
  try { history.replaceState(null, "", `${location.pathname}${changed.size ? `?${changed}` : ""}${location.hash}`); } catch { /* an address that may not change */ }
}

function recall(chosen) {
  for (const [key, e] of places()) if (chosen(e) && wanted.has(key) && (e.type === "search" || [...e.options].some(o => o.value === wanted.get(key)))) e.value = wanted.get(key);
}

function download(name, type, content) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], {type})); link.download = name; link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function table(chart) {
  const quoted = value => `"${String(value ?? "").replaceAll('"', '""')}"`, head = ["point", "x", "value", "low", "high", "unit", "details"];
  return [head, ...allPoints(chart).map(p => [p.name, p.x, p.y ?? p.value, p.low, p.high, chart.unit, p.detail])].map(row => row.map(quoted).join(",")).join("\n") + "\n";
}

function save(kind) {
  const chart = DATA.charts[main.dataset.key], name = chart.title.toLowerCase().replace(/[^a-z0-9]+/g, "-");
  if (kind === "csv") return download(`${name}.csv`, "text/csv", table(chart));
  const {text, width, height} = standalone(chart, form.elements.scale.value);
  if (kind === "svg") return download(`${name}.svg`, "image/svg+xml", text);
  const image = new Image(), canvas = Object.assign(document.createElement("canvas"), {width: 2 * width, height: 2 * height});
  image.onload = () => { canvas.getContext("2d").drawImage(image, 0, 0, 2 * width, 2 * height); canvas.toBlob(blob => download(`${name}.png`, "image/png", blob)); };
  image.src = `data:image/svg+xml,${encodeURIComponent(text)}`;
}

function start() {
  document.documentElement.classList.add("live");
  const broad = matchMedia("(min-width: 70rem)"), contents = document.getElementById("contents");
  const fold = () => { contents.open = broad.matches; }; broad.addEventListener("change", fold); fold();
  const settings = Object.keys(DATA.contexts[0].values);
  for (const name of settings) form.elements[name].closest("label").hidden = form.elements[name].length < 2;
  Object.entries(DATA.contexts[0].values).forEach(([name, value]) => { form.elements[name].value = value; });
  refill();
  for (const [key, e] of places()) first[key] = e.value;
  recall(e => settings.includes(e.name)); refill(); recall(() => true);
  redraw(); answer();
  const again = gallery();
  document.addEventListener("submit", event => event.preventDefault());
  form.addEventListener("input", event => { if (settings.includes(event.target.name)) refill(); redraw(); if (event.target.name === "scale") again(); });
  document.addEventListener("input", () => { answer(); remember(); });
  document.querySelectorAll("[data-save]").forEach(button => button.addEventListener("click", () => save(button.dataset.save)));
  let waiting, width = innerWidth; addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(() => { if (width !== innerWidth) { width = innerWidth; redraw(); again(); } }, 150); });
  const points = document.getElementById("results"); sortable(points); filterable(points);
}
start();
