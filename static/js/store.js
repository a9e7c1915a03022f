/**
 * Runs and lanes, folded from events. A pure reducer: no network, no clock, no DOM; the same events give the
 * same state whether they come singly, in compact windows, live or replayed.
 *
 * @typedef {import("./stream.js").MuxEvent} MuxEvent
 * @typedef {import("./transcript.js").Item} Item
 *
 * @typedef {object} Usage
 * @property {number} [input_tokens]
 * @property {number} [output_tokens]
 * @property {number} [reasoning_tokens]
 * @property {number} [cached_tokens]
 * @property {number} [cost]
 * @property {string} [currency]
 */
import { Transcripts } from "./transcript.js";

export const DONE = new Set(["completed", "refused", "failed", "cancelled", "timed_out", "budget_exceeded"]);
const TICKS = 40; // seconds of the tokens-per-second sparkline

/** One channel of a run. */
export class Lane {
  /** @param {string} run @param {any} info */
  constructor(run, info) {
    this.run = run;
    this.id = /** @type {string} */ (info.id);
    this.agent = /** @type {string} */ (info.agent);
    this.title = /** @type {string|undefined} */ (undefined);
    this.model = /** @type {string|undefined} */ (undefined);
    this.dependsOn = /** @type {string[]} */ ([]);
    this.retryOf = /** @type {string|undefined} */ (undefined);
    this.parent = /** @type {string|undefined} */ (undefined);
    this.learn(info);
    this.transcripts = new Transcripts();
    this.cseq = 0;
    this.status = this.dependsOn.length ? "pending" : "queued";
    this.queuePosition = /** @type {number|undefined} */ (undefined);
    this.phase = "";
    this.attempt = 0;
    this.step = 0;
    /** What the last change was about: tells connecting from writing. */
    this.activity = "";
    /** Of the last step, as the provider says it. */
    this.finishReason = "";
    this.startTs = 0;
    this.lastTs = 0;
    this.endTs = 0;
    this.stepTs = 0;
    this.firstDeltaTs = 0;
    /** Of the first step, until the server says it. @type {number|undefined} */
    this.liveTtft = undefined;
    /** From a snapshot: a replayed window has only its last time. @type {number|undefined} */
    this.knownTtft = undefined;
    this.waitingRetry = false;
    this.stopping = false;
    this.approvals = new Set();
    this.runningTools = new Set();
    this.deltas = 0; // of text and reasoning: about one a token
    this.outDeltas = 0;
    /** Of the deltas, those that a reported usage speaks of. */
    this.counted = 0;
    /** @type {Map<number, Usage>} */
    this.usageBySteps = new Map();
    /** @type {any} */
    this.done = null;
    /** @type {any} */
    this.error = null;
    /** Deltas a second, by second since the start. @type {Map<number, number>} */
    this.rate = new Map();
    this.guardrails = 0;
    /** Grows with every change that is not mere text: what the shell draws again for. */
    this.rev = 0;
  }

  /** A snapshot knows less of a channel than the event that announced it; whichever comes first. @param {any} info */
  learn(info) {
    this.title ??= info.title;
    this.model ??= info.model;
    this.retryOf ??= info.retry_of;
    this.parent ??= info.parent;
    if (!this.dependsOn.length) this.dependsOn = info.depends_on ?? [];
  }

  get items() {
    return this.transcripts.root.items;
  }

  get finished() {
    return DONE.has(this.status);
  }

  /** @returns {Usage} */
  get usage() {
    if (this.done?.usage) return this.done.usage;
    /** @type {any} */
    const total = {};
    for (const usage of this.usageBySteps.values()) {
      for (const [key, value] of Object.entries(usage)) {
        total[key] = typeof value === "number" ? (total[key] ?? 0) + value : value;
      }
    }
    return total;
  }

  /** @param {MuxEvent} event */
  apply(event) {
    if (event.cseq <= this.cseq) return false; // seen before a reconnect
    const since = this.lastTs;
    this.cseq = event.cseq;
    this.lastTs = event.ts;
    const handler = LANE[event.type];
    if (!handler) return false;
    handler(this, event, since);
    if (!QUIET.has(event.type)) this.rev += 1;
    return true;
  }

  /** @param {MuxEvent} event */
  count(event) {
    const n = event.from_cseq ? event.cseq - event.from_cseq + 1 : 1;
    this.deltas += n;
    if (event.type !== "reasoning") this.outDeltas += n;
    const second = Math.floor(event.ts / 1000);
    this.rate.set(second, (this.rate.get(second) ?? 0) + n);
    if (this.rate.size > TICKS) this.rate.delete(/** @type {number} */ (this.rate.keys().next().value));
    if (this.firstDeltaTs) return;
    this.firstDeltaTs = event.ts;
    if (this.step === 1) this.liveTtft = Math.max(0, event.ts - this.stepTs);
  }
}

/** Types that come by the hundred and change nothing but text. */
const QUIET = new Set(["token", "reasoning", "refusal", "tool_args", "tool_progress"]);

/** @param {Lane} lane @param {MuxEvent} event @param {number} since when the event before it came @param {string} activity */
function delta(lane, event, since, activity) {
  lane.count(event);
  lane.transcripts.text(event, since);
  if (lane.activity !== activity) {
    lane.activity = activity;
    lane.rev += 1;
  }
  lane.waitingRetry = false;
}

/** @param {Lane} lane @param {MuxEvent} event @param {string} kind @param {object} [more] */
function note(lane, event, kind, more) {
  lane.transcripts.add(lane.transcripts.at(event), kind, event, { event, ...more });
}

/** @param {Lane} lane @param {number} step @param {Usage} usage */
function reported(lane, step, usage) {
  lane.usageBySteps.set(step, usage);
  lane.counted = lane.deltas;
}

/** @type {Record<string, (lane: Lane, event: MuxEvent, since: number) => void>} */
const LANE = {
  channel_started(lane, event) {
    if (event.attempt > 1) lane.transcripts.clear();
    if (event.attempt > 1 || !lane.startTs) lane.startTs = event.ts;
    lane.status = "running";
    lane.attempt = event.attempt;
    lane.agent = event.agent;
    lane.model = event.model ?? lane.model;
    lane.activity = "connecting";
    lane.usageBySteps.clear();
    lane.approvals.clear();
    lane.runningTools.clear();
    if (event.attempt > 1) note(lane, event, "note", { value: "restarted" });
  },
  step_started(lane, event) {
    lane.step = event.step;
    lane.model = event.model ?? lane.model;
    lane.stepTs = event.ts;
    if (event.step === 1) {
      lane.firstDeltaTs = 0;
      lane.liveTtft = undefined;
    }
    lane.activity = "connecting";
  },
  step_finished(lane, event) {
    lane.transcripts.endStep(event);
    lane.transcripts.queueTools();
    lane.finishReason = event.finish_reason;
    if (event.usage && !lane.usageBySteps.has(event.step)) reported(lane, event.step, event.usage);
  },
  phase(lane, event) {
    lane.phase = event.phase;
  },
  token: (lane, event, since) => delta(lane, event, since, "writing"),
  refusal: (lane, event, since) => delta(lane, event, since, "writing"),
  reasoning: (lane, event, since) => delta(lane, event, since, "thinking"),
  tool_call(lane, event) {
    lane.transcripts.toolCall(event);
    lane.activity = "writing";
  },
  tool_args(lane, event) {
    lane.transcripts.tool(event);
    lane.waitingRetry = false;
  },
  tool_start(lane, event) {
    lane.transcripts.tool(event);
    lane.runningTools.add(event.call_id);
    lane.activity = "tool";
  },
  tool_progress(lane, event) {
    lane.transcripts.tool(event);
  },
  tool_result(lane, event) {
    lane.transcripts.tool(event);
    lane.runningTools.delete(event.call_id);
    lane.approvals.delete(event.call_id);
    if (!lane.runningTools.size) lane.activity = "connecting";
  },
  approval_requested(lane, event) {
    lane.transcripts.tool(event);
    lane.approvals.add(event.call_id);
  },
  approval_resolved(lane, event) {
    lane.transcripts.tool(event);
    lane.approvals.delete(event.call_id);
  },
  guardrail(lane, event) {
    lane.guardrails += 1;
    note(lane, event, "guardrail");
  },
  message_received: (lane, event) => steering(lane, event, "received"),
  message_applied: (lane, event) => steering(lane, event, "applied"),
  message_returned: (lane, event) => steering(lane, event, "returned"),
  retry(lane, event) {
    lane.waitingRetry = true;
    note(lane, event, "retry");
  },
  step_reset(lane, event) {
    lane.transcripts.reset(Number(event.from_cseq));
    for (const step of lane.usageBySteps.keys()) if (step >= event.step) lane.usageBySteps.delete(step);
    lane.runningTools.clear();
    lane.approvals.clear();
    lane.activity = "connecting";
    note(lane, event, "note", { value: "step_reset" });
  },
  usage(lane, event) {
    const { input_tokens, output_tokens, reasoning_tokens, cached_tokens, cost, currency } = event;
    const usage = JSON.parse(JSON.stringify({ input_tokens, output_tokens, reasoning_tokens, cached_tokens, cost, currency }));
    reported(lane, event.step, usage);
  },
  custom: (lane, event) => note(lane, event, "custom"),
  error(lane, event) {
    lane.error = event;
    note(lane, event, "error");
  },
  done(lane, event) {
    lane.transcripts.end(event.ts);
    lane.status = event.status;
    lane.done = event;
    lane.endTs = event.ts;
    lane.waitingRetry = false;
    lane.approvals.clear();
    lane.runningTools.clear();
    note(lane, event, "end");
  },
};

/** @param {Lane} lane @param {MuxEvent} event @param {string} state */
function steering(lane, event, state) {
  const place = lane.transcripts.at(event);
  const item = place.items.find((i) => i.kind === "message" && i.event.message_id === event.message_id);
  if (!item) {
    note(lane, event, "message", { value: state });
    return;
  }
  item.value = state;
  item.event = { ...item.event, ...event };
  lane.transcripts.touch(item);
}

/** One run. */
export class Run {
  /** @param {string} id */
  constructor(id) {
    this.id = id;
    this.thread = "";
    this.status = "queued";
    this.title = "";
    this.starred = false;
    this.message = "";
    /** @type {any} */
    this.metadata = {};
    this.created = 0;
    this.startTs = 0;
    this.endTs = 0;
    this.cseq = 0;
    this.seq = 0;
    /** @type {string|null} */
    this.cursor = null;
    this.partial = false; // the log's beginning is gone
    /** @type {Map<string, Lane>} */
    this.lanes = new Map();
    /** @type {any} */
    this.finished = null;
    this.events = 0;
    this.rev = 0;
  }

  get live() {
    return !this.finished;
  }

  /** @param {any} info */
  addLane(info) {
    const known = this.lanes.get(info.id);
    if (known) {
      known.learn(info);
      if (known.status === "queued" && known.dependsOn.length) known.status = "pending";
      return known;
    }
    const lane = new Lane(this.id, info);
    this.lanes.set(lane.id, lane);
    this.rev += 1;
    return lane;
  }

  /**
   * Fold one event; returns the lane that changed, if one did.
   * @param {MuxEvent} event @returns {Lane|null}
   */
  apply(event) {
    this.events += 1;
    this.seq = Math.max(this.seq, event.seq);
    if (event.channel !== null) {
      const lane = this.lanes.get(event.channel) ?? this.addLane({ id: event.channel, agent: event.agent ?? event.channel });
      return lane.apply(event) ? lane : null;
    }
    if (event.cseq <= this.cseq) return null;
    this.cseq = event.cseq;
    this.rev += 1;
    if (event.type === "run_started") {
      Object.assign(this, { thread: event.thread, message: event.message ?? "", startTs: event.ts, status: "running" });
      this.created ||= event.ts;
      this.metadata = { ...event.metadata, ...this.metadata };
      for (const info of event.channels) this.addLane(info);
    } else if (event.type === "channel_added") {
      this.addLane(event);
    } else if (event.type === "run_finished") {
      this.finished = event;
      this.status = event.status;
      this.endTs = event.ts;
    }
    return null;
  }

  /** What a snapshot or a list row knows beyond the events. @param {any} row */
  describe(row) {
    this.thread ||= row.thread ?? "";
    this.message ||= row.message ?? "";
    this.title = row.title ?? this.title;
    this.starred = row.starred ?? this.starred;
    this.metadata = row.metadata ?? this.metadata;
    this.created = row.created ?? this.created;
    for (const info of row.channels ?? []) {
      const lane = typeof info === "object" ? this.addLane(info) : null;
      if (!lane) continue;
      if (lane.status === "queued" && info.queue_position) lane.queuePosition = info.queue_position;
      lane.knownTtft = info.ttft_ms ?? undefined;
    }
    this.rev += 1;
  }

  /** Fill lanes from a snapshot, where the beginning of the log has been trimmed. @param {any} snapshot */
  seed(snapshot) {
    this.partial = true;
    this.describe(snapshot);
    for (const channel of snapshot.channels ?? []) {
      const lane = this.addLane(channel);
      if (lane.items.length) continue;
      const base = { run: this.id, seq: 0, channel: lane.id, cseq: 0, ts: this.created };
      lane.status = channel.status;
      lane.model = channel.model ?? lane.model;
      if (channel.reasoning) lane.transcripts.text({ ...base, type: "reasoning", content: channel.reasoning });
      for (const tool of channel.tools ?? []) {
        lane.transcripts.toolCall({ ...base, type: "tool_call", ...tool });
        if (tool.output !== undefined) lane.transcripts.tool({ ...base, type: "tool_result", ...tool });
      }
      if (channel.text) lane.transcripts.text({ ...base, type: "token", content: channel.text });
      lane.rev += 1;
    }
  }
}
