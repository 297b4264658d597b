// The figures, drawn from the page's data. Text only ever becomes text: nothing here writes markup.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const FEW = 10;                       // variants that have a colour of their own; of more, one is picked out

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key === "text") made.textContent = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function choice(label, options, chosen, changed) {
  const list = element("select", {onchange: (event) => changed(event.target.value)});
  for (const option of options) list.append(element("option", {value: option, text: option}));
  list.value = chosen;
  return element("label", {}, label, list);
}

function section(name) {
  const found = document.getElementById(name);
  const place = (selector) => found && found.querySelector(selector);
  return {found, controls: place(".controls"), chart: place(".chart"), place};
}

function width(chart) { return Math.max(300, Math.min(1124, chart.clientWidth || 1124)); }

function labelled(names) { return Math.min(260, 16 + 7.2 * Math.max(...names.map((name) => name.length))); }

function palette(names) {
  const colours = d3.schemeObservable10 ?? d3.schemeTableau10;
  return {domain: names, range: names.map((_, index) => colours[index % colours.length])};
}

const short = d3.format("~s");

// A domain that is not empty where all values are the same.
function around(values) {
  const [low, high] = d3.extent(values);
  return low === high ? [low - 1, high + 1] : [low, high];
}

function percent(value) { return (100 * value).toFixed(1); }

function forest() {
  const {found, chart} = section("forest");
  if (!found) return;
  const names = data.forest.map((row) => row.variant);
  const seeds = data.forest.flatMap((row) => Object.entries(row.difference_by_seed).map(([seed, value]) => (
    {variant: row.variant, seed, value: 100 * value})));
  const rows = data.forest.map((row) => ({variant: row.variant, mean: 100 * row.difference, low: 100 * row.interval[0],
    high: 100 * row.interval[1], verdict: row.verdict}));
  chart.replaceChildren(Plot.plot({
    width: width(chart), height: 66 + 26 * names.length, marginBottom: 40, marginLeft: labelled(names), marginRight: 24,
    x: {label: `points against ${data.baseline}`, grid: true, nice: true,
      domain: around([0, ...rows.flatMap((row) => [row.low, row.high]), ...seeds.map((seed) => seed.value)])},
    y: {domain: names, label: null},
    marks: [
      Plot.ruleX([0], {stroke: "currentColor", strokeOpacity: 0.6}),
      Plot.link(rows, {x1: "low", x2: "high", y1: "variant", y2: "variant", stroke: "var(--accent)", strokeWidth: 2}),
      Plot.dot(seeds, {x: "value", y: "variant", r: 3.5, stroke: "currentColor", strokeOpacity: 0.7}),
      Plot.dot(rows, {x: "mean", y: "variant", r: 4.5, fill: "var(--accent)"}),
      Plot.tip(rows, Plot.pointer({x: "mean", y: "variant", title: (row) => `${row.variant}: ${row.verdict}\n`
        + `${row.mean.toFixed(1)} [${row.low.toFixed(1)}, ${row.high.toFixed(1)}]`})),
    ]}));
}

const QUANTITIES = {reward: "mean reward, percent", "reverse KL": "reverse KL to the teacher, nats a token",
  loss: "loss, nats", "teacher gap": "teacher's log-probability minus the student's, nats a token"};
const AXES = {"rounds": 0, "trained tokens": 1, "seconds": 2, "tokens the student wrote": 4,
  "tokens the teacher wrote": 5, "tokens the teacher read": 6};

function lines() {
  const {found, controls, chart} = section("lines");
  if (!found) return;
  const quantities = Object.keys(QUANTITIES).filter((name) => data.lines.some((line) => line.curves[name]));
  const names = [...new Set(data.lines.map((line) => line.variant))];
  const all = data.lines.flatMap((line) => Object.values(line.curves).flat());
  const axes = Object.keys(AXES).filter((axis) => all.some((point) => point[AXES[axis]] > 0));
  const now = {quantity: quantities[0], axis: "trained tokens", variant: names[0]};
  function draw() {
    const points = data.lines.flatMap((line) => (line.curves[now.quantity] ?? []).map((point) => ({
      variant: line.variant, cell: `${line.variant}, seed ${line.seed}`, round: point[0], x: point[AXES[now.axis]],
      y: now.quantity === "reward" ? 100 * point[3] : point[3]})));
    const few = names.length <= FEW, own = (point) => few || point.variant === now.variant;
    const picked = (point) => own(point) ? "var(--accent)" : "var(--muted)";
    const stroke = names.length === 1 ? "var(--accent)" : few ? "variant" : picked;
    const shared = {x: "x", y: "y", z: "cell", stroke, strokeOpacity: few ? 0.85 : 0.35};
    chart.replaceChildren(Plot.plot({
      width: width(chart), height: 350, marginLeft: 58, marginRight: 20, marginBottom: 40,
      color: few ? {...palette(names), legend: names.length > 1} : undefined,
      x: {label: now.axis, nice: true, tickFormat: short},
      y: {label: QUANTITIES[now.quantity], grid: true, nice: true, domain: around(points.map((point) => point.y))},
      marks: [
        Plot.line(points, shared),
        Plot.dot(points, {...shared, r: 2, fill: "var(--ground)"}),
        few ? null : Plot.line(points.filter(own), {...shared, strokeOpacity: 1, strokeWidth: 2}),
        Plot.line(points, Plot.pointer({...shared, strokeWidth: 3})),
        Plot.tip(points, Plot.pointer({x: "x", y: "y", title: (point) => `${point.cell}\nround ${point.round}: `
          + `${+point.y.toPrecision(4)}`})),
      ]}));
  }
  const change = (key) => (value) => { now[key] = value; draw(); };
  controls.append(choice("shown", quantities, now.quantity, change("quantity")),
    choice("over", axes, now.axis, change("axis")));
  if (names.length > FEW) controls.append(choice("picked out", names, now.variant, change("variant")));
  draw();
}

function pareto() {
  const {found, controls, chart} = section("pareto");
  if (!found) return;
  const currencies = [...new Set(data.pareto.flatMap((one) => Object.keys(one.costs)))];
  let currency = currencies.includes("trained") ? "trained" : currencies[0];
  function draw() {
    const points = data.pareto.filter((one) => one.costs[currency] !== undefined).map((one) => (
      {variant: one.variant, x: one.costs[currency], y: 100 * one.mean}));
    let best = -Infinity;
    const front = [];
    for (const one of d3.sort(points, (one) => one.x, (one) => -one.y)) {
      if (one.y > best) front.push(one);
      best = Math.max(best, one.y);
    }
    const named = points.length <= 20 ? points : front;
    chart.replaceChildren(Plot.plot({
      width: width(chart), height: 350, marginLeft: 50, marginRight: 130, marginBottom: 40,
      x: {label: currency === "seconds" ? "seconds of all rounds"
        : currency === "trained" ? "trained tokens" : `tokens: ${currency}`, grid: true, tickFormat: short,
        domain: [0, 1.05 * d3.max(points, (one) => one.x)]},
      y: {label: "mean reward, percent", grid: true, nice: true, domain: around(points.map((one) => one.y))},
      marks: [
        Plot.line(front, {x: "x", y: "y", curve: "step-after", stroke: "var(--muted)", strokeDasharray: "3 3"}),
        Plot.dot(points, {x: "x", y: "y", r: 4.5, fill: "var(--accent)"}),
        Plot.text(named, {x: "x", y: "y", text: "variant", dx: 9, textAnchor: "start", fill: "currentColor",
          stroke: "var(--ground)"}),
        Plot.tip(points, Plot.pointer({x: "x", y: "y", title: (one) => `${one.variant}\n${one.y.toFixed(1)} % for `
          + `${d3.format(",.0f")(one.x)}`})),
      ]}));
  }
  controls.append(choice("cost", currencies, currency, (value) => { currency = value; draw(); }));
  draw();
}

function flips() {
  const {found, controls, chart} = section("flips");
  if (!found) return;
  const names = data.flips.map((one) => one.variant);
  let variant = names[0];
  function draw() {
    const dots = data.flips[names.indexOf(variant)].dots.map(([x, y, count]) => ({x: 100 * x, y: 100 * y, count}));
    const side = Math.min(400, width(chart));
    chart.replaceChildren(Plot.plot({
      width: side, height: side + 16, marginLeft: 48, marginTop: 36, marginBottom: 42, inset: 16,
      x: {label: `${data.baseline}, percent`, domain: [0, 100]}, y: {label: `${variant}, percent`, domain: [0, 100]},
      r: {range: [0, 26]},
      marks: [
        Plot.line([[0, 0], [100, 100]], {stroke: "currentColor", strokeOpacity: 0.4}),
        Plot.dot(dots, {x: "x", y: "y", r: "count", fill: "var(--accent)", fillOpacity: 0.35, stroke: "var(--accent)"}),
        Plot.text(dots.filter((one) => one.count > 1), {x: "x", y: "y", text: "count", fill: "currentColor"}),
        Plot.tip(dots, Plot.pointer({x: "x", y: "y", title: (one) => `${one.count} prompts\n${data.baseline}: `
          + `${one.x.toFixed(0)} %\n${variant}: ${one.y.toFixed(0)} %`})),
      ]}));
  }
  if (names.length > 1) controls.append(choice("variant", names, variant, (value) => { variant = value; draw(); }));
  draw();
}

function passCurve() {
  const {found, chart} = section("pass_at");
  if (!found) return;
  const points = data.pass_at.flatMap((one) => one.points.map(([k, value]) => (
    {variant: one.variant, k, value: 100 * value})));
  const names = data.pass_at.map((one) => one.variant), few = names.length <= FEW;
  chart.replaceChildren(Plot.plot({
    width: Math.min(560, width(chart)), height: 320, marginLeft: 48,
    color: few ? {...palette(names), legend: true} : undefined,
    x: {type: "log", base: 2, label: "k", ticks: [...new Set(points.map((one) => one.k))], tickFormat: "d"},
    y: {label: "pass@k, percent", grid: true, nice: true},
    marks: [
      Plot.line(points, {x: "k", y: "value", z: "variant", stroke: few ? "variant" : "var(--muted)", marker: "dot"}),
      Plot.tip(points, Plot.pointer({x: "k", y: "value", title: (one) => `${one.variant}\npass@${one.k}: `
        + `${one.value.toFixed(1)} %`}))]}));
}

function heat(map) {
  const cells = map.values.flatMap((row, i) => row.map((value, j) => (
    {round: map.rounds[i], position: map.buckets[j], value}))).filter((cell) => cell.value !== null);
  const [low, high] = around(cells.map((cell) => cell.value));
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const most = d3.max(cells, (cell) => Math.abs(cell.value)) || 1;
  const ramp = (...colours) => d3.piecewise(d3.interpolateRgb, colours);
  const color = cells.some((cell) => cell.value < 0)
    ? {type: "diverging", domain: [-most, most],
      interpolate: dark ? ramp("#ff7b6e", "#20262d", "#6cb2ff") : ramp("#b2182b", "#f7f7f7", "#2166ac")}
    : {type: "linear", domain: [low, high], interpolate: dark ? ramp("#20262d", "#6cb2ff") : ramp("#eef4fb", "#0b4a8f")};
  const shown = map.rounds.filter((_, i) => i % Math.ceil(map.rounds.length / 12) === 0);
  return Plot.plot({
    width: 350, height: 74 + 20 * map.buckets.length, marginLeft: 48, marginBottom: 34, padding: 0,
    x: {label: "round", domain: map.rounds, ticks: shown, tickFormat: "d"},
    y: {label: "position", domain: [...map.buckets].reverse(), tickFormat: "d"},
    color: {...color, legend: true, label: null, width: 260, marginLeft: 22, marginRight: 22, ticks: 3,
      tickFormat: d3.format(".4~g")},
    marks: [Plot.cell(cells, {x: "round", y: "position", fill: "value", tip: true, inset: 0.5})]});
}

function maps() {
  const {found, controls, chart} = section("maps");
  if (!found) return;
  const names = Object.keys(data.maps);
  function draw(variant) {
    const grid = element("div", {class: "small"});
    for (const map of data.maps[variant]) {
      grid.append(element("div", {}, element("h3", {text: map.quantity}), heat(map)));
    }
    chart.replaceChildren(grid);
  }
  if (names.length > 1) controls.append(choice("variant", names, names[0], draw));
  draw(names[0]);
}
