"use strict";
// Draws the charts that Python made: lines with intervals, labelled at their ends; cells; dots.

const DATA = JSON.parse(document.getElementById("data").textContent);
const INK = "var(--ink)", SOFT = "var(--soft)", PAPER = "var(--paper)";
const SYMBOLS = {o: "circle", s: "square", D: "diamond2", "^": "triangle", v: "triangle2", P: "plus",
  X: "times", "*": "star", "<": "hexagon", ">": "wye", d: "diamond", p: "cross"};
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
  const series = chart.cells ? [chart.cells] : chart.lines.filter(line => !line.reference);
  return series.flatMap(({marks}) => pointsOf(marks, chart.unit));
}

function tip(points, radius) {
  return Plot.tip(points, Plot.pointer({x: "x", y: "y", title: "tip", maxRadius: radius, fill: PAPER, stroke: SOFT, ariaHidden: "true"}));
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
  const stroke = colourOf(line), r = chart.many ? 2.8 : 4, symbol = SYMBOLS[line.marker];
  const dots = (coarse, fill) => Plot.dot(points.filter(p => p.coarse === coarse), {x: "x", y: "y", symbol, r, stroke, fill});
  return [
    Plot.areaY(known, {x: "x", y1: "low", y2: "high", fill: stroke, fillOpacity: chart.many ? 0.2 : 0.1}),
    chart.many ? null : Plot.ruleX(known, {x: "x", y1: "low", y2: "high", stroke, strokeWidth: 1.4, marker: "tick-y"}),
    Plot.line(points, {x: "x", y: "y", stroke, strokeWidth: 1.7, strokeDasharray: line.reference ? "1.5 4" : line.dashed ? "6 3" : null}),
    ...(line.reference ? [] : [dots(false, stroke), dots(true, PAPER)]),
    Plot.dot(line.missing_at || [], {x: d => d, frameAnchor: "bottom", symbol: "times", r: 5, stroke, strokeWidth: 2}),
  ];
}

function drawLines(chart, scale, width) {
  const {lines} = chart, right = 26 + (width < 560 ? 6.6 : 7) * d3.max(lines, line => line.label.length);
  const y = yOf(chart, scale);
  const svg = Plot.plot({...base(width, right), height: Math.max(380, 90 + PITCH * lines.length), x: scaleOf(chart.axes.x), y: scaleOf(y),
    marks: [xAxis(chart.axes.x, width - right - LEFT), yAxis(y), ...lines.flatMap(line => lineMarks(line, chart)), tip(allPoints(chart), 40)]});
  setColours(svg, lines);
  endLabels(svg, lines, width - right + 4);
  return svg;
}

function drawCells(chart, _scale, width) {
  const {columns, rows, row, colours, shades, missing = []} = chart.cells;
  const cells = pointsOf(chart.cells.marks, chart.unit).map((cell, i) => ({...cell, y: row[i], colour: colours[i], ink: shades[i] < 0.6 ? "#fff" : "#000"}));
  const crosses = missing.flatMap(y => columns.map(x => ({x, y})));
  return Plot.plot({...base(width, 16), height: 70 + 30 * rows.length, x: {label: chart.x_label, domain: columns, labelArrow: "none"},
    y: {label: chart.y_label, domain: rows, labelArrow: "none"},
    marks: [Plot.cell(cells, {x: "x", y: "y", inset: 0.5, fill: "colour"}),
      width / columns.length < 42 ? null : Plot.text(cells, {x: "x", y: "y", text: "value", fill: "ink", fontSize: 11.5}),
      Plot.cell(crosses, {x: "x", y: "y", inset: 0.5, fill: "var(--line)"}), Plot.dot(crosses, {x: "x", y: "y", symbol: "times", stroke: INK}), tip(cells, 40)]});
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
      Plot.ruleY(dots, {x1: (_, i) => i - 0.4, x2: (_, i) => i + 0.4, y: "median", stroke: INK}), tip(passes, 20)]});
}

function element(tag, name, text = "") { return Object.assign(document.createElement(tag), {className: name, textContent: text}); }

// Draws into `figure` the chart of this name, with its title, alternative text and caption.
function show(figure, key, scale) {
  const chart = DATA.charts[key] ?? "Nothing of this was measured.";
  if (typeof chart === "string") return figure.replaceChildren(element("p", "picture note", chart));
  const draw = chart.cells ? drawCells : chart.dots ? drawDots : drawLines, holder = element("div", "picture");
  const svg = unlabelled(draw(chart, scale, Math.max(320, Math.min(940, figure.clientWidth || 860))));
  svg.setAttribute("role", "img"); svg.setAttribute("aria-label", chart.alt);
  holder.append(svg);
  figure.replaceChildren(element("p", "picture-title", chart.title), holder, element("figcaption", "", chart.caption.join("\n")));
}
