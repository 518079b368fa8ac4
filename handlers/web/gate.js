// The gate as this page sees it: requests with the token, and errors in plain words.

const TOKEN_KEY = "tidegate.token";

// What went wrong. `status`: 0 when there was no answer. `final`: trying again does not help.
class GateError extends Error {
  constructor(status, code = "", detail = "", retryAfter = 0) {
    super(detail || code || String(status));
    this.status = status;
    this.code = code;
    this.detail = detail;
    this.retryAfter = retryAfter;
  }

  static of(error) {
    return error instanceof GateError ? error : new GateError(0, "unreachable", String(error?.message ?? error));
  }

  static async from(response) {
    let problem = {};
    try {
      problem = await response.json();
    } catch {
      // A proxy in between answers as it likes; the status says enough.
    }
    const wait = Number(response.headers.get("Retry-After"));
    return new GateError(response.status, problem.code, problem.detail, Number.isFinite(wait) ? wait : 0);
  }

  get final() {
    return [400, 401, 403, 404, 406, 422].includes(this.status);
  }

  // What happened, and what to do about it.
  get words() {
    switch (this.status) {
      case 0:
        return ["The gate cannot be reached.", "It may be restarting, or the network is away. This page tries again by itself."];
      case 401:
        if (this.code === "token_expired") return ["The token has expired.", "Make a new one and paste it."];
        if (this.code === "token_revoked") return ["The token was revoked.", "Ask for a new one and paste it."];
        return ["The gate does not accept this token.", "Check that it was copied whole and was made by this gate, then paste it again."];
      case 403:
        if (this.code === "insufficient_scope") return ["This token may not read.", "Use one with the scope readings:read."];
        return ["This token has no grant for these devices.", "Use one whose device patterns match, or change the filter."];
      case 429:
        return ["Too many requests with this token.", "The gate limits them; this page tries again by itself. Close other consoles if this stays."];
      case 503:
        return ["The gate cannot answer now.", "It is overloaded or its database is away; this page tries again by itself."];
      default:
        return [`The gate answered with an error (${this.status}).`, this.detail || "Its log says more."];
    }
  }
}

class Gate {
  #token = "";
  #claims = null;
  // Microseconds that the gate's clock is ahead of this one; small differences are none.
  skew = 0;

  constructor() {
    this.#token = sessionStorage.getItem(TOKEN_KEY) ?? "";
  }

  get hasToken() {
    return this.#token !== "";
  }

  set token(text) {
    this.#token = text.trim().replace(/^bearer\s+/i, "");
    this.#claims = null;
    if (this.#token) sessionStorage.setItem(TOKEN_KEY, this.#token);
    else sessionStorage.removeItem(TOKEN_KEY);
  }

  // What the token says of itself; the gate alone judges whether it is true.
  get claims() {
    return (this.#claims ??= this.#readClaims());
  }

  #readClaims() {
    try {
      const payload = this.#token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/");
      const bytes = Uint8Array.from(atob(payload), (letter) => letter.charCodeAt(0));
      const claims = JSON.parse(new TextDecoder().decode(bytes));
      return {
        subject: typeof claims.sub === "string" ? claims.sub : "",
        expires: typeof claims.exp === "number" ? claims.exp : 0,
        scopes: typeof claims.scope === "string" ? claims.scope.split(" ") : [],
        devices: Array.isArray(claims.devices) ? claims.devices.map(String) : [],
      };
    } catch {
      return { subject: "", expires: 0, scopes: [], devices: [] };
    }
  }

  now() {
    return nowMicros() + this.skew;
  }

  // A request with the token; GateError for any answer but 2xx.
  async request(path, { headers = {}, signal } = {}) {
    // What cannot stand in a header would look like a failure of the network.
    if (!/^[\x21-\x7e]+$/.test(this.#token)) throw new GateError(401, "token_malformed");
    const response = await fetch(path, {
      headers: { Accept: "application/json", ...headers, Authorization: `Bearer ${this.#token}` },
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
      signal,
    });
    this.#compareClocks(response.headers.get("Date"));
    if (!response.ok) throw await GateError.from(response);
    return response;
  }

  async get(path, parameters = [], signal = undefined) {
    const query = new URLSearchParams(parameters);
    const limit = signal ? AbortSignal.any([signal, AbortSignal.timeout(20_000)]) : AbortSignal.timeout(20_000);
    return (await this.request(query.size ? `${path}?${query}` : path, { signal: limit })).json();
  }

  // The items of a list, page by page, at most `most`; `complete` tells whether that is all.
  async list(path, parameters, most, signal = undefined) {
    const items = [];
    let cursor = null;
    do {
      const page = await this.get(path, cursor ? [...parameters, ["cursor", cursor]] : parameters, signal);
      items.push(...page.items);
      cursor = page.next;
    } while (cursor && items.length < most);
    return { items, complete: cursor === null };
  }

  #compareClocks(date) {
    const off = (Date.parse(date ?? "") - Date.now()) * 1000;
    // The header has whole seconds.
    if (Number.isFinite(off)) this.skew = Math.abs(off) > 3 * SECOND ? off : 0;
  }
}
