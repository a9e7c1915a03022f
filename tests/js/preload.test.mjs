import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

const root = new URL("../../static/", import.meta.url);
const read = (path) => readFileSync(new URL(path, root), "utf-8");
const page = read("index.html");
const map = JSON.parse(/<script type="importmap">([\s\S]*?)<\/script>/.exec(page)[1]).imports;

/** Everything that the first screen imports, in the order of discovery. */
function closure(start) {
  const seen = new Set([start]);
  for (const path of seen) {
    const code = read(path).replace(/\/\*[\s\S]*?\*\//g, "");
    for (const [, name] of code.matchAll(/(?:\bfrom|\bimport)\s*["']([^"']+)["']/g)) {
      const target = name in map ? map[name].slice(2) : new URL(name, new URL(path, root)).href.slice(root.href.length);
      seen.add(target);
    }
  }
  return [...seen];
}

test("the page asks for all its modules at once, and for no other", () => {
  const asked = [...page.matchAll(/<link rel="modulepreload" href="([^"]+)">/g)].map((m) => m[1]);
  assert.deepEqual(asked.sort(), closure("js/main.js").filter((p) => p !== "js/main.js").sort());
});
