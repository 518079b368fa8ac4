// node:http without a framework, with pg, fast-jwt, ajv and ws: what each of them recommends, one process.
import http from "node:http";
import { WebSocketServer } from "ws";
import { admit, isBody, LATEST_HEADERS, link, parse, Refused, Store } from "../common/gate.mjs";

const store = await Store.open(process.env.BENCH_DATABASE);
const DEVICE = /^\/v1\/devices\/([^/]+)\/(latest|readings)$/;

function answer(response, status, body, headers = {}) {
  const text = JSON.stringify(body);
  response.writeHead(status, {
    ...headers,
    "Content-Type": "application/json",
    "Content-Length": Buffer.byteLength(text),
  });
  response.end(text);
}

async function read(request) {
  const pieces = [];
  for await (const piece of request) pieces.push(piece);
  try {
    return JSON.parse(Buffer.concat(pieces));
  } catch {
    throw new Refused(400, "malformed");
  }
}

async function write(request, response, device) {
  const headers = admit(request.headers, "readings:write", device);
  const body = await read(request);
  if (!isBody(body)) throw new Refused(422, "invalid", headers);
  answer(response, 200, await store.add(device, parse(body)), headers);
}

async function latest(request, response, device) {
  const headers = admit(request.headers, "readings:read", device);
  const body = await store.latest(device);
  Object.assign(headers, LATEST_HEADERS, { ETag: `W/"${body.position}"` });
  if (request.headers["if-none-match"] === headers.ETag) response.writeHead(304, headers).end();
  else answer(response, 200, body, headers);
}

async function page(request, response, device, query) {
  const headers = admit(request.headers, "readings:read", device);
  const body = await store.page(device, Object.fromEntries(new URLSearchParams(query)));
  answer(response, 200, body, Object.assign(headers, link(request.url, body)));
}

const routes = { "POST readings": write, "GET readings": page, "GET latest": latest };

async function handle(request, response) {
  if (request.url === "/hello") return answer(response, 200, { ok: true });
  const [path, query] = request.url.split("?", 2);
  const found = DEVICE.exec(path);
  const route = found && routes[`${request.method} ${found[2]}`];
  if (!route) throw new Refused(404, "not_found");
  return route(request, response, found[1], query);
}

const server = http.createServer(async (request, response) => {
  try {
    await handle(request, response);
  } catch (error) {
    const refused = error instanceof Refused ? error : new Refused(500, "internal");
    answer(response, refused.status, refused.body, refused.headers);
  }
});
new WebSocketServer({ server, path: "/echo", perMessageDeflate: false }).on("connection", (socket) => {
  socket.on("message", (data, binary) => socket.send(data, { binary }));
});
server.keepAliveTimeout = 0;
server.listen(Number(process.argv[2]), "127.0.0.1", 4096);
process.on("SIGTERM", () => process.exit(0));
