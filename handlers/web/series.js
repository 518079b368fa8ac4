// What a chart knows of its series: buckets of the older part, every reading of the newer part.

// Up to so many readings a window is loaded reading by reading; beyond it in buckets.
const RAW_MAX = 4000;
// Buckets of a window: no screen has many more columns.
const BUCKETS = 720;
// Readings that are kept before the older ones are loaded again as buckets.
const KEEP_MAX = 20_000;
const PAGE = 1000;

// The first index of a sorted array whose time is not before `t`.
function lowerBound(items, t) {
  let low = 0, high = items.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (items[middle].t < t) low = middle + 1;
    else high = middle;
  }
  return low;
}

class Series {
  // Buckets {t, low, high, mean, count} of `every` microseconds, before `split`; readings {t, value} after it.
  buckets = [];
  readings = [];
  every = 0;
  split = 0;

  // A reading is identified by its time: what came by the history and by the stream is there once.
  add(t, value) {
    if (t < this.split) return this.#late(t, value);
    const { readings } = this, last = readings[readings.length - 1];
    if (!last || t > last.t) return void readings.push({ t, value });
    const place = lowerBound(readings, t);
    if (readings[place].t !== t) readings.splice(place, 0, { t, value });
  }

  // Its bucket may count it already, but the bounds can only be wrong if they leave it out.
  #late(t, value) {
    if (typeof value !== "number") return;
    const start = t - (t % this.every), place = lowerBound(this.buckets, start), bucket = this.buckets[place];
    if (bucket?.t === start) {
      bucket.low = Math.min(bucket.low, value);
      bucket.high = Math.max(bucket.high, value);
    } else {
      this.buckets.splice(place, 0, { t: start, low: value, high: value, mean: value, count: 1 });
    }
  }

  // Forget what lies before `t`, but the last of it: the line comes from there.
  prune(t) {
    const { buckets, readings } = this;
    if (buckets.length) buckets.splice(0, Math.max(0, lowerBound(buckets, t - this.every) - 1));
    readings.splice(0, Math.max(0, lowerBound(readings, t) - 1));
  }

  get full() {
    return this.readings.length > KEEP_MAX;
  }

  get newest() {
    return this.readings[this.readings.length - 1] ?? null;
  }
}

// The history of a device that has not written yet is empty.
async function loadSeries(gate, device, metric, start, span, signal) {
  try {
    return await loadKnown(gate, device, metric, start, span, signal);
  } catch (error) {
    if (error.status === 404) return new Series();
    throw error;
  }
}

// The history of a series from `start` to now: reading by reading if they are few, else in buckets.
async function loadKnown(gate, device, metric, start, span, signal) {
  const path = `/v1/devices/${encodeURIComponent(device)}/readings`;
  const series = new Series();
  // Whole milliseconds are what the gate reads in `every`.
  series.every = Math.max(1000, Math.ceil(span / BUCKETS / 1000) * 1000);
  const now = gate.now(), from = Math.max(0, start - (start % series.every));
  const wanted = ["min", "max", "avg", "count"].map((name) => ["fn", name]);
  const every = ["every", `${series.every / 1000}ms`];
  const range = [["metric", metric], ["time", "us"], ["limit", String(PAGE)]];
  const buckets = await gate.list(path, [...range, ["from", wireTime(from)], every, ...wanted], 4 * BUCKETS, signal);
  const total = buckets.items.reduce((sum, bucket) => sum + bucket.count, 0);
  const since = total > RAW_MAX ? (series.split = now - (now % series.every)) : from;
  // From the newest back: of texts and truth values nobody counted how many there are.
  const newer = [...range, ["from", wireTime(since)], ["order", "desc"]];
  const { items, complete } = await gate.list(path, newer, KEEP_MAX / 2, signal);
  items.reverse();
  if (total > RAW_MAX) {
    // More in the newest bucket than is kept: it stays a bucket, and single readings begin inside it.
    if (!complete) series.split = items[0].ts;
    series.buckets = buckets.items.filter(({ ts }) => ts < series.split).map(bucketOf);
  }
  for (const { ts, value } of items) series.add(ts, value);
  return series;
}

const bucketOf = ({ ts, min, max, avg, count }) => ({ t: ts, low: min, high: max, mean: avg, count });
