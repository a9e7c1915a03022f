/**
 * Measures the page from inside with `?perf=1`: long tasks, time from arrival to DOM, length of the drawing turns.
 * `window.muxProbe()` gives the numbers; without the parameter everything here does nothing.
 */
import { scheduler } from "./state.js";

const on = typeof location !== "undefined" && new URLSearchParams(location.search).has("perf");

/** @type {{lag: number[], turns: number[], long: number[], arrivals: Map<string, number>, frames: number, started: number}} */
const data = { lag: [], turns: [], long: [], arrivals: new Map(), frames: 0, started: 0 };

export const probe = {
  on,
  /** @param {import("./stream.js").Part} part @param {number} at */
  arrived(part, at) {
    if (!on) return;
    for (const event of part.events) {
      const key = `${event.run}/${event.channel}`;
      if (event.type === "token" && !data.arrivals.has(key)) data.arrivals.set(key, at);
    }
  },
  /** The lane's text is in the DOM now. @param {string} key */
  drawn(key) {
    if (!on) return;
    const at = data.arrivals.get(key);
    if (at === undefined) return;
    data.arrivals.delete(key);
    data.lag.push(performance.now() - at);
  },
};

/** @param {number[]} values @param {number} q */
function quantile(values, q) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] : 0;
}

if (on) {
  data.started = performance.now();
  scheduler.onTurn = (ms) => data.turns.push(ms);
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) data.long.push(entry.duration);
  }).observe({ type: "longtask" });
  const frame = () => {
    data.frames += 1;
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
  /** @type {any} */ (window).muxProbe = (/** @type {boolean} */ reset) => {
    const seconds = (performance.now() - data.started) / 1000;
    const tenth = Math.max(1, Math.floor(data.turns.length / 10));
    const mean = (/** @type {number[]} */ v) => v.reduce((a, b) => a + b, 0) / Math.max(1, v.length);
    const result = {
      seconds, fps: data.frames / seconds, lagP50: quantile(data.lag, 0.5), lagP95: quantile(data.lag, 0.95),
      lagP99: quantile(data.lag, 0.99), samples: data.lag.length, longTasks: data.long.length,
      longestTask: Math.max(0, ...data.long), turns: data.turns.length, turnP95: quantile(data.turns, 0.95),
      flushGrowth: mean(data.turns.slice(-tenth)) / Math.max(0.01, mean(data.turns.slice(0, tenth))),
      nodes: document.querySelectorAll("*").length,
    };
    if (reset) Object.assign(data, { lag: [], turns: [], long: [], frames: 0, started: performance.now() });
    return result;
  };
}
