/**
 * The composer: one prompt, the lanes it goes to, and how they run. The text area is not bound to any state, so
 * that typing costs nothing however much streams. During a run it steers, queues, or starts the next turn.
 */
import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { html, Icon } from "../html.js";
import { agents, dialog, focus, models, saved, shown, structure, toast } from "../state.js";
import { currentRun, shownEntries, startRun, steerLane } from "../actions.js";
import { currentLane, letterOf } from "../conversation.js";
import { copyLane, draftOf, estimate, laneCount, MAX_LANES, modified, newDraft, newLane, requestOf, restored, stored } from "../compose.js";
import { count, money } from "../lanestate.js";
import { t } from "../i18n.js";

export const draft = signal(restored(saved.get("draft", null)));
const target = signal("all");
const busy = signal(false);

/** @param {Partial<import("../compose.js").Draft>} change */
export function changeDraft(change) {
  draft.value = { ...draft.value, ...change };
  saved.set("draft", stored(draft.value));
}

/** @returns {HTMLTextAreaElement} */
const area = () => /** @type {HTMLTextAreaElement} */ (document.getElementById("composer-text"));

/** @param {string} text */
export function setPrompt(text) {
  area().value = text;
  grow();
  area().focus();
}

function grow() {
  const node = area();
  node.style.height = "auto";
  node.style.height = `${Math.min(node.scrollHeight, window.innerHeight * 0.35)}px`;
  guess();
}

/** What the prompt would cost to send, written beside it as one types. */
function guess() {
  const slot = document.getElementById("composer-estimate");
  const text = area().value;
  if (!slot) return;
  const history = currentRun()?.live ? 0 : said();
  const { tokens, cost, currency } = estimate(draft.value, text, { agents: agents.value ?? [], models: models.value, history });
  const words = cost === undefined ? t("composer.estimate", { n: count(tokens) }) : t("composer.estimateCost", { n: count(tokens), cost: money(cost, currency) });
  slot.textContent = text.trim() ? words : "";
}

/** Characters of the longest lane's earlier turns, which a follow-up sends again. */
function said() {
  const lengths = shownEntries().map((e) => e.turns.reduce((n, turn) => n + turn.run.message.length + (turn.attempts.at(-1)?.transcripts.answer().length ?? 0), 0));
  return Math.max(0, ...lengths);
}

/** The prompt that lanes without one of their own get. */
export const sharedPrompt = () => area().value.trim() || (currentRun()?.message ?? "");

/** The lanes that a new prompt goes to: those chosen, else the default agent. */
export function ensureLanes() {
  if (draft.value.lanes.length || !agents.value?.length) return;
  const first = agents.value.find((a) => a.default) ?? agents.value.find((a) => a.name === "assistant") ?? agents.value[0];
  changeDraft({ lanes: [newLane(first.name)] });
}

/** A follow-up goes to the lanes of the run that it follows. @param {any} snapshot */
function adopt(snapshot) {
  const taken = draftOf(snapshot);
  if (taken.lanes.length) changeDraft(taken);
}

/** Start, continue, or speak to the running lanes. */
export async function send() {
  const text = area().value.trim();
  const run = currentRun();
  if (busy.value) return;
  if (run?.live) {
    if (text) await steer(text, "steer");
    return;
  }
  if (!text && !draft.value.lanes.every((lane) => lane.message)) {
    area().focus();
    toast(t("composer.empty"), { bad: true });
    return;
  }
  await start(text, run?.thread);
}

/** @param {string} text @param {string} [thread] */
async function start(text, thread) {
  busy.value = true;
  ensureLanes();
  const body = requestOf(draft.value, text, { thread, t });
  const ok = await startRun(/** @type {object} */ (body), { followUp: Boolean(thread) });
  busy.value = false;
  if (!ok) return;
  area().value = "";
  grow();
}

/** @param {string} text @param {string} mode */
async function steer(text, mode) {
  const keys = target.value === "all" ? shownEntries().map((e) => e.key) : [target.value === "focus" ? focus.value : target.value];
  const open = keys.filter((key) => {
    const entry = shownEntries().find((e) => e.key === key);
    return entry && !currentLane(entry).finished;
  });
  const sent = await Promise.all(open.map((key) => steerLane(key, text, mode)));
  if (!sent.some(Boolean)) return;
  area().value = "";
  grow();
}

/** @param {KeyboardEvent} event */
function keys(event) {
  if (event.key !== "Enter" || event.isComposing) return;
  if (event.shiftKey || event.altKey) return;
  if (!(event.ctrlKey || event.metaKey) && matchMedia("(pointer: coarse)").matches) return;
  event.preventDefault();
  void send();
}

export function Composer() {
  structure.value;
  const run = currentRun();
  const live = run?.live ?? false;
  const placeholder = t(live ? "composer.steer" : shown.value.length ? "composer.followUp" : "composer.ask");
  useEffect(ensureLanes, [agents.value]);
  useEffect(guess, [draft.value, models.value]);
  useEffect(() => {
    const take = (/** @type {any} */ event) => setPrompt(event.detail);
    const opened = (/** @type {any} */ event) => adopt(event.detail);
    document.addEventListener("mux:prompt", take);
    document.addEventListener("mux:opened", opened);
    return () => {
      document.removeEventListener("mux:prompt", take);
      document.removeEventListener("mux:opened", opened);
    };
  }, []);
  return html`
    <form class="composer" data-region tabindex="-1" aria-label=${t("region.composer")} onSubmit=${(/** @type {Event} */ e) => { e.preventDefault(); void send(); }}>
      <div class="composer-main">
        <label class="sr" for="composer-text">${placeholder}</label>
        <textarea id="composer-text" rows="1" placeholder=${placeholder} dir="auto" onKeyDown=${keys} onInput=${grow} spellcheck="true"></textarea>
        ${live
          ? html`<${Target} />
              <button class="btn" type="button" disabled=${busy.value} onClick=${() => area().value.trim() && steer(area().value.trim(), "queue")}>${t("composer.queue")}</button>
              <button class="btn primary" type="submit">${t("composer.sendNow")}</button>`
          : html`<button class="btn primary run-button" type="submit" disabled=${busy.value} title="Ctrl+Enter">${t(shown.value.length ? "composer.send" : "composer.run", { n: laneCount(draft.value) })}</button>`}
      </div>
      <${LaneChips} live=${live} />
    </form>
  `;
}

function Target() {
  const list = shownEntries();
  return html`<select class="field" aria-label=${t("composer.target")} value=${target.value} onChange=${(/** @type {any} */ e) => (target.value = e.target.value)}>
    <option value="all">${t("composer.toAll")}</option>
    <option value="focus">${t("composer.toFocused")}</option>
    ${list.map((e) => html`<option key=${e.key} value=${e.key}>${e.letter} ${e.key}</option>`)}
  </select>`;
}

/** @param {{live: boolean}} props */
function LaneChips({ live }) {
  const { lanes, mode, maxParallel, synthesis, budget } = draft.value;
  const full = laneCount(draft.value) >= MAX_LANES;
  const set = (/** @type {import("../compose.js").LaneSpec[]} */ next) => changeDraft({ lanes: next });
  let index = 0;
  return html`
    <div class="lanes-row">
      <ul class="chips" aria-label=${t("composer.lanes")}>
        ${lanes.map((lane, i) => {
          const at = index;
          index += lane.repeats;
          return html`<${Chip} key=${lane.key} lane=${lane} index=${at} onCopy=${() => set([...lanes.slice(0, i + 1), copyLane(lane), ...lanes.slice(i + 1)])}
            onRemove=${() => set(lanes.filter((l) => l !== lane))} full=${full} />`;
        })}
        ${synthesis.on ? html`<li class="lane-chip is-sigma"><button type="button" class="chip-main" onClick=${() => (dialog.value = { kind: "synthesis" })}><span class="swatch sigma">Σ</span>${t(`synthesis.${synthesis.strategy}`)}</button>
          <button type="button" class="chip-tool" aria-label=${t("synthesis.remove")} onClick=${() => changeDraft({ synthesis: { ...synthesis, on: false } })}>×</button></li>` : null}
      </ul>
      <button type="button" class="btn quiet" id="add-lane" disabled=${full} aria-haspopup="dialog" onClick=${() => (dialog.value = { kind: "add-lane", live })}><${Icon} name="plus" />${t("composer.addLane")}</button>
      ${synthesis.on ? null : html`<button type="button" class="btn quiet" id="add-synthesis" aria-haspopup="dialog" onClick=${() => (dialog.value = { kind: "synthesis" })}>Σ ${t("synthesis.add")}</button>`}
      <div class="how">
      <span class="muted num" id="composer-estimate"></span>
      <label class="mode"><span class="sr">${t("composer.mode")}</span>
        <select class="field" id="mode" value=${mode} onChange=${(/** @type {any} */ e) => changeDraft({ mode: e.target.value })}>
          ${["parallel", "sequential", "limited"].map((m) => html`<option key=${m} value=${m}>${t(`mode.${m}`)}</option>`)}
        </select></label>
      ${mode === "limited" ? html`<input class="field tiny" type="number" min="1" max="32" aria-label=${t("mode.limit")} value=${maxParallel} onInput=${(/** @type {any} */ e) => changeDraft({ maxParallel: Math.max(1, Number(e.target.value) || 1) })} />` : null}
      <button type="button" class=${`btn quiet${budget && Object.keys(budget).length ? " is-on" : ""}`} aria-haspopup="dialog" onClick=${() => (dialog.value = { kind: "budget" })}>${t("budget.title")}</button>
      </div>
    </div>
  `;
}

/** @param {{lane: import("../compose.js").LaneSpec, index: number, onCopy: () => void, onRemove: () => void, full: boolean}} props */
function Chip({ lane, index, onCopy, onRemove, full }) {
  const agent = agents.value?.find((a) => a.name === lane.agent);
  const model = lane.model ?? agent?.model;
  const tools = lane.tools?.length ?? agent?.tools?.length ?? 0;
  const changed = modified(lane);
  const set = (/** @type {number} */ repeats) =>
    changeDraft({ lanes: draft.value.lanes.map((l) => (l === lane ? { ...l, repeats: Math.max(1, Math.min(16, repeats)) } : l)) });
  return html`<li class=${`lane-chip${agent || !agents.value ? "" : " is-bad"}`}>
    <button type="button" class="chip-main" aria-haspopup="dialog" onClick=${() => (dialog.value = { kind: "lane", laneKey: lane.key })}>
      <span class=${`swatch lane-${index % 16}`} aria-hidden="true">${letterOf(index)}</span>
      <span class="chip-name">${lane.agent}</span>
      ${model ? html`<span class="chip-model">${model}</span>` : null}
      ${tools || lane.tools ? html`<span class="chip-tools">${t("composer.tools", { n: tools })}</span>` : null}
      ${changed ? html`<span class="modified" title=${t("composer.modified")}><span class="sr">${t("composer.modified")}</span></span>` : null}
    </button>
    <button type="button" class="chip-tool num" aria-label=${t("composer.repeat", { agent: lane.agent, n: lane.repeats })} title=${t("composer.repeat", { agent: lane.agent, n: lane.repeats })} disabled=${full}
      onClick=${() => set(lane.repeats + 1)} onContextMenu=${(/** @type {Event} */ e) => { e.preventDefault(); set(lane.repeats - 1); }}>×${lane.repeats}</button>
    <button type="button" class="chip-tool" aria-label=${t("composer.duplicate", { agent: lane.agent })} title=${t("composer.duplicate", { agent: lane.agent })} disabled=${full} onClick=${onCopy}><${Icon} name="copy" /></button>
    <button type="button" class="chip-tool" aria-label=${t("composer.remove", { agent: lane.agent })} title=${t("composer.remove", { agent: lane.agent })} onClick=${onRemove}>×</button>
  </li>`;
}

export function resetDraft() {
  draft.value = newDraft();
  ensureLanes();
}
