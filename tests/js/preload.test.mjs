import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

const root = new URL("../../static/", import.meta.url);
const read = (path) => readFileSync(new URL(path, root), "utf-8");
const page = read("index.html");
const map = JSON.parse(/<script type="importmap">([\s\S]*?)<\/script>/.exec(page)[1]).imports;

/** These modules and everything that they import, in the order of discovery. */
function closure(...start) {
  const seen = new Set(start);
  for (const path of seen) {
    const code = read(path).replace(/\/\*[\s\S]*?\*\//g, "");
    for (const [, name] of code.matchAll(/(?:\bfrom|\bimport)\s*["']([^"']+)["']/g)) {
      const target = name in map ? map[name].slice(2) : new URL(name, new URL(path, root)).href.slice(root.href.length);
      seen.add(target);
    }
  }
  return [...seen];
}

const links = (html) => [...html.matchAll(/<link rel="modulepreload" href="([^"]+)">/g)].map((m) => m[1]).sort();
const [, template] = /<template id="lane-modules">([\s\S]*?)<\/template>/.exec(page);
const shell = closure("js/main.js");

test("the page asks for all modules of its first screen at once, and for no other", () => {
  assert.deepEqual(links(page.replace(template, "")), shell.filter((p) => p !== "js/main.js").sort());
});

test("a run asks for all modules of its lanes at once, and for no other", () => {
  assert.deepEqual(links(template), closure("js/views/lanes.js", "js/stream.js").filter((p) => !shell.includes(p)).sort());
});

test("what asks for the lanes' modules waits for no other module", () => {
  assert.deepEqual(closure("js/early.js"), ["js/early.js"]);
});
