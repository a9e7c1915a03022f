/** The forms behind the composer's chips: one lane, a new lane, the run's budget, the synthesis. */
import { html } from "../html.js";
import { agents, dialog, models } from "../state.js";
import { addLane, currentRun, shownEntries, startRun } from "../actions.js";
import { channelOf, copyLane, modified, newLane, synthesisMessage } from "../compose.js";
import { currentLane } from "../conversation.js";
import { changeDraft, draft } from "./composer.js";
import { t } from "../i18n.js";

const PARAMS = [["temperature", 0.1, 0, 2], ["top_p", 0.05, 0, 1], ["max_tokens", 1, 1, 1_000_000], ["seed", 1, 0, 2_147_483_647]];
const BUDGETS = [["seconds", 1], ["tokens", 1], ["cost", 0.01], ["steps", 1], ["tool_calls", 1]];

/** @param {{value?: string, onPick: (model: string|undefined) => void, id?: string}} props */
export function ModelField({ value, onPick, id = "model-field" }) {
  const list = models.value.map((m) => m.id);
  return html`
    <input class="field" id=${id} list=${`${id}-list`} value=${value ?? ""} placeholder=${t("lane.defaultModel")} onChange=${(/** @type {any} */ e) => onPick(e.target.value.trim() || undefined)} />
    <datalist id=${`${id}-list`}>${list.map((name) => html`<option key=${name} value=${name} />`)}</datalist>
  `;
}

/** @param {{names: any[], values: Record<string, any>|undefined, prefix: string, onChange: (next: Record<string, any>) => void}} props */
function Numbers({ names, values, prefix, onChange }) {
  const set = (/** @type {string} */ name, /** @type {string} */ text) => {
    const next = { ...values };
    if (text === "") delete next[name];
    else next[name] = Number(text);
    onChange(next);
  };
  return html`<div class="numbers">
    ${names.map(([name, step, min, max]) => html`<label key=${name} class="stack"><span class="label">${t(`${prefix}.${name}`)}</span>
      <input class="field num" type="number" step=${step} min=${min ?? 0} max=${max} value=${values?.[name] ?? ""} onInput=${(/** @type {any} */ e) => set(name, e.target.value)} /></label>`)}
  </div>`;
}

/** @param {{laneKey: number}} props */
export function LaneEditor({ laneKey }) {
  const lane = draft.value.lanes.find((l) => l.key === laneKey);
  if (!lane) return null;
  const set = (/** @type {Partial<import("../compose.js").LaneSpec>} */ change) =>
    changeDraft({ lanes: draft.value.lanes.map((l) => (l.key === laneKey ? { ...l, ...change } : l)) });
  const agent = agents.value?.find((a) => a.name === lane.agent);
  const reset = () => set({ model: undefined, instructions: undefined, message: undefined, params: undefined, budget: undefined });
  return html`
    <div class="form">
      <label class="stack"><span class="label">${t("lane.agent")}</span>
        <select class="field" value=${lane.agent} onChange=${(/** @type {any} */ e) => set({ agent: e.target.value })}>
          ${(agents.value ?? []).map((a) => html`<option key=${a.name} value=${a.name}>${a.name}</option>`)}
        </select></label>
      ${agent ? html`<p class="muted">${agent.description}</p>` : null}
      <${AgentFacts} agent=${agent} />
      <div class="two">
        <label class="stack"><span class="label">${t("lane.model")}</span><${ModelField} value=${lane.model} onPick=${(/** @type {any} */ model) => set({ model })} /></label>
        <label class="stack"><span class="label">${t("lane.repeats")}</span><input class="field num" type="number" min="1" max="16" value=${lane.repeats} onInput=${(/** @type {any} */ e) => set({ repeats: Math.max(1, Math.min(16, Number(e.target.value) || 1)) })} /></label>
      </div>
      <label class="stack"><span class="label">${t("lane.ownPrompt")}${lane.message ? html` <span class="modified"></span>` : null}</span>
        <textarea class="field" rows="3" dir="auto" placeholder=${t("lane.sharedPrompt")} value=${lane.message ?? ""} onInput=${(/** @type {any} */ e) => set({ message: e.target.value || undefined })}></textarea></label>
      <label class="stack"><span class="label">${t("lane.instructions")}</span>
        <textarea class="field" rows="3" dir="auto" placeholder=${t("lane.agentInstructions")} value=${lane.instructions ?? ""} onInput=${(/** @type {any} */ e) => set({ instructions: e.target.value || undefined })}></textarea></label>
      <fieldset><legend class="label">${t("lane.params")}</legend><${Numbers} names=${PARAMS} prefix="param" values=${lane.params} onChange=${(/** @type {any} */ params) => set({ params })} /></fieldset>
      <fieldset><legend class="label">${t("budget.lane")}</legend><${Numbers} names=${BUDGETS} prefix="budget" values=${lane.budget} onChange=${(/** @type {any} */ budget) => set({ budget })} /></fieldset>
      <div class="row end-row">
        <button type="button" class="btn quiet" disabled=${!modified(lane)} onClick=${reset}>${t("lane.reset")}</button>
        <button type="button" class="btn" onClick=${() => changeDraft({ lanes: [...draft.value.lanes, copyLane(lane)] })}>${t("lane.duplicate")}</button>
        <button type="button" class="btn primary" onClick=${() => (dialog.value = null)}>${t("ok")}</button>
      </div>
    </div>
  `;
}

/** What an agent can do: its tools, and the folder of documents that it reads. @param {{agent: any}} props */
function AgentFacts({ agent }) {
  if (!agent) return null;
  const folders = agent.documents ?? agent.docs ?? [];
  return html`<p class="facts">
    ${(agent.tools ?? []).map((/** @type {any} */ tool) => html`<code key=${tool.name ?? tool}>${tool.name ?? tool}</code>`)}
    ${(Array.isArray(folders) ? folders : [folders]).map((f) => html`<span key=${f} class="tag">${t("lane.folder", { folder: f })}</span>`)}
  </p>`;
}

/** @param {{live?: boolean}} props */
export function AddLane({ live }) {
  const pick = async (/** @type {string} */ name) => {
    dialog.value = null;
    if (live) await addLane(/** @type {object} */ (channelOf(newLane(name))));
    else changeDraft({ lanes: [...draft.value.lanes, newLane(name)] });
  };
  return html`
    ${live ? html`<p class="muted">${t("composer.addLive")}</p>` : null}
    <ul class="pick">
      ${(agents.value ?? []).map((agent) => html`<li key=${agent.name}><button class="pick-row" data-agent=${agent.name} onClick=${() => pick(agent.name)}>
        <strong>${agent.name}</strong>${agent.model ? html`<code>${agent.model}</code>` : null}<span class="muted">${agent.description}</span>
        <${AgentFacts} agent=${agent} /></button></li>`)}
    </ul>
    ${live ? html`<button class="btn" onClick=${() => (dialog.value = { kind: "synthesis" })}>Σ ${t("synthesis.add")}</button>` : null}
  `;
}

export function BudgetDialog() {
  return html`<div class="form">
    <p class="muted">${t("budget.help")}</p>
    <${Numbers} names=${BUDGETS} prefix="budget" values=${draft.value.budget} onChange=${(/** @type {any} */ budget) => changeDraft({ budget })} />
    <div class="row end-row"><button class="btn primary" onClick=${() => (dialog.value = null)}>${t("ok")}</button></div>
  </div>`;
}

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
  const options = run ? onScreen.map((e) => ({ key: e.index, letter: e.letter, name: e.key })) : lanes.map((l, i) => ({ key: l.key, letter: String.fromCharCode(65 + i), name: l.agent }));
  return html`
    <div class="form">
      <fieldset><legend class="label">${t("synthesis.sources")}</legend><div class="checks">
        ${options.map((o) => html`<label key=${o.key} class="check"><input type="checkbox" checked=${chosen.has(o.key)} onChange=${() => toggle(o.key)} /><span>${o.letter} ${o.name}</span></label>`)}
      </div></fieldset>
      <fieldset><legend class="label">${t("synthesis.strategy")}</legend><div class="checks">
        ${STRATEGIES.map((s) => html`<label key=${s} class="check"><input type="radio" name="strategy" checked=${synthesis.strategy === s} onChange=${() => set({ strategy: s })} /><span>${t(`synthesis.${s}`)}</span></label>`)}
      </div></fieldset>
      ${synthesis.strategy === "custom" ? html`<label class="stack"><span class="label">${t("synthesis.custom")}</span><textarea class="field" rows="3" value=${synthesis.prompt} onInput=${(/** @type {any} */ e) => set({ prompt: e.target.value })}></textarea></label>` : null}
      <div class="two">
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
  await startRun({ thread: run.thread, channels: [{ ...spec, id: "synthesis", inputs }], metadata: { composer: { lanes: [] } } }, { followUp: true });
}
