"use strict";
// Draws the panels whose numbers stand in #data. Texts only ever become text nodes.
const parts = JSON.parse(document.getElementById("data").textContent);
const form = document.querySelector("form.controls"), field = form.elements;
const main = document.querySelector("main"), says = document.querySelector(".says");
const SVG = "http://www.w3.org/2000/svg", EARLIER = "(earlier)";
const state = { held: null, near: null };   // a token: {side: "q" or "k", at: its index}
let panels = [];                            // what is drawn: {model, panel, weights, guided, nodes}

function make(parent, name, attributes = {}, text = null) {
  const svg = ["svg", "line", "rect"].includes(name);
  const node = svg ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== null) node.textContent = text;
  parent.append(node);
  return node;
}

// The rows of what causal queries see: weights[q][k], and whether the cell is guided.
function unpack(model, panel) {
  const bytes = Uint8Array.from(atob(panel.cells), (char) => char.charCodeAt(0));
  const view = new DataView(bytes.buffer), first = model.keys.length - model.queries.length;
  const weights = [], guided = [];
  let at = 0;
  for (let q = 0; q < model.queries.length; q++) {
    weights.push([]); guided.push([]);
    for (let k = 0; k <= q + first; k++, at += 2) {
      const cell = view.getUint16(at, true);
      weights[q].push((cell & 0x7fff) / 0x7fff); guided[q].push(cell >= 0x8000);
    }
  }
  return { weights, guided, first };
}

function options(select, values, chosen) {
  const wanted = values.some(([value]) => String(value) === String(chosen)) ? String(chosen) : null;
  select.replaceChildren();
  for (const [value, label] of values) make(select, "option", { value }, label);
  if (wanted !== null) select.value = wanted;
}

const part = () => parts[Number(field.part.value)];
const floor = () => Number(field.floor.value);
const focus = () => state.near || state.held;

function fillHeads(chosen) {
  const patterns = new Map();
  for (const model of part().models) for (const panel of model.panels) {
    if (String(panel.layer) !== field.layer.value) continue;
    patterns.set(panel.head, panel.pattern || patterns.get(panel.head) || "");
  }
  const heads = [...patterns].sort((a, b) => a[0] - b[0]);
  options(field.head, heads.map(([head, pattern]) => [head, pattern ? `${head} · ${pattern}` : head]), chosen);
}

function fill() {
  options(field.part, parts.map((each, at) => [at, `${at + 1} of ${parts.length} (tokens ${each.start}–${each.stop - 1})`]), 0);
  form.querySelector(".parts").hidden = parts.length < 2;
  const layers = new Set(parts[0].models.flatMap((model) => model.panels.map((panel) => panel.layer)));
  options(field.layer, [...layers].sort((a, b) => a - b).map((layer) => [layer, layer]), null);
  fillHeads(null);
}

function tokenList(parent, side, model, panel, first) {
  const list = make(parent, "ol", { class: `tokens ${side === "q" ? "queries" : "keys"}`,
    "aria-label": side === "q" ? "queries: tokens that look" : "keys: tokens looked at" });
  const labels = side === "q" ? model.queries : model.keys, values = [];
  const buttons = labels.map((label, at) => {
    const marked = panel.marked.includes(side === "q" ? at + first : at);
    const item = make(list, "li");
    const button = make(item, "button", { type: "button", class: "token", tabindex: at ? -1 : 0 });
    button.classList.toggle("marked", marked);
    button.classList.toggle("earlier", side === "k" && label === EARLIER && first > at);
    make(button, "span", { class: "wash" }).style.opacity = 0;
    button.append(marked ? `▸${label}` : label);
    button.title = label;
    button.dataset.side = side;
    button.dataset.at = at;
    if (side === "k" && field.view.value === "lines") values.push(make(item, "span", { class: "value" }));
    return button;
  });
  return { list, buttons, values };
}

function drawLines(box, drawn) {
  const { model, panel, weights, guided, first } = drawn, rows = model.keys.length;
  const queries = tokenList(box, "q", model, panel, first);
  queries.list.style.paddingTop = `calc(${first} * var(--row))`;
  const svg = make(box, "svg", { viewBox: `0 0 100 ${rows}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  svg.style.height = `calc(${rows} * var(--row))`;
  const keys = tokenList(box, "k", model, panel, first);
  const cells = [];
  weights.forEach((row, q) => row.forEach((weight, k) => {
    if (weight >= Math.max(floor(), 0.002)) cells.push([weight, q, k]);
  }));
  cells.sort((a, b) => a[0] - b[0]);   // strong lines last, so that none hides behind fainter ones
  const lines = cells.map(([weight, q, k]) => {
    const node = make(svg, "line", { x1: 0, y1: q + first + 0.5, x2: 100, y2: k + 0.5 });
    if (guided[q][k]) node.classList.add("guided");
    return { node, q, k, weight };
  });
  return { svg, queries, keys, lines };
}

function drawHeat(box, drawn) {
  const { model, panel, weights, guided, first } = drawn;
  const [Q, K] = [model.queries.length, model.keys.length];
  make(box, "span", { class: "corner" }, "rows look at columns");
  const keys = tokenList(box, "k", model, panel, first);
  const queries = tokenList(box, "q", model, panel, first);
  const svg = make(box, "svg", { viewBox: `0 0 ${K} ${Q}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  svg.style.height = `calc(${Q} * var(--row))`;
  svg.style.width = `calc(${K} * var(--row))`;
  weights.forEach((row, q) => {
    make(svg, "rect", { class: "paper", x: 0, y: q, width: row.length, height: 1 });
    row.forEach((weight, k) => {
      const cell = make(svg, "rect", { class: guided[q][k] ? "cell guided" : "cell", x: k, y: q, width: 1, height: 1,
        "fill-opacity": weight < floor() ? 0 : Math.sqrt(weight).toFixed(4) });
      cell.dataset.q = q;
      cell.dataset.k = k;
    });
  });
  for (const k of panel.marked) {
    const top = Math.max(k - first, 0);
    make(svg, "rect", { class: "frame", x: k, y: top, width: 1, height: Q - top });
  }
  const band = make(svg, "rect", { class: "band", visibility: "hidden" });
  return { svg, queries, keys, band };
}

const PAPER = [690, 840];   // pixels of an A4 page's width and, below the title, height that are surely printed

// Rows as high as can be read with ease, smaller for long parts and for heat maps that would not fit side by side.
// On paper nothing scrolls: rows that fit.
function setSizes() {
  const models = part().models, longest = Math.max(...models.map((model) => model.keys.length));
  let row = longest > 34 ? 16 : 22, printed = Math.min(16, PAPER[1] / longest);
  if (field.view.value === "heatmap") {
    const each = (document.documentElement.clientWidth - 40) / models.length - 150;
    row = Math.max(13, Math.min(row, Math.floor(each / longest)));
    printed = Math.min(printed, (PAPER[0] - 90) / longest);
  }
  const letters = (height) => height > 18 ? "13px" : height > 14 ? "11px" : height > 11 ? "10px" : "8px";
  const sizes = { "--row": `${row}px`, "--letters": letters(row), "--printed-row": `${printed.toFixed(2)}px`,
    "--printed-letters": letters(printed), "--span": models.length > 3 ? "6rem" : "10rem" };
  for (const [name, value] of Object.entries(sizes)) document.documentElement.style.setProperty(name, value);
}

function draw() {
  main.replaceChildren();
  panels = [];
  says.style.minHeight = `${part().models.length * 1.5}em`;   // pointing at a token moves nothing
  setSizes();
  for (const model of part().models) {
    const section = make(main, "section", { class: "panel", "aria-label": model.name });
    make(section, "h2", {}, model.name);
    const panel = model.panels.find((each) => String(each.layer) === field.layer.value && String(each.head) === field.head.value);
    if (!panel) {
      make(section, "p", { class: "mass" }, "This layer and head were not looked at in this model.");
      continue;
    }
    const mass = panel.mass === null ? "none in view" : panel.mass.toFixed(3);
    make(section, "p", { class: "mass" }, `layer ${panel.layer}, head ${panel.head}`
      + (panel.pattern ? ` · attention on ${panel.pattern} words: ${mass}` : ""));
    const drawn = { model, panel, ...unpack(model, panel) };
    const box = make(section, "div", { class: field.view.value });
    drawn.nodes = (field.view.value === "lines" ? drawLines : drawHeat)(box, drawn);
    panels.push(drawn);
  }
  field["floor-shown"].value = floor().toFixed(2);
  show();
}

const weightOf = (drawn, token, other) =>
  token.side === "q" ? drawn.weights[token.at]?.[other] : drawn.weights[other]?.[token.at];
const guidedOf = (drawn, token, other) =>
  token.side === "q" ? drawn.guided[token.at]?.[other] : drawn.guided[other]?.[token.at];

// Shows the token in focus: its lines alone, the other side washed by attention, and the numbers in words.
function show() {
  const token = focus(), sentences = [];
  for (const drawn of panels) {
    const { queries, keys, svg, lines, band } = drawn.nodes;
    svg.classList.toggle("focused", token !== null);
    for (const [side, list] of [["q", queries], ["k", keys]]) list.buttons.forEach((button, at) => {
      const here = token !== null && token.side === side && token.at === at;
      const weight = token !== null && token.side !== side ? weightOf(drawn, token, at) : undefined;
      button.classList.toggle("at", here);
      button.classList.toggle("held", here && state.held !== null && state.held.side === side && state.held.at === at);
      button.classList.toggle("guided", weight !== undefined && guidedOf(drawn, token, at));
      button.firstChild.style.opacity = weight === undefined ? 0 : 0.55 * Math.sqrt(weight);
      if (list.values[at]) list.values[at].textContent = weight >= 0.005 ? weight.toFixed(2) : "";
    });
    for (const line of lines || []) {
      const on = token !== null && (token.side === "q" ? line.q : line.k) === token.at;
      line.node.classList.toggle("on", on);
      // Alone, lines can be stronger than among hundreds of others.
      line.node.setAttribute("stroke-opacity", (on ? Math.sqrt(line.weight) : line.weight).toFixed(4));
    }
    if (band) {
      band.setAttribute("visibility", token ? "visible" : "hidden");
      const Q = drawn.model.queries.length, K = drawn.model.keys.length;
      const box = !token ? [0, 0, 0, 0] : token.side === "q"
        ? [0, token.at, Math.min(token.at + drawn.first + 1, K), 1]
        : [token.at, Math.max(token.at - drawn.first, 0), 1, Q - Math.max(token.at - drawn.first, 0)];
      ["x", "y", "width", "height"].forEach((name, at) => band.setAttribute(name, box[at]));
    }
    if (token) sentences.push(sentence(drawn, token));
  }
  says.replaceChildren();
  for (const text of sentences) make(says, "p", {}, text);
  if (!token) make(says, "p", { class: "screen" }, "Point at a token to see its attention in numbers.");
  remember();
}

function sentence(drawn, token) {
  const [own, others] = token.side === "q" ? [drawn.model.queries, drawn.model.keys] : [drawn.model.keys, drawn.model.queries];
  if (own[token.at] === undefined) return `${drawn.model.name}: has no such token.`;
  const strongest = others.map((label, at) => [weightOf(drawn, token, at), label])
    .filter(([weight]) => weight >= 0.005).sort((a, b) => b[0] - a[0]);
  const list = strongest.slice(0, 5).map(([weight, label]) => `${label} ${weight.toFixed(3)}`).join(", ");
  const more = strongest.length > 5 ? ` and ${strongest.length - 5} more` : "";
  const verb = token.side === "q" ? "looks at" : "is looked at by";
  return `${drawn.model.name}: ${own[token.at]} ${verb} ${list || "nothing much"}${more}`;
}

function remember() {
  const kept = new URLSearchParams({ view: field.view.value, layer: field.layer.value, head: field.head.value, floor: field.floor.value });
  if (parts.length > 1) kept.set("part", field.part.value);
  if (state.held) kept.set("token", state.held.side + state.held.at);
  history.replaceState(null, "", `#${kept}`);
}

function recall() {
  const kept = new URLSearchParams(location.hash.slice(1));
  if (["lines", "heatmap"].includes(kept.get("view"))) field.view.value = kept.get("view");
  if (kept.get("floor")) field.floor.value = kept.get("floor");
  choose(field.part, kept.get("part"));
  choose(field.layer, kept.get("layer"));
  fillHeads(kept.get("head"));
  const token = /^([qk])(\d+)$/.exec(kept.get("token") || "");
  state.held = token ? { side: token[1], at: Number(token[2]) } : null;
  draw();
}

function choose(select, value) {
  if ([...select.options].some((option) => option.value === value)) select.value = value;
}

const tokenOf = (node) => {
  const button = node.closest?.("button.token");
  if (button) return { side: button.dataset.side, at: Number(button.dataset.at) };
  return node.dataset?.q === undefined ? null : { side: "q", at: Number(node.dataset.q) };
};

form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("input", (event) => {
  if (event.target === field.part) state.held = null;
  if (event.target === field.layer || event.target === field.part) fillHeads(field.head.value);
  draw();
});
for (const [name, step] of [["before", -1], ["after", 1]]) field[name].addEventListener("click", () => {
  field.part.value = Math.min(Math.max(Number(field.part.value) + step, 0), parts.length - 1);
  state.held = null;
  fillHeads(field.head.value);
  draw();
});
function point(token) {
  if (JSON.stringify(token) === JSON.stringify(state.near)) return;
  state.near = token;
  show();
}
main.addEventListener("pointerover", (event) => point(tokenOf(event.target)));
main.addEventListener("pointerleave", () => point(null));
main.addEventListener("focusin", (event) => point(tokenOf(event.target)));
main.addEventListener("focusout", () => point(null));
main.addEventListener("click", (event) => {
  const token = tokenOf(event.target);
  if (!token) return;
  state.held = JSON.stringify(token) === JSON.stringify(state.held) ? null : token;
  show();
});
main.addEventListener("keydown", (event) => {
  const button = event.target.closest?.("button.token");
  const step = { ArrowUp: -1, ArrowLeft: -1, ArrowDown: 1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
  if (!button || step === undefined) return;
  event.preventDefault();
  const buttons = [...button.closest("ol").querySelectorAll("button.token")];
  const next = buttons[Math.min(Math.max(buttons.indexOf(button) + step, 0), buttons.length - 1)];
  button.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  state.held = state.near = null;
  show();
});
addEventListener("hashchange", recall);
fill();
recall();
