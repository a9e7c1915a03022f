import assert from "node:assert/strict";
import { test } from "node:test";
import { Scheduler } from "../../static/js/scheduler.js";

function rig() {
  let now = 1000;
  const frames = [];
  const scheduler = new Scheduler({ frame: (f) => frames.push(f), now: () => now });
  const order = [];
  const pane = (name, cost = 0, layout = 0) => ({
    flush: () => {
      now += cost;
      order.push(name);
      return true;
    },
    measure: () => {
      now += layout;
      order.push(`${name}?`);
    },
    settle: () => order.push(`${name}↓`),
    tidy: () => order.push(`${name}.`),
  });
  const frame = (ms) => {
    now += ms;
    for (const f of frames.splice(0)) f(now);
  };
  return { scheduler, order, pane, frame };
}

test("all panes change, then all measure, scroll and tidy up: the page is laid out once", () => {
  const { scheduler, order, pane, frame } = rig();
  scheduler.request(pane("a"));
  scheduler.request(pane("b"));
  frame(16);
  assert.deepEqual(order, ["a", "b", "a?", "b?", "a↓", "b↓", "a.", "b."]);
});

test("a frame keeps to its budget and the others take their turn first next time", () => {
  const { scheduler, order, pane, frame } = rig();
  for (const name of ["a", "b", "c"]) scheduler.request(pane(name, 9));
  frame(16);
  assert.deepEqual(order.filter((n) => n.length === 1), ["a"]);
  frame(16);
  frame(16);
  assert.deepEqual(order.filter((n) => n.length === 1), ["a", "b", "c"]);
});

test("the focused pane draws at every frame, another at most every 60 ms", () => {
  const { scheduler, order, pane, frame } = rig();
  const [a, b] = [pane("a"), pane("b")];
  scheduler.focused = a;
  for (let i = 0; i < 10; i++) {
    scheduler.request(a);
    scheduler.request(b);
    frame(16);
  }
  assert.equal(order.filter((n) => n === "a").length, 10);
  assert.equal(order.filter((n) => n === "b").length, 3);
});

test("a forgotten pane is not drawn again", () => {
  const { scheduler, order, pane, frame } = rig();
  const a = pane("a");
  scheduler.request(a);
  scheduler.forget(a);
  frame(16);
  assert.deepEqual(order, []);
});

test("what the layout costs counts in the budget", () => {
  const { scheduler, order, pane, frame } = rig();
  const panes = [..."abcdefghij"].map((name) => pane(name, 0.5, 2));
  const drawn = [];
  for (let i = 0; i < 60; i++) {
    for (const one of panes) scheduler.request(one);
    order.length = 0;
    frame(200);
    drawn.push(order.filter((n) => n.length === 1).length);
  }
  assert.equal(drawn[0], 10); // nothing is known yet
  assert.ok(drawn.at(-1) <= 6, `${drawn.at(-1)} panes at 2.5 ms each`);
});

test("after a key press the next frame is the focused pane's alone, the one after it everybody's", () => {
  const { scheduler, order, pane, frame } = rig();
  const [a, b] = [pane("a"), pane("b")];
  scheduler.focused = a;
  const turn = () => {
    order.length = 0;
    scheduler.request(a);
    scheduler.request(b);
    scheduler.input();
    frame(100);
    return order.filter((n) => n.length === 1).join("");
  };
  scheduler.request(a);
  frame(16);
  scheduler.clock.now = () => -1; // the keys come while a frame waits: no time passes between them
  scheduler.inputAt = -1;
  assert.deepEqual([turn(), turn(), turn(), turn()], ["a", "ab", "a", "ab"]);
});
