/**
 * What the composer holds, and the request it becomes. Pure.
 *
 * @typedef {object} LaneSpec
 * @property {number} key          of the chip, unique on the page
 * @property {string} agent
 * @property {string} [model]
 * @property {string} [instructions] replaces the agent's own
 * @property {string} [message]      its own prompt instead of the shared one
 * @property {Record<string, number|string>} [params]
 * @property {string[]} [tools]     those of the agent's tools that it may use; none given = all
 * @property {Record<string, number>} [budget]
 * @property {number} repeats
 *
 * @typedef {object} Draft
 * @property {LaneSpec[]} lanes
 * @property {"parallel"|"sequential"|"limited"} mode
 * @property {number} maxParallel
 * @property {Record<string, number>} [budget]
 * @property {{on: boolean, strategy: string, prompt: string, agent: string, model?: string, sources: number[]|null}} synthesis
 */

import { letterOf } from "./conversation.js";

export const MAX_LANES = 32;
let nextKey = 1;

/** @param {string} agent @returns {LaneSpec} */
export const newLane = (agent) => ({ key: nextKey++, agent, repeats: 1 });

/** @param {LaneSpec} lane @returns {LaneSpec} */
export const copyLane = (lane) => ({ ...structuredClone(lane), key: nextKey++ });

/** @returns {Draft} */
export const newDraft = () => ({
  lanes: [], mode: "parallel", maxParallel: 2,
  synthesis: { on: false, strategy: "fuse", prompt: "", agent: "synthesizer", sources: null },
});

/** Whether a lane differs from its agent's own settings or from the shared prompt. @param {LaneSpec} lane */
export const modified = (lane) =>
  Boolean(lane.model || lane.instructions || lane.message || lane.tools || Object.keys(lane.params ?? {}).length || Object.keys(lane.budget ?? {}).length);

/** @param {Draft} draft */
export const laneCount = (draft) => draft.lanes.reduce((n, lane) => n + lane.repeats, 0) + (draft.synthesis.on ? 1 : 0);

/**
 * Channels with their ids: the agent's name, `name.2` for its second lane.
 * @param {Draft} draft @returns {{spec: LaneSpec, id: string}[]}
 */
export function channelIds(draft) {
  /** @type {Map<string, number>} */
  const used = new Map();
  const out = [];
  for (const spec of draft.lanes) {
    for (let i = 0; i < spec.repeats; i++) {
      const n = (used.get(spec.agent) ?? 0) + 1;
      used.set(spec.agent, n);
      const base = spec.agent.replace(/[^A-Za-z0-9._~-]/g, "-").slice(0, 56);
      out.push({ spec, id: n === 1 ? base : `${base}.${n}` });
    }
  }
  return out;
}

/** @param {Record<string, any>} object @returns {Record<string, any>|undefined} without empty members */
function compactObject(object) {
  const kept = Object.entries(object ?? {}).filter(([, value]) => value !== undefined && value !== "" && value !== null && !Number.isNaN(value));
  return kept.length ? Object.fromEntries(kept) : undefined;
}

/** One channel of the request. @param {LaneSpec} spec @param {string} [id] */
export function channelOf(spec, id) {
  return compactObject({
    id, agent: spec.agent, model: spec.model, instructions: spec.instructions, message: spec.message, tools: spec.tools,
    params: compactObject(spec.params ?? {}), budget: compactObject(spec.budget ?? {}),
  });
}

/** How a synthesis is asked for. @param {Draft["synthesis"]} synthesis @param {{letter: string, id: string}[]} sources @param {(key: string, values?: any) => string} t */
export function synthesisMessage(synthesis, sources, t) {
  const names = sources.map((s) => `[${s.letter}] = ${s.id}`).join(", ");
  const task = synthesis.strategy === "custom" ? synthesis.prompt : t(`synthesis.prompt.${synthesis.strategy}`);
  return `${task}\n\n${t("synthesis.cite", { names })}`;
}

/**
 * The body of `POST /api/runs`.
 * @param {Draft} draft @param {string} message @param {{thread?: string, t: (key: string, values?: any) => string}} options
 */
export function requestOf(draft, message, { thread, t }) {
  const ids = channelIds(draft);
  /** @type {any[]} */
  const channels = ids.map(({ spec, id }) => channelOf(spec, id));
  if (draft.mode === "sequential") channels.forEach((channel, i) => i && (channel.depends_on = [channels[i - 1].id]));
  if (draft.synthesis.on && ids.length) {
    const chosen = ids.filter(({ spec }) => !draft.synthesis.sources || draft.synthesis.sources.includes(spec.key));
    const letters = chosen.map(({ id }) => ({ id, letter: letterOf(ids.findIndex((x) => x.id === id)) }));
    channels.push(compactObject({
      id: freeId("synthesis", channels), agent: draft.synthesis.agent, model: draft.synthesis.model, title: "Σ",
      depends_on: letters.map((l) => l.id), when: "settled", message: synthesisMessage(draft.synthesis, letters, t),
    }));
  }
  const lanes = Object.fromEntries(channels.filter((c) => c.message).map((c) => [c.id, { message: c.message }]));
  return compactObject({
    message, channels, thread, budget: compactObject(draft.budget ?? {}),
    max_parallel: draft.mode === "limited" ? draft.maxParallel : undefined,
    metadata: { composer: stored(draft), ...(Object.keys(lanes).length ? { lanes } : {}) },
  });
}

/** @param {string} name @param {{id: string}[]} channels */
function freeId(name, channels) {
  let id = name;
  for (let n = 2; channels.some((c) => c.id === id); n++) id = `${name}.${n}`;
  return id;
}

/** A draft as kept in a run's metadata, to fork it later. @param {Draft} draft */
export const stored = (draft) => ({ ...structuredClone(draft), lanes: draft.lanes.map(({ key: _key, ...rest }) => structuredClone(rest)) });

/** @param {any} value @returns {Draft} */
export function restored(value) {
  const fresh = newDraft();
  if (!value || !Array.isArray(value.lanes)) return fresh;
  return {
    ...fresh, ...value, synthesis: { ...fresh.synthesis, ...value.synthesis, sources: null },
    lanes: value.lanes.map((/** @type {any} */ lane) => ({ ...lane, repeats: lane.repeats ?? 1, key: nextKey++ })),
  };
}

/** A draft from a run that was not started here. @param {any} snapshot */
export function draftOf(snapshot) {
  if (snapshot.metadata?.composer) return restored(snapshot.metadata.composer);
  const draft = newDraft();
  for (const { agent, plan = {}, retry_of, parent } of snapshot.channels ?? []) {
    if (retry_of || parent) continue;
    const { model, instructions, message, params, tools, budget } = plan;
    draft.lanes.push({ ...newLane(agent), ...compactObject({ model, instructions, message, params, tools, budget }) });
  }
  return draft;
}

/** About four characters a token in English prose: an estimate, and shown as one. @param {string} text */
const tokensOf = (text) => Math.ceil(text.length / 4);

/**
 * What starting this would send, before the agents do anything: prompt and what was said before, for each lane;
 * the cost where the price of every lane's model is known.
 * @param {Draft} draft @param {string} text
 * @param {{agents: any[], models: any[], history: number}} known `history`: characters of a lane's earlier turns
 * @returns {{tokens: number, cost?: number, currency?: string}}
 */
export function estimate(draft, text, { agents, models, history }) {
  let tokens = 0;
  let cost = /** @type {number|undefined} */ (0);
  let currency;
  for (const { spec } of channelIds(draft)) {
    const n = tokensOf(spec.message ?? text) + Math.ceil(history / 4);
    const name = spec.model ?? agents.find((a) => a.name === spec.agent)?.model;
    const price = models.find((m) => m.id === name)?.price;
    tokens += n;
    currency = price?.currency;
    cost = price && cost !== undefined ? cost + (n * price.input) / 1_000_000 : undefined;
  }
  return cost === undefined || !currency ? { tokens } : { tokens, cost, currency };
}
