/** The rail: earlier runs, newest first, with search; those still running say so. */
import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { html, Icon } from "../html.js";
import { dialog, focus, history, historyNext, railOpen, runs, saved, shown, structure, toast } from "../state.js";
import { attempt, go, newRun } from "../actions.js";
import { api } from "../api.js";
import { open } from "../session.js";
import { notices, toggleNotices } from "../notices.js";
import { Edge } from "./edge.js";
import { t } from "../i18n.js";

const query = signal("");
const removed = signal(/** @type {Set<string>} */ (new Set()));
export const STATUS_HUE = /** @type {Record<string, string>} */ ({
  queued: "grey", running: "blue", waiting: "amber", completed: "green", partial: "amber", failed: "red", cancelled: "grey",
});
/** The rail lies over the page there. */
export const NARROW = matchMedia("(max-width: 800px)");
const ACTIVE = new Set(["queued", "running", "waiting"]);

/** @param {boolean} [more] */
export async function loadHistory(more = false) {
  const params = /** @type {Record<string, string>} */ ({ limit: "40" });
  if (query.value.trim()) params.q = query.value.trim();
  if (more && historyNext.value) params.after = historyNext.value;
  const asked = params.q;
  try {
    const page = await api.runs(params);
    if ((query.value.trim() || undefined) !== asked) return; // an older answer
    history.value = more ? [...history.value, ...page.runs] : page.runs;
    historyNext.value = page.next ?? null;
  } catch {
    return; // the connection dot and the stream say that the server is gone; the list stays as it was
  }
}

/** Deleting waits for the undo. @param {any} row */
export function removeRun(row) {
  removed.value = new Set([...removed.value, row.run]);
  if (shown.value.includes(row.run)) newRun();
  let undone = false;
  toast(t("history.deleted"), { ms: 6000, action: { label: t("undo"), run: () => { undone = true; restore(row.run); } } });
  setTimeout(async () => {
    if (undone) return;
    if ((await attempt(api.remove(row.run).then(() => true))) !== true) restore(row.run);
    else history.value = history.value.filter((r) => r.run !== row.run);
  }, 6000);
}

/** @param {string} run */
function restore(run) {
  removed.value = new Set([...removed.value].filter((id) => id !== run));
}

const width = () => saved.get("railWidth", 240);

/** @param {number} px */
function setWidth(px) {
  const next = Math.round(Math.max(180, Math.min(480, px)));
  saved.set("railWidth", next);
  document.documentElement.style.setProperty("--rail", `${next}px`);
}

export function Rail() {
  structure.value;
  useEffect(() => setWidth(width()), []);
  useEffect(() => {
    void loadHistory();
    const again = () => void loadHistory();
    const events = ["mux:finished", "mux:started", "mux:loggedin"];
    for (const name of events) document.addEventListener(name, again);
    const close = () => (railOpen.value = !NARROW.matches && saved.get("rail", true));
    NARROW.addEventListener("change", close);
    const timer = setInterval(() => {
      if (!document.hidden && history.value.some((row) => ACTIVE.has(row.status) && !shown.value.includes(row.run))) again();
    }, 4000);
    return () => {
      for (const name of events) document.removeEventListener(name, again);
      NARROW.removeEventListener("change", close);
      clearInterval(timer);
    };
  }, []);
  if (!railOpen.value) return null;
  const rows = history.value.filter((row) => !removed.value.has(row.run));
  return html`
    <div class="rail-shade" aria-hidden="true" onClick=${() => (railOpen.value = false)}></div>
    <aside class="rail" data-region tabindex="-1" aria-label=${t("region.history")}>
      <div class="rail-top">
        <button class="btn primary" id="new-run" onClick=${() => { if (NARROW.matches) railOpen.value = false; newRun(); }}><${Icon} name="plus" />${t("run.new")}</button>
        <button class="btn quiet" onClick=${() => (dialog.value = { kind: "history" })}>${t("history.all")}</button>
      </div>
      <${Search} id="search" />
      <ul class="runs">
        ${rows.map((row) => html`<${Row} key=${row.run} row=${row} />`)}
      </ul>
      ${rows.length ? null : html`<p class="muted pad">${t(query.value ? "history.none" : "history.empty")}</p>`}
      ${historyNext.value ? html`<button class="btn quiet" onClick=${() => loadHistory(true)}>${t("history.more")}</button>` : null}
      <${Edge} className="rail-edge" label=${t("rail.resize")} now=${width()} onMove=${(/** @type {number} */ px) => setWidth(width() + px)} />
      <div class="rail-foot">
        <button class="btn quiet" data-notices role="switch" title=${t("notices.help")} aria-checked=${notices.value} onClick=${toggleNotices}><${Icon} name="bell" />${t("notices.switch")}<span class="switch" aria-hidden="true"></span></button>
      </div>
    </aside>
  `;
}

/** One search over all runs, wherever its field stands. @param {{id: string}} props */
export function Search({ id }) {
  return html`<input class="field" id=${id} type="search" placeholder=${t("history.search")} aria-label=${t("history.search")} value=${query.value}
    onInput=${(/** @type {any} */ e) => { query.value = e.target.value; void loadHistory(); }} />`;
}

/** Where the words were found, lane by lane. @param {{row: any}} props */
export function Hits({ row }) {
  return Object.entries(row.hits ?? {}).slice(0, 3).map(([lane, text]) => html`<span key=${lane} class="run-hit" data-lane=${lane}><b>${lane}</b> ${String(text).slice(0, 160)}</span>`);
}

/** @param {{row: any}} props */
function Row({ row }) {
  const live = runs.get(row.run);
  const status = live?.finished ? live.status : row.status;
  const here = shown.value.includes(row.run);
  const select = (/** @type {MouseEvent} */ event) => {
    const hit = /** @type {HTMLElement|null} */ (/** @type {HTMLElement} */ (event.target).closest("[data-lane]"));
    if (NARROW.matches) railOpen.value = false;
    focus.value = hit?.dataset.lane ?? (here ? focus.value : "");
    if (here) return;
    go(row.run);
    void open(row.run);
  };
  const name = live?.title || row.title || (row.message ?? "").split("\n")[0].slice(0, 90) || t("run.untitled");
  return html`<li class=${`run-row${here ? " is-here" : ""}`}>
    <button class="run-open" onClick=${select} aria-current=${here ? "true" : undefined}>
      <span class="run-name">${name}</span>
      <span class="run-meta"><span class=${`status hue-${STATUS_HUE[status] ?? "grey"}`}>${t(`status.${status}`)}</span><span>${t("history.lanes", { n: laneTotal(row) })}</span><time>${when(row.created)}</time></span>
      <${Hits} row=${row} />
    </button>
    <button class="btn icon-only quiet run-more" aria-label=${t("history.menu", { name })} aria-haspopup="dialog" onClick=${() => (dialog.value = { kind: "run-menu", row })}><${Icon} name="more" /></button>
  </li>`;
}

/** @param {any} row */
export const laneTotal = (row) => (Array.isArray(row.channels) ? row.channels.length : Object.keys(row.channels ?? {}).length);

/** @param {number} ms */
export function when(ms) {
  if (!ms) return "";
  const date = new Date(ms);
  const today = new Date().toDateString() === date.toDateString();
  return today ? date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }) : date.toLocaleDateString([], { month: "short", day: "numeric" });
}
