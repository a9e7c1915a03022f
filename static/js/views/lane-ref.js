/** `[A]` in a synthesis: a chip that leads to the lane. Only lanes that read others get it. */
import { el } from "../markdown/render.js";
import { focusLane, shownEntries } from "../actions.js";
import { t } from "../i18n.js";

/** @param {() => import("../store.js").Lane} lane @returns {(letter: string) => Node|null} */
export function laneRefNode(lane) {
  return (letter) => {
    const reads = lane().dependsOn.length > 0 || lane().agent === "synthesizer";
    const entry = reads ? shownEntries().find((e) => e.letter === letter) : undefined;
    if (!entry) return null;
    const chip = /** @type {HTMLButtonElement} */ (el("button", `ref-chip lane-${entry.index % 16}`, letter));
    chip.type = "button";
    chip.title = t("lane.go", { lane: entry.key });
    chip.addEventListener("click", () => focusLane(entry.key));
    return chip;
  };
}
