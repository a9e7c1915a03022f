/**
 * Follows runs of a Mux server: an async iterator that survives every cut of the connection.
 *
 * ```js
 * import { follow } from "https://my-mux.example/js/stream.js";
 * for await (const part of follow({ base: "https://my-mux.example", runs: "r0abc" })) {
 *   for (const event of part.events) if (event.type === "token") show(event.channel, event.content);
 * }
 * ```
 *
 * What it guarantees: events come in the log's order, none lost and none doubled, over any number of reconnects
 * (it resumes after the last complete frame that it handed out, and checks the sequence numbers). It ends when the
 * run's last event has been delivered, when `signal` aborts, or by throwing a {@link StreamError} for an answer
 * that no retry can mend.
 * It needs `fetch` and nothing of a page: the same file runs in browsers, workers and Node 20.
 *
 * @module stream
 */
import { createParser } from "../vendor/eventsource-parser/4.1.3/index.js";

/**
 * One logged event as on the wire. Unknown types and fields may come: ignore them.
 * @typedef {{run: string, seq: number, channel: string|null, cseq: number, type: string, ts: number,
 *   from_cseq?: number, path?: string[], [field: string]: any}} MuxEvent
 */

/**
 * One or more events that arrived together. With `compact` one part is one window and is applied whole.
 * @typedef {object} Part
 * @property {MuxEvent[]} events  in order; empty for a control frame
 * @property {string|null} cursor the position after these events: give it as `after` to continue later
 * @property {any} [control]      a control frame: `stream_open`, `stream_live`, `stream_gap`, `stream_end`, …
 */

/**
 * @typedef {object} FollowOptions
 * @property {string|string[]} runs    one run id, or several to follow over the same connection
 * @property {string} [base]           where the server is: an origin or a path; default: the page's own origin
 * @property {string} [after]          a cursor: continue behind it; default: from the beginning
 * @property {string[]} [channels]     only these channels (run events always come)
 * @property {string[]} [types]        only these types, `tool_*` allowed
 * @property {boolean} [compact]       windows with merged deltas instead of single events
 * @property {number} [compactMs]      how much recorded time one replay window may span, in ms
 * @property {string} [until]          `"channels"`: end when every channel of the filter is done
 * @property {boolean} [observe]       watch without counting as a viewer for the disconnect policy
 * @property {Record<string, string>} [headers]  further request headers
 * @property {AbortSignal} [signal]    stops following
 * @property {number} [silenceMs]      reconnect after this much silence; default 25,000 (the server's heartbeat is 10 s)
 * @property {typeof fetch} [fetch]    another `fetch`
 * @property {(state: "connecting"|"open"|"waiting", detail: {attempt: number, delayMs?: number, reason?: string}) => void} [onState]
 */

/** An answer that no retry can mend: `status` and `code` say why, `message` what to do. */
export class StreamError extends Error {
  /** @param {number} status @param {string} code @param {string} message */
  constructor(status, code, message) {
    super(message);
    this.name = "StreamError";
    this.status = status;
    this.code = code;
  }
}

const FIRST_DELAY_MS = 250;
const LAST_DELAY_MS = 10_000;
const MAX_FRAME = 64 * 1024 * 1024; // a window may carry a reply of 32 MiB; above this the server is broken

/**
 * The address of the stream that these options describe.
 * @param {FollowOptions} options @param {string|null} after
 */
export function streamUrl(options, after) {
  const runs = Array.isArray(options.runs) ? options.runs : [options.runs];
  const query = new URLSearchParams();
  const one = runs.length === 1;
  if (!one) query.set("run", runs.join(","));
  if (after) query.set("after", after);
  if (options.compact) query.set("compact", "1");
  if (options.compactMs) query.set("compact_ms", String(options.compactMs));
  if (options.channels?.length) query.set("channel", options.channels.join(","));
  if (options.types?.length) query.set("type", options.types.join(","));
  if (options.until) query.set("until", options.until);
  if (options.observe) query.set("observe", "1");
  const path = one ? `/api/runs/${encodeURIComponent(runs[0])}/events` : "/api/events";
  const search = query.toString();
  return `${(options.base ?? "").replace(/\/$/, "")}${path}${search ? `?${search}` : ""}`;
}

/**
 * Follow one or several runs.
 * @param {FollowOptions} options
 * @returns {AsyncGenerator<Part, void, void>}
 * @throws {StreamError}
 */
export async function* follow(options) {
  const { signal } = options;
  const check = proof(options);
  let after = options.after ?? null;
  let attempt = 0;
  let delay = 0;
  while (!signal?.aborted) {
    if (delay > 0) await pause(delay, signal);
    if (signal?.aborted) return;
    options.onState?.("connecting", { attempt });
    /** @type {Outcome} */
    const outcome = { reason: "closed" };
    for await (const part of connection(options, after, outcome)) {
      attempt = 0;
      check(part);
      if (part.cursor) after = part.cursor;
      yield part;
    }
    if (outcome.end || signal?.aborted) return;
    attempt += 1;
    delay = outcome.reason === "rotate" ? 0 : (outcome.retryAfterMs ?? backoff(attempt));
    options.onState?.("waiting", { attempt, delayMs: delay, reason: outcome.reason });
  }
}

/**
 * Proves that nothing comes twice or out of order and, where the stream is whole, that nothing is missing: the
 * sequence numbers of a run have no gaps; a filter and merged deltas leave some.
 * @param {FollowOptions} options @returns {(part: Part) => void} throws for a defect of the server
 */
function proof(options) {
  const whole = !options.compact && !options.channels?.length && !options.types?.length;
  /** @type {Map<string, number>} run → the last seq */
  const last = new Map();
  for (const cursor of options.after?.split(",") ?? []) {
    const [run, , seq] = cursor.split(".");
    if (seq) last.set(run, Number(seq));
  }
  let fromStart = !options.after;
  return ({ events, control }) => {
    if (control?.type === "stream_gap") {
      last.clear();
      fromStart = false;
    }
    for (const { run, seq } of events) {
      const before = last.get(run) ?? (fromStart ? 0 : undefined);
      last.set(run, seq);
      if (before === undefined || (whole ? seq === before + 1 : seq > before)) continue;
      throw new StreamError(502, "stream_broken", `Run ${run}: seq ${seq} followed ${before}; a defect of the server.`);
    }
  };
}

/** How one connection ended. @typedef {{reason: string, end?: boolean, retryAfterMs?: number}} Outcome */

/**
 * One connection: yields what arrives, says in `outcome` how it ended.
 * @param {FollowOptions} options @param {string|null} after @param {Outcome} outcome
 * @returns {AsyncGenerator<Part, void, void>}
 */
async function* connection(options, after, outcome) {
  const watchdog = watch(options.silenceMs ?? 25_000, options.signal);
  try {
    const response = await request(options, after, watchdog.signal, outcome);
    if (!response?.body) return;
    options.onState?.("open", { attempt: 0 });
    yield* frames(response.body, watchdog, outcome);
  } catch (error) {
    if (error instanceof StreamError) throw error;
    outcome.reason = watchdog.silent() ? "silence" : "network";
  } finally {
    watchdog.stop();
  }
}

/**
 * @param {FollowOptions} options @param {string|null} after @param {AbortSignal} signal @param {Outcome} outcome
 * @returns {Promise<Response|null>} null where the stream is at its end or the server asks to come back later
 */
async function request(options, after, signal, outcome) {
  const send = options.fetch ?? fetch;
  const headers = { ...options.headers, Accept: "text/event-stream" };
  const response = await send(streamUrl(options, after), { headers, signal, cache: "no-store" });
  if (response.status === 200) return response;
  if (response.status === 204) {
    outcome.end = true;
    return null;
  }
  const problem = await response.json().catch(() => ({}));
  if (response.status === 429 || response.status >= 500) {
    const wait = Number(response.headers.get("Retry-After"));
    outcome.reason = problem.code ?? `http_${response.status}`;
    if (wait > 0) outcome.retryAfterMs = Math.min(wait * 1000, 60_000);
    return null;
  }
  throw new StreamError(response.status, problem.code ?? "http_error", problem.detail ?? `The server answered ${response.status}.`);
}

/**
 * Bytes → parts. A frame that a cut left half is dropped: it comes again after the resume.
 * @param {ReadableStream<Uint8Array>} body @param {ReturnType<typeof watch>} watchdog @param {Outcome} outcome
 * @returns {AsyncGenerator<Part, void, void>}
 */
async function* frames(body, watchdog, outcome) {
  /** @type {Part[]} */
  let ready = [];
  const parser = createParser({
    maxBufferSize: MAX_FRAME,
    onEvent: (message) => {
      const part = toPart(message.data, message.id ?? null);
      if (part) ready.push(part);
    },
  });
  const decoder = new TextDecoder();
  const reader = body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      watchdog.alive();
      parser.feed(decoder.decode(value, { stream: true }));
      const parts = ready;
      ready = [];
      for (const part of parts) {
        yield part;
        const type = part.control?.type;
        if (type === "stream_rotate") outcome.reason = "rotate";
        if (type === "stream_end") outcome.end = part.control.final !== false;
      }
      if (outcome.end) return;
    }
  } finally {
    reader.cancel().catch(() => undefined); // the connection may be gone already: there is nothing left to do
  }
}

/**
 * @param {string} data @param {string|null} cursor
 * @returns {Part|null} null for a frame that is not JSON of ours
 */
function toPart(data, cursor) {
  let value;
  try {
    value = JSON.parse(data);
  } catch {
    return null;
  }
  if (value?.type === "batch") return { events: value.events, cursor };
  if (typeof value?.seq === "number") return { events: [value], cursor };
  return value?.type ? { events: [], cursor, control: value } : null;
}

/**
 * Aborts the request when nothing has come for `silenceMs`; looks at once when a sleeping page wakes up.
 * @param {number} silenceMs @param {AbortSignal} [outer]
 */
function watch(silenceMs, outer) {
  const controller = new AbortController();
  let last = Date.now();
  let silent = false;
  const look = () => {
    if (Date.now() - last < silenceMs) return;
    silent = true;
    controller.abort();
  };
  const abort = () => controller.abort();
  const timer = setInterval(look, Math.min(1000, silenceMs));
  const page = typeof document === "undefined" ? null : document;
  page?.addEventListener("visibilitychange", look);
  if (outer?.aborted) abort();
  outer?.addEventListener("abort", abort);
  return {
    signal: controller.signal,
    silent: () => silent,
    alive: () => {
      last = Date.now();
    },
    stop: () => {
      clearInterval(timer);
      page?.removeEventListener("visibilitychange", look);
      outer?.removeEventListener("abort", abort);
      controller.abort();
    },
  };
}

/** Exponential with full jitter above a floor, so that a thousand pages do not come back at once. @param {number} attempt */
function backoff(attempt) {
  const top = Math.min(LAST_DELAY_MS, FIRST_DELAY_MS * 2 ** (attempt - 1));
  return top / 2 + (Math.random() * top) / 2;
}

/**
 * Waits, but not longer than until the network is back or the page becomes visible.
 * @param {number} ms @param {AbortSignal} [signal] @returns {Promise<void>}
 */
function pause(ms, signal) {
  return new Promise((resolve) => {
    const target = typeof window === "undefined" ? null : window;
    const timer = setTimeout(finish, ms);
    function finish() {
      clearTimeout(timer);
      target?.removeEventListener("online", finish);
      signal?.removeEventListener("abort", finish);
      resolve();
    }
    target?.addEventListener("online", finish);
    signal?.addEventListener("abort", finish);
  });
}
