// Fastify with pg, fast-jwt and @fastify/websocket: schemas for bodies and answers, hooks, an error handler.
import websocket from "@fastify/websocket";
import Fastify from "fastify";
import { admit, BODY, LATEST_HEADERS, link, parse, Refused, Store } from "../common/gate.mjs";

const store = await Store.open(process.env.BENCH_DATABASE);
const app = Fastify({
  logger: false,
  keepAliveTimeout: 0,
  ajv: { customOptions: { coerceTypes: false, removeAdditional: false } },
});
await app.register(websocket, { options: { perMessageDeflate: false } });

// A hook before the body is read: its token, scope, grant and limit.
const allow = (scope) => async (request, reply) => {
  reply.headers(admit(request.headers, scope, request.params.device));
};

app.setErrorHandler((error, request, reply) => {
  if (error.validation) error = new Refused(422, "invalid");
  if (error instanceof Refused) return reply.code(error.status).headers(error.headers).send(error.body);
  return reply.code(error.statusCode ?? 500).send({ status: error.statusCode ?? 500, code: "malformed" });
});

const object = (properties) => ({ response: { 200: { type: "object", properties } } });
const text = { type: "string" }, number = { type: "integer" };
const WRITTEN = object({
  accepted: number,
  duplicates: number,
  rejected_count: number,
  rejected: { type: "array", items: { type: "object", properties: { pointer: text, code: text, detail: text } } },
  position: text,
});
const item = { type: "object", properties: { offset: number, metric: text, ts: text, value: {} } };
const PAGE = object({ items: { type: "array", items: item }, next: { type: ["string", "null"] } });
const reading = { type: "object", properties: { ts: text, value: {}, offset: number } };
const metrics = { type: "object", additionalProperties: reading };
const LATEST = object({ device: text, metrics, position: text });

app.get("/hello", { schema: object({ ok: { type: "boolean" } }) }, async () => ({ ok: true }));

app.post(
  "/v1/devices/:device/readings",
  { schema: { body: BODY, ...WRITTEN }, onRequest: allow("readings:write") },
  async (request) => store.add(request.params.device, parse(request.body)),
);

app.get(
  "/v1/devices/:device/latest",
  { schema: LATEST, onRequest: allow("readings:read") },
  async (request, reply) => {
    const body = await store.latest(request.params.device);
    const etag = `W/"${body.position}"`;
    reply.headers({ ETag: etag, ...LATEST_HEADERS });
    return request.headers["if-none-match"] === etag ? reply.code(304).send() : body;
  },
);

app.get(
  "/v1/devices/:device/readings",
  { schema: PAGE, onRequest: allow("readings:read") },
  async (request, reply) => {
    const body = await store.page(request.params.device, request.query);
    reply.headers(link(request.url, body));
    return body;
  },
);

app.get("/echo", { websocket: true }, (socket) => {
  socket.on("message", (data, binary) => socket.send(data, { binary }));
});

await app.listen({ port: Number(process.argv[2]), host: "127.0.0.1", backlog: 4096 });
process.on("SIGTERM", () => process.exit(0));
