"use strict";
// How a picture looks: lines with bands, labelled at their ends; cells; dots. Knows no configs.

const INK = "var(--ink)", SOFT = "var(--soft)";
const SYMBOLS = {o: "circle", s: "square", D: "diamond2", "^": "triangle", v: "triangle2", P: "plus",
  X: "times", "*": "star", "<": "hexagon", ">": "wye", d: "diamond", p: "cross"};
const PITCH = 15;

function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (Math.abs(value) >= 99.95) return Math.round(value).toLocaleString("en");
  return value.toPrecision(3);
}

function plain(value) { return Number(value.toPrecision(6)).toLocaleString("en", {maximumFractionDigits: 4}); }

function base(width, right) {
  return {width, marginLeft: 66, marginTop: 14, marginBottom: 42, marginRight: right,
    style: {background: "transparent", color: INK, fontSize: "12.5px", fontFamily: "inherit", overflow: "visible"}};
}

// The names that Plot gives to its groups mean nothing beside the picture's own words.
function unlabelled(svg) {
  for (const part of svg.querySelectorAll("[aria-label]")) {
    part.dataset.mark = part.getAttribute("aria-label");
    part.removeAttribute("aria-label");
  }
  return svg;
}

// Powers of two on the x axis, every other one where there is no room; else a y axis.
function axis(label, log, values, doubling, room = 1e3) {
  const low = d3.min(values), high = d3.max(values);
  if (doubling) {
    const powers = d3.range(Math.ceil(Math.log2(low)), Math.floor(Math.log2(high)) + 1).map(k => 2 ** k);
    const ticks = powers.filter((_, i) => i % Math.ceil(powers.length * 34 / room) === 0);
    return {label, type: "log", base: 2, domain: [low / 1.1, high * 1.1], ticks, tickFormat: plain, labelArrow: "none", labelAnchor: "center"};
  }
  if (!log) return {label, domain: [0, 1.05 * high], grid: true, ticks: 6, tickFormat: plain, labelArrow: "none"};
  const steps = high / low > 1e3 ? [1] : [1, 2, 5];
  const ticks = d3.range(-4, 9).flatMap(k => steps.map(step => step * 10 ** k)).filter(t => t >= low / 1.2 && t <= high * 1.2);
  return {label: `${label}, log scale`, type: "log", domain: [low / 1.2, high * 1.2], ticks, tickFormat: plain, grid: true, labelArrow: "none"};
}

// Positions at least PITCH apart, in their order, moved as little as a pass each way allows.
function spread(wanted, low, high) {
  const order = d3.range(wanted.length).sort((a, b) => wanted[a] - wanted[b]);
  const placed = [...wanted];
  let edge = low - PITCH;
  for (const i of order) edge = placed[i] = Math.max(placed[i], edge + PITCH);
  edge = Math.max(high, low + PITCH * (wanted.length - 1)) + PITCH;
  for (const i of order.reverse()) edge = placed[i] = Math.min(placed[i], edge - PITCH);
  return placed;
}

function endLabels(svg, lines, width, right) {
  const x = svg.scale("x"), y = svg.scale("y"), foot = +svg.getAttribute("height") - 42;
  const ends = lines.map(line => line.points.length ? line.points.at(-1) : null);
  const placed = spread(ends.map(end => end ? y.apply(end.y) : foot), 20, foot);
  const edge = width - right + 4;
  const layer = d3.select(svg).append("g").attr("class", "ends").attr("aria-hidden", "true").attr("text-anchor", "start");
  lines.forEach((line, i) => {
    const ink = `color-mix(in srgb, ${line.colour} 65%, ${INK})`;
    if (ends[i]) layer.append("path").attr("fill", "none").attr("stroke", line.colour).attr("stroke-opacity", 0.6)
      .attr("d", `M${x.apply(ends[i].x) + 4},${y.apply(ends[i].y)}L${edge + 10},${placed[i]}`);
    layer.append("text").attr("x", edge + 13).attr("y", placed[i]).attr("dy", "0.32em").style("fill", ink)
      .text(line.points.length ? line.label : `${line.label}: not measured`);
  });
}

function lineMarks(line, bars) {
  const known = line.points.filter(p => Number.isFinite(p.low) && Number.isFinite(p.high));
  const symbol = SYMBOLS[line.marker] || "circle", stroke = line.colour;
  return [
    Plot.areaY(known, {x: "x", y1: "low", y2: "high", fill: stroke, fillOpacity: bars ? 0.1 : 0.2}),
    bars ? Plot.ruleX(known, {x: "x", y1: "low", y2: "high", stroke, strokeWidth: 1.4, marker: "tick-y"}) : null,
    Plot.line(line.points, {x: "x", y: "y", stroke, strokeWidth: 1.7, strokeDasharray: line.ideal ? "1.5 4" : line.dashed ? "6 3" : null}),
    line.ideal ? null : Plot.dot(line.points, {x: "x", y: "y", symbol, r: bars ? 4 : 2.8, stroke,
      fill: stroke, filter: p => !p.coarse}),
    line.ideal ? null : Plot.dot(line.points, {x: "x", y: "y", symbol, r: bars ? 4 : 2.8, stroke,
      fill: "var(--paper)", filter: p => p.coarse}),
    Plot.dot(line.gone || [], {x: d => d, frameAnchor: "bottom", symbol: "times", r: 5, stroke, strokeWidth: 2}),
  ];
}

function drawLines({lines, xLabel, yLabel, scale, doubling, width}) {
  const points = lines.flatMap(line => line.points.map(p => ({...p, ideal: line.ideal})));
  const narrow = width < 560, right = 26 + (narrow ? 6.2 : 7) * d3.max(lines, line => line.label.length + (line.points.length ? 0 : 14));
  const ys = points.flatMap(p => [p.y, p.low, p.high]).filter(v => Number.isFinite(v) && v > 0);
  const values = points.map(p => p.y), log = scale === "log" || (scale === "auto" && d3.max(values) / d3.min(values) > 10);
  const xs = [...points.map(p => p.x), ...lines.flatMap(line => line.gone || [])], most = d3.max(xs), least = d3.min(xs);
  const bars = d3.max(lines, line => line.points.length) <= 8;
  const x = doubling || most / least > 16 ? axis(xLabel, true, xs, true, width - right - 66)
    : {label: xLabel, domain: most > least ? [least - 0.04 * (most - least), most + 0.04 * (most - least)] : [least - 0.5, most + 0.5],
       ticks: d3.ticks(least, most, Math.min(Math.max(2, Math.round((width - right - 66) / 34)), 16, most - least || 1)).filter(Number.isInteger), tickFormat: plain, labelArrow: "none", labelAnchor: "center"};
  const svg = Plot.plot({...base(width, right), height: Math.max(380, 90 + PITCH * lines.length), x, y: axis(yLabel, log, ys),
    marks: [Plot.ruleY([0], {stroke: SOFT, strokeOpacity: log ? 0 : 0.5, filter: () => !log}), ...lines.flatMap(line => lineMarks(line, bars)),
      Plot.tip(points.filter(p => !p.ideal), Plot.pointer({x: "x", y: "y", title: "told", maxRadius: 40, fill: "var(--paper)", stroke: SOFT, ariaHidden: "true"}))]});
  endLabels(svg, lines, width, right);
  return unlabelled(svg);
}

function drawCells({cells, gone, xLabel, yLabel, width, reverse}) {
  const [low, high] = d3.extent(cells, c => c.value);
  const place = v => high > low ? Math.log(v / low) / Math.log(high / low) : 0.5;
  const shade = c => reverse ? 1 - place(c.value) : place(c.value);
  const columns = [...new Set(cells.map(c => c.x))].sort(d3.ascending), rows = [...new Set([...cells, ...gone].map(c => c.y))].sort(d3.ascending);
  const small = width / columns.length < 42, crosses = gone.flatMap(c => columns.map(x => ({x, y: c.y})));
  const text = (dark) => Plot.text(cells, {x: "x", y: "y", text: c => number(c.value), fill: dark ? "#fff" : "#000", fontSize: 11.5,
    filter: c => !small && (shade(c) < 0.6) === dark});
  return unlabelled(Plot.plot({...base(width, 16), height: 70 + 30 * rows.length, x: {label: xLabel, domain: columns, labelArrow: "none"},
    y: {label: yLabel, domain: rows, labelArrow: "none"}, color: {type: "identity"},
    marks: [Plot.cell(cells, {x: "x", y: "y", inset: 0.5, fill: c => d3.interpolateViridis(shade(c))}), text(true), text(false),
      Plot.cell(crosses, {x: "x", y: "y", inset: 0.5, fill: "var(--line)"}), Plot.dot(crosses, {x: "x", y: "y", symbol: "times", stroke: INK}),
      Plot.tip(cells, Plot.pointer({x: "x", y: "y", title: "told", fill: "var(--paper)", stroke: SOFT, ariaHidden: "true"}))]}));
}

function drawDots({groups, yLabel, scale, width}) {
  const dots = groups.flatMap((group, i) => group.values.map((y, k) => (
    {x: i + 0.28 * Math.sin(2.4 * k), y, odd: group.odd.has(k), colour: group.colour, told: `${group.label}\n${number(y)} ms${group.odd.has(k) ? ", outlier" : ""}`})));
  const ys = dots.map(d => d.y), log = scale === "log" || (scale === "auto" && d3.max(ys) / d3.min(ys) > 10);
  return unlabelled(Plot.plot({...base(width, 16), marginBottom: 130, height: 470, y: axis(yLabel, log, ys), color: {type: "identity"},
    x: {label: null, domain: [-0.6, groups.length - 0.4], ticks: d3.range(groups.length), tickFormat: i => groups[i].label, tickRotate: -50},
    marks: [Plot.dot(dots, {x: "x", y: "y", r: 2, fill: "colour", fillOpacity: 0.6, filter: d => !d.odd}),
      Plot.dot(dots, {x: "x", y: "y", r: 4, symbol: "times", stroke: "var(--bad)", strokeWidth: 1.8, filter: d => d.odd}),
      Plot.ruleY(groups, {x1: (_, i) => i - 0.4, x2: (_, i) => i + 0.4, y: g => d3.median(g.values), stroke: INK}),
      Plot.tip(dots, Plot.pointer({x: "x", y: "y", title: "told", maxRadius: 20, fill: "var(--paper)", stroke: SOFT, ariaHidden: "true"}))]}));
}
