// The list of devices: newest values, ticking. Ids, metrics, names, labels and texts are whatever
// somebody wrote: they become text nodes, never markup.

// Series that are kept, and rows that are drawn; a filter leads to the others.
const SERIES_MAX = 5000;
const ROWS_MAX = 300;
const SPARK = 48;

// dev2 before dev10.
const order = new Intl.Collator("en", { numeric: true }).compare;

const keyOf = (device, metric) => `${device}\n${metric}`;

// Whether a filter is a pattern of the gate: tokens joined by dots, with * or a last >.
function isPattern(text) {
  return /[*>]/.test(text) && /^(?:(?:[A-Za-z0-9_-]+|\*)\.)*(?:[A-Za-z0-9_-]+|\*|>)$/.test(text);
}

function matchesPattern(device, pattern) {
  const tokens = device.split("."), wanted = pattern.split(".");
  for (let n = 0; n < wanted.length; n++) {
    if (wanted[n] === ">") return tokens.length > n;
    if (tokens[n] === undefined || (wanted[n] !== "*" && wanted[n] !== tokens[n])) return false;
  }
  return tokens.length === wanted.length;
}

class DeviceList {
  #list = document.getElementById("list");
  #count = document.getElementById("count");
  #note = document.getElementById("list-note");
  #rowTemplate = document.getElementById("row-template");
  #deviceTemplate = document.getElementById("device-template");
  #series = new Map();
  #about = new Map();
  #rows = new Map();
  #dirty = new Set();
  #filter = "";
  #chosen = "";
  #structure = false;
  #frame = 0;
  #left = 0;
  #calm = matchMedia("(prefers-reduced-motion: reduce)");

  // `choose(device, metric)` is called when a row is picked; `now()` gives microseconds.
  constructor(choose, now) {
    this.choose = choose;
    this.now = now;
    this.#list.addEventListener("click", (event) => {
      const row = event.target.closest(".row");
      if (row) this.choose(row.dataset.device, row.dataset.metric);
    });
    this.#list.addEventListener("keydown", (event) => this.#key(event));
  }

  get size() {
    return this.#series.size;
  }

  // What to show if nobody chose: the first series with a curve.
  get first() {
    const all = this.#sorted();
    return all.find((series) => typeof series.value === "number") ?? all[0] ?? null;
  }

  // The newest reading of a series: the one with the greatest time, whatever came last.
  add({ device, metric, t, value }) {
    const key = keyOf(device, metric);
    let series = this.#series.get(key);
    if (!series) {
      if (this.#series.size >= SERIES_MAX) {
        this.#left++;
        return;
      }
      series = { key, device, metric, t: -1, value: null, spark: [] };
      this.#series.set(key, series);
      this.#structure = true;
    }
    if (t < series.t || (t === series.t && value === series.value)) return;
    series.fresh = series.t >= 0;
    series.t = t;
    series.value = value;
    if (typeof value !== "string") series.spark.push(Number(value));
    if (series.spark.length > SPARK) series.spark.shift();
    this.#dirty.add(series);
    this.#later();
  }

  // Name and labels of a device.
  describe(device, name, labels) {
    this.#about.set(device, { name, labels });
    this.#structure = true;
    this.#later();
  }

  knows(device) {
    return this.#about.has(device);
  }

  clear() {
    this.#series.clear();
    this.#rows.clear();
    this.#dirty.clear();
    this.#left = 0;
    this.#structure = true;
    this.#later();
  }

  set filter(text) {
    this.#filter = text.trim();
    this.#structure = true;
    this.#later();
  }

  set chosen({ device, metric }) {
    this.#rows.get(this.#chosen)?.element.removeAttribute("aria-current");
    this.#chosen = keyOf(device, metric);
    this.#rows.get(this.#chosen)?.element.setAttribute("aria-current", "true");
    this.#rove();
  }

  // Once a second: how old the values are.
  age() {
    for (const row of this.#rows.values()) this.#showAge(row);
  }

  #later() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      if (this.#structure) this.#build();
      for (const series of this.#dirty) this.#show(series);
      this.#dirty.clear();
    });
  }

  #sorted() {
    return [...this.#series.values()].sort((a, b) => order(a.device, b.device) || order(a.metric, b.metric));
  }

  #matches({ device, metric }) {
    if (!this.#filter) return true;
    if (isPattern(this.#filter)) return matchesPattern(device, this.#filter);
    const about = this.#about.get(device);
    const labels = Object.entries(about?.labels ?? {}).map(([name, value]) => `${name}=${value}`);
    const text = [device, metric, about?.name ?? "", ...labels].join(" ").toLowerCase();
    return this.#filter.toLowerCase().split(/\s+/).every((word) => text.includes(word));
  }

  // The list anew, with the rows that are there already.
  #build() {
    this.#structure = false;
    const focused = document.activeElement?.closest?.(".row");
    const found = this.#sorted().filter((series) => this.#matches(series)), shown = found.slice(0, ROWS_MAX);
    const rows = new Map(), sections = [];
    let device = null, section = null;
    for (const series of shown) {
      if (series.device !== device) {
        device = series.device;
        section = this.#section(device);
        sections.push(section);
      }
      const row = this.#rows.get(series.key) ?? this.#row(series);
      rows.set(series.key, row);
      section.append(row.element);
      if (!this.#rows.has(series.key)) this.#dirty.add(series);
    }
    this.#rows = rows;
    this.#list.replaceChildren(...sections);
    if (focused?.isConnected) focused.focus();
    this.#rove();
    const devices = new Set(found.map((series) => series.device)).size;
    this.#count.textContent = this.#series.size ? `${devices} with ${found.length} series` : "";
    const hidden = found.length - shown.length + this.#left;
    this.#note.hidden = !hidden && (found.length > 0 || !this.#series.size);
    this.#note.textContent = hidden
      ? `${hidden} more are not shown. Filter to find them; a pattern such as acme.> also follows fewer.`
      : "No device or metric matches the filter.";
  }

  #section(device) {
    const section = this.#deviceTemplate.content.cloneNode(true).firstElementChild, about = this.#about.get(device);
    section.querySelector(".id").textContent = device;
    section.querySelector(".name").textContent = about?.name ?? "";
    const labels = section.querySelector(".labels");
    for (const [name, value] of Object.entries(about?.labels ?? {}).slice(0, 6)) {
      const item = document.createElement("li");
      item.textContent = `${name} ${value}`;
      labels.append(item);
    }
    labels.hidden = !labels.children.length;
    return section;
  }

  #row({ key, device, metric }) {
    const element = this.#rowTemplate.content.cloneNode(true).firstElementChild;
    element.dataset.device = device;
    element.dataset.metric = metric;
    element.querySelector(".metric").textContent = metric;
    if (key === this.#chosen) element.setAttribute("aria-current", "true");
    return {
      element, key, t: 0,
      value: element.querySelector(".value"),
      path: element.querySelector("path"),
      age: element.querySelector(".age"),
    };
  }

  #show(series) {
    const row = this.#rows.get(series.key);
    if (!row) return;
    const text = formatValue(series.value);
    if (series.fresh && row.value.textContent !== text && !this.#calm.matches) {
      row.value.animate([{ backgroundColor: "var(--fill)" }, { backgroundColor: "transparent" }], 900);
    }
    row.value.textContent = text.length > 120 ? `${text.slice(0, 119)}\u2026` : text;
    row.value.dataset.type = typeof series.value;
    row.element.title = typeof series.value === "string" ? text : "";
    row.t = series.t;
    row.path.setAttribute("d", spark(series.spark));
    this.#showAge(row);
  }

  #showAge(row) {
    const text = formatAge(this.now() - row.t);
    if (row.age.textContent !== text) row.age.textContent = text;
  }

  // One row is reached by Tab, the others from it by the arrow keys.
  #rove() {
    const rows = [...this.#rows.values()], here = this.#rows.get(this.#chosen) ?? rows[0];
    for (const row of rows) row.element.tabIndex = row === here ? 0 : -1;
  }

  #key(event) {
    const rows = [...this.#rows.values()].map((row) => row.element), here = rows.indexOf(document.activeElement);
    const places = { ArrowDown: here + 1, ArrowUp: here - 1, Home: 0, End: rows.length - 1 };
    if (here < 0 || !(event.key in places)) return;
    event.preventDefault();
    rows[Math.max(0, Math.min(rows.length - 1, places[event.key]))].focus();
  }
}

// The last values as a path in a box of 64 by 20.
function spark(values) {
  if (values.length < 2) return "";
  const low = Math.min(...values), span = Math.max(...values) - low;
  const points = values.map((value, n) => {
    const x = 1 + (n * 62) / (values.length - 1), y = span ? 18 - ((value - low) / span) * 16 : 10;
    return `${x.toFixed(1)} ${y.toFixed(1)}`;
  });
  return `M${points.join("L")}`;
}
