/** A lane's mark: letter and pattern, the same in strip, pane, composer and exports; Σ for a synthesis. */
import { html } from "../html.js";

/** @param {{entry: import("../conversation.js").Entry, lane: import("../store.js").Lane}} props */
export function Swatch({ entry, lane }) {
  const sigma = lane.title === "Σ";
  return html`<span class=${`swatch ${sigma ? "sigma" : `lane-${entry.index % 16}`}`} aria-hidden="true">${sigma ? "Σ" : entry.letter}</span>`;
}

/** What the lane is called beside its mark. @param {import("../store.js").Lane} lane */
export const laneName = (lane) => (lane.title && lane.title !== "Σ" ? lane.title : lane.id);
