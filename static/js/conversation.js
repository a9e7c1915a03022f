/**
 * The lanes on screen: one per channel name over all turns of a thread, so that a follow-up continues in its lane
 * and a retry takes its original's place. Pure.
 *
 * @typedef {import("./store.js").Run} Run
 * @typedef {import("./store.js").Lane} Lane
 * @typedef {{run: Run, attempts: Lane[], workers?: Lane[]}} Turn `workers`: channels folded into their parent's pane
 * @typedef {{key: string, letter: string, index: number, turns: Turn[], path?: string}} Entry `path`: of a sub-agent
 */
import { subKeys, subLane } from "./sublane.js";

/** `gpt~2` is a retry of `gpt`; `gpt.2` a lane of its own. @param {string} id */
export const baseOf = (id) => id.replace(/~\d+$/, "");

/**
 * @param {Run[]} runs oldest first @param {string[]} [order] the user's order of lane keys
 * @returns {Entry[]}
 */
export function entries(runs, order = []) {
  /** @type {Map<string, Entry>} */
  const found = new Map();
  for (const run of runs) {
    for (const lane of run.lanes.values()) {
      const key = baseOf(lane.retryOf ?? lane.id);
      let entry = found.get(key);
      if (!entry) {
        const index = found.size;
        entry = { key, index, letter: letterOf(index), turns: [] };
        found.set(key, entry);
      }
      const turn = entry.turns.at(-1);
      if (turn?.run === run) turn.attempts.push(lane);
      else entry.turns.push({ run, attempts: [lane] });
    }
  }
  const list = [...found.values()];
  if (!order.length) return list;
  const place = new Map(order.map((key, i) => [key, i]));
  return list.sort((a, b) => (place.get(a.key) ?? 1000 + a.index) - (place.get(b.key) ?? 1000 + b.index));
}

/**
 * What has a pane: every lane but those taken off the screen and the workers that were folded into their parent's,
 * and the sub-agents that were taken out of theirs.
 * @param {Entry[]} list @param {{apart: string[], folded: string[], hidden?: string[], chosen?: Record<string, string>, order?: string[]}} wishes keys
 * @returns {Entry[]}
 */
export function panesOf(list, { apart, folded, hidden = [], chosen = {}, order = [] }) {
  const byKey = new Map(list.map((entry) => [entry.key, entry]));
  const home = (/** @type {Entry} */ entry) => (folded.includes(entry.key) ? byKey.get(parentKey(entry)) : undefined);
  const out = [];
  for (const entry of list) {
    if (home(entry) || hidden.includes(entry.key)) continue;
    const inside = list.filter((other) => home(other) === entry);
    out.push(inside.length ? withWorkers(entry, inside) : entry, ...subEntries(entry, apart, chosen));
  }
  const place = new Map(order.map((key, i) => [key, i]));
  if (!out.some((entry) => entry.path && place.has(entry.key))) return out;
  const rank = new Map(out.map((entry, i) => [entry, place.get(entry.key) ?? 1000 + i]));
  return out.sort((a, b) => Number(rank.get(a)) - Number(rank.get(b)));
}

/** The lane that opened this one, as an entry's key. @param {Entry} entry */
export const parentKey = (entry) => baseOf(entry.turns.at(-1)?.attempts.at(-1)?.parent ?? "");

/** The key of the signal that says when the lane changed: a sub-agent's is its parent's. @param {Entry} entry @param {Lane} lane */
export const signalKey = (entry, lane) => `${lane.run}/${entry.path ? lane.parent : lane.id}`;

/** @param {Entry} entry @param {Entry[]} inside @returns {Entry} */
function withWorkers(entry, inside) {
  const turns = entry.turns.map((turn) => ({
    ...turn, workers: inside.flatMap((worker) => worker.turns.filter((own) => own.run === turn.run).map((own) => /** @type {Lane} */ (own.attempts.at(-1)))),
  }));
  return { ...entry, turns };
}

/** @param {Entry} entry @param {string[]} apart @param {Record<string, string>} chosen @returns {Entry[]} */
function subEntries(entry, apart, chosen) {
  const wanted = apart.filter((key) => key.startsWith(`${entry.key}/`));
  return wanted.flatMap((key, i) => {
    const path = key.slice(entry.key.length + 1);
    const turns = entry.turns
      .map((turn) => ({ run: turn.run, lane: shownAttempt(turn, chosen) }))
      .filter(({ lane }) => subKeys(lane).includes(path))
      .map(({ run, lane }) => ({ run, attempts: [/** @type {Lane} */ (/** @type {unknown} */ (subLane(lane, path)))] }));
    return turns.length ? [{ key, letter: `${entry.letter}${i + 1}`, index: entry.index, path, turns }] : [];
  });
}

/** @param {number} index @returns {string} */
export const letterOf = (index) => (index < 26 ? String.fromCharCode(65 + index) : `${letterOf(Math.floor(index / 26) - 1)}${letterOf(index % 26)}`);

/** The lane that an entry shows in its last turn. @param {Entry} entry @param {Record<string, string>} [chosen] */
export function currentLane(entry, chosen = {}) {
  const turn = /** @type {Turn} */ (entry.turns.at(-1));
  return shownAttempt(turn, chosen);
}

/** @param {Turn} turn @param {Record<string, string>} chosen @returns {Lane} */
export function shownAttempt(turn, chosen) {
  const picked = turn.attempts.find((lane) => chosen[`${turn.run.id}/${baseOf(lane.id)}`] === lane.id);
  return picked ?? /** @type {Lane} */ (turn.attempts.at(-1));
}
