/** Small dialogs: what one can do with a lane or a run, another model, sharing and exports, a long text. */
import { useState } from "preact/hooks";
import { html } from "../html.js";
import { attempts, dialog, focus, leaveDialog, maximised, shown, toast } from "../state.js";
import { open } from "../session.js";
import { attempt, currentRun, focusLane, go, laneAt, moveLane, paneEntries, removeLane, retryLane, setApart, shownEntries, steerLane, stopLane } from "../actions.js";
import { baseOf, currentLane } from "../conversation.js";
import { exportRun, laneMarkdown } from "../export.js";
import { copyText, download } from "../files.js";
import { visible } from "../markdown/safe.js";
import { cap } from "../pane/result.js";
import { api } from "../api.js";
import { who } from "../access.js";
import { ShareLinks } from "./share-links.js";
import { draftOf } from "../compose.js";
import { newRun } from "../actions.js";
import { changeDraft, setPrompt } from "./composer.js";
import { loadHistory, removeRun } from "./rail.js";
import { ModelField } from "./lane-editor.js";
import { t } from "../i18n.js";

const close = () => (dialog.value = null);

/** @param {{items: [string, () => void, boolean?][]}} props */
function Menu({ items }) {
  return html`<ul class="menu">
    ${items.map(([label, act, off]) => html`<li key=${label}><button class="pick-row" disabled=${off} onClick=${() => leaveDialog(act)}>${label}</button></li>`)}
  </ul>`;
}

/** @param {{laneId: string}} props */
export function LaneMenu({ laneId: key }) {
  const entry = paneEntries().find((e) => e.key === key);
  const lane = entry && currentLane(entry, attempts.value);
  if (!entry || !lane) return null;
  const own = [
    [t("lane.copy"), () => void copyText(lane.transcripts.answer())],
    [t("lane.export"), () => download(`${lane.run}-${lane.id.replace("/", "-")}.md`, laneMarkdown(lane), "text/markdown")],
    [t("lane.asPrompt"), () => setPrompt(lane.transcripts.answer())],
  ];
  const places = [
    ...(lane.parent ? [[t("nest.fold", { lane: baseOf(lane.parent) }), () => setApart(key, false)]] : []),
    [t("lane.left"), () => moveLane(key, -1)],
    [t("lane.right"), () => moveLane(key, 1)],
    [t("lane.max"), () => { focusLane(key); maximised.value = true; }],
  ];
  if (entry.path) return html`<${Menu} items=${[...own, ...places]} />`;
  const link = `${location.origin}${location.pathname}#/run/${lane.run}?lane=${encodeURIComponent(key)}`;
  return html`
    ${lane.finished ? null : html`<${SteerForm} laneId=${key} />`}
    <${Menu} items=${[
      [t("lane.stop"), () => void stopLane(key), lane.finished],
      [t("lane.retry"), () => void retryLane(key)],
      [t("lane.swapRetry"), () => (dialog.value = { kind: "swap", laneId: key })],
      ...own,
      [t("lane.compare"), () => (dialog.value = { kind: "compare", left: key })],
      ...places,
      [t(lane.finished ? "lane.remove" : "lane.stopRemove"), () => removeLane(key), paneEntries().length < 2],
      [t("lane.link"), () => void copyText(link)],
    ]} />`;
}

/** @param {{laneId: string}} props */
function SteerForm({ laneId }) {
  const submit = async (/** @type {any} */ event) => {
    event.preventDefault();
    const data = new FormData(event.target);
    const text = String(data.get("text")).trim();
    if (text && (await steerLane(laneId, text, String(data.get("mode"))))) close();
  };
  return html`<form class="form steer" onSubmit=${submit}>
    <label class="stack"><span class="label">${t("steer.title")}</span><textarea class="field" name="text" rows="2" dir="auto"></textarea></label>
    <div class="row"><select class="field" name="mode" aria-label=${t("steer.mode")}>${["steer", "queue", "interrupt"].map((m) => html`<option key=${m} value=${m}>${t(`mode.${m}`)}</option>`)}</select>
      <button class="btn primary">${t("steer.send")}</button></div>
  </form>`;
}

/** @param {{laneId: string}} props */
export function Swap({ laneId: key }) {
  const lane = laneAt(key);
  const [model, pick] = useState(/** @type {string|undefined} */ (undefined));
  if (!lane) return null;
  const run = () => {
    close();
    void retryLane(key, model);
  };
  return html`<div class="form">
    <p class="muted">${t("swap.help", { lane: lane.id, model: lane.model ?? t("lane.defaultModel") })}</p>
    <label class="stack"><span class="label">${t("lane.model")}</span><${ModelField} id="swap-model" value=${model} onPick=${pick} /></label>
    <div class="row end-row"><button class="btn primary" onClick=${run}>${t("lane.swapRetry")}</button></div>
  </div>`;
}

export function Share() {
  const run = currentRun();
  if (!run) return null;
  const link = `${location.origin}${location.pathname}#/run/${run.id}`;
  const lane = focus.value || shownEntries()[0]?.key;
  const formats = /** @type {const} */ (["ndjson", "json", "md", "html"]);
  return html`<div class="form">
    <div class="row"><input class="field grow" readonly value=${link} aria-label=${t("share.link")} /><button class="btn" onClick=${() => copyText(link)}>${t("share.copy")}</button></div>
    ${lane ? html`<button class="btn start" onClick=${() => copyText(`${link}?lane=${encodeURIComponent(lane)}`)}>${t("share.lane", { lane })}</button>` : null}
    ${who.value && who.value.access !== "off" ? html`<${ShareLinks} run=${run.id} />` : null}
    <h3 class="label">${t("export.title")}</h3>
    <ul class="pick">${formats.map((f) => html`<li key=${f}><button class="pick-row" data-format=${f} onClick=${() => attempt(exportRun(run, f))}><strong>${t(`export.${f}`)}</strong><span class="muted">${t(`export.${f}.help`)}</span></button></li>`)}</ul>
  </div>`;
}

/** Put a run's lanes and prompt into the composer, to edit and run again. @param {string} id */
export async function fork(id) {
  const snapshot = await attempt(api.run(id));
  if (!snapshot) return;
  newRun();
  changeDraft(draftOf(snapshot));
  setPrompt(snapshot.message ?? "");
  toast(t("history.forked"));
}

/** @param {string} id */
async function openRun(id) {
  if (shown.value.includes(id)) return;
  focus.value = "";
  go(id);
  await open(id);
}

/** @param {{row: any}} props */
export function RunMenu({ row }) {
  const [title, setTitle] = useState(row.title ?? "");
  const save = async (/** @type {object} */ body) => {
    await attempt(api.patch(row.run, body));
    await loadHistory();
  };
  const rename = (/** @type {Event} */ event) => {
    event.preventDefault();
    close();
    void save({ title });
  };
  return html`
    <form class="row" onSubmit=${rename}><input class="field grow" value=${title} aria-label=${t("run.rename")} placeholder=${t("run.rename")} onInput=${(/** @type {any} */ e) => setTitle(e.target.value)} /><button class="btn">${t("save")}</button></form>
    <${Menu} items=${[
      [t(row.starred ? "run.unstar" : "run.star"), () => void save({ starred: !row.starred })],
      [t("export.title"), () => void openRun(row.run).then(() => (dialog.value = { kind: "share" }))],
      [t("run.fork"), () => void fork(row.run)],
      [t("run.link"), () => void copyText(`${location.origin}${location.pathname}#/run/${row.run}`)],
      [t("run.delete"), () => removeRun(row)],
    ]} />`;
}

/** @param {{text: string, seq?: string}} props */
export function TextDialog({ text, seq }) {
  const shown = cap(text);
  return html`
    <div class="row"><button class="btn" onClick=${() => copyText(text)}>${t("copy")}</button><button class="btn" onClick=${() => download("mux.txt", text, "text/plain")}>${t("tool.download")}</button>${seq ? html`<span class="muted num">seq ${seq}</span>` : null}</div>
    <pre class="long" tabindex="0">${visible(text.length > 2_000_000 ? shown.text : text)}</pre>
  `;
}
