/**
 * What the page does on a person's command. Each goes to the public API; what follows comes back as events.
 *
 * @typedef {import("./conversation.js").Entry} Entry
 */
import { effect } from "@preact/signals";
import { api } from "./api.js";
import { baseOf, currentLane, entries, panesOf, parentKey } from "./conversation.js";
import { connect, fold, open, runOf, show } from "./session.js";
import { apart, attempts, dialog, fatal, focus, folded, hidden, laneSignal, layout, maximised, order, railOpen, runs, saved, shown, structure, toast } from "./state.js";
import { t } from "./i18n.js";

/** The lanes on screen, in their order. @returns {Entry[]} */
export function shownEntries() {
  return entries(shown.value.map(runOf), order.value);
}

/** What has a pane: see `panesOf`. @returns {Entry[]} */
export function paneEntries() {
  return panesOf(shownEntries(), { apart: apart.value, folded: folded.value, hidden: hidden.value, chosen: attempts.value, order: order.value });
}

/** Give a sub-agent (or a folded worker) a pane of its own, or put it back into its parent's. @param {string} key @param {boolean} own */
export function setApart(key, own) {
  const worker = shownEntries().some((entry) => entry.key === key);
  const list = worker ? folded : apart;
  const listed = worker ? !own : own;
  list.value = [...list.value.filter((k) => k !== key), ...(listed ? [key] : [])];
  saved.set(worker ? "folded" : "apart", list.value);
  structure.value += 1;
  if (own) focusLane(key);
}

/** The newest run on screen. */
export function currentRun() {
  const id = shown.value.at(-1);
  return id ? runs.get(id) : undefined;
}

/** The run of this lane that can still be acted on. @param {string} key */
export function laneAt(key) {
  const entry = shownEntries().find((e) => e.key === key);
  return entry ? currentLane(entry, attempts.value) : undefined;
}

/** Say what went wrong; nothing else is lost. @template T @param {Promise<T>} work @returns {Promise<T|undefined>} */
export async function attempt(work) {
  try {
    return await work;
  } catch (error) {
    toast(/** @type {Error} */ (error).message, { bad: true });
    return undefined;
  }
}

/** @param {object} body @param {{followUp?: boolean}} [options] @returns {Promise<boolean>} whether it was started */
export async function startRun(body, options = {}) {
  fatal.value = null;
  const started = await attempt(api.start(body, crypto.randomUUID()));
  if (!started) return false;
  const run = runOf(started.run);
  run.describe(started);
  const together = options.followUp && shown.value.some((id) => runs.get(id)?.thread === run.thread);
  show(together ? [...shown.value, started.run] : [started.run]);
  go(started.run);
  document.dispatchEvent(new CustomEvent("mux:started"));
  return true;
}

/** The address of a run as it is shown: focused lane, layout, and whether it is maximised. @param {string} run */
function address(run) {
  const query = new URLSearchParams();
  if (focus.value) query.set("lane", focus.value);
  if (layout.value !== "grid") query.set("layout", layout.value);
  if (maximised.value) query.set("max", "1");
  return `#/run/${run}${query.size ? `?${query}` : ""}`;
}

/** @param {string} run */
export function go(run) {
  if (!location.hash.startsWith(`#/run/${run}`)) window.history.pushState(null, "", address(run));
}

/** Keep the address true to what is shown. */
export function watchAddress() {
  effect(() => {
    const run = shown.value.at(-1);
    const hash = run && address(run);
    const here = location.hash.startsWith(`#/run/${run}`); // else it leads to another run, which is being opened
    if (hash && here && location.hash !== hash) window.history.replaceState(null, "", hash);
  });
}

/** Follow the address: `#/run/<id>?lane=<key>` or the start screen. */
export async function route() {
  const match = /^#\/run\/([A-Za-z0-9_-]+)(?:\?(.*))?$/.exec(location.hash);
  if (!match) {
    newRun(false);
    return;
  }
  const query = new URLSearchParams(match[2] ?? "");
  const lane = query.get("lane");
  const wanted = query.get("layout");
  if (wanted === "grid" || wanted === "columns" || wanted === "tabs") layout.value = wanted;
  maximised.value = query.get("max") === "1";
  focus.value = lane ?? "";
  await open(match[1]);
}

/** @param {boolean} [push] */
export function newRun(push = true) {
  if (push && location.hash) window.history.pushState(null, "", `${location.pathname}${location.search}`);
  fatal.value = null;
  focus.value = "";
  maximised.value = false;
  show([]);
}

/** @param {string} key */
export async function stopLane(key) {
  const lane = laneAt(key);
  if (!lane || lane.finished) return;
  lane.stopping = true;
  laneSignal(`${lane.run}/${lane.id}`).value += 1;
  if (!(await attempt(api.cancelChannel(lane.run, lane.id).then(() => true)))) {
    lane.stopping = false;
    laneSignal(`${lane.run}/${lane.id}`).value += 1;
  }
}

/** Every lane of every run on screen that still goes on. */
export async function stopAll() {
  for (const run of shown.value.map(runOf).filter((r) => r.live)) {
    for (const lane of run.lanes.values()) {
      if (lane.finished) continue;
      lane.stopping = true;
      laneSignal(`${run.id}/${lane.id}`).value += 1;
    }
    await attempt(api.cancel(run.id));
  }
}

/** @param {string} key @param {string} [model] */
export async function retryLane(key, model) {
  const lane = laneAt(key);
  if (!lane) return;
  const answer = await attempt(api.retry(lane.run, lane.id, model));
  if (!answer) return;
  attempts.value = Object.fromEntries(Object.entries(attempts.value).filter(([k]) => !k.endsWith(`/${baseOf(lane.id)}`)));
  await follow(answer.run ?? lane.run);
}

/** Follow a run that belongs to what is on screen: a retry or a follow-up. @param {string} id */
export async function follow(id) {
  if (!shown.value.includes(id)) {
    const snapshot = await attempt(api.run(id));
    if (snapshot) runOf(id).describe(snapshot);
    show([...shown.value, id]);
  } else connect();
}

/** @param {string} key @param {string} content @param {string} mode */
export async function steerLane(key, content, mode) {
  const lane = laneAt(key);
  if (!lane || lane.finished) return false;
  return (await attempt(api.steer(lane.run, lane.id, content, mode).then(() => true))) === true;
}

/** @param {object} spec */
export async function addLane(spec) {
  const run = currentRun();
  if (!run?.live) return false;
  return (await attempt(api.addChannel(run.id, spec).then(() => true))) === true;
}

/** Take a lane off the screen; one that still runs is stopped. @param {string} key */
export function removeLane(key) {
  void stopLane(key);
  hidden.value = [...hidden.value, key];
  if (focus.value === key) focus.value = "";
  structure.value += 1;
}

export function showRemoved() {
  hidden.value = [];
  structure.value += 1;
}

/** A lane without a pane is shown again, or is in its parent's. @param {string} key */
export function focusLane(key) {
  if (hidden.value.includes(key)) showRemoved();
  const there = paneEntries().some((entry) => entry.key === key);
  const entry = there ? undefined : shownEntries().find((one) => one.key === key);
  focus.value = entry ? parentKey(entry) : key;
}

/** @param {number} step */
export function focusNext(step) {
  const list = paneEntries();
  if (!list.length) return;
  const at = Math.max(0, list.findIndex((e) => e.key === focus.value)); // the first is shown as focused until one is
  focusLane(list[(at + step + list.length) % list.length].key);
}

/** @param {string} key @param {number} step */
export function moveLane(key, step) {
  const keys = paneEntries().map((e) => e.key);
  const at = keys.indexOf(key);
  const to = Math.max(0, Math.min(keys.length - 1, at + step));
  keys.splice(to, 0, ...keys.splice(at, 1));
  order.value = keys;
  saved.set("order", keys);
  structure.value += 1;
}

export function cycleLayout() {
  const all = /** @type {const} */ (["grid", "columns", "tabs"]);
  layout.value = all[(all.indexOf(layout.value) + 1) % all.length];
  saved.set("layout", layout.value);
  toast(t(`layout.${layout.value}`), { ms: 1500 });
}

/** Esc closes the top layer only. @returns {boolean} whether there was one */
export function closeTop() {
  if (dialog.value) {
    dialog.value = null;
    return true;
  }
  if (railOpen.value && matchMedia("(max-width: 800px)").matches) {
    railOpen.value = false;
    return true;
  }
  if (maximised.value) {
    maximised.value = false;
    return true;
  }
  return false;
}

export { fold };
