/**
 * Tokens → DOM nodes, by an allow-list: what is not named here is shown as the text that it is. No HTML sink.
 *
 * A rendered token is remembered as a {@link View}, so that the growing tail of a text changes only where it
 * grew: equal tokens keep their nodes (selection, hover and focus survive), the first different one is patched.
 *
 * @typedef {import("./parse.js").Token} Token
 * @typedef {{token: Token, node: Node|null, into: Element|null, kids: View[]}} View
 * @typedef {{laneRef?: (letter: string) => Node|null, windowed?: () => boolean}} Context  windowed: whether of much that came at once only the end is drawn
 */
import { decodeEntities } from "./entities.js";
import { prose, safeImage, safeLink, visible } from "./safe.js";
import { formula } from "./math.js";
import { t } from "../i18n.js";

const MAX_DEPTH = 24;
const MAX_ROWS = 400;
const MAX_COLUMNS = 40;
const LEAF = { node: null, into: null };

/** @param {string} tag @param {string} [className] @param {...(Node|string)} kids */
export function el(tag, className, ...kids) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...kids);
  return node;
}

/** @param {Node} node @param {Token} token @returns {View} */
const leaf = (node, token) => ({ token, node, into: null, kids: [] });

/** @param {Token} token @param {Element} node @param {Element} into @param {Token[]} tokens @param {Context} ctx @param {number} depth @returns {View} */
function branch(token, node, into, tokens, ctx, depth) {
  const kids = tokens.map((t) => render(t, ctx, depth + 1));
  for (const kid of kids) if (kid.node) into.append(kid.node);
  return { token, node, into, kids };
}

/** @param {Token} token @param {Context} ctx @param {number} [depth] @returns {View} */
export function render(token, ctx, depth = 0) {
  if (depth > MAX_DEPTH) return leaf(document.createTextNode(visible(token.raw)), token);
  const make = MAKE[token.type];
  return make ? make(token, ctx, depth) : leaf(document.createTextNode(prose(token.raw)), token);
}

/** @param {string} tag @returns {(token: Token, ctx: Context, depth: number) => View} */
const wrap = (tag) => (token, ctx, depth) => {
  const node = el(tag);
  return branch(token, node, node, token.tokens ?? [], ctx, depth);
};

/** @type {Record<string, (token: Token, ctx: Context, depth: number) => View>} */
const MAKE = {
  space: (token) => ({ token, ...LEAF, kids: [] }),
  def: (token) => ({ token, ...LEAF, kids: [] }),
  paragraph: wrap("p"),
  blockquote: wrap("blockquote"),
  strong: wrap("strong"),
  em: wrap("em"),
  del: wrap("del"),
  plain: (token) => leaf(el("pre", "md-plain", visible(token.text ?? "")), token),
  hr: (token) => leaf(el("hr"), token),
  br: (token) => leaf(el("br"), token),
  escape: (token) => leaf(document.createTextNode(token.text ?? ""), token),
  html: (token) =>
    /^<br\s*\/?>$/i.test(token.raw) && !token.block
      ? leaf(el("br"), token)
      : leaf(token.block ? el("pre", "md-html", visible(token.raw.trimEnd())) : document.createTextNode(visible(token.raw)), token),
  codespan: (token) => leaf(el("code", "", visible(token.text ?? "")), token),
  checkbox(token) {
    const box = el("span", `md-check${token.checked ? " is-checked" : ""}`);
    box.setAttribute("role", "img");
    box.setAttribute("aria-label", token.checked ? "☑" : "☐");
    return leaf(box, token);
  },
  heading(token, ctx, depth) {
    // The page's own headings come first: what an answer calls h1 is the pane's third level.
    const node = el(`h${Math.min(6, token.depth + 2)}`, `md-h${token.depth}`);
    return branch(token, node, node, token.tokens ?? [], ctx, depth);
  },
  text(token, ctx, depth) {
    if (token.tokens) {
      const node = el("span");
      return branch(token, node, node, token.tokens, ctx, depth);
    }
    const text = prose(token.escaped ? (token.text ?? "") : decodeEntities(token.text ?? ""));
    const refs = ctx.laneRef && /\[[A-P]\]/.test(text) ? laneRefs(text, ctx.laneRef) : null;
    return leaf(refs ?? document.createTextNode(text), token);
  },
  list(token, ctx, depth) {
    const node = el(token.ordered ? "ol" : "ul", token.items.some((/** @type {Token} */ i) => i.task) ? "md-tasks" : "");
    if (token.ordered && token.start !== 1) /** @type {HTMLOListElement} */ (node).start = Number(token.start);
    return branch(token, node, node, token.items, ctx, depth);
  },
  list_item: wrap("li"),
  link(token, ctx, depth) {
    const href = safeLink(decodeEntities(token.href));
    const node = el(href ? "a" : "span", href ? "" : "md-nolink");
    if (href) {
      const a = /** @type {HTMLAnchorElement} */ (node);
      a.href = href;
      a.target = "_blank";
      a.rel = "noopener noreferrer nofollow";
      a.title = visible(href);
    } else node.title = visible(token.href);
    return branch(token, node, node, token.tokens ?? [], ctx, depth);
  },
  image(token) {
    const src = safeImage(token.href);
    const alt = prose(decodeEntities(token.text ?? ""));
    if (!src) {
      const href = safeLink(decodeEntities(token.href));
      const name = `${alt || "image"} `;
      const link = href ? el("a", "md-image-link", `▨ ${name}`) : el("span", "md-nolink", `▨ ${name}`);
      if (href) Object.assign(link, { href, target: "_blank", rel: "noopener noreferrer nofollow" });
      link.title = visible(token.href.slice(0, 300));
      return leaf(link, token);
    }
    const image = /** @type {HTMLImageElement} */ (el("img"));
    Object.assign(image, { alt, src, loading: "lazy", decoding: "async" });
    return leaf(image, token);
  },
  code(token) {
    const lang = (token.lang ?? "").trim().split(/\s+/)[0].slice(0, 30);
    const code = el("code");
    appendText(code, visible(token.text ?? ""));
    code.dataset.lang = lang;
    const pre = el("pre", "", code);
    pre.tabIndex = 0;
    const copy = el("button", "md-copy");
    copy.setAttribute("type", "button");
    copy.dataset.action = "copy-code";
    copy.setAttribute("aria-label", t("copy"));
    const figure = el("figure", "md-code", el("figcaption", "", el("span", "md-lang", visible(lang)), copy), pre);
    return { token, node: figure, into: code, kids: [] };
  },
  blockmath: (token) => leaf(formula(token.text ?? "", true), token),
  math: (token) => leaf(formula(token.text ?? "", false), token),
  table(token, ctx, depth) {
    const head = el("tr");
    const body = el("tbody");
    const view = { token, node: el("div", "md-table", el("table", "", el("thead", "", head), body)), into: body, kids: [] };
    /** @type {HTMLElement} */ (view.node).tabIndex = 0;
    for (const cell of token.header.slice(0, MAX_COLUMNS)) head.append(tableCell("th", cell, ctx, depth));
    addRows(view, token, ctx, depth);
    return view;
  },
};

/** @param {string} tag @param {any} cell @param {Context} ctx @param {number} depth */
function tableCell(tag, cell, ctx, depth) {
  const node = el(tag, cell.align ? `md-${cell.align}` : "");
  branch(cell, node, node, cell.tokens, ctx, depth + 1);
  return node;
}

/** @param {View} view @param {Token} token @param {Context} ctx @param {number} depth */
function addRows(view, token, ctx, depth) {
  const body = /** @type {Element} */ (view.into);
  for (let i = body.children.length; i < Math.min(token.rows.length, MAX_ROWS); i++) {
    const row = el("tr");
    for (const cell of token.rows[i].slice(0, MAX_COLUMNS)) row.append(tableCell("td", cell, ctx, depth));
    body.append(row);
  }
  if (token.rows.length > MAX_ROWS || token.header.length > MAX_COLUMNS) {
    const node = /** @type {HTMLElement} */ (view.node);
    let more = node.querySelector(".md-more");
    if (!more) node.append((more = el("p", "md-more")));
    more.textContent = `${Math.min(token.rows.length, MAX_ROWS)} / ${token.rows.length}`;
  }
}

/** `[A]` in a synthesis becomes a chip that leads to the lane. @param {string} text @param {(letter: string) => Node|null} laneRef */
function laneRefs(text, laneRef) {
  const span = el("span");
  for (const part of text.split(/(\[[A-P]\])/)) {
    span.append((/^\[[A-P]\]$/.test(part) && laneRef(part[1])) || part);
  }
  return span;
}

/** Never grow one text node for ever: editing a long one costs its whole length. @param {Element} into @param {string} text */
export function appendText(into, text) {
  const last = into.lastChild;
  if (last instanceof Text && last.length + text.length < 2000) last.appendData(text);
  else if (text) into.append(text);
}

/** @param {Token} a @param {Token} b */
const same = (a, b) => a.type === b.type && a.raw === b.raw && a.loose === b.loose && a.text === b.text;

/**
 * Make the nodes in `parent` show `tokens`; returns the views to give the next time.
 * @param {Element} parent @param {View[]} views @param {Token[]} tokens @param {Context} ctx @param {number} [depth] @returns {View[]}
 */
export function patch(parent, views, tokens, ctx, depth = 0) {
  /** @type {View[]} */
  const next = [];
  let i = 0;
  for (; i < views.length && i < tokens.length; i++) {
    if (same(views[i].token, tokens[i])) next.push(views[i]);
    else if (grow(views[i], tokens[i], ctx, depth)) next.push({ ...views[i], token: tokens[i] });
    else break;
  }
  for (const old of views.slice(i)) /** @type {ChildNode|null} */ (old.node)?.remove();
  for (const token of tokens.slice(i)) {
    const view = render(token, ctx, depth);
    if (view.node) parent.append(view.node);
    next.push(view);
  }
  return next;
}

const NESTING = new Set(["paragraph", "blockquote", "strong", "em", "del", "list_item"]);

/** Change a view in place; false where it must be made anew. @param {View} view @param {Token} token @param {Context} ctx @param {number} depth */
function grow(view, token, ctx, depth) {
  const old = view.token;
  if (old.type !== token.type || depth >= MAX_DEPTH) return false;
  if (token.type === "text" && !token.tokens && !old.tokens) return growText(view, token, ctx);
  const nested = NESTING.has(token.type) || (token.type === "text" && token.tokens && old.tokens);
  if (nested && view.into && old.loose === token.loose) {
    view.kids = patch(view.into, view.kids, token.tokens ?? [], ctx, depth + 1);
    return true;
  }
  if (token.type === "heading" && old.depth === token.depth && view.into) {
    view.kids = patch(view.into, view.kids, token.tokens ?? [], ctx, depth + 1);
    return true;
  }
  return growBlock(view, token, ctx, depth);
}

/** @param {View} view @param {Token} token @param {Context} ctx */
function growText(view, token, ctx) {
  if (!(view.node instanceof Text) || (ctx.laneRef && token.raw.includes("["))) return false;
  const text = prose(token.escaped ? (token.text ?? "") : decodeEntities(token.text ?? ""));
  if (text.startsWith(view.node.data)) view.node.appendData(text.slice(view.node.length));
  else view.node.data = text;
  return true;
}

/** @param {View} view @param {Token} token @param {Context} ctx @param {number} depth */
function growBlock(view, token, ctx, depth) {
  const old = view.token;
  if (!view.into) return false;
  if (token.type === "list") {
    const shape = (/** @type {Token} */ t) => `${t.ordered}/${t.start}/${t.loose}/${t.items.some((/** @type {Token} */ i) => i.task)}`;
    if (shape(old) !== shape(token)) return false;
    view.kids = patch(view.into, view.kids, token.items, ctx, depth + 1);
    return true;
  }
  if (token.type === "code") {
    const was = view.into.textContent ?? ""; // not the old token's text: an open fence grows without tokens
    const now = visible(token.text ?? "");
    if (old.lang !== token.lang || !now.startsWith(was)) return false;
    appendText(view.into, now.slice(was.length));
    return true;
  }
  if (token.type !== "table" || head(old) !== head(token)) return false;
  let kept = 0; // rows that read the same stay; the growing last one and what follows are drawn anew
  while (kept < old.rows.length && kept < token.rows.length && row(old.rows[kept]) === row(token.rows[kept])) kept += 1;
  while (view.into.children.length > kept) view.into.lastElementChild?.remove();
  addRows(view, token, ctx, depth);
  return true;
}

/** @param {any[]} cells */
const row = (cells) => cells.map((cell) => cell.text).join("\u0000");
/** @param {Token} table */
const head = (table) => `${row(table.header)}\u0000${table.align.join()}`;
