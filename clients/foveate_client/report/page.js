"use strict";
// Text reaches the page by textContent alone: labels and file names are anybody's.
const data = JSON.parse(document.getElementById("data").textContent);
const form = document.getElementById("filters");
const list = document.getElementById("list");
const fields = form.elements;
const BEYOND = 4; // rows drawn above and below what is in view
let shown = [];
let drawn = "";

const make = (tag, kind, text) => {
  const element = document.createElement(tag);
  if (kind) element.className = kind;
  if (text !== undefined) element.textContent = text;
  return element;
};
const named = (id) => data.labels[id];
const percent = (value) => (100 * value).toFixed(1) + "%";
const scored = (value) => (data.scores === "none" ? value.toPrecision(4) : percent(value));

// ---- What is shown, and in which order ----

const bound = (name, factor) => {
  const value = fields[name] ? parseFloat(fields[name].value) : NaN;
  return Number.isNaN(value) ? null : value / factor;
};
// A bin holds its upper edge and not its lower one, and the fields show whole digits of it: the
// exact bounds of a click hold until the field is changed.
let exact = null;
const ranges = [
  ["score", (at) => data.values[at][0], data.scores === "none" ? 1 : 100],
  ["confidence", (at) => data.confidence[at], 100],
  ["ood", (at) => data.ood[at], 1],
  ["set", (at) => data.setSizes[at], 1],
];

const conditions = () => {
  const tests = [];
  const outcome = fields.outcome.value;
  if (outcome === "wrong") tests.push((at) => data.wrong[at] === 1);
  if (outcome === "right") tests.push((at) => data.wrong[at] === 0);
  if (outcome === "unknown") tests.push((at) => data.wrong[at] === null);
  if (outcome === "abstained") tests.push((at) => data.abstained[at] === 1);
  const target = fields.target.value;
  if (target !== "") tests.push((at) => data.targets[at] !== null && data.targets[at].includes(+target));
  const found = fields.found.value;
  if (found !== "") tests.push((at) => data.found[at].includes(+found));
  const text = fields.name.value.trim().toLowerCase();
  if (text) tests.push((at) => data.names[at].toLowerCase().includes(text));
  for (const [name, value, factor] of ranges) {
    if (exact !== null && exact.field === name) {
      const { lower, upper } = exact;
      tests.push((at) => value(at) !== null && value(at) <= upper && (value(at) > lower || lower === 0));
      continue;
    }
    const least = bound(name + "-least", factor);
    const most = bound(name + "-most", factor);
    if (least !== null) tests.push((at) => value(at) !== null && value(at) >= least);
    if (most !== null) tests.push((at) => value(at) !== null && value(at) <= most);
  }
  return tests;
};

const orders = {
  worst: null, // as they came
  score: (at) => -data.values[at][0],
  doubt: (at) => data.values[at][0],
  ood: (at) => (data.ood && data.ood[at] !== null ? -data.ood[at] : 1),
  set: (at) => (data.setSizes && data.setSizes[at] !== null ? -data.setSizes[at] : 1),
};

const filter = () => {
  const tests = conditions();
  shown = [];
  for (let at = 0; at < data.names.length; at++) {
    if (tests.every((test) => test(at))) shown.push(at);
  }
  const by = fields.order.value;
  if (by === "name") shown.sort((a, b) => (data.names[a] < data.names[b] ? -1 : 1));
  else if (orders[by]) shown.sort((a, b) => orders[by](a) - orders[by](b) || a - b);
  const all = data.names.length;
  document.getElementById("count").textContent =
    shown.length === all ? `${all.toLocaleString("en")} pictures`
      : `${shown.length.toLocaleString("en")} of ${all.toLocaleString("en")} pictures`;
  document.getElementById("nothing").hidden = shown.length > 0;
  mark();
  draw(true);
};

// Shows which cell of the matrix, and which bar, the filters now mean.
const mark = () => {
  for (const cell of document.querySelectorAll("button[data-found]")) {
    cell.classList.toggle("chosen",
      cell.dataset.target === fields.target.value && cell.dataset.found === fields.found.value);
  }
  for (const bin of document.querySelectorAll(".bin")) {
    bin.classList.toggle("chosen", exact !== null && exact.field === bin.dataset.field
      && exact.lower === +bin.dataset.lower);
  }
};

// ---- The rows in view ----

const tile = (place, width, height, caption) => {
  const figure = make("figure");
  const frame = make("div", "tile");
  const picture = make("div");
  const { columns, rows, side, files } = data.sheets;
  const cell = place % (columns * rows);
  const style = picture.style;
  style.width = width + "px";
  style.height = height + "px";
  style.backgroundImage = `url("${files[Math.floor(place / (columns * rows))]}")`;
  style.backgroundPosition = `-${(cell % columns) * side}px -${Math.floor(cell / columns) * side}px`;
  picture.setAttribute("role", "img");
  picture.setAttribute("aria-label", caption);
  frame.append(picture);
  const text = make("figcaption", "", caption);
  text.title = caption;
  figure.append(frame, text);
  return figure;
};

const verdict = (at) => {
  const line = make("p", "verdict");
  const found = data.found[at].map(named).join("; ") || "none of the labels";
  const wrong = data.wrong[at];
  line.append(make("strong", "", found));
  if (wrong !== null) line.classList.add(wrong ? "wrong" : "right");
  if (wrong === 1) line.append(` instead of ${data.targets[at].map(named).join("; ") || "none of the labels"}`);
  if (wrong === 0) line.append(", which is right");
  line.title = line.textContent;
  return line;
};

const trust = (at) => {
  const parts = [];
  if (data.confidence && data.confidence[at] !== null) parts.push(`confidence ${percent(data.confidence[at])}`);
  if (data.ood && data.ood[at] !== null) parts.push(`more unusual than ${data.ood[at].toFixed(0)}%`);
  if (data.abstained && data.abstained[at]) parts.push("abstained");
  return parts.join(" · ");
};

const row = (at, place) => {
  const element = make("article", "row");
  element.style.top = `calc(${place} * var(--row))`;
  element.setAttribute("aria-setsize", shown.length);
  element.setAttribute("aria-posinset", place + 1);
  if (data.sheets) {
    const tiles = make("div", "tiles");
    const [first, width, height, classes] = data.tiles[at] || [0, 0, 0, []];
    classes.forEach((id, number) => {
      tiles.append(tile(first + number, width, height, number ? named(id) : "picture"));
    });
    element.append(tiles);
  }
  const facts = make("div", "facts");
  // Read from its right end, for which the line runs from right to left: the mark keeps the order.
  const name = make("p", "name", "\u200e" + data.names[at] + "\u200e");
  name.title = data.names[at];
  const best = data.classes[at].map((id, rank) => `${named(id)} ${scored(data.values[at][rank])}`);
  const scores = make("p", "small", best.join(" · "));
  scores.title = best.join("\n");
  facts.append(name, verdict(at), scores);
  const told = trust(at);
  if (told) facts.append(make("p", "small", told));
  if (data.setSizes && data.setSizes[at] !== null) {
    const members = data.sets[at].map(named).join("; ");
    const more = data.setSizes[at] - data.sets[at].length;
    const size = data.setSizes[at];
    const text = `${size ? "set of " + size : "empty set"}${members ? ": " + members : ""}${more ? ` and ${more} more` : ""}`;
    const set = make("p", "small", text);
    set.title = text;
    facts.append(set);
  }
  element.append(facts);
  return element;
};

const draw = (anew) => {
  const height = parseFloat(getComputedStyle(document.documentElement).getPropertyValue("--row"));
  list.style.height = `${shown.length * height}px`;
  const above = -list.getBoundingClientRect().top;
  const first = Math.max(0, Math.floor(above / height) - BEYOND);
  const last = Math.min(shown.length, Math.ceil((above + innerHeight) / height) + BEYOND);
  const span = `${first} ${last}`;
  if (!anew && span === drawn) return;
  drawn = span;
  const rows = [];
  for (let place = first; place < last; place++) rows.push(row(shown[place], place));
  list.replaceChildren(...rows);
};

let waiting = false;
const soon = () => {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; draw(false); });
};

// ---- Clicks and changes ----

const show = () => {
  filter();
  const top = form.getBoundingClientRect().top;
  if (top > innerHeight - 200 || top < 0) form.scrollIntoView({ block: "start" });
};

const choose = (target, found) => {
  const same = fields.target.value === target && fields.found.value === found;
  fields.target.value = same ? "" : target;
  fields.found.value = same ? "" : found;
  show();
};

const chooseBin = (bin) => {
  const { field, lower, upper } = bin.dataset;
  const same = exact !== null && exact.field === field && exact.lower === +lower;
  forget();
  if (!same) {
    exact = { field, lower: +lower, upper: +upper };
    fields[field + "-least"].value = (100 * lower).toFixed(1);
    fields[field + "-most"].value = (100 * upper).toFixed(1);
  }
  show();
};

const forget = () => {
  if (exact === null) return;
  fields[exact.field + "-least"].value = "";
  fields[exact.field + "-most"].value = "";
  exact = null;
};

const options = (select, ids) => {
  const sorted = [...ids].sort((a, b) => named(a).localeCompare(named(b)) || a - b);
  for (const id of sorted) {
    const option = make("option", "", named(id));
    option.value = id;
    select.append(option);
  }
};

document.addEventListener("click", (event) => {
  const cell = event.target.closest("button[data-target]");
  if (cell) choose(cell.dataset.target, cell.dataset.found || "");
  const bin = event.target.closest(".bin");
  if (bin) chooseBin(bin);
});
document.addEventListener("keydown", (event) => {
  const bin = event.target.closest(".bin");
  if (bin && (event.key === "Enter" || event.key === " ")) {
    event.preventDefault();
    chooseBin(bin);
  }
});
const changed = (event) => {
  if (exact !== null && event.target.name.startsWith(exact.field + "-")) exact = null;
  filter();
};
form.addEventListener("input", changed);
form.addEventListener("change", changed); // some browsers say no more of a choice
form.addEventListener("reset", () => {
  exact = null;
  setTimeout(filter); // after the fields have their first values
});
form.addEventListener("submit", (event) => event.preventDefault());
addEventListener("scroll", soon, { passive: true });
addEventListener("resize", () => { drawn = ""; soon(); });

options(fields.target, new Set(data.targets.flat().filter((id) => id !== null)));
options(fields.found, new Set(data.found.flat()));
document.body.classList.add("clicks");
filter();
