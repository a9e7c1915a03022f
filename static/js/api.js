/**
 * The server's public HTTP API, as this page uses it; a program can do all of it.
 * Errors are {@link ApiError} with the problem document's code and sentence.
 */

/** Where the API is: the page's own folder, so that a reverse proxy may serve it below a path. */
export const BASE = new URL(".", document.baseURI).pathname.replace(/\/$/, "");

/** The key of a link to one run, `…/shared#mux_…`: then the page shows that run, and nothing can be done there. */
export const LINK = /\/shared$/.test(location.pathname) ? location.hash.slice(1) : "";

/** What says who we are, where the session's cookie does not. @returns {Record<string, string>} */
export const credentials = () => (LINK ? { Authorization: `Bearer ${LINK}` } : {});

export class ApiError extends Error {
  /** @param {number} status @param {any} problem */
  constructor(status, problem) {
    super(problem?.detail ?? problem?.title ?? (status ? `The server answered ${status}.` : "The server can't be reached."));
    this.status = status;
    this.code = problem?.code ?? (status ? "http_error" : "unreachable");
  }
}

/** @param {string} path @param {RequestInit & {json?: unknown}} [options] @returns {Promise<Response>} */
async function send(path, options = {}) {
  const { json, ...init } = options;
  const headers = new Headers({ ...credentials(), .../** @type {Record<string, string>} */ (init.headers) });
  if (json !== undefined) headers.set("Content-Type", "application/json");
  let response;
  try {
    response = await fetch(BASE + path, { ...init, headers, body: json === undefined ? undefined : JSON.stringify(json) });
  } catch {
    throw new ApiError(0, null);
  }
  if (response.ok) return response;
  if (response.status === 401 && !LINK) document.dispatchEvent(new CustomEvent("mux:login"));
  throw new ApiError(response.status, await response.json().catch(() => null));
}

/** @param {string} path @param {RequestInit & {json?: unknown}} [options] @returns {Promise<any>} */
async function call(path, options) {
  const response = await send(path, options);
  return response.status === 204 ? null : response.json().catch(() => null);
}

const enc = encodeURIComponent;
/** @param {string} run @param {string} channel */
const at = (run, channel) => `/api/runs/${enc(run)}/channels/${enc(channel)}`;

export const api = {
  agents: () => call("/api/agents").then((r) => r.agents),
  version: () => call("/healthz").then((r) => r.version),
  models: () => call("/api/models").then((r) => r.models),
  /** @param {Record<string, string>} query */
  runs: (query) => call(`/api/runs?${new URLSearchParams(query)}`),
  /** @param {string} run */
  run: (run) => call(`/api/runs/${enc(run)}`),
  /** @param {object} body @param {string} key */
  start: (body, key) => call("/api/runs", { method: "POST", json: body, headers: { "Idempotency-Key": key } }),
  /** @param {string} run @param {object} body */
  patch: (run, body) => call(`/api/runs/${enc(run)}`, { method: "PATCH", json: body }),
  /** @param {string} run */
  remove: (run) => call(`/api/runs/${enc(run)}`, { method: "DELETE" }),
  /** @param {string} run @param {string} [mode] */
  cancel: (run, mode = "now") => call(`/api/runs/${enc(run)}/cancel`, { method: "POST", json: { mode } }),
  /** @param {string} run @param {string} channel @param {string} [mode] */
  cancelChannel: (run, channel, mode = "now") => call(`${at(run, channel)}/cancel`, { method: "POST", json: { mode } }),
  /** @param {string} run @param {object} body */
  addChannel: (run, body) => call(`/api/runs/${enc(run)}/channels`, { method: "POST", json: body }),
  /** @param {string} run @param {string} channel @param {string} [model] */
  retry: (run, channel, model) => call(`${at(run, channel)}/retry`, { method: "POST", json: model ? { model } : {} }),
  /** @param {string} run @param {string} channel @param {string} content @param {string} mode */
  steer: (run, channel, content, mode) => call(`${at(run, channel)}/messages`, { method: "POST", json: { content, mode } }),
  /** @param {string} run @param {string} callId @param {object} answer */
  answer: (run, callId, answer) => call(`/api/runs/${enc(run)}/approvals/${enc(callId)}`, { method: "POST", json: answer }),
  session: () => call("/api/session"),
  /** @param {string} key */
  logIn: (key) => call("/api/session", { method: "POST", json: { key } }),
  logOut: () => call("/api/session", { method: "DELETE" }),
  /** @param {string} run @returns {Promise<any[]>} */
  shares: (run) => call(`/api/runs/${enc(run)}/share`).then((r) => r.shares),
  /** @param {string} run @param {object} body */
  share: (run, body) => call(`/api/runs/${enc(run)}/share`, { method: "POST", json: body }),
  /** @param {string} run @param {string} id */
  unshare: (run, id) => call(`/api/runs/${enc(run)}/share/${enc(id)}`, { method: "DELETE" }),
  /** @param {string} run */
  events: (run) => send(`/api/runs/${enc(run)}/events`, { headers: { Accept: "application/x-ndjson" } }),
};
