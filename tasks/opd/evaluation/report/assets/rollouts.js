// Texts to be read: rollouts token by token, and two answers to the same prompt.
"use strict";
const AUTHORS = ["student", "teacher", "environment", "dataset"];

function parting(left, right) {
  const [a, b] = [Array.from(left), Array.from(right)];   // by characters, not halves of them
  let at = 0;
  while (at < a.length && at < b.length && a[at] === b[at]) at += 1;
  return {left: a, right: b, at, same: at === a.length && at === b.length};
}

function marked(characters, at) {
  const text = element("div", {class: "text", dir: "auto"});
  text.append(characters.slice(0, at).join(""));
  const rest = characters.slice(at);
  if (rest.length) {
    const word = rest.join("").match(/^\s*\S{1,40}/)?.[0] ?? rest[0];
    text.append(element("mark", {text: word}), rest.join("").slice(word.length));
  } else text.append(element("mark", {text: "\u2205"}));
  return text;
}

function side(title, characters, at) {
  return element("div", {}, element("p", {class: "label", text: title}), marked(characters, at));
}

function questions() {
  const {found, controls, place} = section("questions");
  if (!found) return;
  const names = [...new Set(data.questions.flatMap((one) => one.answers.map((answer) => answer.by)))];
  const ids = data.questions.map((one) => one.prompt_id);
  const now = {prompt: ids[0], left: names.includes(data.baseline) ? data.baseline : names[0],
    right: data.forest[0]?.variant ?? names[1] ?? names[0]};
  if (!names.includes(now.right) || now.right === now.left) {
    now.right = names.find((name) => name !== now.left) ?? now.left;
  }
  function draw() {
    const question = data.questions[ids.indexOf(now.prompt)];
    const [a, b] = [now.left, now.right].map((by) => question.answers.find((one) => one.by === by)
      ?? {text: "", reward: "-", feedback: "not asked"});
    const {left, right, at, same} = parting(a.text, b.text);
    const title = (one, by) => `${by}: reward ${one.reward}${one.feedback ? `, ${one.feedback}` : ""}`;
    place(".answers").replaceChildren(
      element("div", {class: "asked"}, element("p", {class: "label", text: `asked; the truth is ${question.truth}`}),
        element("div", {class: "text", dir: "auto", text: question.text})),
      side(title(a, now.left), left, at), side(title(b, now.right), right, at));
    if (same) for (const mark of place(".answers").querySelectorAll("mark")) mark.textContent = " (the same)";
  }
  const change = (key) => (value) => { now[key] = value; draw(); };
  controls.append(choice("prompt", ids, now.prompt, change("prompt")), choice("left", names, now.left, change("left")),
    choice("right", names, now.right, change("right")));
  draw();
}

// What tokens can be coloured by: a name, the value of token t (null: none), and what its signs say, if anything.
function columns(rollouts) {
  const models = [...new Set(rollouts.flatMap((one) => one.said.map((said) => said.model)))];
  const found = [];
  const add = (name, of, signed) => { found.push({name, of, signed}); };
  for (const model of models) {
    const said = (one) => one.said.find((said) => said.model === model);
    const column = (key) => (one, t) => said(one)?.[key][t] ?? null;
    const kept = (key) => rollouts.some((one) => said(one)?.[key].length);
    if (kept("gap")) add(`${model}'s gap to the student`, column("gap"), ["teacher thinks less", "more"]);
    if (kept("logprobs")) add(`${model}'s log-probability`, column("logprobs"));
    if (kept("entropy")) add(`${model}'s entropy`, column("entropy"));
    if (kept("tail")) add(`${model}'s mass outside its top k`, (one, t) => {
      const tail = said(one)?.tail[t];
      return tail === undefined || tail === null ? null : Math.exp(tail);
    });
  }
  for (const term of new Set(rollouts.flatMap((one) => one.used.map((used) => used.term)))) {
    const used = (key) => (one, t) => one.used.find((used) => used.term === term)?.[key][t] ?? null;
    add(`weight in ${term}`, used("weight"));
    add(`advantage in ${term}`, used("advantage"), ["less of it", "more"]);
  }
  if (rollouts.some((one) => one.student.some((value) => value !== null))) {
    add("student's log-probability", (one, t) => one.student[t] ?? null);
  }
  add("author", (one, t) => one.author[t]);
  return found.filter((column) => rollouts.some((one) => one.tokens.some((_, t) => column.of(one, t) !== null)));
}

// Hundredths, or of small numbers three digits.
function rounded(value) {
  return value === 0 || Math.abs(value) >= 0.1 ? value.toFixed(2) : value.toPrecision(3);
}

function reach(rollouts, column) {
  const sizes = rollouts.flatMap((one) => one.tokens.map((_, t) => column.of(one, t))).filter((value) => value !== null)
    .map(Math.abs).sort(d3.ascending);
  return d3.quantileSorted(sizes, 0.98) || 1;
}

function shade(column, value, most) {
  if (value === null || value === undefined) return "";
  if (column.name === "author") {
    return ["", "rgba(var(--two), .35)", "rgba(128, 128, 128, .35)", "rgba(var(--one), .35)"][value];
  }
  const strength = (Math.sqrt(Math.min(1, Math.abs(value) / most)) * 0.75).toFixed(3);
  return column.signed && value > 0 ? `rgba(var(--two), ${strength})` : `rgba(var(--one), ${strength})`;
}

function legend(column, most) {
  const box = element("span", {class: "scale"});
  const add = (value, text) => {
    const patch = element("i");
    patch.style.background = shade(column, value, most);
    box.append(patch, text);
  };
  if (column.name === "author") AUTHORS.forEach((name, value) => add(value, name));
  else if (column.signed) {
    add(-most, `${column.signed[0]} (\u2264 -${rounded(most)})`);
    add(most, `${column.signed[1]} (\u2265 ${rounded(most)})`);
  } else {
    add(0, "0");
    add(most, `${column.name.includes("log-probability") ? "-" : ""}${rounded(most)} and beyond`);
  }
  return box;
}

class Reader {
  constructor() {
    const {found, controls, place} = section("rollouts");
    if (!found) return;
    Object.assign(this, {controls, list: place(".list"), reader: place(".reader"), columns: columns(data.rollouts),
      chosen: 0, at: -1});
    this.column = this.columns[0];
    this.most = reach(data.rollouts, this.column);
    this.scale = element("span");
    const rounds = ["all", ...new Set(data.rollouts.map((one) => String(one.round)))];
    const names = this.columns.map((one) => one.name);
    controls.append(choice("colour", names, this.column.name, (name) => this.colour(name)));
    if (rounds.length > 2) controls.append(choice("round", rounds, "all", (round) => this.fill(round)));
    controls.append(this.scale);
    this.list.addEventListener("keydown", (event) => this.step(event));
    this.fill("all");
    this.colour(this.column.name);
  }

  fill(round) {
    this.shown = d3.range(data.rollouts.length)
      .filter((i) => round === "all" || String(data.rollouts[i].round) === round);
    this.list.replaceChildren(...this.shown.map((i) => {
      const one = data.rollouts[i];
      const reward = one.reward === null ? "-" : String(+one.reward.toFixed(2));
      return element("div", {role: "option", id: `rollout-${i}`, onclick: () => this.choose(i)},
        element("span", {text: `round ${one.round}`}), element("span", {text: one.rollout_id}),
        element("span", {text: reward, title: "reward"}));
    }));
    this.choose(this.shown[0]);
  }

  step(event) {
    const move = {ArrowDown: 1, ArrowUp: -1}[event.key];
    if (!move) return;
    event.preventDefault();
    const next = this.shown[this.shown.indexOf(this.chosen) + move];
    if (next === undefined) return;
    this.choose(next);
    document.getElementById(`rollout-${next}`).scrollIntoView({block: "nearest"});
  }

  choose(index) {
    this.chosen = index;
    for (const item of this.list.children) item.setAttribute("aria-selected", String(item.id === `rollout-${index}`));
    this.list.setAttribute("aria-activedescendant", `rollout-${index}`);
    this.read(data.rollouts[index]);
  }

  colour(name) {
    this.column = this.columns.find((one) => one.name === name);
    this.most = reach(data.rollouts, this.column);
    this.scale.replaceChildren(legend(this.column, this.most));
    this.paint();
  }

  paint() {
    const one = data.rollouts[this.chosen];
    [...this.tokens.children].forEach((span, t) => {
      if (t < one.tokens.length) span.style.background = shade(this.column, this.column.of(one, t), this.most);
    });
  }

  read(one) {
    this.tokens = element("div", {class: "tokens", tabindex: "0", dir: "auto", "aria-label": "completion",
      onkeydown: (event) => this.walk(event), onmouseleave: () => this.point(-1)});
    one.tokens.forEach((piece, t) => {
      const text = data.pieces[piece];
      this.tokens.append(element("span", {text: text || "\u00b7", class: text === "\n" ? "break" : "",
        onmouseenter: () => this.point(t)}));
    });
    if (one.left_out) this.tokens.append(element("span", {class: "more", text: ` [${one.left_out} tokens more]`}));
    this.token = element("div", {class: "token"});
    const reward = one.reward === null ? "not graded" : `reward ${+one.reward.toFixed(3)}`;
    const about = `${one.origin}, ${one.tokens.length + one.left_out} tokens, ended by ${one.finish}, ${reward}`;
    this.reader.replaceChildren(
      element("details", {}, element("summary", {text: `asked: ${one.question.slice(0, 160)}`}),
        element("div", {class: "text", dir: "auto", text: one.prompt})),
      element("p", {class: "label", text: about + (one.feedback ? `; ${one.feedback}` : "")}), this.tokens, this.token);
    if (one.raw !== null) this.compare(one);
    this.point(-1);
    this.paint();
  }

  compare(one) {
    const refined = one.tokens.map((piece) => data.pieces[piece]).join("");
    const {left, right, at} = parting(one.raw, refined);
    const before = one.raw_reward === null ? "" : `, reward ${one.raw_reward}`;
    this.reader.append(element("div", {class: "pair"}, side(`as it was written${before}`, left, at),
      side("as it was refined", right, at)));
  }

  walk(event) {
    const move = {ArrowRight: 1, ArrowLeft: -1}[event.key];
    if (!move) return;
    event.preventDefault();
    this.point(Math.max(0, Math.min(data.rollouts[this.chosen].tokens.length - 1, this.at + move)));
  }

  point(t) {
    this.tokens.children[this.at]?.classList.remove("here");
    this.at = t;
    const one = data.rollouts[this.chosen];
    if (t < 0) {
      const hint = "A token's numbers and the teacher's likeliest appear here.";
      this.token.replaceChildren(element("p", {class: "more", text: hint}));
      return;
    }
    this.tokens.children[t].classList.add("here");
    const rows = [["token", `${t} ${JSON.stringify(data.pieces[one.tokens[t]])}`], ["author", AUTHORS[one.author[t]]]];
    for (const column of this.columns.filter((column) => column.name !== "author")) {
      const value = column.of(one, t);
      if (value !== null) rows.push([column.name, rounded(value)]);
    }
    const kept = one.said.filter((said) => said.top.length);
    this.token.replaceChildren(table(rows), ...kept.map((said) => likeliest(said, t)));
  }
}

function table(rows) {
  const made = element("table");
  for (const [name, value] of rows) {
    made.append(element("tr", {}, element("th", {scope: "row", text: name}), element("td", {text: value})));
  }
  return made;
}

function likeliest(said, t) {
  const rows = said.top[t].map((piece, k) => [JSON.stringify(data.pieces[piece]),
    `${percent(Math.exp(said.top_logprobs[t][k]))} %`]);
  return element("div", {}, element("p", {class: "label", text: `${said.model}'s likeliest`}), table(rows));
}
