import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readdirSync, readFileSync, statSync } from "node:fs";
import { test } from "node:test";

const root = new URL("../../static/", import.meta.url);
const read = (path) => readFileSync(new URL(path, root));
const manifest = JSON.parse(read("vendor/manifest.json"));

function* files(path) {
  for (const name of readdirSync(new URL(path, root))) {
    const full = `${path}/${name}`;
    if (statSync(new URL(full, root)).isDirectory()) yield* files(full);
    else yield full;
  }
}

test("every vendored file is the one of the manifest, and no other is there", () => {
  const known = new Map(manifest.flatMap((p) => Object.entries(p.sha256)));
  const own = new Set(["vendor/manifest.json", "vendor/update.py"]);
  const found = [...files("vendor")].filter((f) => !own.has(f) && !f.includes("__pycache__"));
  assert.deepEqual(found.map((f) => f.replace("vendor/", "")).sort(), [...known.keys()].sort());
  for (const file of found) assert.equal(createHash("sha256").update(read(file)).digest("hex"), known.get(file.replace("vendor/", "")), file);
});

test("every package has its licence and is named with its version", () => {
  for (const { name, version, licence, sha256 } of manifest) {
    assert.ok(name && version && licence);
    assert.ok(Object.keys(sha256).some((f) => f.endsWith("/LICENSE")), name);
  }
});

test("the import map names files that exist", () => {
  const map = JSON.parse(/<script type="importmap">([\s\S]*?)<\/script>/.exec(read("index.html").toString())[1]).imports;
  for (const path of Object.values(map)) assert.ok(statSync(new URL(path, root)));
});

test("no HTML sink is used and no module of ours is longer than 400 lines", () => {
  for (const file of [...files("js"), ...files("i18n")]) {
    const text = read(file).toString();
    assert.doesNotMatch(text, /\.(innerHTML|outerHTML)\s*=|insertAdjacentHTML|document\.write|dangerouslySetInnerHTML|createContextualFragment|DOMParser|\beval\(|new Function/, file);
    assert.ok(text.split("\n").length <= 400, file);
  }
});

test("every string that is asked for exists", async () => {
  const { default: strings } = await import("../../static/i18n/en.js");
  const missing = [];
  for (const file of files("js")) {
    for (const [, key] of read(file).toString().matchAll(/\bt\("([^"]+)"/g)) if (!(key in strings)) missing.push(key);
  }
  assert.deepEqual([...new Set(missing)], []);
});
