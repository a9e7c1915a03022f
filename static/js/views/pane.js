/** One lane's pane: two header rows drawn by the shell, and the body drawn by the imperative renderer. */
import { useEffect, useRef } from "preact/hooks";
import { html, Icon } from "../html.js";
import { apart, attempts, connection, dialog, focus, laneSignal, maximised, scheduler, serverNow } from "../state.js";
import { focusLane, retryLane, setApart, stopLane } from "../actions.js";
import { baseOf, currentLane, signalKey } from "../conversation.js";
import { count, laneState, metrics, money, seconds, short, STALLED_MS, STATES } from "../lanestate.js";
import { PaneBody } from "../pane/body.js";
import { onTick } from "../ticker.js";
import { best } from "../best.js";
import { t } from "../i18n.js";
import { paneClick } from "./pane-actions.js";
import { markNests } from "../pane/items.js";
import { laneRefNode } from "./lane-ref.js";
import { Swatch, laneName } from "./swatch.js";
import { dragHandle } from "./reorder.js";

/** @param {{entry: import("../conversation.js").Entry, selected: boolean}} props */
export function Pane({ entry, selected }) {
  const lane = currentLane(entry, attempts.value);
  laneSignal(signalKey(entry, lane)).value;
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
    if (root.current) markNests(root.current, entry.key);
  }, [apart.value]);
  useEffect(() => {
    if (!selected) return;
    scheduler.focused = [...(body.current?.turns.values() ?? [])].at(-1)?.drawable ?? null;
    if (focus.value === entry.key) root.current?.scrollIntoView({ block: "nearest" });
  }, [selected, lane]);
  useEffect(() => {
    if (root.current) drawHeader(root.current, lane);
  });

  return html`
    <section class=${`pane lane-${entry.index % 16}${lane.title === "Σ" ? " is-sigma" : ""}`} ref=${root} id=${`pane-${entry.key}`} data-key=${entry.key} data-channel=${lane.id}
      aria-labelledby=${`pane-name-${entry.key}`} data-selected=${selected ? "1" : undefined}
      onClick=${(/** @type {MouseEvent} */ event) => paneClick(event, entry, lane, body.current)}
      onFocusIn=${() => focus.value !== entry.key && focusLane(entry.key)}>
      <header class="pane-head" ...${dragHandle(entry.key)}>
        <${Swatch} entry=${entry} lane=${lane} />
        <h2 class="pane-name" id=${`pane-name-${entry.key}`} title=${lane.agent}>${laneName(lane)}</h2>
        ${lane.model ? html`<button class="model btn quiet" title=${t("lane.swap")} onClick=${() => (dialog.value = { kind: "swap", laneId: entry.key })}>${lane.model}</button>` : null}
        ${lane.parent ? html`<button class="origin btn quiet" title=${t("lane.go", { lane: baseOf(lane.parent) })} onClick=${() => focusLane(baseOf(lane.parent ?? ""))}>↳ ${baseOf(lane.parent)}</button>` : null}
        <${Attempts} entry=${entry} lane=${lane} />
        <span class="grow"></span>
        <span class="chip state-chip" data-slot="state"></span>
        ${entry.path
          ? html`<button class="btn icon-only quiet" aria-label=${t("nest.foldOf", { lane: lane.id })} title=${t("nest.fold", { lane: lane.parent ?? "" })} onClick=${() => setApart(entry.key, false)}><${Icon} name="fold" /></button>`
          : lane.finished
          ? html`<button class="btn icon-only quiet" aria-label=${t("lane.retryOf", { lane: lane.id })} title=${t("lane.retry")} onClick=${() => retryLane(entry.key)}><${Icon} name="retry" /></button>`
          : html`<button class="btn icon-only quiet stop" aria-label=${t("lane.stopOf", { lane: lane.id })} title=${t("lane.stop")} disabled=${lane.stopping} onClick=${() => stopLane(entry.key)}><${Icon} name="stop" /></button>`}
        <button class="btn icon-only quiet" aria-label=${t(maximised.value ? "lane.restoreOf" : "lane.maximise", { lane: lane.id })} title=${t(maximised.value ? "lane.restore" : "lane.max")} onClick=${() => { focusLane(entry.key); maximised.value = !maximised.value; }} data-look><${Icon} name=${maximised.value ? "min" : "max"} /></button>
        <button class="btn icon-only quiet" aria-label=${t("lane.menuOf", { lane: lane.id })} title=${t("lane.more")} aria-haspopup="dialog" onClick=${() => (dialog.value = { kind: "lane-menu", laneId: entry.key })}><${Icon} name="more" /></button>
      </header>
      ${entry.path ? null : html`<${Metrics} />`}
      <div class="pane-scroll" ref=${scroller} role="log" aria-live="off" aria-busy=${!lane.finished} tabindex="0" aria-label=${t("lane.transcript", { lane: lane.id })}></div>
      <button class="pill" ref=${pill} hidden onClick=${() => body.current?.follow()}></button>
    </section>
  `;
}

const SLOTS = ["elapsed", "ttft", "rate", "tokens", "cost"];

function Metrics() {
  return html`<dl class="metrics num">
    ${SLOTS.map((slot) => html`<div key=${slot} data-slot=${slot} title=${t(`metric.${slot}`)}><dt>${t(`metric.${slot}`)}</dt><dd>–</dd></div>`)}
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
  const row = root.querySelector(".metrics");
  if (row) drawMetrics(row, lane, now);
}

/** @param {Element} row @param {import("../store.js").Lane} lane @param {number} now */
function drawMetrics(row, lane, now) {
  const m = metrics(lane, now);
  const values = {
    elapsed: m.elapsed === undefined ? "–" : seconds(m.elapsed),
    ttft: m.ttft === undefined ? "–" : short(m.ttft),
    rate: m.rate === undefined ? "–" : `${m.rate.toFixed(m.rate && m.rate < 10 ? 1 : 0)}/s`,
    tokens: `${count(m.input)} / ${m.estimated ? "~" : ""}${count(m.output)}`,
    cost: money(m.cost, m.currency),
  };
  const winners = best(lane);
  for (const slot of SLOTS) {
    const box = /** @type {HTMLElement} */ (row.querySelector(`[data-slot=${slot}]`));
    const value = /** @type {HTMLElement} */ (box.lastElementChild);
    const text = /** @type {Record<string, string>} */ (values)[slot];
    if (value.textContent !== text) value.textContent = text;
    box.toggleAttribute("data-best", winners.has(slot));
  }
}
