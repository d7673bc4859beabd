"use strict";
// The page's controls, its gallery and its table: each change is drawn at once.

const form = document.getElementById("controls"), main = document.getElementById("explore-picture");
const all = name => unique(ROWS, name);

function offer(name, options, wanted) {
  const select = form.elements[name], kept = select.value || wanted;
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
  select.value = options.some(([value]) => String(value) === String(kept)) ? kept : options[0]?.[0] ?? "";
}

function optimizationsIn(rows) { return Object.keys(DATA.looks).filter(name => rows.some(row => row.optimization === name)); }

function refill() {
  const rows = inSetting(state()), names = optimizationsIn(rows);
  offer("batch", unique(rows, "batch_size").map(size => [size, size]), unique(rows, "batch_size").at(-1));
  offer("optimization", names.map(name => [name, name]), names.find(name => name !== "none") || names[0]);
  offer("smt", unique(rows, "smt").map(smt => [String(smt), smt ? "on" : "off"]));
  offer("threads", [["best", "best of each"], ...unique(rows, "threads").map(n => [n, n])], "best");
}

function state() { return Object.fromEntries([...form.elements].filter(e => e.name).map(e => [e.name, e.value])); }

function redraw() {
  const now = state(), wanted = VIEWS[now.view].controls;
  for (const label of form.querySelectorAll("[data-for]"))
    label.hidden = !wanted.includes(label.dataset.for) || (label.dataset.for === "smt" && !SEVERAL_SMT);
  const picture = show(main, now);
  numbers(picture.chosen, now);
}

function cell(text, tag = "td") { const made = document.createElement(tag); made.textContent = text; if (tag === "th") made.scope = "row"; return made; }

function numbers(rows, now) {
  document.getElementById("numbers").replaceChildren(...rows.filter(row => row.status === "ok").map(row => {
    const value = metricOf(row, now), line = document.createElement("tr");
    line.append(cell(configWords(row), "th"), cell(row.batch_size), cell(row.threads), cell(number(value.y)),
      cell(value.low && value.high ? `${number(value.low)} – ${number(value.high)}` : "none"), cell(row.samples), cell(row.outliers));
    return line;
  }));
  document.getElementById("numbers-unit").textContent = AXES[now.metric];
}

function gallery() {
  const draw = figure => { show(figure, {...state(), ...figure.dataset}); figure.dataset.drawn = "yes"; };
  const seen = new IntersectionObserver(entries => entries.filter(e => e.isIntersecting)
    .forEach(e => { if (!e.target.dataset.drawn) draw(e.target); }), {rootMargin: "600px"});
  const figures = [...document.querySelectorAll("figure[data-view]")];
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
  const filters = document.getElementById("filters"), count = document.getElementById("count");
  const selects = {optimization: "optimization", batch: "batch_size", threads: "threads", status: "status"};
  for (const [name, column] of Object.entries(selects))
    filters.elements[name].append(...all(column).map(value => new Option(value, value)));
  const apply = () => {
    let shown = 0;
    for (const line of table.tBodies[0].rows) {
      const row = ROWS[line.dataset.i], words = filters.elements.words.value.toLowerCase();
      const fits = Object.entries(selects).every(([name, column]) => !filters.elements[name].value || String(row[column]) === filters.elements[name].value);
      line.hidden = !(fits && line.textContent.toLowerCase().includes(words));
      shown += !line.hidden;
    }
    count.textContent = `${shown} of ${ROWS.length} rows`;
  };
  filters.addEventListener("input", apply);
  filters.addEventListener("submit", event => event.preventDefault());
  apply();
}

function start() {
  document.documentElement.classList.add("live");
  for (const name of SETTING) {
    const together = name === "allocator" && all(name).length > 1 ? [[ALL, "all, beside each other"]] : [];
    offer(name, [...together, ...all(name).map(value => [value, DATA.titles[value] || value])], name === "seq_len" ? all(name)[0] : undefined);
    form.elements[name].closest("label").hidden = all(name).length < 2;
  }
  const views = Object.entries(VIEWS).filter(([name]) => (name !== "peak" || ROWS.some(r => r.peak_fraction !== null)) && (name !== "eager" || Object.keys(DATA.looks).length > 1 && "none" in DATA.looks));
  offer("view", views.map(([name, view]) => [name, view.name]), "eager" in Object.fromEntries(views) ? "eager" : "sizes");
  refill(); redraw();
  const again = gallery();
  form.addEventListener("submit", event => event.preventDefault());
  form.addEventListener("input", event => { if (SETTING.includes(event.target.name)) refill(); redraw(); if (event.target.name === "scale") again(); });
  let waiting; addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(() => { redraw(); again(); }, 150); });
  const table = document.getElementById("results"); sortable(table); filterable(table);
}
start();
