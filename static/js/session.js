/**
 * Keeps the runs on screen up to date: exactly one stream per tab, whatever it shows. Every event reaches the
 * folded state at once; drawing is the scheduler's.
 */
import { api, BASE, credentials, LINK } from "./api.js";
import { Run } from "./store.js";
import { t } from "./i18n.js";
import {
  clock, connection, fatal, hidden, laneSignal, loading, offlineSince, panes, runs, scheduler, shown, structure, toast, unread,
} from "./state.js";
import { baseOf } from "./conversation.js";
import { pathKey } from "./sublane.js";
import { announceLane, announceRun, announceWaiting } from "./announce.js";
import { probe } from "./probe.js";
import { takePlace, untilNextLook } from "./places.js";
import { lazy } from "./lazy.js";

/** Comes with the lanes: the first screen follows nothing. */
const streams = lazy(() => import("./stream.js"));
const versions = lazy(() => import("./version.js"));

/** @type {AbortController|null} */
let stream = null;
let structureDue = false;
/** Runs whose beginning is being replayed: nothing of it is announced. @type {Set<string>} */
const replaying = new Set();
const REPLAY_DRAW_MS = 400; // a long replay is drawn so often on its way: each drawing costs more than what it shows
let drawnAt = 0;
let epoch = 0;

/** @param {string} id */
export function runOf(id) {
  let run = runs.get(id);
  if (!run) runs.set(id, (run = new Run(id)));
  return run;
}

function bumpStructure() {
  if (structureDue) return;
  structureDue = true;
  queueMicrotask(() => {
    structureDue = false;
    structure.value += 1;
  });
}

/** Show these runs (turns of one thread, oldest first) and follow those that still go on. @param {string[]} ids */
export function show(ids) {
  if (!ids.some((id) => shown.value.includes(id))) hidden.value = [];
  shown.value = ids;
  bumpStructure();
  connect();
}

/** (Re)open the one stream over every shown run that is not finished. */
export function connect() {
  stream?.abort();
  const open = shown.value.filter((id) => !runs.get(id)?.finished);
  if (!open.length) {
    connection.value = "idle";
    offlineSince.value = 0;
    return;
  }
  stream = new AbortController();
  void read(open, stream.signal);
}

/** @param {string[]} ids @param {AbortSignal} signal */
async function read(ids, signal) {
  for (const id of ids) if (!runOf(id).cursor) replaying.add(id);
  drawnAt = performance.now();
  try {
    while (await visit(ids, signal)) await untilNextLook(signal);
    if (!signal.aborted) connection.value = "idle";
  } catch (error) {
    if (!signal.aborted) await failed(error, ids);
  }
}

/**
 * Follow as long as this tab has a place, else until it is up to date.
 * @param {string[]} ids @param {AbortSignal} signal @returns {Promise<boolean>} whether there is more to come for
 */
async function visit(ids, signal) {
  const { follow } = await streams();
  const place = await takePlace();
  const stop = new AbortController();
  const abort = () => stop.abort();
  for (const other of [signal, place?.lost]) other?.addEventListener("abort", abort);
  if (signal.aborted) abort();
  const cursors = ids.map((id) => runOf(id).cursor).filter(Boolean);
  const options = {
    base: BASE, headers: credentials(), runs: ids, after: cursors.length ? cursors.join(",") : undefined, compact: true, compactMs: 2000, signal: stop.signal,
    onState: (/** @type {"connecting"|"open"|"waiting"} */ state) => !signal.aborted && (place || state !== "connecting") && onState(state),
  };
  try {
    for await (const part of follow(options)) {
      if (signal.aborted) return false;
      take(part, ids);
      if (!place && part.control?.type === "stream_live") abort();
    }
  } finally {
    signal.removeEventListener("abort", abort);
    place?.release();
  }
  return stop.signal.aborted && !signal.aborted;
}

/** @param {"connecting"|"open"|"waiting"} state */
function onState(state) {
  connection.value = state;
  if (state === "open") {
    offlineSince.value = 0;
    void versions().then(({ checkVersion }) => checkVersion(), () => undefined);
  } else if (state === "waiting" && !offlineSince.value) offlineSince.value = Date.now();
}

/** @param {import("./stream.js").Part} part @param {string[]} ids */
function take(part, ids) {
  const arrived = performance.now();
  for (const event of part.events) fold(event);
  if (part.cursor) remember(part.cursor, ids);
  if (replaying.size && part.events.length && arrived - drawnAt > REPLAY_DRAW_MS) {
    drawnAt = arrived;
    for (const id of replaying) draw(id);
  }
  if (part.control?.type === "stream_live") for (const id of ids) settle(id);
  if (part.control?.type === "stream_gap") for (const id of ids) void seed(id);
  probe.arrived(part, arrived);
}

/** The position of each run: one cursor, or several joined by commas. @param {string} cursor @param {string[]} ids */
function remember(cursor, ids) {
  if (ids.length === 1) runOf(ids[0]).cursor = cursor;
  else for (const one of cursor.split(",")) {
    const run = runs.get(one.split(".")[0]);
    if (run) run.cursor = one;
  }
}

/** Draw what the lanes of a run have got. @param {string} id */
function draw(id) {
  for (const [key, pane] of panes) if (key.startsWith(`${id}/`)) scheduler.request(pane);
}

/** When all that the run has said so far is here. @param {string} id @returns {Promise<void>} */
export async function caughtUp(id) {
  while (replaying.has(id)) await new Promise((resolve) => document.addEventListener("mux:settled", resolve, { once: true }));
}

/** @param {string} id */
function settled(id) {
  replaying.delete(id);
  document.dispatchEvent(new CustomEvent("mux:settled"));
  draw(id);
}

/** @param {string} id */
function settle(id) {
  settled(id);
  for (const lane of runOf(id).lanes.values()) {
    laneSignal(`${id}/${lane.id}`).value += 1;
    announceWaiting(lane);
  }
}

/** @param {import("./stream.js").MuxEvent} event */
export function fold(event) {
  const run = runOf(event.run);
  const before = run.rev;
  const known = event.channel === null ? undefined : run.lanes.get(event.channel);
  const rev = known?.rev ?? -1;
  const lane = run.apply(event);
  if (!replaying.has(run.id)) {
    const ahead = event.ts - Date.now();
    if (!clock.skew || ahead > clock.skew) clock.skew = ahead;
  }
  if (run.rev !== before) bumpStructure();
  if (event.type === "run_finished") {
    if (replaying.has(run.id)) settled(run.id); // one that was over before is nobody's news
    else announceRun(run);
    document.dispatchEvent(new CustomEvent("mux:finished", { detail: run.id }));
  }
  if (lane) changed(run, lane, event, rev);
}

/** Draw the lane, and the panes of its sub-agents that the event is from. @param {string} key @param {import("./stream.js").MuxEvent} event */
function request(key, event) {
  const path = event.path ?? [];
  for (let i = path.length; i >= 0; i--) {
    const pane = panes.get(i ? `${key}/${pathKey(path.slice(0, i))}` : key);
    if (pane) scheduler.request(pane);
  }
}

/** @param {Run} run @param {import("./store.js").Lane} lane @param {import("./stream.js").MuxEvent} event @param {number} rev */
function changed(run, lane, event, rev) {
  const key = `${run.id}/${lane.id}`;
  const pane = panes.get(key);
  if (!replaying.has(run.id)) request(key, event);
  if (lane.rev === rev) return;
  laneSignal(key).value += 1;
  if (replaying.has(run.id)) return;
  announceLane(lane, event);
  const entry = baseOf(lane.id);
  if (event.type === "done" && (document.hidden || !pane?.visible?.())) unread.value = { ...unread.value, [entry]: true };
}

/** The log's beginning is gone: begin with the snapshot. @param {string} id */
async function seed(id) {
  try {
    runOf(id).seed(await api.run(id));
    bumpStructure();
    draw(id);
  } catch {
    toast(t("error.partial"), { bad: true });
  }
}

/** @param {unknown} error @param {string[]} ids */
async function failed(error, ids) {
  const stream = await streams().catch(() => null); // not even the module came: that is the failure
  if (stream && !(error instanceof stream.StreamError)) throw error;
  const { status, message } = /** @type {import("./stream.js").StreamError} */ (error);
  if (status === 409 || status === 400) {
    epoch += 1;
    if (epoch < 5) return restart(ids); // the log is another one than before: read it from its beginning
  }
  connection.value = "idle";
  if (status === 401 && !LINK) return void document.dispatchEvent(new CustomEvent("mux:login"));
  const gone = status === 404;
  fatal.value = { title: t(gone ? "error.gone" : "error.stream"), detail: message, action: gone ? "new" : "reload" };
}

/** @param {string[]} ids */
function restart(ids) {
  for (const id of ids) {
    const old = runs.get(id);
    const fresh = new Run(id);
    if (old) fresh.describe({ title: old.title, starred: old.starred, metadata: old.metadata });
    runs.set(id, fresh);
  }
  bumpStructure();
  connect();
}

/**
 * Open a run and the turns before it.
 * @param {string} id
 */
export async function open(id) {
  fatal.value = null;
  if (shown.value.includes(id)) return;
  loading.value = true;
  try {
    const snapshot = await api.run(id);
    const run = runOf(id);
    run.describe(snapshot);
    document.dispatchEvent(new CustomEvent("mux:opened", { detail: snapshot }));
    const page = LINK ? { runs: [] } : await api.runs({ thread: snapshot.thread, limit: "30" });
    const earlier = page.runs.filter((/** @type {any} */ r) => r.created <= snapshot.created && r.run !== id);
    for (const row of earlier) runOf(row.run).describe(row);
    const later = page.runs.filter((/** @type {any} */ r) => r.created > snapshot.created && r.run !== id);
    for (const row of later) runOf(row.run).describe(row);
    show([...earlier.reverse().map((/** @type {any} */ r) => r.run), id, ...later.reverse().map((/** @type {any} */ r) => r.run)].slice(-12));
  } catch (error) {
    if (/** @type {any} */ (error).status === 401 && !LINK) return; // the login is open, and comes back here
    const gone = /** @type {any} */ (error).status === 404;
    fatal.value = {
      title: t(gone ? "error.gone" : "error.unreachable"), detail: /** @type {Error} */ (error).message, action: gone ? "new" : "reload",
    };
  } finally {
    loading.value = false;
  }
}
