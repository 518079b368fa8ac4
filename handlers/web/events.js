// Server-sent events by fetch: EventSource cannot set Authorization, and does not say why it failed.

const LINE_MAX = 1 << 20;

// The parser of the HTML standard (section 9.2.6, "interpreting an event stream"), fed piece by piece.
class EventParser {
  #decoder = new TextDecoder();
  #rest = "";
  #afterCr = false;
  #data = [];
  #size = 0;
  #event = "";
  #id;

  constructor(onEvent, onRetry = () => {}, lastId = "") {
    this.onEvent = onEvent;
    this.onRetry = onRetry;
    this.#id = lastId;
  }

  feed(bytes) {
    let text = this.#decoder.decode(bytes, { stream: true });
    if (!text) return;
    // A CR ended a line already; the LF behind it may have come with the next piece.
    if (this.#afterCr && text[0] === "\n") text = text.slice(1);
    this.#afterCr = text ? text.endsWith("\r") : false;
    const lines = (this.#rest + text).split(/\r\n|\n|\r/);
    this.#rest = lines.pop();
    if (this.#rest.length > LINE_MAX) throw new RangeError("a line of the stream is too long");
    for (const line of lines) this.#line(line);
  }

  #line(line) {
    if (line === "") return this.#dispatch();
    const colon = line.indexOf(":");
    if (colon === 0) return;
    const name = colon < 0 ? line : line.slice(0, colon);
    let value = colon < 0 ? "" : line.slice(colon + 1);
    if (value[0] === " ") value = value.slice(1);
    if (name === "data") {
      this.#size += value.length;
      if (this.#size > LINE_MAX) throw new RangeError("an event of the stream is too long");
      this.#data.push(value);
    } else if (name === "event") {
      this.#event = value;
    } else if (name === "id") {
      if (!value.includes("\0")) this.#id = value;
    } else if (name === "retry" && /^[0-9]+$/.test(value)) {
      this.onRetry(Number(value));
    }
  }

  #dispatch() {
    const data = this.#data.length ? this.#data.join("\n") : null;
    const type = this.#event || "message";
    this.#data = [];
    this.#size = 0;
    this.#event = "";
    // Without data there is no event, but its id counts.
    this.onEvent({ type, data, id: this.#id });
  }
}

// Something comes every 15 s; a connection that says nothing for so long is dead.
const SILENCE = 40_000;
const WAIT_MAX = 15_000;

// Follows one query of /v1/events for as long as it is not stopped, and resumes where it was.
// `on.state({kind, ...})`, `on.verdict({recovered, reason, away})`, `on.reading({...})`: what happens.
class Follower {
  #gate;
  #query;
  #on;
  #stopping = null;
  #wake = () => {};
  #lastId = "";
  #retry = 2000;
  #tries = 0;
  #lostAt = 0;

  constructor(gate, query, on) {
    this.#gate = gate;
    this.#query = query;
    this.#on = on;
  }

  get position() {
    return this.#lastId;
  }

  start() {
    if (this.#stopping) return;
    this.#stopping = new AbortController();
    this.#run(this.#stopping.signal);
  }

  stop() {
    if (this.#stopping && !this.#lostAt && this.#lastId) this.#lostAt = performance.now();
    this.#stopping?.abort();
    this.#stopping = null;
    this.#wake();
  }

  // Do not wait any longer: the network is back.
  hurry() {
    this.#tries = 0;
    this.#wake();
  }

  async #run(signal) {
    while (!signal.aborted) {
      this.#on.state({ kind: "connecting", tries: this.#tries });
      let fault = null;
      try {
        await this.#follow(signal);
      } catch (error) {
        fault = GateError.of(error);
      }
      if (signal.aborted) return;
      if (!this.#lostAt) this.#lostAt = performance.now();
      if (fault?.final) {
        this.#stopping = null;
        this.#on.state({ kind: "stopped", fault });
        return;
      }
      // Jitter, so that a thousand consoles do not come back in the same instant.
      const backOff = Math.min(WAIT_MAX, this.#retry * 2 ** this.#tries++) * (0.5 + Math.random() / 2);
      const wait = Math.max(backOff, (fault?.retryAfter ?? 0) * 1000);
      this.#on.state({ kind: "waiting", until: performance.now() + wait, fault, tries: this.#tries });
      await this.#sleep(wait);
    }
  }

  #sleep(milliseconds) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, milliseconds);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  async #follow(signal) {
    const attempt = new AbortController();
    const end = () => attempt.abort();
    signal.addEventListener("abort", end, { once: true });
    let silence = setTimeout(end, SILENCE);
    try {
      const resuming = this.#lastId !== "";
      const query = new URLSearchParams(this.#query);
      // A resumed stream has the values already; the newest ones are for those who begin.
      if (!resuming) query.set("latest", "true");
      const headers = { Accept: "text/event-stream" };
      if (resuming) headers["Last-Event-ID"] = this.#lastId;
      const response = await this.#gate.request(`/v1/events?${query}`, { headers, signal: attempt.signal });
      const parser = new EventParser(
        (event) => this.#event(event),
        (milliseconds) => (this.#retry = Math.min(WAIT_MAX, milliseconds)),
        this.#lastId,
      );
      const reader = response.body.getReader();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        clearTimeout(silence);
        silence = setTimeout(end, SILENCE);
        parser.feed(value);
      }
    } finally {
      clearTimeout(silence);
      signal.removeEventListener("abort", end);
      // Whatever ended it, nothing of it may go on.
      attempt.abort();
    }
  }

  #event({ type, data, id }) {
    if (type === "expired") throw new GateError(401, "token_expired");
    const content = data === null || data === "" ? null : JSON.parse(data);
    if (type === "reading" && content) this.#on.reading(content);
    else if (type === "recovery" && content) this.#recovery(content);
    // After it was worked in: what is not in the chart yet is not passed over.
    if (id) this.#lastId = id;
  }

  #recovery({ recovered, reason }) {
    const away = this.#lostAt ? (performance.now() - this.#lostAt) / 1000 : 0;
    this.#lostAt = 0;
    this.#tries = 0;
    this.#on.verdict({ recovered, reason, away });
    this.#on.state({ kind: "live" });
  }
}
