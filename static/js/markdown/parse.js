/**
 * Text → block tokens: `marked`'s lexer, with formulas added and guards against input made to hurt.
 *
 * @typedef {{type: string, raw: string, text?: string, tokens?: Token[], [field: string]: any}} Token
 * @typedef {Record<string, {href: string, title: string|null}>} Links
 */
import { Lexer, Marked, Tokenizer } from "marked";

/** A single block above this is shown as plain text: the lexer's cost grows faster than its input. */
const MAX_BLOCK = 200_000;
/** Deeper quotes or lists than this are shown as plain text: the lexer is recursive. */
const DEEP = /^(?:[ \t]*(?:>|[-*+]|\d{1,9}[.)])){40}/m;

// `$$…$$` and `\[…\]` (OpenAI's models) on lines of their own. A formula holds no empty line: what is not closed
// before the next paragraph is prose.
const DISPLAY = String.raw`\$\$(?!\$)((?:(?!\n[ \t]*\n|\$\$)[^])+)\$\$|\\\[((?:(?!\n[ \t]*\n|\\\])[^])+)\\\]`;
const BLOCK_MATH = new RegExp(`^ {0,3}(?:${DISPLAY})[ \\t]*(?:\\n|$)`);
const NEXT_BLOCK_MATH = new RegExp(`(?:^|\\n) {0,3}(?:${DISPLAY})[ \\t]*(?:\\n|$)`);
// An escaped link, `\[text\](address)`, is none.
const INLINE_DISPLAY = new RegExp(`^(?:${DISPLAY})(?!\\()`);
const INLINE_MATH = /^\\\(((?:(?!\n[ \t]*\n|\\\))[^])+)\\\)/;
// $x$ as in most chat programs: no space inside the dollars, no digit behind the second: "$5 and $6" is money.
const DOLLAR_MATH = /^\$(?![\s$])((?:\\.|[^$\\\n])+?)(?<!\s)\$(?![0-9$A-Za-z])/;
const SAYS = /[\p{L}\p{N}]/u; // escaped punctuation is no formula
const MONEY = /^[0-9][0-9.,]*(?:[kKmM]|bn)?\s[^\\]*\p{L}{2}[^\\]*$/u; // "$20 for two, 30$"

const marked = new Marked({ gfm: true, breaks: false, pedantic: false });

// Emphasis beside scripts without spaces, as in the CommonMark proposal "CJK-friendly emphasis"
// (https://github.com/tats-u/markdown-cjk-friendly): between punctuation and such a character a run of stars may
// both open and close. marked looks at what stands beside a run in a mask of the text, where such a character is
// shown as punctuation.
const CJK = "[\\p{Script=Han}\\p{Script=Hiragana}\\p{Script=Katakana}\\p{Script=Hangul}\\p{Script=Bopomofo}\\p{Script=Yi}ー]";
const MARKED = "[^\\P{P}*_~\\\\]"; // punctuation but the runs themselves
const BESIDE = new RegExp(`(?<=${MARKED}[*_~]+)${CJK}|${CJK}(?=[*_~]+${MARKED})`, "gu");
const OPENING = new RegExp(`^[*_~]+${MARKED}`, "u");
const ENDS_CJK = new RegExp(`(?:${CJK}|\\p{Cs})$`, "u"); // of a rarer Han character marked gives the second half

/**
 * marked's own reader of a run; the character before one that opens before punctuation counts as punctuation, too.
 * @param {"emStrong"|"del"} name
 */
function beside(name) {
  /** @this {any} @param {string} src @param {string} mask @param {string} [before] */
  return function (src, mask, before = "") {
    const friendly = ENDS_CJK.test(before) && OPENING.test(src);
    return /** @type {any} */ (Tokenizer.prototype)[name].call(this, src, mask, friendly ? "-" : before);
  };
}

marked.use({
  hooks: { emStrongMask: (/** @type {string} */ mask) => mask.replace(BESIDE, (char) => "-".repeat(char.length)) },
  tokenizer: { emStrong: beside("emStrong"), del: beside("del") },
  extensions: [
    {
      name: "blockmath",
      level: "block",
      start: (src) => NEXT_BLOCK_MATH.exec(src)?.index,
      tokenizer: (src) => token(BLOCK_MATH.exec(src), "blockmath"),
    },
    {
      name: "math",
      level: "inline",
      start: (src) => at(src.search(/\$|\\[([]/)),
      tokenizer: (src) => {
        const dollars = DOLLAR_MATH.exec(src);
        const math = dollars && !MONEY.test(dollars[1]) ? dollars : null;
        return token(INLINE_DISPLAY.exec(src) ?? INLINE_MATH.exec(src) ?? math, "math");
      },
    },
  ],
});

/** @param {number} index */
const at = (index) => (index < 0 ? undefined : index);

/** @param {RegExpExecArray|null} match @param {string} type */
function token(match, type) {
  const text = match && (match[1] ?? match[2]).trim();
  return match && text && SAYS.test(text) ? { type, raw: match[0], text } : undefined;
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
