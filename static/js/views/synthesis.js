/** The synthesis: which lanes it reads, how, and by whom; configurable while they run. */
import { html } from "../html.js";
import { agents, dialog } from "../state.js";
import { addLane, currentRun, shownEntries, startRun } from "../actions.js";
import { synthesisMessage } from "../compose.js";
import { currentLane, letterOf } from "../conversation.js";
import { changeDraft, draft } from "./composer.js";
import { ModelField } from "./lane-editor.js";
import { t } from "../i18n.js";

const STRATEGIES = ["fuse", "table", "checklist", "custom"];

export function SynthesisDialog() {
  const run = currentRun();
  const { synthesis, lanes } = draft.value;
  const set = (/** @type {Partial<typeof synthesis>} */ change) => changeDraft({ synthesis: { ...synthesis, ...change } });
  const onScreen = run ? shownEntries() : [];
  const chosen = new Set(synthesis.sources ?? (run ? onScreen.map((e) => e.index) : lanes.map((l) => l.key)));
  const toggle = (/** @type {number} */ key) => {
    if (chosen.has(key)) chosen.delete(key);
    else chosen.add(key);
    set({ sources: [...chosen] });
  };
  const options = run ? onScreen.map((e) => ({ key: e.index, letter: e.letter, name: e.key })) : lanes.map((l, i) => ({ key: l.key, letter: letterOf(i), name: l.agent }));
  return html`
    <div class="form">
      <fieldset><legend class="label">${t("synthesis.sources")}</legend><div class="checks">
        ${options.map((o) => html`<label key=${o.key} class="check"><input type="checkbox" checked=${chosen.has(o.key)} onChange=${() => toggle(o.key)} /><span>${o.letter} ${o.name}</span></label>`)}
      </div></fieldset>
      <fieldset><legend class="label">${t("synthesis.strategy")}</legend><div class="checks">
        ${STRATEGIES.map((s) => html`<label key=${s} class="check"><input type="radio" name="strategy" checked=${synthesis.strategy === s} onChange=${() => set({ strategy: s })} /><span>${t(`synthesis.${s}`)}</span></label>`)}
      </div></fieldset>
      ${synthesis.strategy === "custom" ? html`<label class="stack"><span class="label">${t("synthesis.custom")}</span><textarea class="field" rows="3" value=${synthesis.prompt} onInput=${(/** @type {any} */ e) => set({ prompt: e.target.value })}></textarea></label>` : null}
      <div class="halves">
        <label class="stack"><span class="label">${t("lane.agent")}</span><select class="field" value=${synthesis.agent} onChange=${(/** @type {any} */ e) => set({ agent: e.target.value })}>
          ${(agents.value ?? []).map((a) => html`<option key=${a.name} value=${a.name}>${a.name}</option>`)}</select></label>
        <label class="stack"><span class="label">${t("lane.model")}</span><${ModelField} id="sigma-model" value=${synthesis.model} onPick=${(/** @type {any} */ model) => set({ model })} /></label>
      </div>
      <div class="row end-row">
        ${run
          ? html`${run.live ? html`<button class="btn" onClick=${() => synthesise(onScreen, chosen, true)}>${t("synthesis.ready")}</button>` : null}
              <button class="btn primary" id="synthesise" disabled=${!chosen.size} onClick=${() => synthesise(onScreen, chosen, false)}>${t(run.live ? "synthesis.whenDone" : "synthesis.now")}</button>`
          : html`<button class="btn primary" disabled=${!lanes.length} onClick=${() => { set({ on: true }); dialog.value = null; }}>${t("synthesis.add")}</button>`}
      </div>
    </div>
  `;
}

/**
 * Over lanes on screen: in a live run a new channel (after they end, or from those that have); else a new run.
 * @param {import("../conversation.js").Entry[]} list @param {Set<number>} chosen @param {boolean} readyOnly
 */
async function synthesise(list, chosen, readyOnly) {
  const { synthesis } = draft.value;
  const run = currentRun();
  if (!run) return;
  const sources = list
    .filter((entry) => chosen.has(entry.index))
    .map((entry) => ({ letter: entry.letter, lane: currentLane(entry) }))
    .filter(({ lane }) => !readyOnly || lane.finished);
  if (!sources.length) return;
  dialog.value = null;
  const letters = sources.map(({ letter, lane }) => ({ letter, id: lane.id }));
  const base = { agent: synthesis.agent, model: synthesis.model, title: "Σ", message: synthesisMessage(synthesis, letters, t) };
  const spec = JSON.parse(JSON.stringify(base));
  if (run.live) {
    const open = sources.filter(({ lane }) => lane.run === run.id && !readyOnly).map(({ lane }) => lane.id);
    const inputs = sources.filter(({ lane }) => lane.run !== run.id || readyOnly).map(({ lane }) => (lane.run === run.id ? lane.id : `${lane.run}/${lane.id}`));
    await addLane({ ...spec, ...(open.length ? { depends_on: open, when: "settled" } : {}), ...(inputs.length ? { inputs } : {}) });
    return;
  }
  const inputs = sources.map(({ lane }) => `${lane.run}/${lane.id}`);
  await startRun({ thread: run.thread, channels: [{ ...spec, id: "synthesis", inputs }], metadata: { composer: { lanes: [] }, lanes: { synthesis: { message: spec.message } } } }, { followUp: true });
}
