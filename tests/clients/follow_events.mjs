// Follows server-sent events with npm's eventsource: node follow_events.mjs URL
//
// Each event is printed as a line. Coming back is the library's own work, until the standard input ends.
import { createRequire } from "node:module";

// The packages stand in the folder that it is started in.
const { EventSource } = createRequire(`${process.cwd()}/`)("eventsource");
const print = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);
const source = new EventSource(process.argv[2]);

source.addEventListener("open", () => print({ type: "connected" }));
source.addEventListener("error", () => print({ type: "lost", gone: source.readyState === EventSource.CLOSED }));
for (const type of ["recovery", "reading", "position", "expired"]) {
  source.addEventListener(type, ({ data, lastEventId }) => print({ ...JSON.parse(data), type, id: lastEventId }));
}

process.stdin.on("end", () => process.exit(0)).resume();
