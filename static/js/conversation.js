/**
 * The lanes on screen: one per channel name over all turns of a thread, so that a follow-up continues in its lane
 * and a retry takes its original's place. Pure.
 *
 * @typedef {import("./store.js").Run} Run
 * @typedef {import("./store.js").Lane} Lane
 * @typedef {{run: Run, attempts: Lane[]}} Turn
 * @typedef {{key: string, letter: string, index: number, turns: Turn[]}} Entry
 */

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
