/** Which of a lane's numbers are the best of its run: marked once every lane has ended, and only among those that completed. */
import { metrics } from "./lanestate.js";
import { runs } from "./state.js";

/** @type {WeakMap<import("./store.js").Run, Map<string, Set<string>>>} */
const known = new WeakMap();
const NONE = /** @type {Set<string>} */ (new Set());

/** @param {import("./store.js").Lane} lane @returns {Set<string>} */
export function best(lane) {
  const run = runs.get(lane.run);
  if (!run?.finished) return NONE;
  let marks = known.get(run);
  if (!marks) known.set(run, (marks = compute(run)));
  return marks.get(lane.id) ?? NONE;
}

/** @param {import("./store.js").Run} run */
function compute(run) {
  const done = [...run.lanes.values()].filter((lane) => lane.status === "completed");
  /** @type {Map<string, Set<string>>} */
  const marks = new Map(done.map((lane) => [lane.id, new Set()]));
  if (done.length < 2) return marks;
  const rows = done.map((lane) => ({ lane, m: metrics(lane, 0) }));
  for (const [slot, sign] of /** @type {[("elapsed"|"ttft"|"rate"|"cost"), number][]} */ ([["elapsed", 1], ["ttft", 1], ["rate", -1], ["cost", 1]])) {
    const values = rows.filter((row) => typeof row.m[slot] === "number");
    if (values.length < 2) continue;
    const top = values.reduce((a, b) => (sign * Number(b.m[slot]) < sign * Number(a.m[slot]) ? b : a));
    const tied = values.filter((row) => row.m[slot] === top.m[slot]);
    if (tied.length === 1) marks.get(top.lane.id)?.add(slot);
  }
  return marks;
}
