/**
 * A call that waits for a person: its arguments in full, and the three answers. The same box stands in the lane and
 * in the inbox; the first answer wins, wherever it is given.
 *
 * @typedef {import("../transcript.js").Tool} Tool
 * @typedef {import("../store.js").Lane} Lane
 */
import { el } from "../markdown/render.js";
import { visible } from "../markdown/safe.js";
import { t } from "../i18n.js";
import { api } from "../api.js";
import { toast } from "../state.js";

/** @param {Tool} tool @param {Lane} lane @returns {Node[]} */
export function approvalBox(tool, lane) {
  const decision = tool.approval?.decision;
  if (decision) return [el("p", "line line-note", t(`approvalDone.${decision}`, { by: tool.approval?.by ?? "" }))];
  if (tool.state !== "approval") return [];
  const text = JSON.stringify(tool.args ?? {}, null, 2);
  const shown = el("pre", "approval-args", visible(text));
  shown.tabIndex = 0;
  const buttons = el("div", "row");
  const box = el("section", "card approval", el("div", "card-head", el("span", "glyph hue-amber", "!"), t("approval.title", { tool: tool.name })), shown, buttons);
  box.setAttribute("aria-label", t("approval.title", { tool: tool.name }));
  box.dataset.callId = tool.callId;
  const send = (/** @type {object} */ answer) => void decide(lane, tool, answer, box);
  const back = make(t("approval.back"), "quiet", () => box.replaceWith(...approvalBox(tool, lane)));
  const approve = make(t("approval.approve"), "primary", () => send({ decision: "approve" }));
  approve.dataset.key = "y";
  const deny = make(t("approval.deny"), "", () => askReason(buttons, send, back));
  deny.dataset.key = "n";
  const edit = make(t("approval.edit"), "", () => editArgs(shown, text, buttons, send, back));
  buttons.append(approve, deny, edit);
  return [box];
}

/** @param {string} label @param {string} className @param {() => void} run */
function make(label, className, run) {
  const node = /** @type {HTMLButtonElement} */ (el("button", `btn ${className}`, label));
  node.type = "button";
  node.addEventListener("click", run);
  return node;
}

/** @param {HTMLElement} buttons @param {(answer: object) => void} send @param {HTMLElement} back */
function askReason(buttons, send, back) {
  const input = /** @type {HTMLInputElement} */ (el("input", "field"));
  input.placeholder = t("approval.reason");
  input.setAttribute("aria-label", t("approval.reason"));
  const confirm = make(t("approval.deny"), "danger", () => send(input.value.trim() ? { decision: "deny", reason: input.value.trim() } : { decision: "deny" }));
  input.addEventListener("keydown", (event) => event.key === "Enter" && confirm.click());
  buttons.replaceChildren(input, confirm, back);
  input.focus();
}

/** @param {HTMLElement} shown @param {string} text @param {HTMLElement} buttons @param {(answer: object) => void} send @param {HTMLElement} back */
function editArgs(shown, text, buttons, send, back) {
  const area = /** @type {HTMLTextAreaElement} */ (el("textarea", "field code"));
  area.value = text;
  area.rows = Math.min(16, text.split("\n").length + 1);
  area.setAttribute("aria-label", t("approval.edit"));
  shown.replaceWith(area);
  const problem = el("span", "bad");
  const confirm = make(t("approval.approveEdited"), "primary", () => {
    try {
      send({ decision: "edit", arguments: JSON.parse(area.value) });
    } catch (error) {
      problem.textContent = /** @type {Error} */ (error).message;
    }
  });
  buttons.replaceChildren(confirm, back, problem);
  area.focus();
}

/** @param {Lane} lane @param {Tool} tool @param {object} answer @param {HTMLElement} box */
async function decide(lane, tool, answer, box) {
  for (const control of box.querySelectorAll("button, textarea, input")) control.setAttribute("disabled", "");
  try {
    await api.answer(lane.run, tool.callId, answer);
  } catch (error) {
    toast(/** @type {Error} */ (error).message, { bad: true });
    for (const control of box.querySelectorAll("button, textarea, input")) control.removeAttribute("disabled");
  }
}
