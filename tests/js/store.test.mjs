import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { Run } from "../../static/js/store.js";
import { laneState, metrics } from "../../static/js/lanestate.js";
import { compact, log } from "./events.mjs";

/** What a reader sees of a run. */
const view = (run) =>
  [...run.lanes.values()].map((lane) => [
    lane.id, lane.status, lane.cseq, lane.deltas,
    lane.items.map((i) => [i.kind, i.text, i.open, i.tool && [i.tool.state, i.tool.argsText, i.tool.output]]),
  ]);
const fold = (events) => {
  const run = new Run("r1");
  for (const event of events) run.apply(event);
  return run;
};

/** A random but legal channel: steps of text, reasoning and calls, some of them reset. */
const script = fc.array(
  fc.record({ say: fc.array(fc.tuple(fc.constantFrom("token", "reasoning"), fc.string({ minLength: 1, maxLength: 6 })), { maxLength: 8 }), call: fc.boolean(), reset: fc.boolean() }),
  { minLength: 1, maxLength: 4 },
);

function play(steps) {
  const l = log();
  const events = [l.started("a"), l.on("a", "channel_started", { agent: "a", attempt: 1 })];
  let n = 0;
  steps.forEach(({ say, call, reset }, i) => {
    const step = i + 1;
    events.push(l.on("a", "step_started", { step }));
    const from = events.at(-1).cseq + 1;
    for (const [type, content] of say) events.push(l.on("a", type, { content }));
    if (reset) {
      events.push(l.on("a", "step_reset", { step, from_cseq: from }));
      for (const [type, content] of say.slice(1)) events.push(l.on("a", type, { content }));
    }
    const id = `c${n++}`;
    if (call) {
      events.push(l.on("a", "tool_call", { call_id: id, tool: "t" }));
      events.push(l.on("a", "tool_args", { call_id: id, content: "{" }), l.on("a", "tool_args", { call_id: id, content: "}" }));
    }
    events.push(l.on("a", "step_finished", { step, finish_reason: "stop" }));
    if (call) {
      events.push(l.on("a", "tool_start", { call_id: id, tool: "t", arguments: {} }));
      events.push(l.on("a", "tool_result", { call_id: id, tool: "t", output: "ok", is_error: false, elapsed_ms: 1 }));
    }
  });
  events.push(l.on("a", "done", { status: "completed", duration_ms: 5, attempt: 1 }));
  events.push(l.on(null, "run_finished", { status: "completed", channels: { a: "completed" }, duration_ms: 5 }));
  return events;
}

/** What is left when the reset spans are taken out by hand. */
function expected(steps) {
  return steps.map(({ say, reset }) => (reset ? say.slice(1) : say).filter(([type]) => type === "token").map(([, c]) => c).join("")).join("");
}

test("the answer is what was said and not reset, whatever the order of steps, calls and resets", () => {
  fc.assert(fc.property(script, (steps) => {
    assert.equal(fold(play(steps)).lanes.get("a").transcripts.answer(), expected(steps));
  }));
});

test("compact windows fold to the same state as single events", () => {
  fc.assert(fc.property(script, fc.integer({ min: 1, max: 9 }), (steps, size) => {
    const events = play(steps);
    const windows = [];
    for (let i = 0; i < events.length; i += size) windows.push(...compact(events.slice(i, i + size)));
    assert.deepEqual(view(fold(windows)), view(fold(events)));
  }));
});

test("events that come twice after a reconnect change nothing", () => {
  fc.assert(fc.property(script, fc.nat(60), (steps, cut) => {
    const events = play(steps);
    const again = [...events.slice(0, cut), ...events.slice(Math.max(0, cut - 7))];
    assert.deepEqual(view(fold(again)), view(fold(events)));
  }));
});

test("a second attempt discards everything of the channel before it", () => {
  const l = log();
  const run = fold([l.started("a"), l.on("a", "channel_started", { agent: "a", attempt: 1 }), l.on("a", "token", { content: "old" }),
    l.on("a", "channel_started", { agent: "a", attempt: 2 }), l.on("a", "token", { content: "new" })]);
  assert.equal(run.lanes.get("a").transcripts.answer(), "new");
});

test("nested agents' text stays out of the lane's answer and in its own place", () => {
  const l = log();
  const run = fold([l.started("a"), l.on("a", "token", { content: "x" }), l.on("a", "token", { content: "inner", path: ["sub"] }), l.on("a", "token", { content: "y" })]);
  const lane = run.lanes.get("a");
  assert.equal(lane.transcripts.answer(), "xy");
  assert.deepEqual(lane.items.map((i) => i.kind), ["text", "nest", "text"]);
  assert.equal(lane.items[1].nested.items[0].text, "inner");
});

test("terminal states never change and every state has its word", () => {
  const l = log();
  const run = new Run("r1");
  const state = (now = 1100) => laneState(run.lanes.get("a"), now);
  run.apply(l.started("a"));
  assert.equal(state(), "queued");
  run.apply(l.on("a", "channel_started", { agent: "a", attempt: 1 }));
  assert.equal(state(), "connecting");
  run.apply(l.on("a", "reasoning", { content: "hm" }));
  assert.equal(state(), "thinking");
  run.apply(l.on("a", "token", { content: "x" }));
  assert.equal(state(), "writing");
  assert.equal(state(60_000), "stalled");
  assert.equal(laneState(run.lanes.get("a"), 1100, true), "reconnecting");
  run.apply(l.on("a", "tool_call", { call_id: "c", tool: "t" }));
  run.apply(l.on("a", "approval_requested", { call_id: "c", tool: "t", arguments: {}, expires_at: 1 }));
  assert.equal(state(), "needs");
  run.apply(l.on("a", "approval_resolved", { call_id: "c", decision: "approve", by: "me" }));
  run.apply(l.on("a", "tool_start", { call_id: "c", tool: "t", arguments: {} }));
  assert.equal(state(), "tool");
  run.apply(l.on("a", "tool_result", { call_id: "c", tool: "t", output: "", is_error: false }));
  run.apply(l.on("a", "retry", { step: 2, attempt: 2, reason: "rate_limited", delay_ms: 10 }));
  assert.equal(state(), "reconnecting");
  run.apply(l.on("a", "done", { status: "budget_exceeded", duration_ms: 1, attempt: 1 }));
  assert.equal(state(99_999), "over");
});

test("numbers are as reported, and estimates say that they are", () => {
  const l = log();
  const run = fold([l.started("a"), l.on("a", "channel_started", { agent: "a", attempt: 1 }), l.on("a", "step_started", { step: 1 }), l.on("a", "token", { content: "x" })]);
  const lane = run.lanes.get("a");
  assert.equal(metrics(lane, 2000).estimated, true);
  run.apply(l.on("a", "usage", { step: 1, input_tokens: 7, output_tokens: 3, cost: 0.5 }));
  run.apply(l.on("a", "usage", { step: 2, input_tokens: 1, output_tokens: 2, cost: 0.25 }));
  const m = metrics(lane, 2000);
  assert.deepEqual([m.input, m.output, m.cost, m.estimated], [8, 5, 0.75, false]);
});

test("unknown types and fields are ignored", () => {
  const l = log();
  const run = fold([l.started("a"), l.on("a", "hologram", { beam: 1 }), l.on("a", "token", { content: "x", colour: "red" })]);
  assert.equal(run.lanes.get("a").transcripts.answer(), "x");
});

test("what a snapshot does not know of a channel is learnt from the event that announces it", () => {
  const run = new Run("r1");
  run.describe({ channels: [{ id: "a", agent: "x" }, { id: "sum", agent: "y" }] });
  const info = { id: "sum", agent: "y", title: "Σ", model: "m", depends_on: ["a"] };
  run.apply({ run: "r1", seq: 1, channel: null, cseq: 1, type: "run_started", ts: 1, thread: "t", channels: [{ id: "a", agent: "x" }, info] });
  run.apply({ run: "r1", seq: 2, channel: null, cseq: 2, type: "channel_added", ts: 2, id: "a", agent: "x", parent: "sum" });
  const sum = run.lanes.get("sum");
  assert.deepEqual([sum.title, sum.model, sum.dependsOn, sum.status], ["Σ", "m", ["a"], "pending"]);
  assert.equal(run.lanes.get("a").parent, "sum");
});

test("how long a lane thought is known from single events, and nearly from merged ones", () => {
  const l = log();
  const events = [l.started("a"), l.on("a", "channel_started", { agent: "a", attempt: 1 }), l.on("a", "step_started", { step: 1 })];
  for (let i = 0; i < 30; i++) events.push(l.on("a", "reasoning", { content: "hm " }));
  for (let i = 0; i < 30; i++) events.push(l.on("a", "token", { content: "x " }));
  const spent = (run) => {
    const [item] = run.lanes.get("a").items;
    return item.endTs - item.ts;
  };
  assert.equal(spent(fold(events)), 300); // from its first delta to what came next
  assert.equal(spent(fold(compact(events))), 300); // from the event before it to its own last delta
});

test("the time to the first token stays when later steps begin", () => {
  const run = new Run("r1");
  const event = (cseq, ts, more) => run.apply({ run: "r1", seq: cseq, channel: "a", cseq, ts, ...more });
  event(1, 1000, { type: "channel_started", agent: "a", attempt: 1 });
  event(2, 1000, { type: "step_started", step: 1, model: "m" });
  event(3, 1240, { type: "token", content: "x" });
  event(4, 1300, { type: "step_finished", step: 1, finish_reason: "tool_calls" });
  event(5, 1400, { type: "step_started", step: 2, model: "m" });
  assert.equal(metrics(run.lanes.get("a"), 2000).ttft, 240);
});

test("the tokens of the step that goes on are counted on top of those reported", () => {
  const run = new Run("r1");
  let cseq = 0;
  const event = (type, more) => run.apply({ run: "r1", seq: ++cseq, channel: "a", cseq, ts: cseq, type, ...more });
  const output = () => [metrics(run.lanes.get("a"), 100).output, metrics(run.lanes.get("a"), 100).estimated];
  event("channel_started", { agent: "a", attempt: 1 });
  event("step_started", { step: 1, model: "m" });
  event("token", { content: "x" });
  assert.deepEqual(output(), [1, true]);
  event("step_finished", { step: 1, finish_reason: "tool_calls", usage: { output_tokens: 18 } });
  assert.deepEqual(output(), [18, false]);
  event("step_started", { step: 2, model: "m" });
  event("token", { content: "y" });
  event("token", { content: "z" });
  assert.deepEqual(output(), [20, true]);
  event("usage", { step: 2, output_tokens: 5 });
  assert.deepEqual(output(), [23, false]);
});
