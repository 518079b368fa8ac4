// What the Node.js targets share: token, scope, grant, limit, validation, PostgreSQL. As in checks.py, readings.py
// and store.py. Packages are those of the target that runs.
import { createRequire } from "node:module";
import { randomBytes } from "node:crypto";

const require = createRequire(process.cwd() + "/");
const { createVerifier } = require("fast-jwt");
const { default: Ajv } = require("ajv");
const pg = require("pg");

// Requests per minute of a principal: GCRA with a burst of a tenth.
const LIMIT = Number(process.env.BENCH_LIMIT);
const INTERVAL = 60 / LIMIT;
const DEPTH = Math.max(1, Math.floor(LIMIT / 10)) * INTERVAL;
const POLICY = `"requests";q=${LIMIT};w=60`;
const READINGS_MAX = 10_000;
const arrivals = new Map();
const verify = createVerifier({
  key: process.env.BENCH_SECRET,
  algorithms: ["HS256"],
  allowedIss: "tidegate",
  allowedAud: "tidegate",
  requiredClaims: ["exp", "iat", "aud", "iss", "sub"],
});

export const LATEST_HEADERS = { "Cache-Control": "private, no-cache", Vary: "Accept, Authorization" };

export class Refused extends Error {
  constructor(status, code, headers = {}) {
    super(code);
    this.status = status;
    this.headers = headers;
    this.body = { type: `/problems/${code}`, status, code };
  }
}

// The headers of the answer, if the token is good for the scope and the device, and under its limit.
export function admit(given, scope, device) {
  const [kind, token] = (given.authorization ?? "").split(" ");
  if (kind !== "Bearer") throw new Refused(401, "unauthorized", { "WWW-Authenticate": "Bearer" });
  let claims;
  try {
    claims = verify(token);
  } catch {
    throw new Refused(401, "unauthorized", { "WWW-Authenticate": 'Bearer error="invalid_token"' });
  }
  const headers = { "X-Request-ID": knownId(given["x-request-id"]), ...limit(claims.sub) };
  if (!claims.scope.split(" ").includes(scope)) throw new Refused(403, "forbidden", headers);
  if (!claims.devices.some((pattern) => granted(pattern, device))) {
    throw new Refused(scope.endsWith(":write") ? 403 : 404, "forbidden", headers);
  }
  return headers;
}

function limit(principal) {
  const now = performance.now() / 1000;
  const arrival = Math.max(arrivals.get(principal) ?? now, now) + INTERVAL;
  const fill = arrival - now;
  if (fill > DEPTH) {
    const wait = Math.floor(fill - DEPTH) + 1;
    throw new Refused(429, "rate_limited", { "Retry-After": String(wait), ...said(fill - INTERVAL) });
  }
  arrivals.set(principal, arrival);
  return said(fill);
}

function said(fill) {
  const left = Math.floor((DEPTH - fill) / INTERVAL);
  return { "RateLimit-Policy": POLICY, RateLimit: `"requests";r=${left};t=${Math.floor(fill) + 1}` };
}

function granted(pattern, device) {
  const wanted = pattern.split("."), tokens = device.split(".");
  for (let place = 0; place < wanted.length; place++) {
    if (wanted[place] === ">") return place === wanted.length - 1 && tokens.length > place;
    if (place >= tokens.length || (wanted[place] !== "*" && wanted[place] !== tokens[place])) return false;
  }
  return tokens.length === wanted.length;
}

function knownId(given) {
  return given && /^[ -~]{1,128}$/.test(given) ? given : randomBytes(16).toString("hex");
}

const METRIC = "^[A-Za-z0-9_.:/%-]{1,64}$";
const value = {
  anyOf: [
    { type: "boolean" },
    { type: "integer", minimum: -(2 ** 53), maximum: 2 ** 53 },
    { type: "number", not: { type: "integer" } },
    { type: "string", maxLength: 1024 },
  ],
};
const ts = { type: "integer", minimum: 0, exclusiveMaximum: 253402300800000 };
export const ITEM = {
  anyOf: [
    {
      type: "object",
      required: ["metric", "value"],
      additionalProperties: false,
      properties: { metric: { type: "string", pattern: METRIC }, value, ts },
    },
    {
      type: "object",
      required: ["values"],
      additionalProperties: false,
      properties: { values: { type: "object", minProperties: 1, propertyNames: { pattern: METRIC }, additionalProperties: value }, ts },
    },
  ],
};
// An array's items are looked at one by one: one that is bad must not cost the others.
export const BODY = { anyOf: [{ type: "array", minItems: 1, maxItems: READINGS_MAX }, ...ITEM.anyOf] };
const ajv = new Ajv();
const isItem = ajv.compile(ITEM);
export const isBody = ajv.compile(BODY);

// Rows of a body that is a BODY, as columns, and what is wrong with its other items.
export function parse(given) {
  const items = Array.isArray(given) ? given : [given];
  const metrics = [], times = [], values = [], rejected = [];
  items.forEach((item, number) => {
    if (items === given && !isItem(item)) {
      rejected.push({ pointer: `/${number}`, code: "invalid", detail: isItem.errors[0].message });
      return;
    }
    const time = item.ts === undefined ? uniqueTime() : item.ts * 1000;
    for (const [metric, value] of item.values ? Object.entries(item.values) : [[item.metric, item.value]]) {
      metrics.push(metric);
      times.push(time);
      values.push(JSON.stringify(value));
    }
  });
  if (!metrics.length) throw new Refused(422, "invalid");
  return { metrics, times, values, rejected };
}

let last = 0;

// Microseconds since 1970, never the same twice.
function uniqueTime() {
  last = Math.max(last + 1, Date.now() * 1000);
  return last;
}

const isPage = new Ajv({ coerceTypes: true, useDefaults: true }).compile({
  type: "object",
  required: ["metric"],
  additionalProperties: false,
  properties: {
    metric: { type: "string", pattern: METRIC },
    from: { ...ts, default: 0 },
    to: { ...ts, default: 253402300799999 },
    order: { enum: ["asc", "desc"], default: "asc" },
    limit: { type: "integer", minimum: 1, maximum: 1000, default: 100 },
    cursor: { type: "integer", minimum: 0 },
  },
});

// int8 fits: microseconds and ids are below 2**53.
pg.types.setTypeParser(20, Number);

const SCHEMA = `CREATE TABLE IF NOT EXISTS readings (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  device text NOT NULL, metric text NOT NULL, ts bigint NOT NULL, value jsonb NOT NULL,
  UNIQUE (device, metric, ts))`;
const ONE = `INSERT INTO readings (device, metric, ts, value) VALUES ($1, $2, $3, $4)
  ON CONFLICT DO NOTHING RETURNING id`;
const MANY = `WITH stored AS (
    INSERT INTO readings (device, metric, ts, value)
    SELECT $1, * FROM unnest($2::text[], $3::bigint[], $4::jsonb[]) ON CONFLICT DO NOTHING RETURNING id)
  SELECT count(*) AS count, coalesce(max(id), 0) AS last FROM stored`;
const LATEST = `SELECT DISTINCT ON (metric) metric, ts, id, value FROM readings
  WHERE device = $1 ORDER BY metric, ts DESC`;
const page = (order) => `SELECT id, ts, value FROM readings
  WHERE device = $1 AND metric = $2 AND ts >= $3 AND ts < $4 ORDER BY ts ${order} LIMIT $5`;

export class Store {
  #pool;
  #latest = new Map();
  #writes = new Map();

  static async open(url) {
    const store = new Store();
    store.#pool = new pg.Pool({ connectionString: url, max: 10, min: 10 });
    await store.#pool.query(SCHEMA);
    return store;
  }

  async add(device, { metrics, times, values, rejected }) {
    let count = 0, position = 0;
    if (metrics.length === 1) {
      const found = await this.#run("one", ONE, [device, metrics[0], times[0], values[0]]);
      if (found.length) [count, position] = [1, found[0].id];
    } else {
      const [found] = await this.#run("many", MANY, [device, metrics, times, values]);
      [count, position] = [found.count, found.last];
    }
    this.#writes.set(device, (this.#writes.get(device) ?? 0) + 1);
    this.#latest.delete(device);
    return {
      accepted: count,
      duplicates: metrics.length - count,
      rejected_count: rejected.length,
      rejected: rejected.slice(0, 100),
      position: String(position),
    };
  }

  async latest(device) {
    const known = this.#latest.get(device);
    if (known) return known;
    const writes = this.#writes.get(device);
    const metrics = {};
    let position = 0;
    for (const row of await this.#run("latest", LATEST, [device])) {
      metrics[row.metric] = { ts: rfc3339(row.ts), value: row.value, offset: row.id };
      position = Math.max(position, row.id);
    }
    const body = { device, metrics, position: String(position) };
    // What was read before another write is not kept.
    if (this.#writes.get(device) === writes) this.#latest.set(device, body);
    return body;
  }

  async page(device, query) {
    const asked = { ...query };
    if (!isPage(asked)) throw new Refused(422, "invalid");
    const { metric, order, limit, cursor } = asked;
    let low = asked.from * 1000, high = asked.to * 1000;
    if (cursor !== undefined) [low, high] = order === "asc" ? [cursor, high] : [low, cursor + 1];
    const rows = await this.#run(order, page(order), [device, metric, low, high, limit + 1]);
    const items = rows.slice(0, limit).map(({ id, ts, value }) => ({ offset: id, metric, ts: rfc3339(ts), value }));
    return { items, next: rows.length > limit ? String(rows[limit].ts) : null };
  }

  // A named statement is prepared once a connection.
  async #run(name, text, values) {
    return (await this.#pool.query({ name, text, values })).rows;
  }
}

// The header that names the next page, if there is one.
export function link(url, body) {
  if (body.next === null) return {};
  const base = url.split("&").filter((part) => !part.startsWith("cursor=")).join("&");
  return { Link: `<${base}&cursor=${body.next}>; rel="next"` };
}

function rfc3339(microseconds) {
  const rest = String(microseconds % 1000).padStart(3, "0");
  return new Date(Math.floor(microseconds / 1000)).toISOString().replace("Z", `${rest}Z`);
}
