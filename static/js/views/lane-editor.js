/** The forms behind the composer's chips: one lane, a new lane, the run's budget. */
import { useEffect, useRef } from "preact/hooks";
import { html } from "../html.js";
import { agents, dialog, models } from "../state.js";
import { addLane } from "../actions.js";
import { channelOf, copyLane, modified, newLane } from "../compose.js";
import { diffNodes } from "../diffing.js";
import { changeDraft, draft, sharedPrompt } from "./composer.js";
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
  const reset = () => set({ model: undefined, instructions: undefined, message: undefined, params: undefined, budget: undefined, tools: undefined });
  return html`
    <div class="form">
      <label class="stack"><span class="label">${t("lane.agent")}</span>
        <select class="field" value=${lane.agent} onChange=${(/** @type {any} */ e) => set({ agent: e.target.value, tools: undefined })}>
          ${(agents.value ?? []).map((a) => html`<option key=${a.name} value=${a.name}>${a.name}</option>`)}
        </select></label>
      ${agent ? html`<p class="muted">${agent.description}</p>` : null}
      <${AgentFacts} agent=${agent} tools=${false} />
      <${Tools} agent=${agent} chosen=${lane.tools} onChange=${(/** @type {string[]|undefined} */ tools) => set({ tools })} />
      <div class="two">
        <label class="stack"><span class="label">${t("lane.model")}</span><${ModelField} value=${lane.model} onPick=${(/** @type {any} */ model) => set({ model })} /></label>
        <label class="stack"><span class="label">${t("lane.repeats")}</span><input class="field num" type="number" min="1" max="16" value=${lane.repeats} onInput=${(/** @type {any} */ e) => set({ repeats: Math.max(1, Math.min(16, Number(e.target.value) || 1)) })} /></label>
      </div>
      <label class="stack"><span class="label">${t("lane.ownPrompt")}${lane.message ? html` <span class="modified"></span>` : null}</span>
        <textarea class="field" rows="3" dir="auto" placeholder=${t("lane.sharedPrompt")} value=${lane.message ?? ""} onInput=${(/** @type {any} */ e) => set({ message: e.target.value || undefined })}></textarea></label>
      ${lane.message ? html`<${FromShared} message=${lane.message} />` : null}
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

/** The agent's tools, each to be left or taken away. @param {{agent: any, chosen: string[]|undefined, onChange: (next: string[]|undefined) => void}} props */
function Tools({ agent, chosen, onChange }) {
  const all = toolsOf(agent);
  if (!all.length) return null;
  const toggle = (/** @type {string} */ name) => {
    const now = chosen ?? all;
    const next = all.filter((tool) => (tool === name ? !now.includes(name) : now.includes(tool)));
    onChange(next.length === all.length ? undefined : next);
  };
  return html`<fieldset><legend class="label">${t("lane.tools")}${chosen ? html` <span class="modified"></span>` : null}</legend><div class="checks">
    ${all.map((name) => html`<label key=${name} class="check"><input type="checkbox" name="tool" value=${name} checked=${!chosen || chosen.includes(name)} onChange=${() => toggle(name)} /><code>${name}</code></label>`)}
  </div></fieldset>`;
}

/** How the lane's own prompt differs from the shared one, word by word. @param {{message: string}} props */
function FromShared({ message }) {
  const ref = useRef(/** @type {HTMLElement|null} */ (null));
  const shared = sharedPrompt();
  useEffect(() => {
    let late = false;
    if (shared) void diffNodes(shared, message).then((nodes) => late || ref.current?.replaceChildren(...nodes));
    return () => void (late = true);
  }, [message, shared]);
  if (!shared) return null;
  return html`<div class="stack"><span class="label">${t("lane.fromShared")}</span><div class="diff from-shared" ref=${ref} dir="auto" tabindex="0" role="region" aria-label=${t("lane.fromShared")}></div></div>`;
}

/** @param {any} agent @returns {string[]} */
const toolsOf = (agent) => (agent?.tools ?? []).map((/** @type {any} */ tool) => tool.name ?? tool);

/** What an agent can do: its tools, and the folder of documents that it reads. @param {{agent: any, tools?: boolean}} props */
function AgentFacts({ agent, tools = true }) {
  const folders = [agent?.documents ?? []].flat();
  const names = tools ? toolsOf(agent) : [];
  if (!names.length && !folders.length) return null;
  return html`<p class="facts">
    ${names.map((name) => html`<code key=${name}>${name}</code>`)}
    ${folders.map((f) => html`<span key=${f} class="tag">${t("lane.folder", { folder: f })}</span>`)}
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
