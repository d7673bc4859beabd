"use strict";
// Draws the charts that Python made: lines with intervals, labelled at their ends; cells; dots.

const DATA = JSON.parse(document.getElementById("data").textContent);
const INK = "var(--ink)", SOFT = "var(--soft)", PAPER = "var(--paper)";
// Matplotlib's markers, all of which can be hollow.
const regular = (corners, turn) => ({draw(context, size) {
  const angles = Array.from({length: corners}, (_, i) => Math.PI * (turn + 2 * i / corners)), r = 1.2 * Math.sqrt(size / Math.PI);
  angles.forEach((angle, i) => context[i ? "lineTo" : "moveTo"](r * Math.cos(angle), r * Math.sin(angle)));
  context.closePath();
}});
const SYMBOLS = {o: "circle", s: "square", D: regular(4, 0), "^": regular(3, -0.5), v: regular(3, 0.5), P: "cross", p: regular(5, -0.5),
  "*": "star", "<": regular(3, 1), ">": regular(3, 0), d: "diamond", h: regular(6, 0.5), H: regular(6, 0), 8: regular(8, 0.125)};
const PITCH = 15, FOOT = 42, LEFT = 66;

// Points as Python tells them: each with what its tip says.
function pointsOf(marks, unit, places = []) {
  const coarse = new Set(places);
  return (marks?.values || []).map((value, i) => pointOf({x: marks.x[i], y: marks.y[i], low: marks.low?.[i] ?? null, high: marks.high?.[i] ?? null,
    coarse: coarse.has(i), value, interval: marks.intervals[i], name: DATA.texts[marks.names?.[i]] ?? "", detail: DATA.texts[marks.details?.[i]] ?? ""}, unit));
}

function pointOf(point, unit) {
  const interval = point.interval && `95 % interval ${point.interval}`;
  return {...point, tip: [point.name, `${point.value} ${unit}`, interval, point.detail].filter(Boolean).join("\n")};
}

function columnOf(dots, unit) { return pointOf({name: dots.label, value: dots.value, interval: "", detail: dots.detail}, unit); }

function allPoints(chart) {
  if (chart.dots) return chart.dots.map(dots => columnOf(dots, chart.unit));
  const series = chart.parts ? chart.parts : chart.cells ? [chart.cells] : chart.lines.filter(line => !line.reference);
  return series.flatMap(({marks}) => pointsOf(marks, chart.unit));
}

function tip(points, radius, width, y = "y") {
  return Plot.tip(points, Plot.pointer({x: "x", y, title: "tip", maxRadius: radius, lineWidth: width < 500 ? 11 : 20, fill: PAPER, stroke: SOFT, ariaHidden: "true"}));
}

function base(width, right) {
  return {width, marginLeft: LEFT, marginTop: 22, marginBottom: FOOT, marginRight: right, color: {type: "identity"},
    style: {background: "transparent", color: INK, fontSize: "12.5px", fontFamily: "inherit", overflow: "visible"}};
}

function scaleOf(axis) { return {type: axis.log ? "log" : "linear", domain: [axis.low ?? 0, axis.high], label: axis.label}; }

function yOf(chart, scale) { return chart.axes[scale === "auto" ? (chart.log ? "log" : "linear") : scale]; }

// The ticks that Python chose; every other one where they would lie closer than 34 pixels in `room`.
function xAxis(axis, room) {
  const step = Math.ceil(axis.ticks.length * 34 / room);
  return Plot.axisX(axis.ticks, {text: (_, i) => axis.texts[i], filter: (_, i) => i % step === 0, labelArrow: "none", labelAnchor: "center"});
}

function yAxis(axis) {
  return [Plot.gridY(axis.ticks), Plot.axisY(axis.ticks, {text: (_, i) => axis.texts[i], labelArrow: "none"})];
}

// The names that Plot gives to its groups mean nothing beside the chart's own words.
function unlabelled(svg) {
  for (const part of svg.querySelectorAll("[aria-label]")) {
    part.dataset.mark = part.getAttribute("aria-label");
    part.removeAttribute("aria-label");
  }
  return svg;
}

// Positions at least PITCH apart, in their order, moved as little as a pass each way allows.
function spread(wanted, low, high) {
  const order = d3.range(wanted.length).sort((a, b) => wanted[a] - wanted[b]), placed = [...wanted];
  let edge = low - PITCH;
  for (const i of order) edge = placed[i] = Math.max(placed[i], edge + PITCH);
  edge = Math.max(high, low + PITCH * (wanted.length - 1)) + PITCH;
  for (const i of order.reverse()) edge = placed[i] = Math.min(placed[i], edge - PITCH);
  return placed;
}

function endLabels(svg, lines, edge) {
  const x = svg.scale("x"), y = svg.scale("y"), foot = +svg.getAttribute("height") - FOOT;
  const ends = lines.map(({marks}) => marks && [x.apply(marks.x.at(-1)), y.apply(marks.y.at(-1))]);
  const placed = spread(ends.map(end => end ? end[1] : foot), 20, foot);
  const layer = d3.select(svg).append("g").attr("class", "ends").attr("aria-hidden", "true").attr("text-anchor", "start");
  lines.forEach((line, i) => {
    if (ends[i]) layer.append("path").attr("fill", "none").style("stroke", colourOf(line)).attr("stroke-opacity", 0.6)
      .attr("d", `M${ends[i][0] + 4},${ends[i][1]}L${edge + 10},${placed[i]}`);
    layer.append("text").attr("x", edge + 13).attr("y", placed[i]).attr("dy", "0.32em")
      .style("fill", `color-mix(in srgb, ${colourOf(line)} 65%, ${INK})`).text(line.label);
  });
}

// Plot knows colours of CSS by their names alone: what they are stands in the picture's style.
function colourOf(line) { return line.dark ? `var(--${line.colour.slice(1)})` : line.colour; }

function setColours(svg, lines) {
  for (const {colour, dark} of lines) if (dark) svg.style.setProperty(`--${colour.slice(1)}`, `light-dark(${colour}, ${dark})`);
}

function lineMarks(line, chart) {
  const points = pointsOf(line.marks, chart.unit, line.coarse), known = points.filter(p => p.low !== null && p.high !== null);
  const stroke = colourOf(line), r = chart.is_dense ? 2.8 : 4, symbol = SYMBOLS[line.marker];
  const dots = (coarse, fill) => Plot.dot(points.filter(p => p.coarse === coarse), {x: "x", y: "y", symbol, r, stroke, fill});
  return [
    Plot.areaY(known, {x: "x", y1: "low", y2: "high", fill: stroke, fillOpacity: chart.is_dense ? 0.2 : 0.1}),
    chart.is_dense ? null : Plot.ruleX(known, {x: "x", y1: "low", y2: "high", stroke, strokeWidth: 1.4, marker: "tick-y"}),
    Plot.line(points, {x: "x", y: "y", stroke, strokeWidth: 1.7, strokeDasharray: line.reference ? "1.5 4" : line.dashed ? "6 3" : null}),
    ...(line.reference ? [] : [dots(false, stroke), dots(true, PAPER)]),
    Plot.dot(line.missing_at || [], {x: d => d, frameAnchor: "bottom", symbol: "times", r: 5, stroke, strokeWidth: 2}),
  ];
}

function drawLines(chart, scale, width) {
  const {lines} = chart, ends = hasEndLabels(chart, width), right = ends ? labelRoom(chart, width) : 16;
  const y = yOf(chart, scale);
  const svg = Plot.plot({...base(width, right), height: Math.max(width < 500 ? 250 : 360, 90 + PITCH * lines.length), x: scaleOf(chart.axes.x), y: scaleOf(y),
    marks: [xAxis(chart.axes.x, width - right - LEFT), yAxis(y), ...lines.flatMap(line => lineMarks(line, chart)), tip(allPoints(chart), 40, width)]});
  setColours(svg, lines);
  if (ends) endLabels(svg, lines, width - right + 4);
  return svg;
}

function labelRoom({lines}, width) { return 26 + (width < 560 ? 6.6 : 7) * d3.max(lines, line => line.label.length); }

// Labels at the lines' ends, or, where they would leave no room for more than two points, a legend below.
function hasEndLabels(chart, width) { return width - labelRoom(chart, width) - LEFT > (chart.axes.x.ticks.length > 2 ? 200 : 60); }

function legend({lines}) {
  const list = element("ul", "legend");
  list.ariaHidden = "true";
  for (const line of lines) {
    const entry = element("li", "", line.label), fill = colourOf(line), symbol = SYMBOLS[line.marker], mark = {x: d => d, y: d => d};
    const key = [Plot.ruleY([0.5], {stroke: fill, strokeWidth: 1.7, strokeDasharray: line.reference ? "1.5 4" : line.dashed ? "6 3" : null}),
      line.reference ? null : Plot.dot([0.5], {...mark, symbol, r: 4, stroke: fill, fill})];
    const drawn = Plot.plot({width: 28, height: 14, margin: 0, axis: null, x: {domain: [0, 1]}, y: {domain: [0, 1]}, color: {type: "identity"}, style: {background: "transparent"}, marks: key});
    setColours(drawn, [line]);
    entry.prepend(unlabelled(drawn)); list.append(entry);
  }
  return list;
}

function drawCells(chart, _scale, width) {
  const {columns, rows, row, colours, shades, missing = []} = chart.cells;
  const cells = pointsOf(chart.cells.marks, chart.unit).map((cell, i) => ({...cell, y: row[i], colour: colours[i], ink: shades[i] < 0.6 ? "#fff" : "#000"}));
  const crosses = missing.flatMap(y => columns.map(x => ({x, y})));
  return Plot.plot({...base(width, 16), height: 70 + 30 * rows.length, x: {label: chart.x_label, domain: columns, labelArrow: "none"},
    y: {label: chart.y_label, domain: rows, labelArrow: "none"},
    marks: [Plot.cell(cells, {x: "x", y: "y", inset: 0.5, fill: "colour"}),
      width / columns.length < 42 ? null : Plot.text(cells, {x: "x", y: "y", text: "value", fill: "ink", fontSize: 11.5}),
      Plot.cell(crosses, {x: "x", y: "y", inset: 0.5, fill: "var(--line)"}), Plot.dot(crosses, {x: "x", y: "y", symbol: "times", stroke: INK}), tip(cells, 40, width)]});
}

function drawDots(chart, scale, width) {
  const {dots} = chart, passes = dots.flatMap((column, i) => {
    const odd = new Set(column.outlier), last = column.passes.length - 1 || 1, {tip} = columnOf(column, chart.unit);
    return column.passes.map((y, k) => ({x: i + 0.56 * k / last - 0.28, y, odd: odd.has(k), colour: column.colour, tip}));
  });
  const y = yOf(chart, scale);
  return Plot.plot({...base(width, 16), marginBottom: 80, height: 420, y: scaleOf(y),
    x: {label: null, domain: [-0.6, dots.length - 0.4], ticks: d3.range(dots.length), tickFormat: i => dots[i].label, tickRotate: -50},
    marks: [yAxis(y), Plot.dot(passes, {x: "x", y: "y", r: 2, fill: "colour", fillOpacity: 0.6, filter: d => !d.odd}),
      Plot.dot(passes, {x: "x", y: "y", r: 4, symbol: "times", stroke: "var(--bad)", strokeWidth: 1.8, filter: d => d.odd}),
      Plot.ruleY(dots, {x1: (_, i) => i - 0.4, x2: (_, i) => i + 0.4, y: "median", stroke: INK}), tip(passes, 20, width)]});
}

// Bars made of parts, their names above them; the legend is part of the picture, so that a saved one has it.
function drawBars(chart, _scale, width) {
  const {bars, axes: {x: axis}, unit} = chart, room = width - 32, keys = [];
  for (const {label, colour} of chart.parts) {
    const last = keys.at(-1) ?? {end: 0, y: 4}, wrap = last.end + 17 + 7 * label.length > room, x = wrap ? 0 : last.end;
    keys.push({label, colour, x: 16 + x, y: last.y + 18 * wrap, end: x + 32 + 7 * label.length});
  }
  const top = keys.at(-1).y + 20, parts = chart.parts.flatMap(({row, colour, marks}) => pointsOf(marks, unit).map((point, i) =>
    ({...point, colour, bar: row[i], start: point.x, end: point.x + point.y, x: point.x + point.y / 2, room: point.y / axis.high * room})));
  const svg = Plot.plot({...base(width, 16), marginLeft: 16, marginTop: top, marginBottom: FOOT + 8, height: top + 44 * bars.length + FOOT + 20, x: scaleOf(axis),
    y: {type: "band", domain: d3.range(bars.length), axis: null, paddingInner: 0.5, paddingOuter: 0.55, align: 1},
    marks: [Plot.gridX(axis.ticks), xAxis(axis, room), Plot.barX(parts, {x1: "start", x2: "end", y: "bar", fill: "colour", stroke: PAPER}),
      Plot.text(parts, {x: "x", y: "bar", text: "value", fill: "#fff", fontSize: 11.5, filter: part => part.room > 8 * part.value.length}),
      Plot.text(bars, {x: () => 0, y: (_, i) => i, text: name => name, textAnchor: "start", dy: -20}), tip(parts, 60, width, "bar")]});
  const entry = d3.select(svg).append("g").attr("aria-hidden", "true").attr("text-anchor", "start").selectAll("g").data(keys).join("g");
  entry.append("rect").attr("x", key => key.x).attr("y", key => key.y).attr("width", 12).attr("height", 12).attr("fill", key => key.colour);
  entry.append("text").attr("x", key => key.x + 17).attr("y", key => key.y + 10.5).text(key => key.label);
  return svg;
}

function element(tag, name, text = "") { return Object.assign(document.createElement(tag), {className: name, textContent: text}); }

const DRAWN = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "stroke-opacity", "opacity", "font-size", "font-family", "font-weight", "text-anchor"];

// Colours that other programs know, too.
function plain(value) {
  return value.replace(/color\(srgb ([\d.e-]+) ([\d.e-]+) ([\d.e-]+)[^)]*\)/g, (_, ...rgb) => `rgb(${rgb.slice(0, 3).map(part => Math.round(255 * part)).join(", ")})`);
}

function wrapped(line, most) {
  return line.split(" ").reduce((lines, word) => (lines.at(-1) + word).length < most ? [...lines.slice(0, -1), `${lines.at(-1)} ${word}`.trim()] : [...lines, word], [""]);
}

// The picture as a file of its own: with title and caption, and no style from the page.
function standalone(chart, scale) {
  const width = 940, svg = drawn(chart, scale, width), away = element("div", "away"), look = getComputedStyle(document.body);
  away.append(svg); document.body.append(away);
  const copy = svg.cloneNode(true), room = +svg.getAttribute("height");
  const parts = copy.querySelectorAll("*");
  svg.querySelectorAll("*").forEach((part, i) => { const style = getComputedStyle(part); parts[i].removeAttribute("style"); DRAWN.forEach(name => parts[i].setAttribute(name, plain(style.getPropertyValue(name)))); });
  copy.querySelectorAll("style").forEach(style => style.remove());
  copy.removeAttribute("style"); copy.setAttribute("y", 30);
  const lines = chart.caption.flatMap(line => wrapped(line, width / 6.4)), height = room + 42 + 17 * lines.length;
  const all = d3.create("svg").attr("xmlns", "http://www.w3.org/2000/svg").attr("width", width).attr("height", height).attr("viewBox", `0 0 ${width} ${height}`).attr("font-family", look.fontFamily);
  all.append("rect").attr("width", width).attr("height", height).attr("fill", look.backgroundColor);
  all.append("text").attr("x", 4).attr("y", 20).attr("font-size", 15).attr("font-weight", 650).attr("fill", look.color).text(chart.title);
  lines.forEach((line, i) => all.append("text").attr("x", 4).attr("y", room + 44 + 17 * i).attr("font-size", 12).attr("fill", look.color).text(line));
  all.node().append(copy); away.remove();
  return {text: new XMLSerializer().serializeToString(all.node()), width, height};
}

function drawn(chart, scale, width) { return unlabelled((chart.bars ? drawBars : chart.cells ? drawCells : chart.dots ? drawDots : drawLines)(chart, scale, width)); }

// Draws into `figure` the chart of this name, with its title, alternative text and caption.
function show(figure, key, scale) {
  const chart = DATA.charts[key] ?? "Nothing of this was measured.";
  if (typeof chart === "string") return figure.replaceChildren(element("p", "picture note", chart));
  const holder = element("div", "picture"), width = Math.max(300, Math.min(1100, figure.clientWidth || 860)), svg = drawn(chart, scale, width);
  svg.setAttribute("role", "img"); svg.setAttribute("aria-label", chart.alt);
  holder.append(svg);
  if (chart.lines && !hasEndLabels(chart, width)) holder.append(legend(chart));
  // Small multiples: what one caption says, those after it need not.
  const before = new Set();
  for (let other = figure.closest(".small-multiples") && figure.previousElementSibling; other; other = other.previousElementSibling)
    (DATA.charts[other.dataset.chart]?.caption ?? []).forEach(line => before.add(line));
  const caption = chart.caption.filter(line => !before.has(line));
  figure.replaceChildren(element("p", "picture-title", chart.title), holder, element("figcaption", "", caption.join("\n")));
}
