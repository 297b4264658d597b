// What is drawn, and again when the window or its colours change.
"use strict";

function differences() {
  const {found, controls, place} = section("differences");
  if (!found || !controls) return;
  const {settings, values} = data.differences, names = Object.keys(values);
  const all = "all", few = names.length <= 6;
  const now = {left: few ? all : names[0], right: names[1]};
  function draw() {
    const shown = now.left === all ? names : [now.left, now.right];
    const head = element("tr", {}, ...["setting", ...shown].map((name) => element("th", {scope: "col", text: name})));
    const rows = settings.map((setting, i) => [setting, ...shown.map((name) => values[name][i])])
      .filter((row) => new Set(row.slice(1)).size > 1);
    place("thead").replaceChildren(head);
    const cell = (text, i) => element(i ? "td" : "th", i ? {} : {scope: "row"}, element("code", {text}));
    place("tbody").replaceChildren(...rows.map((row) => element("tr", {}, ...row.map(cell))));
  }
  const change = (key) => (value) => { now[key] = value; draw(); };
  controls.append(choice("left", few ? [all, ...names] : names, now.left, change("left")),
    choice("right", names, now.right, change("right")));
  draw();
}

const drawings = [forest, lines, pareto, flips, passCurve, maps];

function draw() {
  for (const controls of document.querySelectorAll("figure > .controls")) controls.replaceChildren();
  for (const drawing of drawings) drawing();
}

draw();
questions();
differences();
new Reader();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
let known = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === known) return;
  known = innerWidth;
  draw();
});
