/**
 * The card of one tool call: there from the model's first word of it, with its arguments as they are written,
 * progress while it runs, and the typed result. Only what is opened is built.
 *
 * @typedef {import("../transcript.js").Item} Item
 * @typedef {import("../transcript.js").Tool} Tool
 * @typedef {import("../store.js").Lane} Lane
 */
import { parse } from "partial-json";
import { el } from "../markdown/render.js";
import { visible } from "../markdown/safe.js";
import { seconds, short as brief } from "../lanestate.js";
import { t } from "../i18n.js";
import { button } from "./items.js";
import { approvalBox } from "./approval.js";
import { resultView } from "./result.js";

const GLYPHS = /** @type {Record<string, string>} */ ({
  args: "◌", queued: "○", approval: "!", running: "⚙\uFE0E", ok: "✓", error: "✕", cancelled: "■",
});
const HUES = /** @type {Record<string, string>} */ ({
  args: "blue", queued: "grey", approval: "amber", running: "teal", ok: "green", error: "red", cancelled: "grey",
});

/** What the arguments are so far; an object also from half a JSON text. @param {Tool} tool @returns {any} */
export function argsOf(tool) {
  if (tool.args !== undefined) return tool.args;
  try {
    return tool.argsText.trim() ? parse(tool.argsText) : {};
  } catch {
    return null; // not JSON so far: the raw text is shown
  }
}

/** @param {any} value */
export function short(value) {
  return visible(typeof value === "string" ? value : JSON.stringify(value) ?? "");
}

/** One line of arguments for the head. @param {Tool} tool */
export function summary(tool) {
  const args = argsOf(tool);
  if (args === null || typeof args !== "object") return short(tool.argsText).slice(0, 120);
  const values = Object.entries(args);
  if (values.length === 1) return short(values[0][1]).replace(/\s+/g, " ").slice(0, 120);
  return values.map(([key, value]) => `${key}: ${short(value)}`).join(", ").replace(/\s+/g, " ").slice(0, 120);
}

/** @param {Item} item @param {Lane} lane @param {any} ctx */
export function toolCard(item, lane, ctx) {
  const tool = /** @type {Tool} */ (item.tool);
  const glyph = el("span", "glyph");
  const name = el("strong", "tool-name", visible(tool.name));
  const line = el("span", "tool-line");
  const state = el("span", "tool-state");
  const time = el("span", "tool-time num");
  const bar = el("span", "tool-bar");
  const head = el("summary", "tool-head", glyph, name, line, state, time);
  const body = el("div", "tool-body");
  const node = /** @type {HTMLDetailsElement} */ (el("details", "tool", head, bar, body));
  node.dataset.callId = tool.callId;
  const approval = el("div", "tool-approval");
  const progress = el("pre", "tool-progress");
  node.after(approval);
  const outer = el("div", "tool-item", node, approval);
  let bodyRev = -1;
  let shownApproval = "";

  const drawBody = () => {
    if (!node.open || bodyRev === item.rev) return;
    bodyRev = item.rev;
    fillBody(body, tool, progress, lane, ctx);
  };
  node.addEventListener("toggle", drawBody);

  return {
    node: outer,
    update() {
      if (name.textContent !== tool.name) name.textContent = visible(tool.name);
      outer.dataset.state = tool.state;
      set(glyph, GLYPHS[tool.state]);
      glyph.className = `glyph hue-${HUES[tool.state]}`;
      set(line, summary(tool));
      set(state, tool.state === "running" && tool.message ? visible(tool.message) : t(`tool.${tool.state}`));
      set(time, tool.endTs ? brief(tool.elapsedMs) : tool.startTs ? seconds(tool.elapsedMs) : "");
      bar.style.transform = `scaleX(${tool.state === "running" ? (tool.fraction ?? 0) : 0})`;
      const wanted = tool.state === "approval" ? "open" : (tool.approval?.decision ?? "");
      if (wanted !== shownApproval) {
        shownApproval = wanted;
        approval.replaceChildren(...approvalBox(tool, lane));
      }
      drawBody();
      return true;
    },
  };
}

/** @param {HTMLElement} node @param {string} text */
function set(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** @param {HTMLElement} body @param {Tool} tool @param {HTMLElement} progress @param {Lane} lane @param {any} ctx */
function fillBody(body, tool, progress, lane, ctx) {
  const parts = [section(t("tool.args"), argsTable(tool))];
  if (tool.content) {
    set(progress, visible(tool.content.slice(-20_000)));
    parts.push(section(t("tool.output"), progress));
  }
  if (tool.output !== undefined) parts.push(section(tool.isError ? t("tool.failed", { error: tool.error ?? "" }) : t("tool.result"), resultView(tool, ctx)));
  const row = el("div", "row", button("tool-raw", t("tool.raw"), "quiet", { call: tool.callId }));
  if (tool.output !== undefined) {
    row.append(button("tool-full", t("tool.open"), "quiet", { call: tool.callId }), button("tool-download", t("tool.download"), "quiet", { call: tool.callId }));
  }
  row.dataset.lane = lane.id;
  parts.push(row);
  body.replaceChildren(...parts);
}

/** @param {string} title @param {Node} content */
const section = (title, content) => el("section", "tool-section", el("h4", "label", title), content);

/** @param {Tool} tool */
export function argsTable(tool) {
  const args = argsOf(tool);
  if (args === null || typeof args !== "object" || Array.isArray(args)) return el("pre", "", visible(tool.argsText || JSON.stringify(args)));
  const list = el("dl", "args");
  for (const [key, value] of Object.entries(args)) {
    const text = typeof value === "string" ? value : JSON.stringify(value, null, 2);
    list.append(el("dt", "", visible(key)), el("dd", "", el("pre", "", visible(text ?? ""))));
  }
  return list.childElementCount ? list : el("p", "muted", t("tool.noArgs"));
}
