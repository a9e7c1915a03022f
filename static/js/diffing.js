/** What differs between lanes: words, tools, numbers. The diff library is loaded with the first comparison. */
import { el } from "./markdown/render.js";
import { visible } from "./markdown/safe.js";
import { lazy } from "./lazy.js";
import { metrics, seconds } from "./lanestate.js";
import { summary } from "./pane/toolcard.js";

/** @typedef {import("./store.js").Lane} Lane */

const library = lazy(() => import("diff"));
const MAX_WORDS = 60_000;

/** @param {string} a @param {string} b @returns {Promise<{kind: "same"|"added"|"removed", text: string}[]>} */
export async function diffTexts(a, b) {
  const { diffWordsWithSpace, diffLines } = await library();
  // Words of very long texts take seconds; lines are enough to see where they part.
  const large = a.length + b.length > MAX_WORDS * 5;
  const parts = /** @type {any} */ (large ? diffLines : diffWordsWithSpace)(a, b, { timeout: 500 }) ?? [{ value: a, removed: true }, { value: b, added: true }];
  return parts.map((/** @type {any} */ p) => ({ kind: p.added ? "added" : p.removed ? "removed" : "same", text: p.value }));
}

/** The same as nodes: what only the second has is inserted, what only the first has deleted. @param {string} a @param {string} b @returns {Promise<Node[]>} */
export async function diffNodes(a, b) {
  const tags = { same: "", added: "ins", removed: "del" };
  return (await diffTexts(a, b)).map(({ kind, text }) => (tags[kind] ? el(tags[kind], "", visible(text)) : document.createTextNode(visible(text))));
}

/** @param {Lane} lane */
const calls = (lane) => [...lane.transcripts.tools.values()].map(({ tool }) => ({ name: tool?.name ?? "", line: tool ? summary(tool) : "" }));

/**
 * The two sequences of calls, aligned by name (longest common subsequence).
 * @param {Lane} a @param {Lane} b @returns {[{name: string, line: string}|null, {name: string, line: string}|null][]}
 */
export function toolSequence(a, b) {
  const [x, y] = [calls(a).slice(0, 300), calls(b).slice(0, 300)];
  const length = x.map(() => new Uint16Array(y.length + 1));
  length.push(new Uint16Array(y.length + 1));
  for (let i = x.length - 1; i >= 0; i--) {
    for (let j = y.length - 1; j >= 0; j--) length[i][j] = x[i].name === y[j].name ? length[i + 1][j + 1] + 1 : Math.max(length[i + 1][j], length[i][j + 1]);
  }
  const rows = /** @type {ReturnType<typeof toolSequence>} */ ([]);
  let [i, j] = [0, 0];
  while (i < x.length || j < y.length) {
    if (i < x.length && j < y.length && x[i].name === y[j].name) rows.push([x[i++], y[j++]]);
    else if (j >= y.length || (i < x.length && length[i + 1][j] >= length[i][j + 1])) rows.push([x[i++], null]);
    else rows.push([null, y[j++]]);
  }
  return rows;
}

/** @param {number[]} values @param {(v: number) => string} format */
function middle(values, format) {
  const sorted = values.filter((v) => v !== undefined).sort((a, b) => a - b);
  if (!sorted.length) return "–";
  const half = sorted.length / 2;
  const median = sorted.length % 2 ? sorted[Math.floor(half)] : (sorted[half - 1] + sorted[half]) / 2;
  return `${format(median)} (${format(sorted[0])} … ${format(/** @type {number} */ (sorted.at(-1)))})`;
}

/** Median and range of each agent that has more than one lane. @param {Lane[]} lanes @param {number} now */
export function spread(lanes, now) {
  /** @type {Map<string, Lane[]>} */
  const groups = new Map();
  for (const lane of lanes) groups.set(lane.agent, [...(groups.get(lane.agent) ?? []), lane]);
  return [...groups].filter(([, list]) => list.length > 1).map(([agent, list]) => {
    const all = list.map((lane) => metrics(lane, now));
    const of = (/** @type {"elapsed"|"ttft"|"output"} */ key) => /** @type {number[]} */ (all.map((m) => m[key]));
    return { agent, n: list.length, elapsed: middle(of("elapsed"), seconds), ttft: middle(of("ttft"), (v) => `${Math.round(v)} ms`), output: middle(of("output"), (v) => String(Math.round(v))) };
  });
}
