/** One cell per lane: who it is, what it does, how fast. The whole navigation on a small screen. */
import { useEffect, useRef } from "preact/hooks";
import { html } from "../html.js";
import { attempts, connection, focus, hidden, laneSignal, maximised, serverNow, structure, unread } from "../state.js";
import { focusLane, paneEntries, showRemoved } from "../actions.js";
import { currentLane, signalKey } from "../conversation.js";
import { activity, laneState, STATES } from "../lanestate.js";
import { onTick } from "../ticker.js";
import { Swatch, laneName } from "./swatch.js";
import { t } from "../i18n.js";

export function Strip() {
  structure.value;
  const list = paneEntries();
  const current = focus.value || list[0]?.key;
  return html`
    <div class="strip" role="toolbar" aria-label=${t("region.strip")} data-region tabindex="-1" onKeyDown=${arrows}>
      ${list.map((entry) => html`<${Cell} key=${entry.key} entry=${entry} selected=${entry.key === current} />`)}
      ${hidden.value.length ? html`<button class="btn quiet" id="show-removed" onClick=${showRemoved}>${t("lane.removed", { n: hidden.value.length })}</button>` : null}
    </div>
  `;
}

/** Roving focus. @param {KeyboardEvent} event */
function arrows(event) {
  const step = /** @type {Record<string, number>} */ ({ ArrowRight: 1, ArrowLeft: -1 })[event.key];
  if (!step) return;
  const tabs = [.../** @type {HTMLElement} */ (event.currentTarget).querySelectorAll(".cell")];
  const next = tabs[(tabs.indexOf(/** @type {HTMLElement} */ (document.activeElement)) + step + tabs.length) % tabs.length];
  /** @type {HTMLElement} */ (next).focus();
  focusLane(/** @type {HTMLElement} */ (next).dataset.key ?? "");
  event.preventDefault();
}

/** @param {{entry: import("../conversation.js").Entry, selected: boolean}} props */
function Cell({ entry, selected }) {
  const lane = currentLane(entry, attempts.value);
  laneSignal(signalKey(entry, lane)).value;
  const ref = useRef(null);
  const latest = useRef(lane);
  latest.current = lane;
  useEffect(
    () =>
      onTick(() => {
        const node = /** @type {HTMLElement|null} */ (/** @type {unknown} */ (ref.current));
        if (node) drawCell(node, latest.current);
      }),
    [],
  );
  const open = () => {
    focusLane(entry.key);
    if (unread.value[entry.key]) unread.value = { ...unread.value, [entry.key]: false };
  };
  return html`
    <button class="cell" ref=${ref} data-key=${entry.key} aria-pressed=${selected} tabindex=${selected ? 0 : -1}
      aria-controls=${`pane-${entry.key}`} onClick=${open} onDblClick=${() => (maximised.value = !maximised.value)}>
      <${Swatch} entry=${entry} lane=${lane} />
      <span class="glyph" data-slot="glyph"></span>
      <span class="cell-name">${laneName(lane)}</span>
      <span class="cell-activity" data-slot="activity"></span>
      <svg class="spark" data-slot="spark" width="40" height="16" viewBox="0 0 40 16" aria-hidden="true"><polyline points="" /></svg>
      ${unread.value[entry.key] ? html`<span class="unread" title=${t("unread")}><span class="sr">${t("unread")}</span></span>` : null}
    </button>
  `;
}

/** @param {HTMLElement} node @param {import("../store.js").Lane} lane */
function drawCell(node, lane) {
  const now = serverNow();
  const state = laneState(lane, now, connection.value === "waiting");
  const glyph = /** @type {HTMLElement} */ (node.querySelector("[data-slot=glyph]"));
  if (glyph.dataset.state !== state) {
    glyph.dataset.state = state;
    glyph.textContent = STATES[state].glyph;
    glyph.className = `glyph hue-${STATES[state].hue}`;
    node.dataset.state = state;
  }
  const slot = /** @type {HTMLElement} */ (node.querySelector("[data-slot=activity]"));
  const text = (activity(lane, now) || t(`state.${state}`)).slice(0, 28);
  if (slot.textContent !== text) slot.textContent = text;
  if (!lane.finished || !node.dataset.final) spark(/** @type {Element} */ (node.querySelector("polyline")), lane, now);
  if (lane.finished) node.dataset.final = "1";
}

/** @param {Element} line @param {import("../store.js").Lane} lane @param {number} now */
function spark(line, lane, now) {
  const end = Math.floor((lane.endTs || now) / 1000);
  const top = Math.max(10, ...lane.rate.values());
  const points = [];
  for (let i = 0; i < 20; i++) points.push(`${i * 2.1},${(15 - 14 * ((lane.rate.get(end - 19 + i) ?? 0) / top)).toFixed(1)}`);
  const text = points.join(" ");
  if (line.getAttribute("points") !== text) line.setAttribute("points", text);
}

