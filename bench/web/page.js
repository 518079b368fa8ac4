"use strict";
// The page of a run. All it knows stands in #data; the choice stands in the address, so that it can be sent on.
const run = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const HOUSE = run.house;
const kinds = new Map(run.kinds.map((kind) => [kind.name, kind]));
const names = Object.keys(run.titles);
const VIEWS = [["counted", "Result"], ["latency", "Latency by load"], ["cpu", "CPU each"], ["memory", "Memory"], ["start", "Start-up"]];
const SCALES = [["absolute", "figures"], ["house", "by Tidegate"], ["floor", "by the floor"]];
const PERCENTILES = [["p50_ms", "p50"], ["p90_ms", "p90"], ["p99_ms", "p99"], ["p999_ms", "p99.9"], ["max_ms", "max"]];
const PALETTE = 8;

const state = { scenario: run.kinds[0] ? run.kinds[0].name : "", view: "counted", scale: "absolute", percentile: "p99_ms", peers: new Set(names) };

const median = (values) => {
  const sorted = [...values].sort((a, b) => a - b), half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
};
const format = (value) => {
  const size = Math.abs(value);
  const digits = size >= 100 ? 0 : size >= 10 ? 1 : size >= 0.1 ? 2 : 3;
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
};
const cellOf = (scenario, target) => run.cells.find((cell) => cell.scenario === scenario && cell.target === target);
const isHouse = (target) => run.houses.includes(target);
const isFloor = (target) => run.floors.includes(target);

function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "rect", "line", "text", "circle", "path", "g", "title"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** The values of a cell by round in the view that is shown: [[round, value]]; empty where there are none. */
function values(cell) {
  if (state.view === "counted") return cell.rates;
  const one = { cpu: cell.cpu_us + cell.beside_us, memory: cell.loaded_mib, start: cell.start_ms }[state.view];
  return one ? [[0, one]] : [];
}

/** Bars of the scenario: who, median, least, most and each round, as the scale wants them. */
function bars() {
  const cells = run.cells.filter((cell) => cell.scenario === state.scenario && values(cell).length);
  const base = { house: cellOf(state.scenario, HOUSE), floor: run.cells.find((cell) => cell.name === run.floor) }[state.scale];
  const divisors = base ? new Map(values(base)) : null;
  if (state.scale !== "absolute" && (!divisors || !divisors.size)) return [];
  const found = [];
  for (const cell of cells) {
    if (!state.peers.has(cell.target)) continue;
    const scaled = divisors
      ? values(cell).filter(([round]) => divisors.get(round)).map(([round, value]) => value / divisors.get(round))
      : values(cell).map(([, value]) => value);
    if (scaled.length) found.push({ target: cell.target, cell, values: scaled, median: median(scaled) });
  }
  const lower = state.view !== "counted" || kinds.get(state.scenario).lower;
  return found.sort((a, b) => (lower ? a.median - b.median : b.median - a.median));
}

function unit() {
  if (state.scale === "house") return "× Tidegate, within each round";
  if (state.scale === "floor") return `× ${run.titles[run.floor.split("@")[1]] || "the floor"}, within each round`;
  return { counted: kinds.get(state.scenario).unit, latency: "ms", cpu: "µs of CPU for each, database included", memory: "MiB (PSS) after the load, mark: idle", start: "ms until it is ready" }[state.view];
}

function ticks(most) {
  const raw = most / 5, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((each) => each >= raw);
  return Array.from({ length: Math.floor(most / step) + 1 }, (_, n) => n * step);
}

function drawBars(found) {
  const width = 1060, left = 250, right = 90, row = 26, top = 6, bottom = 26;
  const height = top + found.length * row + bottom, most = Math.max(...found.map((bar) => Math.max(...bar.values)));
  const x = (value) => left + (value / most) * (width - left - right);
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${state.scenario}: ${unit()}; the figures stand in the table below` });
  for (const tick of ticks(most)) {
    svg.append(make("line", { class: "grid", x1: x(tick), x2: x(tick), y1: top, y2: height - bottom }));
    svg.append(make("text", { class: "axis", x: x(tick), y: height - 8, "text-anchor": "middle" }, tick.toLocaleString("en")));
  }
  found.forEach((bar, place) => {
    const y = top + place * row, middle = y + row / 2, house = isHouse(bar.target);
    const fill = bar.target === HOUSE ? "var(--house)" : house ? "var(--second)" : isFloor(bar.target) ? "var(--floor)" : "var(--peer)";
    const hint = `${run.titles[bar.target]}: ${format(bar.median)} (${format(Math.min(...bar.values))} - ${format(Math.max(...bar.values))})`;
    const group = make("g", {}, make("title", {}, hint));
    group.append(make("text", { x: left - 10, y: middle + 4, "text-anchor": "end", class: house ? "house" : "" }, run.titles[bar.target]));
    group.append(make("rect", { x: left, y: y + 4, width: Math.max(1, x(bar.median) - left), height: row - 8, rx: 2, style: `fill:${fill}` }));
    if (bar.values.length > 1) {
      group.append(make("line", { class: "spread", x1: x(Math.min(...bar.values)), x2: x(Math.max(...bar.values)), y1: middle, y2: middle }));
      for (const value of bar.values) group.append(make("circle", { class: "dot", cx: x(value), cy: middle, r: 2.1 }));
    }
    if (state.view === "memory" && state.scale === "absolute" && bar.cell.idle_mib)
      group.append(make("line", { class: "spread", x1: x(bar.cell.idle_mib), x2: x(bar.cell.idle_mib), y1: y + 5, y2: y + row - 5 }));
    group.append(make("text", { x: x(Math.max(...bar.values)) + 7, y: middle + 4, class: house ? "house" : "" }, format(bar.median)));
    svg.append(group);
  });
  return svg;
}

function drawCurves(cells) {
  const width = 1060, height = 430, left = 62, right = 20, top = 12, bottom = 42;
  const points = cells.flatMap((cell) => cell.curve), pick = (point) => point[state.percentile];
  const [x0, x1] = [Math.min(...points.map((p) => p.planned)), Math.max(...points.map((p) => p.planned))];
  const [y0, y1] = [Math.min(...points.map(pick)), Math.max(...points.map(pick))];
  const scale = (value, low, high, from, to) => from + (high > low ? Math.log(value / low) / Math.log(high / low) : 0.5) * (to - from);
  const lowest = 10 ** Math.floor(Math.log10(y0)), highest = 10 ** Math.ceil(Math.log10(y1) + 1e-9);
  const x = (value) => scale(value, x0 / 1.15, x1 * 1.15, left, width - right);
  const y = (value) => scale(value, lowest, highest, height - bottom, top);
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${state.scenario}: latency by offered load; the figures stand in the table below` });
  for (const tick of new Set(points.map((p) => p.planned))) {
    svg.append(make("line", { class: "grid", x1: x(tick), x2: x(tick), y1: top, y2: height - bottom }));
    svg.append(make("text", { class: "axis", x: x(tick), y: height - 22, "text-anchor": "middle" }, tick.toLocaleString("en")));
  }
  for (let power = lowest; power <= highest * 1.0001; power *= 10) {
    svg.append(make("line", { class: "grid", x1: left, x2: width - right, y1: y(power), y2: y(power) }));
    svg.append(make("text", { class: "axis", x: left - 8, y: y(power) + 4, "text-anchor": "end" }, String(+power.toPrecision(3))));
  }
  svg.append(make("text", { class: "axis", x: (left + width) / 2, y: height - 4, "text-anchor": "middle" }, "offered requests/s"));
  svg.append(make("text", { class: "axis", x: left, y: top - 1 }, "ms"));
  const key = make("ul", { class: "key" });
  // The house last, so that it lies on top.
  const ordered = [...cells].sort((a, b) => (a.target === HOUSE) - (b.target === HOUSE));
  let place = 0;
  for (const cell of ordered) {
    const house = cell.target === HOUSE, colour = house ? "var(--house)" : `var(--c${place++ % PALETTE})`;
    const dash = !house && place > PALETTE ? "5 3" : "none";
    const path = cell.curve.map((p, n) => `${n ? "L" : "M"}${x(p.planned).toFixed(1)} ${y(pick(p)).toFixed(1)}`).join("");
    svg.append(make("path", { d: path, fill: "none", style: `stroke:${colour};stroke-width:${house ? 3 : 1.6};stroke-dasharray:${dash}` }));
    for (const p of cell.curve) {
      const hint = `${run.titles[cell.target]} at ${p.planned.toLocaleString("en")}/s: ${format(pick(p))} ms${p.late ? `; the client was late in ${p.late} of ${p.rounds} rounds` : ""}`;
      svg.append(make("circle", { cx: x(p.planned), cy: y(pick(p)), r: house ? 4.5 : 3, style: `fill:${p.late ? "var(--sheet)" : colour};stroke:${colour}` }, make("title", {}, hint)));
    }
    key.prepend(make("li", {}, make("i", { style: `background:${colour}` }), run.titles[cell.target]));
  }
  return [svg, key];
}

function table(head, rows, words = false) {
  const numeric = (text) => /^[\d.,\s×x%()+µ-]+$/.test(text);
  const body = rows.map(({ house, cells }) => make("tr", house ? { class: "house" } : {}, ...cells.map((cell) => make("td", words && numeric(cell) ? { class: "number" } : {}, cell))));
  const first = rows.length ? rows[0].cells : [];
  const heads = head.map((each, n) => make("th", words && n < first.length && numeric(first[n]) ? { class: "number" } : {}, each));
  return make("table", words ? { class: "words" } : {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...body));
}

function figures() {
  if (state.view === "latency") {
    const rows = curved().flatMap((cell) => cell.curve.map((p) => ({ house: cell.target === HOUSE, cells: [run.titles[cell.target], format(p.planned), format(p.rate), ...PERCENTILES.map(([field]) => format(p[field])), `${format(p.p99.least)} - ${format(p.p99.most)}`, String(p.late)] })));
    return table(["target", "offered/s", "answered/s", ...PERCENTILES.map(([, name]) => `${name} ms`), "p99 of rounds", "late rounds"], rows);
  }
  const found = bars().map((bar) => ({
    house: bar.target === HOUSE,
    cells: [run.titles[bar.target], format(bar.median), `${format(Math.min(...bar.values))} - ${format(Math.max(...bar.values))}`,
      ...["cpu_us", "beside_us", "idle_mib", "loaded_mib", "start_ms"].map((field) => (bar.cell[field] ? format(bar.cell[field]) : "")),
      `${Math.round(bar.cell.server_core * 100)} %`, `${Math.round(bar.cell.load_core * 100)} %`],
  }));
  const shown = state.scale === "absolute" ? unit().split(",")[0] : "factor";
  return table(["target", shown, "least - most", "CPU µs", "database µs", "idle MiB", "loaded MiB", "start ms", "server", "load"], found);
}

const curved = () => run.cells.filter((cell) => cell.scenario === state.scenario && cell.curve.length && state.peers.has(cell.target));

/** Why somebody who was chosen is not in the picture. */
function missing() {
  const said = [];
  for (const target of names) {
    if (!state.peers.has(target)) continue;
    const cell = cellOf(state.scenario, target), facts = run.facts[target] || {};
    if (cell && cell.voids.length) said.push(`${run.titles[target]}: ${cell.voids.length} of ${run.plan.rounds} rounds void (${cell.voids[0]})`);
    else if (!cell && facts.cannot && facts.cannot[state.scenario]) said.push(`${run.titles[target]}: ${facts.cannot[state.scenario]}`);
  }
  return said.join(" · ");
}

function buttons(home, entries, chosen, choose, disabled = () => false) {
  byId(home).replaceChildren(...entries.map(([name, text, hint]) => {
    const button = make("button", { type: "button", "aria-pressed": String(chosen(name)), ...(hint ? { title: hint } : {}) }, text);
    button.disabled = disabled(name);
    button.addEventListener("click", () => { choose(name); draw(); const again = [...byId(home).children].find((each) => each.textContent === text); if (again) again.focus(); });
    return button;
  }));
}

function draw() {
  const kind = kinds.get(state.scenario);
  if (!kind) { byId("title").textContent = "Nothing was measured"; return; }
  const has = (view) => run.cells.some((cell) => cell.scenario === state.scenario && { counted: cell.rates.length, latency: cell.curve.length, cpu: cell.cpu_us, memory: cell.loaded_mib, start: cell.start_ms }[view]);
  if (!has(state.view)) state.view = "counted";
  const canScale = { absolute: true, house: Boolean(cellOf(state.scenario, HOUSE)), floor: state.view === "counted" && kind.unit === "requests/s" && run.cells.some((cell) => cell.name === run.floor) };
  if (!canScale[state.scale]) state.scale = "absolute";
  buttons("scenarios", run.kinds.map((each) => [each.name, each.name, each.title]), (name) => name === state.scenario, (name) => { state.scenario = name; });
  buttons("views", VIEWS, (name) => name === state.view, (name) => { state.view = name; }, (name) => !has(name));
  buttons("scales", SCALES, (name) => name === state.scale, (name) => { state.scale = name; }, (name) => !canScale[name]);
  buttons("percentiles", PERCENTILES, (name) => name === state.percentile, (name) => { state.percentile = name; });
  byId("scale").hidden = state.view === "latency";
  byId("percentile").hidden = state.view !== "latency";
  const wanted = byId("filter").value.trim().toLowerCase();
  const shown = names.filter((name) => `${name} ${run.titles[name]}`.toLowerCase().includes(wanted));
  buttons("peers", shown.map((name) => [name, run.titles[name], name]), (name) => state.peers.has(name), (name) => { if (!state.peers.delete(name)) state.peers.add(name); }, (name) => !cellOf(state.scenario, name));
  byId("chosen").textContent = `${state.peers.size} of ${names.length}`;
  byId("title").textContent = `${kind.name}: ${kind.title}`;
  const lower = state.view !== "counted" || kind.lower;
  byId("about").textContent = state.view === "latency"
    ? "From when each request was due until its answer had come, at fixed rates; all rounds together. A hollow point: the client itself was late."
    : `${unit()}${lower ? "; less is better" : ""}. Bar: median; line: least to greatest; dots: rounds.`;
  const cells = curved(), found = bars();
  const nothing = make("p", { class: "quiet" }, "Nobody who is chosen has figures here.");
  if (state.view === "latency") byId("chart").replaceChildren(...(cells.length ? drawCurves(cells) : [nothing]));
  else byId("chart").replaceChildren(found.length ? drawBars(found) : nothing);
  byId("table").replaceChildren(figures());
  byId("missing").textContent = missing();
  const peers = state.peers.size === names.length ? [] : [["t", [...state.peers].join(",")]];
  history.replaceState(null, "", `#${new URLSearchParams([["s", state.scenario], ["v", state.view], ["a", state.scale], ["p", state.percentile], ...peers])}`);
}

function still() {
  const env = run.environment;
  byId("when").textContent = `${(env.started || "").slice(0, 10)} · commit ${env.commit || "unknown"}${env.dirty ? " with local changes" : ""} · ${env.cpu || "unknown CPU"}, ${env.cores || "?"} cores · ${run.plan.rounds} rounds of ${run.plan.seconds} s`;
  byId("limits").textContent = run.limits;
  const took = (target) => run.cells.some((cell) => cell.target === target && cell.rates.length);
  const beaten = (wins, target) => {
    const rows = wins.map((win) => ({ house: false, cells: [win.scenario, run.titles[win.target] + (win.more ? ` and ${win.more} more` : "") + (win.floor ? " (floor)" : ""), win.what, `${format(win.factor)} ×`, win.ours, win.theirs, win.rounds ? `${win.won} of ${win.rounds}` : "medians"] }));
    return rows.length ? table(["scenario", "who", "what", "better by", "Tidegate", "they", "rounds"], rows, true) : make("p", {}, took(target) ? "Nowhere in this run." : "Tidegate took no part in this run.");
  };
  byId("beaten").replaceChildren(beaten(run.wins, HOUSE));
  byId("second").hidden = !took(run.second);
  byId("beaten-second").replaceChildren(beaten(run.winsOnPostgresql, run.second));
  const ours = [...new Set(run.greetings.flatMap((each) => Object.keys(each.factors)))];
  const span = (found, mark = "") => `${format(found.median)}${mark} (${format(found.least)} - ${format(found.most)})`;
  const greetings = run.greetings.map((each) => ({ house: false, cells: [run.titles[each.target] + (each.floor ? " (floor)" : ""), span(each.rate), ...ours.map((name) => (each.factors[name] ? span(each.factors[name], " ×") : ""))] }));
  byId("full").hidden = !greetings.length;
  byId("told").replaceChildren(...run.told.map((line) => make("li", {}, line.replaceAll("`", ""))));
  byId("greetings").replaceChildren(table(["hello of", "hello/s", ...ours.map((name) => `Tidegate's ${name} by it`)], greetings, true));
  byId("method").replaceChildren(...run.method.map((line) => make("li", {}, line)));
  byId("machine").replaceChildren(table(["what", "found"], Object.entries(env).map(([name, value]) => ({ cells: [name, typeof value === "string" ? value : JSON.stringify(value)] })), true));
  byId("versions").replaceChildren(table(["target", "packages"], Object.entries(run.facts).map(([name, facts]) => ({ cells: [facts.title || name, facts.broken || Object.entries(facts.versions).map((pair) => pair.join(" ")).join(", ")] })), true));
  byId("doubts-title").textContent = `Doubts (${run.doubts.length})`;
  byId("doubts").replaceChildren(...run.doubts.map((line) => make("li", {}, line)));
}

function restore() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const take = (key, known, field) => { if (known.includes(asked.get(key))) state[field] = asked.get(key); };
  take("s", [...kinds.keys()], "scenario");
  take("v", VIEWS.map(([name]) => name), "view");
  take("a", SCALES.map(([name]) => name), "scale");
  take("p", PERCENTILES.map(([name]) => name), "percentile");
  if (asked.has("t")) state.peers = new Set(asked.get("t").split(",").filter((name) => names.includes(name)));
}

byId("all").addEventListener("click", () => { state.peers = new Set(names); draw(); });
byId("none").addEventListener("click", () => { state.peers = new Set(names.includes(HOUSE) ? [HOUSE] : []); draw(); });
byId("filter").addEventListener("input", draw);
window.addEventListener("hashchange", () => { restore(); draw(); });
restore();
still();
draw();
