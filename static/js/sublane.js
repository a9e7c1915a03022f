/**
 * A sub-agent of a lane, seen as a lane of its own: its part of the parent's transcript, and what of the parent's
 * state is about it. It has no channel: stopping, retrying and steering are the parent's.
 *
 * @typedef {import("./store.js").Lane} Lane
 * @typedef {import("./transcript.js").Item} Item
 */

/** @type {WeakMap<Lane, Map<string, SubLane>>} */
const known = new WeakMap();

/** What follows a lane's id in the key of its sub-agent. @param {string[]} path */
export const pathKey = (path) => path.map(encodeURIComponent).join("/");

/** The same object for the same sub-agent, so that its pane stays. @param {Lane} lane @param {string} key of `pathKey` */
export function subLane(lane, key) {
  let all = known.get(lane);
  if (!all) known.set(lane, (all = new Map()));
  let found = all.get(key);
  if (!found) all.set(key, (found = new SubLane(lane, key.split("/").map(decodeURIComponent))));
  return found;
}

/** Every sub-agent of a lane, by key. @param {Lane} lane @returns {string[]} */
export const subKeys = (lane) => [...lane.transcripts.nested.keys()].map((key) => pathKey(key.split("\u0000").slice(1)));

/** The part of the parent's transcripts that is the sub-agent's. */
class Part {
  /** @param {import("./transcript.js").Transcripts} all @param {string[]} path */
  constructor(all, path) {
    this.all = all;
    this.key = path.map((name) => `\u0000${name}`).join("");
    this.empty = { name: "", items: /** @type {Item[]} */ ([]) };
    /** @type {WeakMap<Item, number>} */
    this.drawn = new WeakMap();
  }

  get root() {
    return this.all.nested.get(this.key) ?? this.empty;
  }

  get nested() {
    return this.all.nested;
  }

  get tools() {
    return this.all.tools;
  }

  get generation() {
    return this.all.generation;
  }

  /** What changed since this was asked last: the parent's own view takes its marks away, so this keeps count. */
  get touched() {
    const found = /** @type {Set<Item>} */ (new Set());
    const look = (/** @type {Item[]} */ items) => {
      for (const item of items) {
        if (this.drawn.get(item) !== item.rev) found.add(item);
        this.drawn.set(item, item.rev);
        if (item.nested) look(item.nested.items);
      }
    };
    look(this.root.items);
    return found;
  }

  answer() {
    return this.root.items.filter((i) => i.kind === "text").map((i) => i.text).join("");
  }
}

export class SubLane {
  /** @param {Lane} parent @param {string[]} path */
  constructor(parent, path) {
    this.of = parent;
    this.path = path;
    this.run = parent.run;
    this.channel = parent.id;
    this.id = `${parent.id}/${pathKey(path)}`;
    this.title = path[path.length - 1];
    this.agent = this.title;
    this.parent = parent.id;
    this.model = undefined;
    this.dependsOn = /** @type {string[]} */ ([]);
    this.transcripts = new Part(parent.transcripts, path);
    this.usage = {};
    this.liveTtft = this.knownTtft = undefined;
    this.rate = new Map();
    this.deltas = this.counted = this.firstDeltaTs = this.stepTs = this.step = 0;
    this.done = this.error = null;
    this.stopping = this.waitingRetry = false;
  }

  get items() {
    return this.transcripts.root.items;
  }

  get finished() {
    return this.of.finished;
  }

  get status() {
    return this.of.status;
  }

  get cseq() {
    return this.of.cseq;
  }

  get startTs() {
    return this.items[0]?.ts ?? 0;
  }

  get lastTs() {
    return this.of.lastTs;
  }

  get endTs() {
    const last = this.items.at(-1);
    return this.finished ? (last?.endTs ?? last?.ts ?? this.of.endTs) : 0;
  }

  /** @param {Set<string>} ids those of the parent's calls that are this sub-agent's */
  #own(ids) {
    return new Set([...ids].filter((id) => this.items.some((item) => item.tool?.callId === id)));
  }

  get approvals() {
    return this.#own(this.of.approvals);
  }

  get runningTools() {
    return this.#own(this.of.runningTools);
  }

  get activity() {
    const last = this.items.at(-1);
    return last?.open ? (/** @type {Record<string, string>} */ ({ text: "writing", reasoning: "thinking" })[last.kind] ?? "") : "";
  }
}
