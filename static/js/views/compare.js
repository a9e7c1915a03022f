/** Two lanes side by side, also while they run: word diff, numbers, tools, landmarks. */
import { useEffect, useRef, useState } from "preact/hooks";
import { html } from "../html.js";
import { attempts, structure } from "../state.js";
import { shownEntries } from "../actions.js";
import { currentLane } from "../conversation.js";
import { metrics, money, seconds, short } from "../lanestate.js";
import { diffNodes, spread, toolSequence } from "../diffing.js";
import { el } from "../markdown/render.js";
import { onTick } from "../ticker.js";
import { serverNow } from "../state.js";
import { MarkdownStream } from "../markdown/stream.js";
import { t } from "../i18n.js";

/** Lanes of everything on screen: with two runs open, also the same lane of each. */
function options() {
  const out = [];
  for (const entry of shownEntries()) {
    for (const turn of entry.turns) {
      for (const lane of turn.attempts) out.push({ id: `${lane.run}/${lane.id}`, letter: entry.letter, lane, label: `${entry.letter} ${lane.id}${entry.turns.length > 1 ? ` · ${lane.run.slice(-5)}` : ""}` });
    }
  }
  return out;
}

/** @param {{left?: string}} props */
export function Compare({ left }) {
  structure.value;
  const list = options();
  const currents = shownEntries().map((e) => currentLane(e, attempts.value));
  const first = left ? currents.find((l) => l.id === left || l.id.startsWith(`${left}~`)) ?? currents[0] : currents[0];
  const second = currents.find((l) => l !== first) ?? list.find((o) => o.lane !== first)?.lane ?? first;
  // Empty = the default, which may come only with the runs' events.
  const [a, setA] = useState("");
  const [b, setB] = useState("");
  const [mode, setMode] = useState("words");
  const [, redraw] = useState(0);
  const laneA = list.find((o) => o.id === a)?.lane ?? first;
  const laneB = list.find((o) => o.id === b)?.lane ?? second;
  const seen = useRef("");
  useEffect(() => onTick(() => {
    const mark = `${laneA?.cseq}/${laneB?.cseq}`;
    if (mark === seen.current) return;
    seen.current = mark;
    redraw((n) => n + 1);
  }), [laneA, laneB]);
  if (!laneA || !laneB) return html`<p class="muted pad">${t("compare.none")}</p>`;
  const select = (/** @type {string} */ value, /** @type {(v: string) => void} */ set, /** @type {string} */ label) => html`
    <select class="field" aria-label=${label} value=${value} onChange=${(/** @type {any} */ e) => set(e.target.value)}>${list.map((o) => html`<option key=${o.id} value=${o.id}>${o.label}</option>`)}</select>`;
  return html`
    <div class="row compare-bar">${select(`${laneA.run}/${laneA.id}`, setA, t("compare.left"))}<span class="muted">↔</span>${select(`${laneB.run}/${laneB.id}`, setB, t("compare.right"))}<span class="grow"></span>
      ${["words", "side", "tools"].map((m) => html`<button key=${m} class=${`btn${mode === m ? " is-on" : ""}`} aria-pressed=${mode === m} onClick=${() => setMode(m)}>${t(`compare.${m}`)}</button>`)}</div>
    <${Deltas} a=${laneA} b=${laneB} names=${[laneA, laneB].map((lane) => list.find((o) => o.lane === lane)?.label ?? lane.id)} />
    ${mode === "words" ? html`<${Words} a=${laneA} b=${laneB} />` : mode === "side" ? html`<${Sides} a=${laneA} b=${laneB} />` : html`<${Tools} a=${laneA} b=${laneB} />`}
    <${Repeats} />
  `;
}

/** @typedef {{a: import("../store.js").Lane, b: import("../store.js").Lane}} Pair */

/** @param {Pair & {names: string[]}} props */
function Deltas({ a, b, names }) {
  const now = serverNow();
  const [ma, mb] = [metrics(a, now), metrics(b, now)];
  const rows = /** @type {[string, any, any, (v: any) => string][]} */ ([
    ["elapsed", ma.elapsed, mb.elapsed, seconds], ["ttft", ma.ttft, mb.ttft, short], ["rate", ma.rate, mb.rate, (v) => `${v.toFixed(1)}/s`],
    ["input", ma.input, mb.input, String], ["output", ma.output, mb.output, String], ["cost", ma.cost, mb.cost, (v) => money(v, ma.currency)],
  ]);
  const show = (/** @type {any} */ v, /** @type {(v: any) => string} */ f) => (v === undefined || v === null ? "–" : f(v));
  const delta = (/** @type {any} */ x, /** @type {any} */ y) => (x > 0 && y !== undefined ? `${y >= x ? "+" : "−"}${Math.abs(Math.round(((y - x) / x) * 100))} %` : "–");
  return html`<table class="deltas num"><thead><tr><th></th>${rows.map(([k]) => html`<th key=${k}>${t(`metric.${k}`)}</th>`)}</tr></thead>
    <tbody><tr><th>${names[0]}</th>${rows.map(([k, x, , f]) => html`<td key=${k}>${show(x, f)}</td>`)}</tr><tr><th>${names[1]}</th>${rows.map(([k, , y, f]) => html`<td key=${k}>${show(y, f)}</td>`)}</tr>
    <tr><th>Δ</th>${rows.map(([k, x, y]) => html`<td key=${k}>${delta(x, y)}</td>`)}</tr></tbody></table>`;
}

/** @param {Pair} props */
function Words({ a, b }) {
  const ref = useRef(/** @type {HTMLElement|null} */ (null));
  const token = useRef(0);
  useEffect(() => {
    const mine = ++token.current;
    void diffNodes(a.transcripts.answer(), b.transcripts.answer()).then((nodes) => {
      if (mine === token.current) ref.current?.replaceChildren(...nodes);
    });
  });
  return html`<div class="diff" ref=${ref} dir="auto" tabindex="0" role="region" aria-label=${t("compare.words")}></div>`;
}

/** Both as they are, scrolled together by headings and fences. @param {Pair} props */
function Sides({ a, b }) {
  const root = useRef(/** @type {HTMLElement|null} */ (null));
  useEffect(() => {
    const columns = root.current ? [...root.current.children] : [];
    [a, b].forEach((lane, i) => {
      const box = el("div", "md");
      new MarkdownStream(box).finish(lane.transcripts.answer());
      columns[i].replaceChildren(box);
    });
  });
  const sync = (/** @type {any} */ event) => {
    const from = event.currentTarget;
    const to = from === root.current?.firstElementChild ? root.current?.lastElementChild : root.current?.firstElementChild;
    if (!to || !from.matches(":hover, :focus-within, :focus")) return;
    const marks = (/** @type {Element} */ n) => [0, .../** @type {HTMLElement[]} */ ([...n.querySelectorAll("h3, h4, h5, figure")]).map((m) => m.offsetTop), n.scrollHeight];
    const [x, y] = [marks(from), marks(to)];
    let i = 0;
    while (i < Math.min(x.length, y.length) - 2 && x[i + 1] <= from.scrollTop) i += 1;
    const last = i >= Math.min(x.length, y.length) - 2;
    const share = (from.scrollTop - x[i]) / Math.max(1, (last ? x[x.length - 1] : x[i + 1]) - x[i]);
    to.scrollTop = y[i] + share * ((last ? y[y.length - 1] : y[i + 1]) - y[i]);
  };
  return html`<div class="sides" ref=${root}><div class="side" tabindex="0" role="region" aria-label=${a.id} onScroll=${sync}></div><div class="side" tabindex="0" role="region" aria-label=${b.id} onScroll=${sync}></div></div>`;
}

/** @param {Pair} props */
function Tools({ a, b }) {
  const rows = toolSequence(a, b);
  if (!rows.length) return html`<p class="muted pad">${t("compare.noTools")}</p>`;
  return html`<table class="toolseq"><thead><tr><th>${a.id}</th><th>${b.id}</th></tr></thead><tbody>
    ${rows.map(([x, y], i) => html`<tr key=${i} class=${x && y ? "" : "is-diff"}><td>${x ? `${x.name} ${x.line}` : ""}</td><td>${y ? `${y.name} ${y.line}` : ""}</td></tr>`)}
  </tbody></table>`;
}

/** Median and spread over the repeats of an agent. */
function Repeats() {
  const groups = spread(shownEntries().map((e) => currentLane(e, attempts.value)), serverNow());
  if (!groups.length) return null;
  return html`<table class="deltas num"><caption class="label">${t("compare.repeats")}</caption><thead><tr><th>${t("lane.agent")}</th><th>n</th><th>${t("metric.elapsed")}</th><th>${t("metric.ttft")}</th><th>${t("metric.output")}</th></tr></thead>
    <tbody>${groups.map((g) => html`<tr key=${g.agent}><th>${g.agent}</th><td>${g.n}</td><td>${g.elapsed}</td><td>${g.ttft}</td><td>${g.output}</td></tr>`)}</tbody></table>`;
}
