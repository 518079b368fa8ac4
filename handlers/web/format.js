// How values, times and lengths of time are written, and where the ticks of an axis stand.
// Times are microseconds since 1970, as whole numbers: exact until the year 2255.

const SECOND = 1e6, MINUTE = 60 * SECOND, HOUR = 60 * MINUTE, DAY = 24 * HOUR;

const nowMicros = () => Date.now() * 1000;

// RFC 3339 as the gate writes it; Date alone would lose the microseconds.
function parseTime(text) {
  const found = /^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,6})\d*)?(Z|[+-]\d\d:\d\d)$/.exec(text);
  if (!found) return NaN;
  return Date.parse(found[1] + found[3]) * 1000 + Number((found[2] ?? "").padEnd(6, "0"));
}

const wireTime = (micros) => Math.floor(micros / 1000);

function formatNumber(value) {
  const text = String(value);
  if (text.length <= 10) return text.replace("-", "\u2212");
  const size = Math.abs(value);
  const short = size >= 1e10 || size < 1e-5 ? value.toExponential(4) : String(Number(value.toPrecision(7)));
  return short.replaceAll("-", "\u2212");
}

function formatValue(value) {
  if (typeof value === "number") return formatNumber(value);
  if (typeof value === "boolean") return value ? "true" : "false";
  return value === "" ? "\u201c\u201d" : String(value);
}

// Decimals that tell values apart which lie `step` from each other.
function decimals(step) {
  return step > 0 && step < 1 ? Math.min(10, Math.ceil(-Math.log10(step) - 1e-9)) : 0;
}

function formatTick(value, step) {
  if (Math.abs(value) >= 1e7 || step < 1e-6) return formatNumber(Number(value.toPrecision(6)));
  const text = value.toFixed(decimals(step));
  // What rounds to zero has no sign.
  return (Number(text) === 0 ? text.replace("-", "") : text).replace("-", "\u2212");
}

function formatAge(micros) {
  if (micros < 2 * SECOND) return "now";
  if (micros < 2 * MINUTE) return `${Math.floor(micros / SECOND)} s`;
  if (micros < 2 * HOUR) return `${Math.floor(micros / MINUTE)} min`;
  if (micros < 2 * DAY) return `${Math.floor(micros / HOUR)} h`;
  return `${Math.floor(micros / DAY).toLocaleString("en")} d`;
}

function formatLength(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
}

const two = (number) => String(number).padStart(2, "0");

function formatDate(micros) {
  const date = new Date(micros / 1000);
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
}

function formatClock(micros, { seconds = true, fraction = 0 } = {}) {
  const date = new Date(micros / 1000);
  let text = `${two(date.getHours())}:${two(date.getMinutes())}`;
  if (seconds) text += `:${two(date.getSeconds())}`;
  if (fraction) text += "." + String(Math.floor(micros % SECOND)).padStart(6, "0").slice(0, fraction);
  return text;
}

// A time in full, the date only if it is not today's.
function formatMoment(micros, fraction = 0) {
  const clock = formatClock(micros, { fraction });
  return formatDate(micros) === formatDate(nowMicros()) ? clock : `${formatDate(micros)} ${clock}`;
}

// The step of about `count` round ticks over a span: 1, 2 or 5 times a power of ten.
function niceStep(span, count) {
  const rough = span / Math.max(1, count), power = 10 ** Math.floor(Math.log10(rough)), ratio = rough / power;
  return power * (ratio <= 1 ? 1 : ratio <= 2 ? 2 : ratio <= 5 ? 5 : 10);
}

// Bounds on whole ticks, so that they rest while values move between them.
function valueAxis(low, high, count) {
  if (low === high) {
    const room = Math.abs(low) * 0.1 || 1;
    low -= room;
    high += room;
  }
  const step = niceStep(high - low, count);
  const first = Math.floor(low / step + 1e-9), last = Math.max(first + 1, Math.ceil(high / step - 1e-9));
  const ticks = [];
  for (let n = first; n <= last; n++) ticks.push({ value: n * step, text: formatTick(n * step, step) });
  return { low: first * step, high: last * step, ticks };
}

const TIME_STEPS = [
  SECOND, 2 * SECOND, 5 * SECOND, 10 * SECOND, 15 * SECOND, 30 * SECOND,
  MINUTE, 2 * MINUTE, 5 * MINUTE, 10 * MINUTE, 15 * MINUTE, 30 * MINUTE,
  HOUR, 2 * HOUR, 3 * HOUR, 4 * HOUR, 6 * HOUR, 12 * HOUR, DAY,
];

// Ticks on round local times; midnight shows its date.
function timeAxis(start, end, count) {
  const rough = (end - start) / Math.max(1, count);
  const step = TIME_STEPS.find((one) => one >= rough) ?? DAY;
  const shift = new Date(end / 1000).getTimezoneOffset() * MINUTE;
  const ticks = [];
  for (let t = Math.ceil((start - shift) / step) * step + shift; t <= end; t += step) {
    const midnight = (t - shift) % DAY === 0;
    ticks.push({ t, text: midnight ? formatDate(t).slice(5) : formatClock(t, { seconds: step < MINUTE }) });
  }
  return ticks;
}
