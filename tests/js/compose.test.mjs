import assert from "node:assert/strict";
import { test } from "node:test";
import { channelIds, draftOf, modified, newDraft, newLane, requestOf, restored, stored } from "../../static/js/compose.js";
import { baseOf, currentLane, entries } from "../../static/js/conversation.js";
import { Run } from "../../static/js/store.js";
import { log } from "./events.mjs";

const t = (key) => key;

test("repeats and duplicates get ids as the server gives them", () => {
  const draft = newDraft();
  draft.lanes = [{ ...newLane("gpt"), repeats: 2 }, newLane("other"), newLane("gpt")];
  assert.deepEqual(channelIds(draft).map((c) => c.id), ["gpt", "gpt.2", "other", "gpt.3"]);
});

test("one after another is a chain of dependencies, at most k a limit", () => {
  const draft = { ...newDraft(), lanes: [newLane("a"), newLane("b"), newLane("c")], mode: "sequential" };
  assert.deepEqual(requestOf(draft, "x", { t }).channels.map((c) => c.depends_on), [undefined, ["a"], ["b"]]);
  assert.equal(requestOf({ ...draft, mode: "limited", maxParallel: 2 }, "x", { t }).max_parallel, 2);
});

test("a synthesis depends on its sources and is told their letters", () => {
  const draft = newDraft();
  draft.lanes = [newLane("a"), newLane("b")];
  draft.synthesis.on = true;
  const [, , sigma] = requestOf(draft, "x", { t }).channels;
  assert.deepEqual(sigma.depends_on, ["a", "b"]);
  assert.equal(sigma.when, "settled");
});

test("only what was set is sent, and a changed lane says so", () => {
  const draft = newDraft();
  draft.lanes = [{ ...newLane("a"), params: { temperature: 0 }, budget: { tokens: 5 } }, newLane("b")];
  const [a, b] = requestOf(draft, "x", { t }).channels;
  assert.deepEqual(a, { id: "a", agent: "a", params: { temperature: 0 }, budget: { tokens: 5 } });
  assert.deepEqual(b, { id: "b", agent: "b" });
  assert.deepEqual(draft.lanes.map(modified), [true, false]);
});

test("a draft survives storage and comes back from a run's metadata", () => {
  const draft = { ...newDraft(), lanes: [{ ...newLane("a"), model: "m" }], mode: "limited", maxParallel: 3 };
  const { metadata } = requestOf(draft, "x", { t });
  const again = draftOf({ metadata, channels: [] });
  assert.deepEqual(stored(again), stored(draft));
  assert.deepEqual(draftOf({ channels: [{ agent: "z" }] }).lanes.map((l) => l.agent), ["z"]);
  assert.deepEqual(restored("garbage").lanes, []);
});

test("a fork of a run that a program started has each lane as it was asked for", () => {
  const plan = { model: "m:one", instructions: "Be brief.", message: "Mine.", params: { temperature: 0.5 }, tools: ["calc"], budget: { steps: 2 } };
  const draft = draftOf({ channels: [{ id: "z", agent: "z", model: "m:one", plan }, { id: "y", agent: "y", model: "default" }, { id: "z~2", agent: "z", retry_of: "z" }] });
  assert.deepEqual(requestOf(draft, "m", { t }).channels, [{ id: "z", agent: "z", ...plan }, { id: "y", agent: "y" }]);
});

test("a retry takes its original's place and a follow-up its lane's", () => {
  const first = new Run("r1");
  const l = log("r1");
  for (const event of [l.started("a", "b"), l.on(null, "channel_added", { id: "a~2", agent: "a", retry_of: "a" })]) first.apply(event);
  const second = new Run("r2");
  second.apply(log("r2").started("b", "a"));
  const list = entries([first, second]);
  assert.deepEqual(list.map((e) => [e.letter, e.key, e.turns.length]), [["A", "a", 2], ["B", "b", 2]]);
  assert.deepEqual(list[0].turns[0].attempts.map((x) => x.id), ["a", "a~2"]);
  assert.equal(currentLane(list[0]).run, "r2");
  assert.equal(baseOf("gpt.2~3"), "gpt.2");
  assert.deepEqual(entries([first], ["b", "a"]).map((e) => e.letter), ["B", "A"]);
});
