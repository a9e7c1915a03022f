/** The first screen: three example sets that run with one click and no key, and what is in the roster. */
import { html } from "../html.js";
import { agents, dialog, models } from "../state.js";
import { startRun } from "../actions.js";
import { newDraft, newLane, requestOf } from "../compose.js";
import { changeDraft, setPrompt } from "./composer.js";
import { t } from "../i18n.js";

const EXAMPLES = [
  { id: "compare", agents: ["assistant", "researcher", "analyst"], mode: "parallel" },
  { id: "research", agents: ["researcher", "analyst"], mode: "parallel", synthesis: true },
  { id: "relay", agents: ["researcher", "critic"], mode: "sequential" },
];

/** @param {typeof EXAMPLES[number]} example */
function run(example) {
  const known = new Set((agents.value ?? []).map((a) => a.name));
  let names = example.agents.filter((name) => known.has(name));
  if (!names.length) names = [...known].slice(0, 3);
  const draft = newDraft();
  draft.lanes = names.map(newLane);
  draft.mode = /** @type {any} */ (example.mode);
  draft.synthesis.on = Boolean(example.synthesis) && known.has("synthesizer");
  changeDraft(draft);
  void startRun(/** @type {object} */ (requestOf(draft, t(`example.${example.id}.prompt`), { t })));
}

/** Put an agent's own example into the composer, to be changed or run. @param {any} agent */
function attemptExample(agent) {
  changeDraft({ ...newDraft(), lanes: [newLane(agent.name)] });
  setPrompt(agent.examples[0]);
}

/** Whether no other model is offered than the built-in one, which needs no key. */
const rehearsing = () => models.value.length > 0 && models.value.every((model) => model.provider === "rehearsal");

export function Welcome() {
  const list = agents.value;
  return html`
    <div class="welcome">
      <h2>${t("welcome.title")}</h2>
      <p class="muted lead">${t("welcome.lead")}</p>
      <div class="examples">
        ${EXAMPLES.map((example) => html`
          <button key=${example.id} class="example" data-example=${example.id} disabled=${!list?.length} onClick=${() => run(example)}>
            <span class="example-lanes" aria-hidden="true">${example.agents.map((_, i) => html`<span class=${`swatch lane-${i}`}>${String.fromCharCode(65 + i)}</span>`)}${example.synthesis ? html`<span class="swatch sigma">Σ</span>` : null}</span>
            <strong>${t(`example.${example.id}.title`)}</strong>
            <span class="muted">${t(`example.${example.id}.prompt`)}</span>
            <span class="example-go">${t("example.run")}</span>
          </button>`)}
      </div>
      ${list === null ? null : list.length ? html`<${Roster} list=${list} />` : html`<p class="row"><span class="bad">${t("welcome.noAgents")}</span><button class="btn" onClick=${() => location.reload()}>${t("welcome.look")}</button></p>`}
      ${rehearsing() ? html`<p class="row muted rehearsal"><span>${t("welcome.rehearsal")}</span><button class="btn" onClick=${() => (dialog.value = { kind: "text", title: t("welcome.real"), text: t("welcome.realHow") })}>${t("welcome.real")}</button></p>` : null}
    </div>
  `;
}

/** @param {{list: any[]}} props */
function Roster({ list }) {
  return html`
    <h3 class="label">${t("welcome.roster")}</h3>
    <ul class="roster">
      ${list.map((agent) => html`<li key=${agent.name}><strong>${agent.name}</strong><div><span class="muted">${agent.description}</span>${agent.examples?.[0] ? html`<button class="try" onClick=${() => attemptExample(agent)}>${t("welcome.try", { example: agent.examples[0] })}</button>` : null}</div></li>`)}
    </ul>
  `;
}
