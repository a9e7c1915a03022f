/** Clicks inside a pane's body, where nodes are not the shell's: by `data-action`. */
import { dialog, runs, toast } from "../state.js";
import { retryLane, setApart, shownEntries } from "../actions.js";
import { baseOf } from "../conversation.js";
import { copyText, download } from "../files.js";
import { t } from "../i18n.js";

/**
 * @param {MouseEvent} event @param {import("../conversation.js").Entry} entry @param {import("../store.js").Lane} lane
 * @param {import("../pane/body.js").PaneBody|null} _body
 */
export function paneClick(event, entry, lane, _body) {
  const target = /** @type {HTMLElement} */ (event.target).closest("[data-action]");
  if (!(target instanceof HTMLElement)) return;
  const worker = /** @type {HTMLElement|null} */ (target.closest(".worker"));
  if (worker) {
    lane = runs.get(lane.run)?.lanes.get(worker.dataset.channel ?? "") ?? lane;
    entry = shownEntries().find((e) => e.key === baseOf(lane.id)) ?? entry;
  }
  ACTIONS[target.dataset.action ?? ""]?.(target, entry, lane);
}

/** @type {Record<string, (node: HTMLElement, entry: import("../conversation.js").Entry, lane: import("../store.js").Lane) => void>} */
const ACTIONS = {
  "copy-code": (node) => void copyText(node.closest("figure")?.querySelector("code")?.textContent ?? ""),
  copy: (_node, _entry, lane) => void copyText(lane.transcripts.answer()),
  apart(node, entry) {
    const nest = node.closest(".nest");
    const key = node.dataset.worker ?? `${entry.key.split("/")[0]}/${/** @type {HTMLElement} */ (nest).dataset.path}`;
    setApart(key, !nest?.classList.contains("is-apart"));
  },
  retry: (_node, entry) => void retryLane(entry.key),
  swap: (_node, entry) => (dialog.value = { kind: "swap", laneId: entry.key }),
  "raw-event": (node, _entry, lane) => (dialog.value = { kind: "text", title: t("lane.raw"), text: JSON.stringify(lane.error, null, 2), seq: node.dataset.seq }),
  "export-lane": (_node, _entry, lane) => void exportLane(lane),
  "use-as-prompt": (_node, _entry, lane) => document.dispatchEvent(new CustomEvent("mux:prompt", { detail: lane.transcripts.answer() })),
  "tool-raw": (node, _entry, lane) => withTool(node, lane, (tool) => (dialog.value = { kind: "text", title: tool.name, text: JSON.stringify(tool, null, 2) })),
  "tool-full": (node, _entry, lane) => withTool(node, lane, (tool) => (dialog.value = { kind: "text", title: tool.name, text: tool.output ?? "" })),
  "tool-download": (node, _entry, lane) => withTool(node, lane, (tool) => download(`${tool.callId}.txt`, tool.output ?? "", "text/plain")),
};

/** @param {import("../store.js").Lane} lane */
async function exportLane(lane) {
  const { laneMarkdown } = await import("../export.js");
  download(`${lane.run}-${lane.id}.md`, laneMarkdown(lane), "text/markdown");
}

/** @param {HTMLElement} node @param {import("../store.js").Lane} lane @param {(tool: import("../transcript.js").Tool) => void} act */
function withTool(node, lane, act) {
  const tool = lane.transcripts.tools.get(node.dataset.call ?? "")?.tool;
  if (tool) act(tool);
  else toast(t("error.stream"), { bad: true });
}
