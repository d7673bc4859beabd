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
  show(main, key, now.scale);
  document.getElementById("numbers").replaceChildren(...(chart?.title ? allPoints(chart) : []).map(point => {
    const row = document.createElement("tr");
    row.append(cell(point.name, "th"), cell(`${point.value} ${chart.unit}`), cell(point.interval || "none"), cell(point.detail));
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
  const apply = () => {
    const words = filters.elements.words.value.toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(words)
      || chosen.some(select => select.value && select.value !== row.cells[columns.get(select.name)].textContent);
    count.textContent = `${rows.filter(row => !row.hidden).length} of ${rows.length} rows`;
  };
  filters.addEventListener("input", apply);
  filters.addEventListener("submit", event => event.preventDefault());
  apply();
}

function start() {
  document.documentElement.classList.add("live");
  const settings = Object.keys(DATA.contexts[0].values);
  for (const name of settings) form.elements[name].closest("label").hidden = form.elements[name].length < 2;
  Object.entries(DATA.contexts[0].values).forEach(([name, value]) => { form.elements[name].value = value; });
  refill(); redraw();
  const again = gallery();
  form.addEventListener("submit", event => event.preventDefault());
  form.addEventListener("input", event => { if (settings.includes(event.target.name)) refill(); redraw(); if (event.target.name === "scale") again(); });
  let waiting; addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(() => { redraw(); again(); }, 150); });
  const table = document.getElementById("results"); sortable(table); filterable(table);
}
start();
