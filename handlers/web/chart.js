// The chart: drawn by hand on a canvas, sharp at any pixel density, read with pointer or keys.

const MARGIN = { top: 14, right: 18, bottom: 28 };
const STRIP = 56;

class TideChart extends HTMLElement {
  #canvas = document.createElement("canvas");
  #reader = document.createElement("div");
  #message = document.createElement("p");
  #spoken = document.createElement("p");
  #series = new Series();
  // None until there is something to show.
  #view = null;
  #columns = [];
  #cursor = null;
  #pending = 0;
  #size = { width: 0, height: 0, ratio: 1 };
  #colors = {};
  #frame = { left: 0, right: 0, top: 0, bottom: 0 };
  #shownText = "";

  connectedCallback() {
    this.tabIndex = 0;
    this.setAttribute("role", "group");
    this.#reader.className = "reader";
    this.#reader.hidden = true;
    this.#message.className = "message";
    this.#spoken.className = "unseen";
    this.#spoken.setAttribute("role", "status");
    this.append(this.#canvas, this.#reader, this.#message, this.#spoken);
    this.#readColors();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#readColors());
    new ResizeObserver(() => this.#resize()).observe(this);
    this.#watchRatio();
    this.addEventListener("pointermove", (event) => this.#point(event));
    this.addEventListener("pointerdown", (event) => this.#point(event));
    this.addEventListener("pointerleave", () => this.#move(null));
    this.addEventListener("blur", () => this.#move(null));
    this.addEventListener("keydown", (event) => this.#key(event));
  }

  // Everything drawn is this, reading by reading and bucket by bucket.
  get points() {
    return { buckets: this.#series.buckets.map((b) => ({ ...b })), readings: this.#series.readings.map((r) => ({ ...r })) };
  }

  // Columns of the picture as it was drawn last: {x, t, low, high, mean, count, value}.
  get columns() {
    return this.#columns.map((column) => ({ ...column }));
  }

  set series(series) {
    this.#series = series;
    this.#move(null);
    this.redraw();
  }

  // {start, end}: microseconds from left to right; null for an empty picture.
  set view(view) {
    this.#view = view;
    this.redraw();
  }

  // What stands in place of a line, "" for nothing; `action` {text, run} adds a button.
  say(text, action = null) {
    const key = `${text}\n${action?.text ?? ""}`;
    if (key === this.#shownText) return;
    this.#shownText = key;
    this.#message.replaceChildren(text);
    if (action) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = action.text;
      button.addEventListener("click", action.run);
      this.#message.append(button);
    }
    this.#message.hidden = text === "";
  }

  redraw() {
    this.#pending ||= requestAnimationFrame(() => {
      this.#pending = 0;
      this.#draw();
    });
  }

  // -- size and colours ---------------------------------------------------------------------------

  #watchRatio() {
    // It fires once, when this very ratio is left: by zooming, or on another screen.
    matchMedia(`(resolution: ${devicePixelRatio}dppx)`).addEventListener("change", () => {
      this.#resize();
      this.#watchRatio();
    }, { once: true });
  }

  #resize() {
    const { width, height } = this.getBoundingClientRect(), ratio = devicePixelRatio || 1;
    this.#size = { width, height, ratio };
    this.#canvas.width = Math.round(width * ratio);
    this.#canvas.height = Math.round(height * ratio);
    this.#draw();
  }

  #readColors() {
    const style = getComputedStyle(this);
    for (const name of ["ink", "muted", "grid", "accent", "panel", "fill", "fade"]) {
      this.#colors[name] = style.getPropertyValue(`--${name}`).trim();
    }
    this.#colors.hues = [1, 2, 3, 4, 5, 6].map((n) => style.getPropertyValue(`--hue-${n}`).trim());
    this.redraw();
  }

  // -- the picture --------------------------------------------------------------------------------

  #draw() {
    const { width, height, ratio } = this.#size;
    if (!width || !height) return;
    const pen = this.#canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    if (!this.#view) return;
    pen.font = `12px ${getComputedStyle(this).fontFamily}`;
    const kind = typeof (this.#series.newest?.value ?? 0);
    const { start, end } = this.#view;
    const inside = this.#visible();
    const axis = kind === "boolean"
      ? { low: -0.15, high: 1.15, ticks: [{ value: 0, text: "false" }, { value: 1, text: "true" }] }
      : kind === "string" ? { low: 0, high: 1, ticks: [] } : this.#axis(inside, height);
    const gutter = Math.max(24, ...axis.ticks.map((tick) => pen.measureText(tick.text).width)) + 14;
    this.#frame = {
      left: kind === "string" ? 14 : Math.ceil(gutter),
      right: width - MARGIN.right, top: MARGIN.top, bottom: height - MARGIN.bottom,
    };
    const { left, right, top, bottom } = this.#frame;
    const x = (t) => left + ((t - start) / (end - start)) * (right - left);
    const y = (value) => bottom - ((value - axis.low) / (axis.high - axis.low)) * (bottom - top);
    this.#grid(pen, axis, x, y);
    pen.save();
    pen.beginPath();
    pen.rect(left - 1, top - 8, right - left + MARGIN.right, bottom - top + 16);
    pen.clip();
    if (kind === "string") this.#strip(pen, inside, x);
    else this.#line(pen, inside, x, y, kind === "boolean");
    pen.restore();
    this.#showCursor(pen, y);
    this.#describe(inside);
  }

  // What of the series lies in view, with its neighbours to both sides, in one form.
  #visible() {
    const { start, end } = this.#view, { buckets, readings, every } = this.#series;
    const found = [];
    const part = (items, from) => items.slice(Math.max(0, lowerBound(items, from) - 1), lowerBound(items, end) + 1);
    for (const b of part(buckets, start - every)) found.push({ ...b, t: b.t + every / 2, value: b.mean, bucket: true });
    for (const { t, value } of part(readings, start)) {
      const number = typeof value === "number" ? value : typeof value === "boolean" ? Number(value) : NaN;
      found.push({ t, value, low: number, high: number, mean: number, count: 1 });
    }
    return found;
  }

  #axis(inside, height) {
    let low = Infinity, high = -Infinity;
    const { start, end } = this.#view;
    for (const item of inside) {
      if (item.t < start || item.t > end || typeof item.value !== "number") continue;
      low = Math.min(low, item.low);
      high = Math.max(high, item.high);
    }
    return low <= high ? valueAxis(low, high, Math.max(2, height / 64)) : valueAxis(0, 1, 4);
  }

  #grid(pen, axis, x, y) {
    const { left, right, top, bottom } = this.#frame, { ratio } = this.#size, { start, end } = this.#view;
    const sharp = (place) => (Math.round(place * ratio) + 0.5) / ratio;
    pen.lineWidth = 1 / ratio;
    pen.strokeStyle = this.#colors.grid;
    pen.fillStyle = this.#colors.muted;
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    pen.beginPath();
    for (const { value, text } of axis.ticks) {
      pen.moveTo(left, sharp(y(value)));
      pen.lineTo(right, sharp(y(value)));
      pen.fillText(text, left - 10, y(value));
    }
    pen.textAlign = "center";
    pen.textBaseline = "alphabetic";
    for (const { t, text } of timeAxis(start, end, Math.max(2, (right - left) / 96))) {
      pen.moveTo(sharp(x(t)), top);
      pen.lineTo(sharp(x(t)), bottom + 4);
      const half = pen.measureText(text).width / 2;
      if (x(t) - half > 0 && x(t) + half < this.#size.width) pen.fillText(text, x(t), bottom + 19);
    }
    pen.stroke();
  }

  // More items than pixels: one column a pixel, with what was lowest and highest in it. Columns stand
  // at round times, so that they do not change while the picture moves.
  #columnsOf(inside, x) {
    const { left, right } = this.#frame, { start, end } = this.#view;
    const numbers = inside.filter((item) => !Number.isNaN(item.mean));
    if (numbers.length <= right - left) return numbers.map((item) => ({ ...item, x: x(item.t) }));
    const width = (end - start) / (right - left), columns = [];
    let column = null, place = NaN;
    for (const item of numbers) {
      if (Math.floor(item.t / width) !== place) {
        place = Math.floor(item.t / width);
        column = { ...item, count: 0, sum: 0, first: item.t };
        columns.push(column);
      }
      column.low = Math.min(column.low, item.low);
      column.high = Math.max(column.high, item.high);
      column.sum += item.mean * item.count;
      column.count += item.count;
      column.mean = column.sum / column.count;
      column.bucket ||= column.count > 1;
      column.t = (column.first + item.t) / 2;
    }
    for (const one of columns) one.x = x(one.t);
    return columns;
  }

  #line(pen, inside, x, y, steps) {
    const columns = (this.#columns = this.#columnsOf(inside, x));
    if (!columns.length) return;
    const { bottom, top } = this.#frame, { start, end } = this.#view;
    const runs = this.#runs(columns, (end - start) / 80);
    pen.lineJoin = "round";
    pen.lineCap = "round";
    // Where nothing came for long, the line only hints at how it went on.
    pen.setLineDash([2, 5]);
    pen.lineWidth = 1.25;
    pen.strokeStyle = this.#colors.muted;
    pen.beginPath();
    for (let n = 1; n < runs.length; n++) {
      const from = runs[n - 1].at(-1), to = runs[n][0];
      pen.moveTo(from.x, y(from.mean));
      if (steps) pen.lineTo(to.x, y(from.mean));
      pen.lineTo(to.x, y(to.mean));
    }
    pen.stroke();
    pen.setLineDash([]);
    const shade = pen.createLinearGradient(0, top, 0, bottom);
    shade.addColorStop(0, this.#colors.fill);
    shade.addColorStop(1, this.#colors.fade);
    for (const run of runs) {
      const path = new Path2D();
      run.forEach((column, n) => {
        if (n && steps) path.lineTo(column.x, y(run[n - 1].mean));
        path.lineTo(column.x, y(column.mean));
      });
      if (run.length > 1) {
        const area = new Path2D(path);
        area.lineTo(run.at(-1).x, bottom);
        area.lineTo(run[0].x, bottom);
        pen.fillStyle = shade;
        pen.fill(area);
      }
      if (run.some((column) => column.high > column.low)) {
        const band = new Path2D();
        for (const column of run) band.lineTo(column.x, y(column.high));
        for (const column of run.toReversed()) band.lineTo(column.x, y(column.low));
        band.closePath();
        pen.fillStyle = this.#colors.fill;
        pen.fill(band);
        pen.lineWidth = 1;
        pen.strokeStyle = this.#colors.fill;
        pen.stroke(band);
      }
      pen.lineWidth = 1.75;
      pen.strokeStyle = this.#colors.accent;
      pen.stroke(path);
      pen.fillStyle = this.#colors.accent;
      const sparse = run.length < 2 || (run.at(-1).x - run[0].x) / (run.length - 1) > 14;
      if (sparse) for (const column of run) this.#dot(pen, column.x, y(column.mean), 2.25);
    }
    const last = columns.at(-1);
    pen.fillStyle = this.#colors.fill;
    this.#dot(pen, last.x, y(last.mean), 7);
    pen.fillStyle = this.#colors.accent;
    this.#dot(pen, last.x, y(last.mean), 3.5);
  }

  #dot(pen, x, y, radius) {
    pen.beginPath();
    pen.arc(x, y, radius, 0, 2 * Math.PI);
    pen.fill();
  }

  // Stretches without a silence: one is much longer than usual in this series, and can be seen.
  #runs(columns, visible) {
    const gaps = columns.slice(1).map((column, n) => column.t - columns[n].t).sort((a, b) => a - b);
    const limit = Math.max(8 * (gaps[gaps.length >> 1] ?? 0), visible);
    const runs = [[columns[0]]];
    for (let n = 1; n < columns.length; n++) {
      if (columns[n].t - columns[n - 1].t > limit) runs.push([]);
      runs.at(-1).push(columns[n]);
    }
    return runs;
  }

  // Texts have no height: a strip tells which was in force when.
  #strip(pen, inside, x) {
    const { left, right, top, bottom } = this.#frame, texts = inside.filter((item) => !item.bucket);
    const upper = Math.round((top + bottom - STRIP) / 2);
    this.#columns = texts.map((item) => ({ ...item, x: x(item.t) }));
    const hues = new Map();
    this.#columns.forEach((column, n) => {
      const text = formatValue(column.value);
      if (!hues.has(text)) hues.set(text, this.#colors.hues[hues.size % this.#colors.hues.length]);
      // The same text goes on; a new block would only cut its words.
      if (n && formatValue(this.#columns[n - 1].value) === text) return;
      let next = n + 1;
      while (next < this.#columns.length && formatValue(this.#columns[next].value) === text) next++;
      const from = Math.max(left, column.x), to = Math.min(right, this.#columns[next]?.x ?? right);
      if (to <= from) return;
      pen.fillStyle = hues.get(text);
      pen.beginPath();
      pen.roundRect(from, upper, Math.max(1, to - from - 1), STRIP, 4);
      pen.fill();
      if (to - from < 28) return;
      pen.save();
      pen.beginPath();
      pen.rect(from + 8, upper, to - from - 16, STRIP);
      pen.clip();
      pen.fillStyle = this.#colors.ink;
      pen.textAlign = "left";
      pen.textBaseline = "middle";
      pen.fillText(text.slice(0, 200), from + 8, upper + STRIP / 2);
      pen.restore();
    });
  }

  // -- reading values off --------------------------------------------------------------------------

  #point(event) {
    const x = event.clientX - this.getBoundingClientRect().left;
    let nearest = null;
    for (const column of this.#inView()) {
      if (!nearest || Math.abs(column.x - x) < Math.abs(nearest.x - x)) nearest = column;
    }
    this.#move(nearest && nearest.t);
  }

  #key(event) {
    const columns = this.#inView(), steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 };
    if (event.key === "Escape") return this.#move(null);
    if (!columns.length || !(event.key in steps || event.key === "Home" || event.key === "End")) return;
    event.preventDefault();
    const here = this.#cursor === null ? columns.length : columns.findIndex((column) => column.t >= this.#cursor);
    let place = (here < 0 ? columns.length - 1 : here) + (steps[event.key] ?? 0);
    if (event.key === "Home") place = 0;
    if (event.key === "End") place = columns.length - 1;
    const column = columns[Math.max(0, Math.min(columns.length - 1, place))];
    this.#move(column.t);
    this.#spoken.textContent = this.#words(column).join(", ");
  }

  #inView() {
    return this.#columns.filter(({ x }) => x >= this.#frame.left - 1 && x <= this.#frame.right + 1);
  }

  #move(t) {
    if (this.#cursor === t) return;
    this.#cursor = t;
    this.redraw();
  }

  #words(column) {
    const when = formatMoment(column.t, this.#view.end - this.#view.start > 2 * HOUR ? 0 : 3);
    if (!column.bucket) return [formatValue(column.value), when];
    const number = (value) => formatNumber(Number(value.toPrecision(6)));
    return [number(column.mean), `${number(column.low)} to ${number(column.high)}`, `mean of ${column.count} readings`, when];
  }

  #showCursor(pen, y) {
    const column = this.#cursor === null ? null : this.#inView().reduce(
      (best, one) => (!best || Math.abs(one.t - this.#cursor) < Math.abs(best.t - this.#cursor) ? one : best), null);
    this.#reader.hidden = column === null;
    if (column === null) return;
    const { left, right, top, bottom } = this.#frame;
    pen.lineWidth = 1;
    pen.strokeStyle = this.#colors.muted;
    pen.beginPath();
    pen.moveTo(column.x, top);
    pen.lineTo(column.x, bottom);
    pen.stroke();
    if (!Number.isNaN(column.mean)) {
      pen.fillStyle = this.#colors.panel;
      this.#dot(pen, column.x, y(column.mean), 5.5);
      pen.fillStyle = this.#colors.accent;
      this.#dot(pen, column.x, y(column.mean), 3.5);
    }
    this.#reader.replaceChildren(...this.#words(column).map((words, n) => {
      const line = document.createElement(n ? "span" : "b");
      line.textContent = words;
      return line;
    }));
    const width = this.#reader.offsetWidth;
    const beside = column.x + 12 + width > right ? column.x - 12 - width : column.x + 12;
    this.#reader.style.transform = `translate(${Math.round(Math.max(left, beside))}px, ${top + 6}px)`;
  }

  // For whoever does not see the picture, and for the figures below it.
  #describe(inside) {
    const { start, end } = this.#view, figures = { low: Infinity, high: -Infinity, sum: 0, count: 0, numbers: 0 };
    for (const item of inside) {
      if (item.t < start || item.t > end) continue;
      figures.count += item.count;
      if (typeof item.value !== "number") continue;
      figures.numbers += item.count;
      figures.low = Math.min(figures.low, item.low);
      figures.high = Math.max(figures.high, item.high);
      figures.sum += item.mean * item.count;
    }
    this.dispatchEvent(new CustomEvent("figures", { detail: figures }));
  }
}

customElements.define("tide-chart", TideChart);
