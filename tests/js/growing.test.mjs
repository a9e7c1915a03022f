import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { Growing } from "../../static/js/growing.js";

const pieces = fc.array(fc.string({ minLength: 1, maxLength: 3000 }), { maxLength: 12 });
const grown = (parts) => {
  const text = new Growing();
  parts.forEach((part, i) => text.push(part, i + 1));
  return text;
};

test("it is the text that was pushed, from any place on", () => {
  fc.assert(fc.property(pieces, fc.nat(40_000), (parts, offset) => {
    const whole = parts.join("");
    assert.equal(grown(parts).length, whole.length);
    assert.equal(grown(parts).from(offset), whole.slice(offset));
    assert.equal(grown(parts).from(whole.length - 240), whole.slice(Math.max(0, whole.length - 240)));
    assert.equal(String(grown(parts)), whole);
  }));
});

test("a cut takes the deltas from a number on, and what is pushed then stands in their place", () => {
  fc.assert(fc.property(pieces, fc.nat(14), (parts, cut) => {
    const text = grown(parts);
    assert.equal(text.cut(cut), cut <= parts.length && parts.length > 0);
    text.push("again", 99);
    assert.equal(String(text), `${parts.slice(0, Math.max(0, cut - 1)).join("")}again`);
    assert.equal(text.cut(99), true);
    assert.equal(String(text), parts.slice(0, Math.max(0, cut - 1)).join(""));
  }));
});

test("what is settled can't be cut", () => {
  const text = grown(["a", "b"]);
  text.settle();
  assert.equal(text.cut(1), false);
  assert.equal(String(text), "ab");
});
