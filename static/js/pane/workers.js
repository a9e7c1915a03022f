/**
 * Workers that were folded into their parent's pane: each a fold with its transcript, drawn like a pane of its own.
 * Loaded with the first of them.
 *
 * @typedef {import("../store.js").Lane} Lane
 */
import { el } from "../markdown/render.js";
import { visible } from "../markdown/safe.js";
import { laneState, STATES } from "../lanestate.js";
import { panes, scheduler, serverNow } from "../state.js";
import { baseOf } from "../conversation.js";
import { t } from "../i18n.js";
import { button } from "./items.js";
import { TranscriptView } from "./transcript-view.js";

/** @typedef {{drawable: import("../scheduler.js").Drawable, close: () => void}} Fold */

/** @type {WeakMap<HTMLElement, Map<Lane, Fold>>} */
const known = new WeakMap();

/**
 * Show these workers, and no others, in a turn's box.
 * @param {HTMLElement} box @param {Lane[]} lanes @param {{ctx: any, seen: () => boolean, phases: object}} pane
 * @returns {import("../scheduler.js").Drawable[]} to be drawn again when the pane comes into view
 */
export function showWorkers(box, lanes, pane) {
  const folds = known.get(box) ?? new Map();
  known.set(box, folds);
  for (const [lane, fold] of folds) {
    if (lanes.includes(lane)) continue;
    fold.close();
    folds.delete(lane);
  }
  for (const lane of lanes) if (!folds.has(lane)) folds.set(lane, open(box, lane, pane));
  return [...folds.values()].map((fold) => fold.drawable);
}

/** @param {HTMLElement} box @param {Lane} lane @param {{ctx: any, seen: () => boolean, phases: object}} pane @returns {Fold} */
function open(box, lane, pane) {
  const glyph = el("span", "glyph");
  const state = el("span", "muted");
  const body = el("div", "nest-body");
  const head = el("summary", "nest-head", glyph, el("strong", "", visible(lane.title ?? lane.id)), el("span", "muted", t("nest.worker")), state);
  const details = /** @type {HTMLDetailsElement} */ (el("details", "", head, body));
  const node = el("div", "nest worker", details, button("apart", t("nest.apart"), "quiet", { worker: baseOf(lane.id) }));
  node.dataset.channel = lane.id;
  details.open = true;
  box.append(node);
  const view = new TranscriptView(body, lane, pane.ctx);
  const drawable = {
    flush(/** @type {number} */ now) {
      const word = laneState(lane, serverNow());
      glyph.textContent = STATES[word].glyph;
      glyph.className = `glyph hue-${STATES[word].hue}`;
      state.textContent = t(`state.${word}`);
      return !pane.seen() || view.flush(now);
    },
    ...pane.phases,
    visible: pane.seen,
  };
  lane.transcripts.touched.clear();
  const key = `${lane.run}/${lane.id}`;
  panes.set(key, drawable);
  scheduler.request(drawable);
  return {
    drawable,
    close() {
      node.remove();
      scheduler.forget(drawable);
      if (panes.get(key) === drawable) panes.delete(key);
    },
  };
}
