import assert from "node:assert/strict";
import { test } from "node:test";
import { decodeEntities } from "../../static/js/markdown/entities.js";
import { prose, safeImage, safeLink, visible } from "../../static/js/markdown/safe.js";
import { cap } from "../../static/js/pane/result.js";

test("links lead only to other origins, over http, https or mail", () => {
  const link = (href) => safeLink(href, "https://mux.test");
  assert.equal(link("https://a.example/x?y=1"), "https://a.example/x?y=1");
  assert.equal(link("mailto:a@b.example"), "mailto:a@b.example");
  for (const bad of ["javascript:alert(1)", " JaVaScRiPt:alert(1)", "java\nscript:alert(1)", "data:text/html,x", "vbscript:x", "file:///etc/passwd",
    "/api/chat/stream?message=x", "https://mux.test/api/chat/stream?message=x", "//evil.example", "https://user:pw@a.example", "blob:https://a/x", "", "https://"]) assert.equal(link(bad), null, bad);
});

test("images are pictures that are already here", () => {
  assert.ok(safeImage("data:image/png;base64,iVBORw0KGgo="));
  for (const bad of ["https://a.example/x.png", "data:image/svg+xml;base64,AAAA", "data:text/html,<b>", "/x.png"]) assert.equal(safeImage(bad), null, bad);
});

test("characters that reorder or hide text are shown", () => {
  assert.equal(visible("a\u202eb\u200bc\u0000"), "a⟨U+202E⟩b⟨U+200B⟩c⟨U+0000⟩");
  assert.equal(prose("\u202eab \u2067אב\u2069"), "⟨U+202E⟩ab \u2067אב\u2069");
});

test("character references become characters, and nothing else", () => {
  assert.equal(decodeEntities("&lt;b&gt; &amp;amp; &eacute; &#x41;&#66; &nosuch; &#0; &#x110000;"), "<b> &amp; é AB &nosuch; \ufffd \ufffd");
});

test("long results are cut in the middle, and say by how much", () => {
  const { text, cut } = cap(Array.from({ length: 1000 }, (_, i) => `line ${i}`).join("\n"));
  assert.equal(cut, 500);
  assert.match(text, /^line 0\n[\s\S]*line 199\n[\s\S]*line 700\n[\s\S]*line 999$/);
});
