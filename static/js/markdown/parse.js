/**
 * Text → block tokens: `marked`'s lexer, with formulas added and guards against input made to hurt.
 *
 * @typedef {{type: string, raw: string, text?: string, tokens?: Token[], [field: string]: any}} Token
 * @typedef {Record<string, {href: string, title: string|null}>} Links
 */
import { Lexer, Marked } from "marked";

/** A single block above this is shown as plain text: the lexer's cost grows faster than its input. */
const MAX_BLOCK = 200_000;
/** Deeper quotes or lists than this are shown as plain text: the lexer is recursive. */
const DEEP = /^(?:[ \t]*(?:>|[-*+]|\d{1,9}[.)])){40}/m;

const BLOCK_MATH = /^ {0,3}\$\$([\s\S]+?)\$\$ *(?:\n|$)/;
// $x$ as in most chat programs: no space inside the dollars, no digit behind the second: "$5 and $6" is money.
const INLINE_MATH = /^\$(?![\s$])((?:\\.|[^$\\\n])+?)(?<!\s)\$(?![0-9$A-Za-z])/;

const marked = new Marked({ gfm: true, breaks: false, pedantic: false });
marked.use({
  extensions: [
    {
      name: "blockmath",
      level: "block",
      start: (src) => src.match(/(?:^|\n) {0,3}\$\$/)?.index,
      tokenizer: (src) => token(BLOCK_MATH.exec(src), "blockmath"),
    },
    {
      name: "math",
      level: "inline",
      start: (src) => src.indexOf("$"),
      tokenizer: (src) => token(INLINE_MATH.exec(src), "math"),
    },
  ],
});

/** @param {RegExpExecArray|null} match @param {string} type */
function token(match, type) {
  return match ? { type, raw: match[0], text: match[1].trim() } : undefined;
}

/**
 * Top-level tokens of a text; `links` holds the reference definitions known before and gets the new ones.
 * @param {string} text @param {Links} links @returns {Token[]}
 */
export function blocks(text, links) {
  if (text.length > MAX_BLOCK || DEEP.test(text)) return [plain(text)];
  try {
    const lexer = new Lexer(marked.defaults);
    Object.assign(lexer.tokens.links, links);
    const tokens = /** @type {any} */ (lexer.lex(text));
    Object.assign(links, tokens.links);
    return [...tokens];
  } catch {
    return [plain(text)]; // the lexer's recursion met its limit: show what was written
  }
}

/** @param {string} text @returns {Token} */
const plain = (text) => ({ type: "plain", raw: text, text });

/** An open code fence at the start of `raw`: its fence, or null. @param {Token} tok */
export function openFence(tok) {
  if (tok.type !== "code" || tok.codeBlockStyle === "indented") return null;
  const fence = /^(`{3,}|~{3,})[^\n]*\n/.exec(tok.raw);
  if (!fence) return null;
  const lines = tok.raw.slice(fence[0].length).split("\n");
  return lines.some((line) => closes(line, fence[1])) ? null : { fence: fence[1], from: fence[0].length };
}

/** Whether this line closes the fence. @param {string} line @param {string} fence */
export function closes(line, fence) {
  const match = /^ {0,3}(`{3,}|~{3,})[ \t]*$/.exec(line);
  return match !== null && match[1][0] === fence[0] && match[1].length >= fence.length;
}

/** Whether more characters could still make this line close the fence. @param {string} line @param {string} fence */
export function mayClose(line, fence) {
  return (fence[0] === "`" ? /^ {0,3}`*[ \t]*$/ : /^ {0,3}~*[ \t]*$/).test(line);
}
