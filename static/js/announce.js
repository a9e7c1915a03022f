/**
 * What a screen reader is told: boundaries only ("B finished, 412 tokens, 6 s"), at most one sentence in two
 * seconds, bursts merged. Approvals and failures are told at once. Who asked for it is notified of two of them
 * while the tab is hidden: a lane needs a person, a run is over.
 */
import { metrics, seconds } from "./lanestate.js";
import { runs, serverNow } from "./state.js";
import { notice } from "./notices.js";
import { t } from "./i18n.js";

const INTERVAL_MS = 2000;
/** @type {string[]} */
let waiting = [];
let timer = 0;

/** @param {string} text */
export function polite(text) {
  waiting.push(text);
  if (timer) return;
  timer = window.setTimeout(() => {
    timer = 0;
    const many = waiting.length > 4;
    put("announce-polite", many ? t("announce.many", { n: waiting.length, last: waiting.at(-1) ?? "" }) : waiting.join(". "));
    waiting = [];
  }, INTERVAL_MS);
}

/** @param {string} text */
export function assertive(text) {
  put("announce-assertive", text);
}

/** @param {string} id @param {string} text */
function put(id, text) {
  const node = document.getElementById(id);
  if (node) node.textContent = text;
}

/** @param {import("./store.js").Lane} lane @param {import("./stream.js").MuxEvent} event */
export function announceLane(lane, event) {
  if (event.type === "approval_requested") needs(lane, event.tool);
  else if (event.type === "error") assertive(t("announce.failed", { lane: lane.id, message: event.message }));
  else if (event.type === "done" && event.status !== "failed") {
    const m = metrics(lane, serverNow());
    polite(t("announce.done", { lane: lane.id, status: t(`status.${event.status}`), n: m.output ?? 0, time: seconds(m.elapsed ?? 0) }));
  }
}

/** What waits for a person already when the page comes to it. @param {import("./store.js").Lane} lane */
export function announceWaiting(lane) {
  const [id] = lane.approvals;
  const tool = lane.transcripts.tools.get(id)?.tool;
  if (tool) assertive(t("announce.approval", { lane: lane.id, tool: tool.name }));
}

/** @param {import("./store.js").Lane} lane @param {string} tool */
function needs(lane, tool) {
  const text = t("announce.approval", { lane: lane.id, tool });
  assertive(text);
  notice(text, nameOf(runs.get(lane.run)), lane.id.replace(/~\d+$/, ""));
}

/** @param {import("./store.js").Run|undefined} run */
const nameOf = (run) => run?.title || run?.message.split("\n")[0].slice(0, 120) || "";

/** @param {import("./store.js").Run} run */
export function announceRun(run) {
  const text = t("announce.run", { status: t(`status.${run.status}`) });
  polite(text);
  notice(text, nameOf(run));
}
