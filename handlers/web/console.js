// The page: it follows all devices at a calm pace, and the chosen series reading by reading.

const $ = (id) => document.getElementById(id);

const REASONS = {
  unknown_epoch: "the log of the gate was replaced",
  expired: "what was missed is older than the gate keeps",
  ahead: "the gate knows less than this page has seen",
};
const JOURNAL_MAX = 40;
// A tab that nobody looks at lets go of its streams; it resumes when it is looked at again.
const HIDDEN_AFTER = 60_000;

class Console {
  #gate = new Gate();
  #list = new DeviceList((device, metric) => this.#choose(device, metric), () => this.#gate.now());
  #chart = $("chart");
  #overview = null;
  #detail = null;
  #states = new Map();
  #match = "";
  #device = "";
  #metric = "";
  #span = 3600 * SECOND;
  // Where the window ends if not now: at the newest reading of a series that rests.
  #anchor = null;
  #series = new Series();
  #loading = null;
  // What came by the stream since the history was asked for.
  #meanwhile = [];
  #reload = 0;
  #describing = new Set();
  #picking = 0;
  #hidden = 0;

  start() {
    this.#readFragment();
    $("token-form").addEventListener("submit", (event) => this.#submit(event));
    $("leave").addEventListener("click", () => this.#leave());
    $("filter").addEventListener("input", () => this.#filter());
    $("windows").addEventListener("change", (event) => this.#chooseSpan(Number(event.target.value)));
    this.#chart.addEventListener("figures", (event) => this.#showFigures(event.detail));
    addEventListener("hashchange", () => this.#readFragment() && this.#connect());
    addEventListener("online", () => this.#followers().forEach((one) => one.hurry()));
    document.addEventListener("visibilitychange", () => this.#look());
    document.addEventListener("keydown", (event) => this.#shortcut(event));
    document.addEventListener("click", (event) => this.#copy(event.target.closest?.("[data-copy]")));
    setInterval(() => this.#second(), 1000);
    setInterval(() => this.#glide(), 250);
    this.#connect();
  }

  // -- the token ----------------------------------------------------------------------------------

  // `#token=...` is taken and removed at once: it must not stay in the address bar or the history.
  #readFragment() {
    const given = new URLSearchParams(location.hash.slice(1));
    const token = given.get("token");
    if (given.has("device")) this.#device = given.get("device");
    if (given.has("metric")) this.#metric = given.get("metric");
    if (token === null) return false;
    this.#gate.token = token;
    this.#writeFragment();
    return true;
  }

  #writeFragment() {
    const kept = new URLSearchParams();
    if (this.#device) kept.set("device", this.#device);
    if (this.#metric) kept.set("metric", this.#metric);
    history.replaceState(null, "", location.pathname + location.search + (kept.size ? `#${kept}` : ""));
  }

  #submit(event) {
    event.preventDefault();
    this.#gate.token = $("token").value;
    $("token").value = "";
    this.#connect();
  }

  #leave(fault = null) {
    this.#stop();
    this.#gate.token = "";
    this.#list.clear();
    $("journal").replaceChildren();
    this.#series = this.#chart.series = new Series();
    this.#connect();
    if (fault) this.#alert(fault);
  }

  // -- following ----------------------------------------------------------------------------------

  #connect() {
    this.#stop();
    this.#alert(null);
    const known = this.#gate.hasToken;
    $("entry").hidden = known;
    $("desk").hidden = $("session").hidden = !known;
    const command = (scopes, devices) => `.venv/bin/tidegate token --sub me --scope "${scopes}" --devices "${devices}" --ttl 1h`;
    $("token-command").textContent = command("readings:read devices:read", ">");
    if (!known) {
      this.#showState();
      $("token").focus();
      return;
    }
    const { subject, devices } = this.#gate.claims, grant = devices[0] ?? "demo.>";
    const example = grant.replaceAll("*", "demo").replace(/^>$/, "demo.kitchen").replace(/>$/, "kitchen");
    $("subject").textContent = subject || "Token";
    $("curl").textContent = [
      `TOKEN=$(${command("readings:write", example)})`,
      `curl ${location.origin}/v1/devices/${example}/readings \\`,
      `  -H "Authorization: Bearer $TOKEN" -H "Content-Type: application/json" \\`,
      `  -d '{"metric": "temperature", "value": 21.5}'`,
    ].join("\n");
    this.#second();
    this.#chart.view = null;
    this.#chart.say("The chart of a series stands here once there is one.");
    this.#follow();
    if (this.#device && this.#metric) this.#choose(this.#device, this.#metric);
  }

  #followers() {
    return [this.#overview, this.#detail].filter(Boolean);
  }

  #stop() {
    for (const one of this.#followers()) one.stop();
    this.#overview = this.#detail = null;
    this.#loading?.abort();
    clearTimeout(this.#reload);
    this.#states.clear();
  }

  // All devices, or those of the pattern: at most a value a second of each series.
  #follow() {
    this.#overview?.stop();
    const query = [["match", this.#match || ">"], ["min_interval", "1s"]];
    const overview = new Follower(this.#gate, query, {
      state: (state) => this.#setState("Devices", state),
      verdict: (verdict) => {
        this.#judge("Devices", verdict);
        // What was missed cannot be had from the stream: begin anew with the newest values.
        if (verdict.recovered === false) queueMicrotask(() => this.#overview === overview && this.#follow());
        this.#showEmpty();
      },
      reading: ({ device, metric, ts, value }) => {
        this.#list.add({ device, metric, value, t: parseTime(ts) });
        this.#describe(device);
        this.#showEmpty();
        // The first of the list, when the first crowd has arrived.
        if (!this.#metric) this.#picking ||= setTimeout(() => this.#pick(), 150);
      },
    });
    this.#overview = overview;
    overview.start();
  }

  #pick() {
    this.#picking = 0;
    const first = this.#list.first;
    if (!this.#metric && first) this.#choose(first.device, first.metric);
  }

  #choose(device, metric) {
    const same = device === this.#device && metric === this.#metric && this.#detail;
    if (same) return;
    this.#device = device;
    this.#metric = metric;
    this.#anchor = null;
    this.#writeFragment();
    this.#list.chosen = { device, metric };
    $("series-title").textContent = metric;
    $("series-device").textContent = device;
    this.#chart.setAttribute("aria-label", `Chart of ${metric} of ${device}; arrow keys read single values`);
    document.title = `${metric} \u00b7 ${device} \u00b7 Tidegate`;
    this.#series = this.#chart.series = new Series();
    this.#showNow();
    this.#detail?.stop();
    this.#detail = new Follower(this.#gate, [["match", device], ["metric", metric]], {
      state: (state) => this.#setState("Chart", state),
      verdict: (verdict) => {
        this.#judge("Chart", verdict);
        // The stream stands: what was committed before this is in the history, what comes after in the stream.
        if (verdict.recovered !== true || this.#loading) this.#load();
      },
      reading: ({ ts, value }) => this.#take(parseTime(ts), value),
    });
    this.#detail.start();
    scrollTo({ top: 0, behavior: "auto" });
  }

  #take(t, value) {
    if (this.#loading) this.#meanwhile.push([t, value]);
    this.#series.add(t, value);
    // The list, which waits a second between two values, would contradict the chart.
    this.#list.add({ device: this.#device, metric: this.#metric, t, value });
    if (this.#series.full && !this.#loading) this.#load();
    this.#showNow();
    this.#chart.redraw();
  }

  // -- history ------------------------------------------------------------------------------------

  get #end() {
    return this.#anchor ?? this.#gate.now();
  }

  async #load() {
    this.#loading?.abort();
    clearTimeout(this.#reload);
    const loading = (this.#loading = new AbortController());
    this.#meanwhile = [];
    this.#chart.setAttribute("aria-busy", "true");
    try {
      const start = Math.max(0, this.#end - this.#span);
      const series = await loadSeries(this.#gate, this.#device, this.#metric, start, this.#span, loading.signal);
      if (loading.signal.aborted) return;
      for (const [t, value] of this.#meanwhile) series.add(t, value);
      // The newest may lie before the window; it is where the line comes from.
      const { newest } = this.#series;
      if (newest) series.add(newest.t, newest.value);
      this.#series = this.#chart.series = series;
      this.#loading = null;
    } catch (error) {
      if (loading.signal.aborted) return;
      const fault = GateError.of(error);
      if (fault.final) {
        this.#loading = null;
        this.#alert(fault);
      } else {
        this.#reload = setTimeout(() => this.#load(), Math.max(2000, fault.retryAfter * 1000) * (1 + Math.random()));
      }
    } finally {
      if (this.#loading === null) this.#chart.removeAttribute("aria-busy");
    }
    this.#showNow();
    this.#glide();
  }

  // An empty window says where the readings are.
  #showRest({ start, end }) {
    const { newest, buckets } = this.#series, resting = newest && newest.t < start && !buckets.length;
    if (resting) {
      this.#chart.say(`No readings in this window. The newest is of ${formatMoment(newest.t)}.`, {
        text: "Go there",
        run: () => {
          this.#anchor = newest.t + Math.round((end - start) / 50);
          this.#load();
        },
      });
    } else if (newest || buckets.length) {
      this.#chart.say("");
    } else {
      this.#chart.say(this.#loading ? "Loading the history" : "No readings yet");
    }
  }

  #chooseSpan(seconds) {
    this.#span = seconds * SECOND;
    this.#anchor = null;
    if (this.#detail) this.#load();
    this.#glide();
  }

  // -- what is shown ------------------------------------------------------------------------------

  #glide() {
    if (document.hidden || !this.#detail) return;
    const end = this.#end;
    const view = { start: end - this.#span, end };
    this.#series.prune(view.start);
    this.#chart.view = view;
    this.#showRest(view);
  }

  #second() {
    if (document.hidden || !this.#gate.hasToken) return;
    this.#list.age();
    const { expires } = this.#gate.claims, left = expires - this.#gate.now() / SECOND;
    $("expiry").textContent = !expires ? "" : left > 0 ? `for ${formatLength(Math.max(10, left))}` : "has expired";
    this.#showState();
    this.#showNewest();
  }

  #showNow() {
    const { newest } = this.#series;
    $("now").textContent = newest ? formatValue(newest.value).slice(0, 200) : "";
    $("now").dataset.type = typeof newest?.value;
    this.#showNewest();
  }

  #showNewest() {
    const { newest } = this.#series;
    $("figure-newest").textContent = newest ? formatMoment(newest.t) : "\u2013";
  }

  #showFigures({ low, high, sum, count, numbers }) {
    for (const [name, value] of [["min", low], ["mean", sum / numbers], ["max", high]]) {
      $(`figure-${name}`).parentElement.hidden = !numbers && count > 0;
      $(`figure-${name}`).textContent = numbers ? formatNumber(Number(value.toPrecision(6))) : "\u2013";
    }
    $("figure-count").textContent = count.toLocaleString("en");
  }

  #showEmpty() {
    $("empty").hidden = this.#list.size > 0 || this.#match !== "";
  }

  #filter() {
    const text = $("filter").value.trim(), match = isPattern(text) ? text : "";
    this.#list.filter = text;
    if (match === this.#match) return;
    this.#match = match;
    this.#follow();
  }

  // Name and labels of devices, if the token may see them.
  async #describe(device) {
    if (this.#list.knows(device) || !this.#gate.claims.scopes.includes("devices:read")) return;
    const first = !this.#describing.size;
    this.#describing.add(device);
    if (!first) return;
    // Devices come in crowds: one look for all of them.
    await new Promise((resolve) => setTimeout(resolve, 200));
    const unknown = new Set(this.#describing);
    try {
      const { items } = await this.#gate.list("/v1/devices", [["match", this.#match || ">"], ["limit", "1000"]], SERIES_MAX);
      for (const { device: id, name, labels } of items) this.#list.describe(id, name, labels);
      // One that is not in the list is not asked for again and again.
      for (const id of unknown) if (!this.#list.knows(id)) this.#list.describe(id, "", {});
    } catch {
      // The page lives without names; the next new device asks again.
    }
    this.#describing.clear();
  }

  // -- how the connection is ----------------------------------------------------------------------

  #setState(name, state) {
    this.#states.set(name, state);
    if (state.kind === "stopped") {
      if (state.fault.status === 401) return this.#leave(state.fault);
      this.#alert(state.fault);
    } else if (state.kind === "live") {
      if ([...this.#states.values()].every((one) => one.kind === "live")) this.#alert(null);
    } else if (state.kind === "waiting" && (state.tries > 1 || state.fault?.status)) {
      this.#alert(state.fault);
    }
    this.#showState();
  }

  #showState() {
    const order = ["stopped", "waiting", "connecting", "live"];
    const states = [...this.#states.values()].sort((a, b) => order.indexOf(a.kind) - order.indexOf(b.kind));
    const state = states[0] ?? { kind: "idle" };
    $("state").dataset.kind = state.kind;
    const seconds = Math.max(1, Math.ceil((state.until - performance.now()) / 1000));
    $("state-text").textContent = {
      idle: this.#hidden ? "Paused" : "Not connected",
      connecting: state.tries ? "Reconnecting" : "Connecting",
      live: "Live",
      waiting: `Away, again in ${seconds} s`,
      stopped: "Stopped",
    }[state.kind];
  }

  #judge(name, { recovered, reason, away }) {
    if (recovered === null) return this.#note(name, "live", "Following from now on.");
    const gone = `after ${formatLength(away)}`;
    if (recovered) return this.#note(name, "recovered", `Back ${gone}. Nothing was missed.`);
    const words = Object.hasOwn(REASONS, reason) ? REASONS[reason] : String(reason);
    this.#note(name, "not recovered", `Back ${gone} with a gap: ${words} (${reason}). Loaded again from what is stored.`);
  }

  #note(name, verdict, text) {
    const entry = $("entry-template").content.cloneNode(true).firstElementChild;
    entry.dataset.verdict = verdict;
    entry.dataset.stream = name;
    entry.querySelector("time").textContent = formatClock(nowMicros());
    entry.querySelector(".badge").textContent = verdict;
    entry.querySelector("span").textContent = `${name}: ${text}`;
    $("journal").prepend(entry);
    while ($("journal").children.length > JOURNAL_MAX) $("journal").lastChild.remove();
  }

  #alert(fault) {
    $("alert").hidden = fault === null;
    if (fault === null) return;
    const [title, text] = fault.words;
    if ($("alert-title").textContent !== title) $("alert-title").textContent = title;
    if ($("alert-text").textContent !== text) $("alert-text").textContent = text;
    const action = $("alert-action"), again = this.#gate.hasToken;
    action.hidden = !again;
    action.textContent = fault.final && fault.status === 403 ? "Use another token" : "Try now";
    action.onclick = () => {
      if (fault.final && fault.status === 403) this.#leave();
      else if (fault.final) this.#connect();
      else this.#followers().forEach((one) => one.hurry());
    };
  }

  // -- the rest -----------------------------------------------------------------------------------

  #look() {
    clearTimeout(this.#hidden);
    if (document.hidden) {
      this.#hidden = setTimeout(() => {
        this.#followers().forEach((one) => one.stop());
        this.#states.clear();
        this.#showState();
      }, HIDDEN_AFTER);
      return;
    }
    this.#hidden = 0;
    this.#followers().forEach((one) => one.start());
    this.#second();
    this.#glide();
  }

  #shortcut(event) {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input, textarea") || $("desk").hidden) return;
    event.preventDefault();
    $("filter").focus();
  }

  async #copy(button) {
    if (!button) return;
    const text = $(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = "Copied";
    } catch {
      // Not on plain HTTP: select it, so that Ctrl-C does it.
      getSelection().selectAllChildren(text);
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 2000);
  }
}

new Console().start();
