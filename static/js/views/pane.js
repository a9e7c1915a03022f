/** One lane's pane: two header rows drawn by the shell, and the body drawn by the imperative renderer. */
import { useEffect, useRef } from "preact/hooks";
import { html, Icon } from "../html.js";
import { attempts, connection, dialog, focus, laneSignal, maximised, scheduler, serverNow } from "../state.js";
import { focusLane, retryLane, stopLane } from "../actions.js";
import { baseOf, currentLane } from "../conversation.js";
import { count, laneState, metrics, money, seconds, STALLED_MS, STATES } from "../lanestate.js";
import { PaneBody } from "../pane/body.js";
import { onTick } from "../ticker.js";
import { best } from "../best.js";
import { t } from "../i18n.js";
import { paneClick } from "./pane-actions.js";
import { laneRefNode } from "./lane-ref.js";
import { Swatch, laneName } from "./swatch.js";
import { dragHandle } from "./reorder.js";

/** @param {{entry: import("../conversation.js").Entry, selected: boolean}} props */
export function Pane({ entry, selected }) {
  const lane = currentLane(entry, attempts.value);
  laneSignal(`${lane.run}/${lane.id}`).value;
  const root = useRef(/** @type {HTMLElement|null} */ (null));
  const scroller = useRef(/** @type {HTMLElement|null} */ (null));
  const pill = useRef(/** @type {HTMLElement|null} */ (null));
  const body = useRef(/** @type {PaneBody|null} */ (null));
  const latest = useRef(lane);
  latest.current = lane;

  useEffect(() => {
    body.current = new PaneBody(/** @type {HTMLElement} */ (scroller.current), /** @type {HTMLElement} */ (pill.current), { markdown: { laneRef: laneRefNode(() => latest.current) } });
    const stop = onTick(() => root.current && drawHeader(root.current, latest.current));
    return () => {
      stop();
      body.current?.close();
    };
  }, []);
  useEffect(() => body.current?.show(entry));
  useEffect(() => {
    if (!selected) return;
    scheduler.focused = [...(body.current?.turns.values() ?? [])].at(-1)?.drawable ?? null;
    if (focus.value === entry.key) root.current?.scrollIntoView({ block: "nearest" });
  }, [selected, lane]);
  useEffect(() => {
    if (root.current) drawHeader(root.current, lane);
  });

  return html`
    <section class=${`pane lane-${entry.index % 16}`} ref=${root} id=${`pane-${entry.key}`} data-key=${entry.key} data-channel=${lane.id}
      aria-labelledby=${`pane-name-${entry.key}`} data-selected=${selected ? "1" : undefined}
      onClick=${(/** @type {MouseEvent} */ event) => paneClick(event, entry, lane, body.current)}
      onFocusIn=${() => focus.value !== entry.key && focusLane(entry.key)}>
      <header class="pane-head" ...${dragHandle(entry.key)}>
        <${Swatch} entry=${entry} lane=${lane} />
        <h2 class="pane-name" id=${`pane-name-${entry.key}`} title=${lane.agent}>${laneName(lane)}</h2>
        ${lane.model ? html`<button class="model btn quiet" title=${t("lane.swap")} onClick=${() => (dialog.value = { kind: "swap", laneId: entry.key })}>${lane.model}</button>` : null}
        <${Attempts} entry=${entry} lane=${lane} />
        <span class="grow"></span>
        <span class="chip state-chip" data-slot="state"></span>
        ${lane.finished
          ? html`<button class="btn icon-only quiet" aria-label=${t("lane.retryOf", { lane: lane.id })} title=${t("lane.retry")} onClick=${() => retryLane(entry.key)}><${Icon} name="retry" /></button>`
          : html`<button class="btn icon-only quiet stop" aria-label=${t("lane.stopOf", { lane: lane.id })} title=${t("lane.stop")} disabled=${lane.stopping} onClick=${() => stopLane(entry.key)}><${Icon} name="stop" /></button>`}
        <button class="btn icon-only quiet" aria-label=${t("lane.maximise", { lane: lane.id })} onClick=${() => { focusLane(entry.key); maximised.value = !maximised.value; }}><${Icon} name="max" /></button>
        <button class="btn icon-only quiet" aria-label=${t("lane.menuOf", { lane: lane.id })} aria-haspopup="dialog" onClick=${() => (dialog.value = { kind: "lane-menu", laneId: entry.key })}><${Icon} name="more" /></button>
      </header>
      <${Metrics} />
      <div class="pane-scroll" ref=${scroller} role="log" aria-live="off" aria-busy=${!lane.finished} tabindex="0" aria-label=${t("lane.transcript", { lane: lane.id })}></div>
      <button class="pill" ref=${pill} hidden onClick=${() => body.current?.follow()}></button>
    </section>
  `;
}

const SLOTS = ["elapsed", "ttft", "rate", "tokens", "cost"];

function Metrics() {
  return html`<dl class="metrics num">
    ${SLOTS.map((slot) => html`<div key=${slot} data-slot=${slot}><dt>${t(`metric.${slot}`)}</dt><dd>–</dd></div>`)}
  </dl>`;
}

/** @param {{entry: import("../conversation.js").Entry, lane: import("../store.js").Lane}} props */
function Attempts({ entry, lane }) {
  const turn = entry.turns.at(-1);
  if (!turn || turn.attempts.length < 2) return null;
  const at = turn.attempts.indexOf(lane);
  const pick = (/** @type {number} */ step) => {
    const next = turn.attempts[(at + step + turn.attempts.length) % turn.attempts.length];
    attempts.value = { ...attempts.value, [`${turn.run.id}/${baseOf(lane.id)}`]: next.id };
  };
  return html`<span class="attempts num">
    <button class="btn icon-only quiet" aria-label=${t("attempt.previous")} onClick=${() => pick(-1)}>‹</button>
    <span>${at + 1}/${turn.attempts.length}</span>
    <button class="btn icon-only quiet" aria-label=${t("attempt.next")} onClick=${() => pick(1)}>›</button>
  </span>`;
}

/** @param {HTMLElement} root @param {import("../store.js").Lane} lane */
function drawHeader(root, lane) {
  const now = serverNow();
  const state = laneState(lane, now, connection.value === "waiting");
  const chip = /** @type {HTMLElement} */ (root.querySelector("[data-slot=state]"));
  const age = state === "stalled" || (state === "needs" && now - lane.lastTs > STALLED_MS) ? ` ${seconds(now - lane.lastTs)}` : "";
  const word = `${STATES[state].glyph} ${t(`state.${state}`)}${age}`;
  if (chip.textContent !== word) {
    chip.textContent = word;
    chip.className = `chip state-chip hue-${STATES[state].hue}`;
    root.dataset.state = state;
  }
  const m = metrics(lane, now);
  const values = {
    elapsed: m.elapsed === undefined ? "–" : seconds(m.elapsed),
    ttft: m.ttft === undefined ? "–" : m.ttft < 1000 ? `${Math.round(m.ttft)} ms` : seconds(m.ttft),
    rate: m.rate === undefined ? "–" : `${m.rate.toFixed(m.rate < 10 ? 1 : 0)}/s`,
    tokens: `${count(m.input)} / ${m.estimated ? "~" : ""}${count(m.output)}`,
    cost: money(m.cost, m.currency),
  };
  const winners = best(lane);
  for (const slot of SLOTS) {
    const box = /** @type {HTMLElement} */ (root.querySelector(`.metrics [data-slot=${slot}]`));
    const value = /** @type {HTMLElement} */ (box.lastElementChild);
    const text = /** @type {Record<string, string>} */ (values)[slot];
    if (value.textContent !== text) value.textContent = text;
    box.toggleAttribute("data-best", winners.has(slot));
  }
}
