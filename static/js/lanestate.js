/**
 * What a lane is doing, in one word, and its numbers: derived from the folded state and the time. Pure.
 *
 * @typedef {import("./store.js").Lane} Lane
 * @typedef {"queued"|"connecting"|"thinking"|"writing"|"tool"|"needs"|"stalled"|"reconnecting"|"stopping"|"done"|"refused"|"stopped"|"failed"|"over"} State
 */

export const STALLED_MS = 20_000;

/** Glyph (U+FE0E: as text, not as an emoji) and hue of each state; the word is in the language file under `state.<name>`. @type {Record<State, {glyph: string, hue: string}>} */
export const STATES = {
  queued: { glyph: "○", hue: "grey" },
  connecting: { glyph: "◌", hue: "blue" },
  thinking: { glyph: "◔", hue: "violet" },
  writing: { glyph: "▍", hue: "blue" },
  tool: { glyph: "⚙\uFE0E", hue: "teal" },
  needs: { glyph: "!", hue: "amber" },
  stalled: { glyph: "⏸\uFE0E", hue: "amber" },
  reconnecting: { glyph: "⟳", hue: "amber" },
  stopping: { glyph: "◧", hue: "grey" },
  done: { glyph: "✓", hue: "green" },
  refused: { glyph: "⊘", hue: "green" },
  stopped: { glyph: "■", hue: "grey" },
  failed: { glyph: "✕", hue: "red" },
  over: { glyph: "$", hue: "amber" },
};

/** @type {Record<string, State>} */
const ENDS = {
  completed: "done", refused: "refused", cancelled: "stopped", failed: "failed", timed_out: "failed", budget_exceeded: "over",
};

/**
 * @param {Lane} lane @param {number} now server's time, ms
 * @param {boolean} [offline] the page has no connection, so silence means nothing
 * @returns {State}
 */
export function laneState(lane, now, offline = false) {
  const end = ENDS[lane.status];
  if (end) return end;
  if (lane.stopping) return "stopping";
  if (lane.approvals.size) return "needs";
  if (lane.status === "queued" || lane.status === "pending") return "queued";
  if (offline || lane.waitingRetry) return "reconnecting";
  if (now - lane.lastTs > STALLED_MS) return "stalled";
  if (lane.runningTools.size) return "tool";
  return /** @type {State} */ ({ thinking: "thinking", writing: "writing", tool: "tool" }[lane.activity] ?? "connecting");
}

/** A few words on what it does now: the tool's name and time, or the queue's position. @param {Lane} lane @param {number} now */
export function activity(lane, now) {
  if (lane.queuePosition && lane.status === "queued") return `#${lane.queuePosition}`;
  if (lane.status === "pending") return lane.dependsOn.join(", ");
  const [callId] = lane.approvals.size ? lane.approvals : lane.runningTools;
  const tool = callId ? lane.transcripts.tools.get(callId)?.tool : null;
  if (!tool) return "";
  const since = tool.startTs ? ` ${seconds(now - tool.startTs)}` : "";
  return `${tool.name}${since}`;
}

/** @param {Lane} lane @param {number} now */
export function metrics(lane, now) {
  const usage = lane.usage;
  const end = lane.endTs || now;
  return {
    elapsed: lane.startTs ? Math.max(0, lane.done?.duration_ms ?? end - lane.startTs) : undefined,
    ttft: lane.done?.ttft_ms ?? lane.knownTtft ?? lane.liveTtft,
    rate: lane.done ? (lane.done.tokens_per_s ?? average(lane)) : liveRate(lane, now),
    input: usage.input_tokens,
    output: written(lane, usage),
    estimated: usage.output_tokens === undefined ? lane.deltas > 0 : !lane.done && lane.deltas > lane.counted,
    cost: usage.cost,
    currency: usage.currency,
  };
}

/** Tokens written so far: as reported, and about one a delta for the step that goes on. @param {Lane} lane @param {import("./store.js").Usage} [usage] */
export function written(lane, usage = lane.usage) {
  if (usage.output_tokens === undefined) return lane.deltas || undefined;
  return usage.output_tokens + (lane.done ? 0 : lane.deltas - lane.counted);
}

/** @param {Lane} lane */
function average(lane) {
  const ms = lane.endTs - lane.firstDeltaTs;
  return lane.deltas > 1 && lane.firstDeltaTs && ms > 300 ? (lane.deltas * 1000) / ms : undefined;
}

/** Deltas a second over the last two whole seconds. @param {Lane} lane @param {number} now */
function liveRate(lane, now) {
  if (!lane.firstDeltaTs || lane.done) return undefined;
  const second = Math.floor(now / 1000);
  const sum = (lane.rate.get(second - 1) ?? 0) + (lane.rate.get(second - 2) ?? 0);
  if (sum) return sum / 2;
  return lane.rate.get(second) ? lane.rate.get(second) : 0;
}

/** @param {number} ms */
export function seconds(ms) {
  if (!(ms >= 0)) return "–";
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  const total = Math.round(ms / 1000);
  const minutes = Math.floor(total / 60);
  const pad = (/** @type {number} */ n) => String(n).padStart(2, "0");
  return minutes < 60 ? `${minutes}:${pad(total % 60)}` : `${Math.floor(minutes / 60)}:${pad(minutes % 60)}:${pad(total % 60)}`;
}

/** Milliseconds below a second, where a tenth of a second says nothing. @param {number} ms */
export const short = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : seconds(ms));

/** How a lane stands that has ended, as its chips show it. @param {Lane} lane */
export const endState = (lane) => STATES[ENDS[lane.status] ?? "queued"];

/** @param {number|undefined} n */
export function count(n) {
  if (n === undefined || n === null) return "–";
  if (n < 10_000) return String(Math.round(n));
  return n < 1_000_000 ? `${(n / 1000).toFixed(1)}k` : `${(n / 1_000_000).toFixed(2)}M`;
}

/** @param {number|undefined} cost @param {string} [currency] */
export function money(cost, currency = "USD") {
  if (cost === undefined || cost === null) return "–";
  const sign = currency === "USD" ? "$" : currency === "EUR" ? "€" : `${currency} `;
  return `${sign}${cost >= 1 ? cost.toFixed(2) : cost.toFixed(4)}`;
}
