/**
 * What the page shows, as signals. Folded runs themselves are plain objects in `runs`; a signal says when to look.
 *
 * @typedef {import("./store.js").Run} Run
 * @typedef {import("./store.js").Lane} Lane
 * @typedef {import("./conversation.js").Entry} Entry
 */
import { signal } from "@preact/signals";
import { Scheduler } from "./scheduler.js";

/** Every run that this tab knows, by id. @type {Map<string, Run>} */
export const runs = new Map();

/** Ids of the runs on screen, oldest first: the turns of one thread. */
export const shown = signal(/** @type {string[]} */ ([]));
/** Grows when lanes come or go, or a run's own state changes. */
export const structure = signal(0);
/** @type {Map<string, import("@preact/signals").Signal<number>>} */
const laneSignals = new Map();
/** Grows when a lane's state (not its text) changes. @param {string} key */
export function laneSignal(key) {
  let found = laneSignals.get(key);
  if (!found) laneSignals.set(key, (found = signal(0)));
  return found;
}

export const agents = signal(/** @type {any[]|null} */ (null));
export const models = signal(/** @type {any[]} */ ([]));
export const connection = signal(/** @type {"idle"|"connecting"|"open"|"waiting"} */ ("idle"));
/** Since when the connection is gone, for the banner; 0 = it is fine. */
export const offlineSince = signal(0);
export const fatal = signal(/** @type {{title: string, detail: string, action?: string}|null} */ (null));
export const loading = signal(false);

export const focus = signal("");
export const layout = signal(/** @type {"grid"|"columns"|"tabs"} */ ("grid"));
export const maximised = signal(false);
export const theme = signal("auto");
export const railOpen = signal(true);
export const dialog = signal(/** @type {null|{kind: string, [field: string]: any}} */ (null));
/** Close the dialog, then act: behind an open one nothing can get the focus. @param {() => unknown} act */
export function leaveDialog(act) {
  dialog.value = null;
  setTimeout(act); // by then it is drawn, and the focus is where it was before
}
export const toasts = signal(/** @type {{id: number, text: string, action?: {label: string, run: () => void}, bad?: boolean}[]} */ ([]));
export const history = signal(/** @type {any[]} */ ([]));
export const historyNext = signal(/** @type {string|null} */ (null));
export const order = signal(/** @type {string[]} */ ([]));
/** Sub-agents that have a pane of their own, and workers folded into their parent's: keys of entries. */
export const apart = signal(/** @type {string[]} */ ([]));
export const folded = signal(/** @type {string[]} */ ([]));
/** Lanes that were taken off the screen of this thread. */
export const hidden = signal(/** @type {string[]} */ ([]));
/** Which attempt of a lane is shown, where not the last. */
export const attempts = signal(/** @type {Record<string, string>} */ ({}));
export const unread = signal(/** @type {Record<string, boolean>} */ ({}));

export const scheduler = new Scheduler({
  frame: (callback) => requestAnimationFrame(callback),
  now: () => performance.now(),
  later: (callback, ms) => setTimeout(callback, ms),
});

/** Panes by `run/channel`, to draw when their lane got events. @type {Map<string, import("./scheduler.js").Drawable>} */
export const panes = new Map();

/** How far the server's clock is ahead of ours, ms: times on screen are the server's. */
export const clock = { skew: 0 };
export const serverNow = () => Date.now() + clock.skew;

let nextToast = 1;
/** @param {string} text @param {{action?: {label: string, run: () => void}, bad?: boolean, ms?: number}} [options] */
export function toast(text, options = {}) {
  const id = nextToast++;
  const item = { id, text, action: options.action, bad: options.bad };
  toasts.value = [...toasts.value.slice(-3), item];
  setTimeout(() => dismiss(id), options.ms ?? (options.action || options.bad ? 10_000 : 4000));
}

/** @param {number} id */
export function dismiss(id) {
  toasts.value = toasts.value.filter((t) => t.id !== id);
}

/** Small settings kept in the browser; a page without storage works all the same. */
export const saved = {
  /** @param {string} key @param {any} fallback */
  get(key, fallback) {
    try {
      const text = localStorage.getItem(`mux.${key}`);
      return text === null ? fallback : JSON.parse(text);
    } catch {
      return fallback;
    }
  },
  /** @param {string} key @param {any} value */
  set(key, value) {
    try {
      localStorage.setItem(`mux.${key}`, JSON.stringify(value));
    } catch {
      return; // storage is full or forbidden: the setting holds for this visit only
    }
  },
};
