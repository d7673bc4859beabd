"use strict";
// What a picture shows: from rows and choices to lines, cells or dots, and to words.

const DATA = JSON.parse(document.getElementById("data").textContent);
const ROWS = DATA.columns.model.map((_, i) => Object.fromEntries([["i", i],
  ...Object.entries(DATA.columns).map(([name, values]) => [name, values[i]])]));
const SETTING = DATA.setting;
const SEVERAL_SMT = new Set(ROWS.map(row => row.smt)).size > 1;
const ALL = "all";
const AXES = {latency: "latency of one batch (ms)", throughput: "throughput (inferences/s)"};

function unique(rows, name) {
  return [...new Set(rows.map(row => row[name]))].filter(v => v !== null)
    .sort((a, b) => typeof a === "string" ? a.localeCompare(b) : a - b);
}

// Of all allocators together, each one's name is part of its optimization's.
function inSetting(state) {
  const together = state.allocator === ALL, names = together ? SETTING.filter(name => name !== "allocator") : SETTING;
  const rows = ROWS.filter(row => names.every(name => state[name] === undefined || String(row[name]) === String(state[name])));
  return together ? rows.map(row => row.allocator === "default" ? row : {...row, optimization: `${row.optimization}, ${row.allocator}`}) : rows;
}

function latencyOf(row) { return {y: row.latency_ms, low: row.latency_ms_low || null, high: row.latency_ms_high}; }

function turned({y, low, high}, by) { return {y: by / y, low: high ? by / high : null, high: low ? by / low : null}; }

function metricOf(row, state) {
  const latency = latencyOf(row);
  return state.metric === "throughput" ? turned(latency, 1e3 * row.batch_size) : latency;
}

// A ratio of the row as Python got it from both points' turns: `name` says over what.
function ratioOf(row, name) {
  return row[name] === null ? null : {y: row[name], low: row[`${name}_low`], high: row[`${name}_high`], how: row[`${name}_paired`]};
}

function configWords(row) { return SEVERAL_SMT ? `${row.optimization}, SMT ${row.smt ? "on" : "off"}` : row.optimization; }

function told(row, value, unit) {
  const lines = [`${configWords(row)}, batch ${row.batch_size}, ${row.threads} thread${row.threads === 1 ? "" : "s"}`,
    `${number(value.y)} ${unit}`];
  if (value.low && value.high) lines.push(`95 % interval ${number(value.low)} – ${number(value.high)}`);
  if (value.how) lines.push(value.how);
  lines.push(`${row.samples} samples${row.outliers ? `, ${row.outliers} outliers` : ""}${row.coarse ? ", coarse" : ""}`);
  if (row.sqnr_db !== null) lines.push(`SQNR ${number(row.sqnr_db)} dB`);
  return lines.join("\n");
}

function point(row, x, value, unit) { return {x, ...value, row, coarse: row.coarse, told: told(row, value, unit)}; }

function unit(state) { return state.metric === "throughput" ? "inferences/s" : "ms"; }

function makeLine(rows, x, label, look, value, unitWord) {
  const ok = rows.filter(row => row.status === "ok" && row[x] !== null), points = ok.map(row => [row, value(row)])
    .filter(([, v]) => v && Number.isFinite(v.y)).map(([row, v]) => point(row, row[x], v, unitWord)).sort((a, b) => a.x - b.x);
  const gone = rows.filter(row => row.status !== "ok" && row[x] !== null).map(row => row[x]);
  return {label, ...look, dashed: rows[0].smt, points, gone};
}

function configLook(row) { const [colour, marker] = DATA.looks[row.optimization]; return {colour, marker}; }
function batchLook(size) { return {colour: `var(--batch-${size})`, marker: "o", dashed: false}; }

function byConfig(rows, make) {
  return d3.groups(rows, configWords).map(([label, part]) => make(label, part)).filter(line => line.points.length || line.gone.length || line.failed);
}

function best(rows, threads) {
  const ok = rows.filter(row => row.status === "ok" && (threads === "best" || row.threads === +threads));
  return d3.groups(ok, row => [row.batch_size, row.optimization, row.smt].join("|")).map(([, part]) => d3.least(part, row => row.latency_ms));
}

function ideal(label, xs, y) { return {label, colour: "var(--soft)", ideal: true, points: xs.map(x => ({x, y: y(x)})), gone: []}; }

function threadsWords(state) { return state.threads === "best" ? "each at its best thread count" : `${state.threads} threads`; }

const VIEWS = {
  batch: {name: "One batch size, by cores", controls: ["metric", "batch"], make(rows, state) {
    const chosen = rows.filter(row => row.batch_size === +state.batch);
    const lines = d3.groups(chosen, configWords).map(([label, part]) => makeLine(part, "cores", label, configLook(part[0]), row => metricOf(row, state), unit(state)));
    return {title: `${state.metric}, batch size ${state.batch}, by cores`, lines, xLabel: "cores", yLabel: AXES[state.metric], chosen};
  }},
  optimization: {name: "One optimization, by threads", controls: ["metric", "optimization", "smt"], make(rows, state) {
    const chosen = rows.filter(row => row.optimization === state.optimization && String(row.smt) === state.smt);
    const lines = d3.groups(chosen, row => row.batch_size).sort((a, b) => a[0] - b[0])
      .map(([size, part]) => makeLine(part, "threads", `batch ${size}`, batchLook(size), row => metricOf(row, state), unit(state)));
    return {title: `${state.metric}, ${state.optimization}, SMT ${state.smt === "true" ? "on" : "off"}, by threads`, lines, xLabel: "threads", yLabel: AXES[state.metric], chosen};
  }},
  sizes: {name: "By batch size", controls: ["metric", "threads"], make(rows, state) {
    const chosen = [...best(rows, state.threads), ...rows.filter(row => row.status !== "ok")];
    const lines = byConfig(chosen, (label, part) => makeLine(part, "batch_size", label, configLook(part[0]), row => metricOf(row, state), unit(state)));
    return {title: `${state.metric} by batch size, ${threadsWords(state)}`, lines, xLabel: "batch size", yLabel: AXES[state.metric], doubling: true, chosen};
  }},
  eager: {name: "Speed-up over eager", controls: ["threads"], make(rows, state) {
    const name = state.threads === "best" ? "speedup" : "same_threads";
    const chosen = [...best(rows, state.threads), ...rows.filter(row => row.status !== "ok")].filter(row => !row.is_base);
    const lines = byConfig(chosen, (label, part) => {
      const worst = d3.min(part, row => row.sqnr_db);
      return makeLine(part, "batch_size", worst ? `${label} · ${worst.toFixed(0)} dB` : label, configLook(part[0]), row => ratioOf(row, name), "× eager");
    });
    const xs = d3.extent(lines.flatMap(line => line.points), p => p.x);
    if (lines.some(line => line.points.length)) lines.push(ideal("eager", xs, () => 1));
    return {title: `speed-up over eager by batch size, ${threadsWords(state)}`, lines, xLabel: "batch size", yLabel: "speed-up over eager (×)", doubling: true, chosen};
  }},
  scaling: {name: "Speed-up over one thread", controls: ["optimization", "smt"], make(rows, state) {
    const chosen = rows.filter(row => row.optimization === state.optimization && String(row.smt) === state.smt);
    const lines = d3.groups(chosen, row => row.batch_size).sort((a, b) => a[0] - b[0])
      .map(([size, part]) => makeLine(part, "threads", `batch ${size}`, batchLook(size), row => ratioOf(row, "scaling"), "× 1 thread"));
    if (lines.some(line => line.points.length)) lines.push(ideal("ideal", unique(chosen, "threads"), x => x));
    return {title: `speed-up over 1 thread, ${state.optimization}`, lines, xLabel: "threads", yLabel: "speed-up over 1 thread (×)", chosen};
  }},
  heat: {name: "Heat map: batch size × threads", controls: ["metric", "optimization", "smt"], make(rows, state) {
    const chosen = rows.filter(row => row.optimization === state.optimization && String(row.smt) === state.smt);
    const cells = chosen.filter(row => row.status === "ok").map(row => { const v = metricOf(row, state);
      return {x: row.threads, y: row.batch_size, value: v.y, told: told(row, v, unit(state))}; });
    const gone = chosen.filter(row => row.status !== "ok").map(row => ({y: row.batch_size}));
    return {title: `${AXES[state.metric]}, ${state.optimization}`, cells, gone, xLabel: "threads", yLabel: "batch size", reverse: state.metric === "latency", chosen};
  }},
  peak: {name: "Share of the machine's peak", controls: ["threads"], make(rows, state) {
    const chosen = best(rows, state.threads).filter(row => row.peak_fraction !== null);
    const lines = byConfig(chosen, (label, part) => makeLine(part, "batch_size", label, configLook(part[0]),
      row => turned(latencyOf(row), 100 * row.peak_fraction * row.latency_ms), "% of peak"));
    return {title: `share of this machine's peak in its own type, ${threadsWords(state)}`, lines, xLabel: "batch size", yLabel: "share of peak (%)", doubling: true, chosen};
  }},
  samples: {name: "Every sample of a batch size", controls: ["batch", "optimization", "smt"], make(rows, state) {
    const chosen = rows.filter(row => row.batch_size === +state.batch && row.optimization === state.optimization && String(row.smt) === state.smt);
    const groups = chosen.filter(row => DATA.samples[row.i]).map(row => ({label: `${row.threads} thread${row.threads === 1 ? "" : "s"}`,
      colour: configLook(row).colour, values: DATA.samples[row.i][0], odd: new Set(DATA.samples[row.i][1])}));
    return {title: `every pass, batch size ${state.batch}, ${state.optimization}`, groups, yLabel: "latency of a pass (ms)", chosen};
  }},
};

function missing(rows) {
  return rows.filter(row => row.status !== "ok").map(row => `batch ${row.batch_size}, ${configWords(row)}: ${row.status}, ${row.reason}`);
}

// How the ratios of a picture were got, each way once.
function howWords(picture) {
  const hows = new Set((picture.lines || []).flatMap(line => line.points.map(p => p.how)).filter(Boolean));
  return hows.size ? `ratios: ${[...hows].join(", ")}` : "";
}

// What an item is, and how it was run: as under the PNG files.
function settingWords(row) {
  return row ? [row.item, `${row.placement} placement`, row.allocator !== "default" && `allocator ${row.allocator}`].filter(Boolean) : [];
}

// The alternative text: what a reader of the picture would take from it.
function summary(picture) {
  if (picture.lines) return picture.lines.filter(line => line.points.length && !line.ideal).map(line => {
    const first = line.points[0], last = line.points.at(-1);
    return `${line.label}: ${number(first.y)} at ${plain(first.x)}` + (last === first ? "" : `, ${number(last.y)} at ${plain(last.x)}`);
  }).join("; ");
  if (picture.cells) return `From ${number(d3.min(picture.cells, c => c.value))} to ${number(d3.max(picture.cells, c => c.value))} over ${picture.cells.length} points`;
  return picture.groups.map(group => `${group.label}: median ${number(d3.median(group.values))} ms of ${group.values.length}, ${group.odd.size} outliers`).join("; ");
}

// The picture of `state` in `figure`, with its title, alternative text and caption.
function show(figure, state) {
  const rows = inSetting(state), picture = VIEWS[state.view].make(rows, state), title = `${DATA.titles[state.model] || state.model} ${picture.title}`;
  const empty = !(picture.lines?.some(line => line.points.length && !line.ideal) || picture.cells?.length || picture.groups?.length);
  const gone = missing(picture.chosen), where = [DATA.source, ...settingWords(rows[0]), howWords(picture), DATA.notes].filter(Boolean).join(" · ");
  const holder = document.createElement("div"), heading = document.createElement("p"), caption = document.createElement("figcaption");
  heading.className = "picture-title"; heading.textContent = title;
  holder.className = "picture";
  if (empty) { holder.textContent = gone.length ? `Not measured. ${gone.join("; ")}` : "Nothing of this was measured."; holder.classList.add("note"); }
  else {
    const options = {...picture, scale: state.scale, width: Math.max(320, Math.min(940, figure.clientWidth || 860))};
    const svg = (picture.cells ? drawCells : picture.groups ? drawDots : drawLines)(options);
    svg.setAttribute("role", "img"); svg.setAttribute("aria-label", `${title}. ${summary(picture)}.`);
    holder.append(svg);
  }
  caption.textContent = [where, ...(empty ? [] : gone.slice(0, 5)), gone.length > 5 ? `… and ${gone.length - 5} more that failed or were skipped` : ""].filter(Boolean).join("\n");
  figure.replaceChildren(heading, holder, caption);
  return picture;
}
