// Follows over a WebSocket with npm's ws: node follow_socket.mjs URL TOKEN PATTERN
//
// Each message is printed as a line. Whenever the connection ends it comes back with the last position that it was
// shown, until its standard input ends.
import { createRequire } from "node:module";

// The packages stand in the folder that it is started in.
const { WebSocket } = createRequire(`${process.cwd()}/`)("ws");
const [url, token, pattern] = process.argv.slice(2);
const print = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);
let position = "earliest";

function connect() {
  const socket = new WebSocket(url, { headers: { Authorization: `Bearer ${token}` } });
  let opened = false;
  socket.on("open", () => {
    opened = true;
    print({ type: "connected", extensions: socket.extensions });
    socket.send(JSON.stringify({ type: "subscribe", id: "a", match: [pattern], since: position }));
  });
  socket.on("message", (data) => {
    const message = JSON.parse(data);
    position = message.position;
    print(message);
  });
  // The close event follows.
  socket.on("error", () => {});
  socket.on("close", (code, reason) => {
    if (reason.length) position = reason.toString();
    if (opened) print({ type: "closed", code, position });
    setTimeout(connect, 100);
  });
}

connect();
process.stdin.on("end", () => process.exit(0)).resume();
