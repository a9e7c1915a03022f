/** All runs as a table: open, fork, compare two, delete with undo. */
import { useState } from "preact/hooks";
import { html } from "../html.js";
import { dialog, focus, history, historyNext } from "../state.js";
import { attempt, go } from "../actions.js";
import { api } from "../api.js";
import { money, seconds } from "../lanestate.js";
import { open, show } from "../session.js";
import { fork } from "./menus.js";
import { Hits, laneTotal, loadHistory, removeRun, Search, STATUS_HUE, when } from "./rail.js";
import { titleOf } from "./topbar.js";
import { t } from "../i18n.js";

export function HistoryTable() {
  const [picked, pick] = useState(/** @type {string[]} */ ([]));
  const [gone, remove] = useState(/** @type {string[]} */ ([]));
  const choose = (/** @type {string} */ id) => pick(picked.includes(id) ? picked.filter((p) => p !== id) : [...picked, id].slice(-2));
  const openRow = (/** @type {any} */ row) => {
    dialog.value = null;
    focus.value = "";
    go(row.run);
    void open(row.run);
  };
  const both = () => {
    show([...picked]);
    dialog.value = { kind: "compare" };
  };
  const star = async (/** @type {any} */ row) => {
    await attempt(api.patch(row.run, { starred: !row.starred }));
    await loadHistory();
  };
  const rows = history.value.filter((row) => !gone.includes(row.run));
  return html`
    <div class="row"><${Search} id="search-all" /><span class="grow"></span><span class="muted">${t("history.compareHelp")}</span><button class="btn" disabled=${picked.length !== 2} onClick=${both}>${t("history.compare")}</button></div>
    ${rows.length ? null : html`<p class="muted pad">${t("history.none")}</p>`}
    <div class="md-table" tabindex="0" hidden=${!rows.length}><table class="history">
      <thead><tr><th></th><th>${t("history.name")}</th><th>${t("history.status")}</th><th>${t("history.laneCount")}</th><th>${t("metric.elapsed")}</th><th>${t("metric.cost")}</th><th>${t("history.date")}</th><th></th></tr></thead>
      <tbody>${rows.map((row) => html`<tr key=${row.run}>
        <td><input type="checkbox" aria-label=${t("history.pick", { name: titleOf({ title: row.title, message: row.message ?? "" }) })} checked=${picked.includes(row.run)} onChange=${() => choose(row.run)} />
          <button class=${`btn icon-only quiet star${row.starred ? " is-on" : ""}`} aria-pressed=${Boolean(row.starred)} aria-label=${t("run.star")} onClick=${() => star(row)}>${row.starred ? "★" : "☆"}</button></td>
        <td><button class="btn quiet link" onClick=${() => openRow(row)}>${titleOf({ title: row.title, message: row.message ?? "" })}</button><${Hits} row=${row} /></td>
        <td class=${`status hue-${STATUS_HUE[row.status] ?? "grey"}`}>${t(`status.${row.status}`)}</td><td class="num">${laneTotal(row)}</td>
        <td class="num">${row.duration_ms === undefined || row.duration_ms === null ? "–" : seconds(row.duration_ms)}</td><td class="num">${money(row.usage?.cost, row.usage?.currency)}</td>
        <td class="num">${when(row.created)}</td>
        <td><button class="btn quiet" onClick=${() => { dialog.value = null; void fork(row.run); }}>${t("run.fork")}</button>
          <button class="btn quiet" onClick=${() => { remove([...gone, row.run]); removeRun(row); }}>${t("run.delete")}</button></td>
      </tr>`)}</tbody>
    </table></div>
    ${historyNext.value ? html`<button class="btn quiet" onClick=${() => loadHistory(true)}>${t("history.more")}</button>` : null}
  `;
}
