/** What is a formula, and what is emphasis, where marked alone says otherwise. */
import assert from "node:assert/strict";
import test from "node:test";
import fc from "fast-check";
import { Lexer, Marked } from "marked";
import { blocks } from "../../static/js/markdown/parse.js";

/** @param {any[]} tokens @param {string[]} [found] @returns {string[]} `type:text` of all tokens that are no plain text */
function kinds(tokens, found = []) {
  for (const token of tokens) {
    if (!["text", "space", "paragraph", "list", "list_item", "escape"].includes(token.type)) found.push(`${token.type}:${token.text}`);
    kinds(token.tokens ?? token.items ?? [], found);
  }
  return found;
}

/** @param {string} text */
const of = (text) => kinds(blocks(text, {}));

test("formulas in every delimiter that models write", () => {
  assert.deepEqual(of("The root \\( x = \\frac{-b}{2a} \\)."), ["math:x = \\frac{-b}{2a}"]);
  assert.deepEqual(of("\\[\n\\sum_k k\n= 1\n\\]\nand on"), ["blockmath:\\sum_k k\n= 1"]);
  assert.deepEqual(of("so \\[ a \\] is"), ["math:a"]);
  assert.deepEqual(of("1. First: \\(\\alpha_1\\)\n2. **bold \\(k\\)**"), ["math:\\alpha_1", "strong:bold \\(k\\)", "math:k"]);
  assert.deepEqual(of("$$a=b$$ first. Then $$c=d$$, and $$e=f$$."), ["math:a=b", "math:c=d", "math:e=f"]);
  assert.deepEqual(of("text\n$$\nx\n$$\nmore"), ["blockmath:x"]);
  assert.deepEqual(of("$x_1$ and $y$"), ["math:x_1", "math:y"]);
});

test("what is no formula", () => {
  for (const text of [
    "$5 and $6", "$20 for two people, 30$ for three", "from $1.50 a day to 3$", "\\[text\\](https://e.org)", "\\( \\)", "\\[\\\\\\]", "$$", "$$ $$",
    "$$a\n\nb$$", "\\(a\n\nb\\)", "US$ 5, A$ 6",
  ]) assert.deepEqual(of(text).filter((kind) => /math/.test(kind)), [], text);
  assert.deepEqual(of("`\\(a\\)`"), ["codespan:\\(a\\)"]);
  assert.deepEqual(of("```\n\\[ a \\]\n```"), ["code:\\[ a \\]"]);
});

test("an open formula takes no paragraph with it", () => {
  const tokens = blocks("$$a=b$$ is first.\n\nNext **bold** $$g=h$$\n\n$$i=j$$\n\nend", {});
  assert.deepEqual(kinds(tokens), ["math:a=b", "strong:bold", "math:g=h", "blockmath:i=j"]);
});

test("emphasis beside scripts without spaces", () => {
  assert.deepEqual(of("**“潮汐表”**是港口的核心。这是**重点（必读）**内容，以及**注意：**请"), ["strong:“潮汐表”", "strong:重点（必读）", "strong:注意："]);
  assert.deepEqual(of("これは**「重要」**です。**강조(필수)**입니다."), ["strong:「重要」", "strong:강조(필수)"]);
  assert.deepEqual(of("*斜体。*后面 ~~删除。~~后面 前面~~（删）~~"), ["em:斜体。", "del:删除。", "del:（删）"]);
  assert.deepEqual(of("𠮷**（野）**家"), ["strong:（野）"]);
});

test("without such scripts emphasis is marked's own", () => {
  const plain = new Marked({ gfm: true, breaks: false });
  const piece = fc.constantFrom("**", "*", "_", "__", "~~", "a", "word", " ", ".", "(", ")", "“", "”", "é", "1");
  fc.assert(fc.property(fc.array(piece, { maxLength: 14 }), (pieces) => {
    const text = pieces.join("");
    const own = [...new Lexer(plain.defaults).lex(text)];
    assert.deepEqual(of(text), kinds(own), JSON.stringify(text));
  }), { numRuns: 500 });
});

test("many open delimiters cost little", () => {
  for (const text of ["$$".repeat(20_000), "\\[".repeat(20_000), "\\(a".repeat(20_000), "$a ".repeat(20_000), "**“是".repeat(2_000), `${"*".repeat(20_000)}是`]) {
    const began = performance.now();
    blocks(text, {});
    assert.ok(performance.now() - began < 2_000, `${text.slice(0, 6)}… took ${Math.round(performance.now() - began)} ms`);
  }
});
