/**
 * What one agent said and did, as an ordered list of items, folded from events. Pure: no clock, no DOM.
 *
 * An item is mutable and carries `rev`, which grows with each change, so that a view can tell whether it has
 * drawn the present state. Items are in the order of their first event's `cseq`.
 *
 * @typedef {import("./stream.js").MuxEvent} MuxEvent
 *
 * @typedef {object} ItemFields
 * @property {number} id       unique in the lane
 * @property {string} kind     text | reasoning | refusal | tool | nest | guardrail | retry | message | custom | error | end | note
 * @property {number} cseq     of its first event
 * @property {number} ts       of its first event
 * @property {number} rev
 * @property {number} [endTs]
 * @property {number} [lastTs]  of its last text
 * @property {boolean} [open]  whether more may come
 * @property {Growing} [said]  its text, where it has one; `text` gives it whole
 * @property {Tool} [tool]
 * @property {Transcript} [nested]
 * @property {any} [event]
 * @property {any} [value]
 *
 * @typedef {object} Tool
 * @property {string} callId
 * @property {string} name
 * @property {string} state    args | queued | approval | running | ok | error | cancelled
 * @property {string} argsText
 * @property {any} [args]
 * @property {string} content  what it printed while it ran
 * @property {string} [message]
 * @property {number} [fraction]
 * @property {number} [startTs]
 * @property {number} [endTs]
 * @property {number} elapsedMs
 * @property {string} [output]
 * @property {any} [data]
 * @property {boolean} [isError]
 * @property {string} [error]
 * @property {{expiresAt: number, decision?: string, by?: string}} [approval]
 */

import { Growing } from "./growing.js";

/** Kept of a tool's printed output in the page; the store on the server keeps all of it. */
const MAX_PROGRESS = 400_000;

const TEXT_KINDS = /** @type {Record<string, string>} */ ({ token: "text", reasoning: "reasoning", refusal: "refusal" });
const CANCELLED = new Set(["cancelled", "interrupted"]);

/** @typedef {{name: string, items: Item[]}} Transcript */

/** One thing that was said or done. */
class Said {
  /** @param {ItemFields} fields */
  constructor(fields) {
    this.said = fields.said;
    Object.assign(this, fields);
  }

  get text() {
    return this.said?.toString();
  }
}
/** @typedef {Said & ItemFields} Item */

/** All transcripts of one lane: its own and those of nested sub-agents. */
export class Transcripts {
  constructor() {
    /** @type {Transcript} */
    this.root = { name: "", items: [] };
    /** @type {Map<string, Transcript>} */
    this.nested = new Map();
    /** @type {Map<string, Item>} */
    this.tools = new Map();
    /** Items changed since a view looked last. @type {Set<Item>} */
    this.touched = new Set();
    /** Grows when items were taken away, so that a view starts again. */
    this.generation = 0;
    this.nextId = 1;
  }

  clear() {
    this.root.items = [];
    this.nested.clear();
    this.tools.clear();
    this.touched.clear();
    this.generation += 1;
  }

  /** @param {MuxEvent} event @returns {Transcript} */
  at(event) {
    let place = this.root;
    let key = "";
    for (const name of event.path ?? []) {
      key += `\u0000${name}`;
      let next = this.nested.get(key);
      if (!next) {
        next = { name, items: [] };
        this.nested.set(key, next);
        this.add(place, "nest", event, { nested: next, open: true });
      }
      place = next;
    }
    return place;
  }

  /** @param {Transcript} place @param {string} kind @param {MuxEvent} event @param {Partial<ItemFields>} [more] @returns {Item} */
  add(place, kind, event, more) {
    const last = place.items[place.items.length - 1];
    if (last?.open && last.said) this.close(last, event.from_cseq === undefined ? event.ts : last.lastTs ?? event.ts);
    const item = /** @type {Item} */ (new Said({
      id: this.nextId++, kind, cseq: event.from_cseq ?? event.cseq, ts: event.ts, rev: 1, ...more,
    }));
    place.items.push(item);
    this.touched.add(item);
    return item;
  }

  /** @param {Item} item */
  touch(item) {
    item.rev += 1;
    this.touched.add(item);
  }

  /** @param {Item} item @param {number} ts */
  close(item, ts) {
    item.open = false;
    item.endTs = ts;
    this.touch(item);
  }

  /** Text goes on in the last item where that is of its kind. @param {MuxEvent} event @param {number} [since] when the event before it came */
  text(event, since) {
    const place = this.at(event);
    const kind = TEXT_KINDS[event.type];
    let item = place.items[place.items.length - 1];
    if (!item || item.kind !== kind || !item.open) {
      item = this.add(place, kind, event, { said: new Growing(), open: true });
      // Merged deltas carry the last one's time: they began after what came before them.
      if (event.from_cseq !== undefined && since) item.ts = Math.min(event.ts, since);
    }
    item.said?.push(event.content, event.from_cseq ?? event.cseq);
    item.lastTs = event.ts;
    this.touch(item);
  }

  /** A step ended: its texts are complete and can't be reset any more. @param {MuxEvent} event */
  endStep(event) {
    const { items } = this.at(event);
    for (let i = items.length - 1; i >= 0 && (items[i].open || items[i].said?.marks.length); i--) {
      const item = items[i];
      item.said?.settle();
      if (item.said && item.open) this.close(item, event.ts);
    }
  }

  /** Discard every event with `from_cseq` ≤ cseq. @param {number} from */
  reset(from) {
    this.generation += 1;
    this.touched.clear();
    this.#cut(this.root, from);
    for (const [key, place] of this.nested) {
      this.#cut(place, from);
      if (!place.items.length) this.nested.delete(key);
    }
    for (const [id, item] of this.tools) if (item.cseq >= from) this.tools.delete(id);
  }

  /** @param {Transcript} place @param {number} from */
  #cut(place, from) {
    while (place.items.length && place.items[place.items.length - 1].cseq >= from) place.items.pop();
    const last = place.items[place.items.length - 1];
    if (last?.said?.cut(from)) last.rev += 1;
  }

  /** @param {MuxEvent} event */
  toolCall(event) {
    /** @type {Tool} */
    const tool = { callId: event.call_id, name: event.tool, state: "args", argsText: "", content: "", elapsedMs: 0 };
    const item = this.add(this.at(event), "tool", event, { tool, open: true });
    this.tools.set(event.call_id, item);
    return item;
  }

  /** The card of a call; a stream that begins late may not have seen its `tool_call`. @param {MuxEvent} event */
  #card(event) {
    return this.tools.get(event.call_id) ?? this.toolCall({ ...event, tool: event.tool ?? "" });
  }

  /** @param {MuxEvent} event */
  tool(event) {
    const item = this.#card(event);
    const tool = /** @type {Tool} */ (item.tool);
    HANDLERS[event.type](tool, event);
    if (event.type === "tool_result") {
      item.open = false;
      item.endTs = event.ts;
    }
    this.touch(item);
    return tool;
  }

  /** Arguments are complete when the step is: what was being written now waits for its turn. */
  queueTools() {
    for (const item of this.tools.values()) {
      if (item.tool?.state !== "args") continue;
      item.tool.state = "queued";
      this.touch(item);
    }
  }

  /** Everything that is still open ends with the channel. @param {number} ts */
  end(ts) {
    for (const place of [this.root, ...this.nested.values()]) {
      for (const item of place.items) {
        if (item.open) this.close(item, ts);
        item.said?.settle();
      }
    }
  }

  /** The answer: the text items joined, of the lane itself. */
  answer() {
    return this.root.items.filter((i) => i.kind === "text" || i.kind === "refusal").map((i) => i.text).join("");
  }
}

/** @type {Record<string, (tool: Tool, event: MuxEvent) => void>} */
const HANDLERS = {
  tool_args(tool, event) {
    tool.argsText += event.content;
  },
  tool_start(tool, event) {
    tool.args = event.arguments;
    tool.state = "running";
    tool.startTs = event.ts;
    tool.name ||= event.tool;
  },
  tool_progress(tool, event) {
    tool.elapsedMs = event.elapsed_ms;
    if (event.message !== undefined) tool.message = event.message;
    if (event.fraction !== undefined) tool.fraction = event.fraction;
    if (event.content) tool.content = (tool.content + event.content).slice(-MAX_PROGRESS);
  },
  tool_result(tool, event) {
    tool.output = event.output;
    tool.data = event.data;
    tool.isError = event.is_error ?? false;
    tool.error = event.error;
    tool.elapsedMs = event.elapsed_ms ?? tool.elapsedMs;
    tool.endTs = event.ts;
    tool.state = CANCELLED.has(event.error ?? "") ? "cancelled" : tool.isError ? "error" : "ok";
    tool.name ||= event.tool;
  },
  approval_requested(tool, event) {
    tool.args = event.arguments;
    tool.state = "approval";
    tool.name ||= event.tool;
    tool.approval = { expiresAt: event.expires_at };
  },
  approval_resolved(tool, event) {
    tool.approval = { expiresAt: 0, ...tool.approval, decision: event.decision, by: event.by };
    tool.state = event.decision === "approve" || event.decision === "edit" ? "queued" : tool.state;
  },
};
