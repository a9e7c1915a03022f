/**
 * A growing Markdown text as DOM blocks. What is sealed is never parsed or drawn again while the text grows; only
 * the last block is. `finish` parses the whole once more and mends the few blocks that later text changed (a link
 * definition at the end, say), so that the result is the same however the text was cut into pieces.
 *
 * @typedef {import("./parse.js").Token} Token
 * @typedef {import("./render.js").View} View
 */
import { blocks, closes, mayClose, openFence } from "./parse.js";
import { flat } from "../growing.js";
import { Parts } from "./parts.js";
import { appendText, el, patch, render } from "./render.js";
import { visible } from "./safe.js";
import { highlight } from "./code.js";

const WINDOW = 60; // tokens that a windowed text draws of what came at once
const LONG_TAIL = 4096;
const LONG_TAIL_MS = 250;
const MAX_WHOLE = 1_500_000; // above this the last whole parse is not worth its time

export class MarkdownStream {
  /** @param {HTMLElement} root @param {import("./render.js").Context} [ctx] */
  constructor(root, ctx = {}) {
    this.root = root;
    this.ctx = ctx;
    /** How much text it was given. */
    this.length = 0;
    /** What is not sealed yet. */
    this.rest = "";
    /** A carriage return whose line feed may still come. */
    this.carry = "";
    this.done = false;
    this.tail = el("div", "md-tail");
    root.append(this.tail);
    this.parts = new Parts(root, this.tail, (raw) => this.#draw(raw));
    /** @type {View[]} */
    this.views = [];
    /** Link definitions of the sealed part. @type {import("./parse.js").Links} */
    this.links = {};
    /** All definitions that the views were made with, as text. */
    this.defined = "{}";
    /** Length of `rest` when it was drawn last. */
    this.lexedLength = 0;
    this.lexedAt = -Infinity;
    /** @type {{fence: string, pos: number, lineStart: boolean, code: Element, pendingNewline: boolean}|null} */
    this.fence = null;
  }

  /**
   * Show this text, which begins with what was shown before.
   * @param {string} full @param {number} now ms @returns {boolean} false where it decided to wait
   */
  update(full, now) {
    return this.grow(full.slice(this.length), now);
  }

  /**
   * Show more text behind what was given before.
   * @param {string} more @param {number} now ms @returns {boolean} false where it decided to wait
   */
  grow(more, now) {
    this.length += more.length;
    this.rest += this.#lines(more);
    if (this.rest.length === this.lexedLength) return true;
    if (this.fence && this.#feedFence(this.fence)) {
      this.lexedLength = this.rest.length;
      return true;
    }
    if (this.rest.length > LONG_TAIL && now - this.lexedAt < LONG_TAIL_MS) return false;
    this.#lexTail(now);
    return true;
  }

  /** Every kind of line end as one character. @param {string} more */
  #lines(more) {
    const text = this.carry + more;
    this.carry = "";
    if (!text.includes("\r")) return text;
    if (text.endsWith("\r")) this.carry = "\r";
    return text.slice(0, text.length - this.carry.length).replace(/\r\n?/g, "\n");
  }

  /** @param {number} now */
  #lexTail(now) {
    const source = this.rest;
    const links = { ...this.links }; // a definition in the tail may still grow: it holds for this parse only
    let tokens = blocks(source, links);
    const defined = JSON.stringify(links);
    this.lexedAt = now;
    if (defined !== this.defined) {
      this.defined = defined;
      this.tail.replaceChildren(); // a new link definition: what reads the same may mean something else
      this.views = [];
    }
    let sealing = this.#sealable(tokens, source);
    if (sealing && Object.keys(links).length > Object.keys(this.links).length) {
      blocks(tokens.slice(0, sealing).map((token) => token.raw).join(""), this.links);
    }
    let end = 0;
    const skipped = this.#skip(tokens.slice(0, sealing));
    if (skipped) {
      this.tail.replaceChildren();
      this.views = [];
      for (const token of tokens.slice(0, skipped)) end += token.raw.length;
      tokens = tokens.slice(skipped);
      sealing -= skipped;
    }
    this.views = patch(this.tail, this.views, tokens, this.ctx);
    for (const view of this.views.splice(0, sealing)) {
      end += view.token.raw.length;
      this.#push(view.token, view.node);
    }
    this.rest = source.slice(end);
    this.lexedLength = this.rest.length;
    for (const child of this.tail.children) if (child instanceof HTMLElement && !child.dir) child.dir = "auto";
    this.#enterFence(tokens.slice(sealing));
  }

  /** Much came at once, a replay: only its end is drawn, as if the rest had been taken out again. @param {Token[]} tokens @returns {number} how many were not drawn */
  #skip(tokens) {
    const count = tokens.length - WINDOW;
    if (count < WINDOW || !this.ctx.windowed?.()) return 0;
    this.parts.skip(tokens.slice(0, count).map((token) => this.#block(token, null)));
    return count;
  }

  /** @param {Token} token @param {HTMLElement|null} node @returns {import("./parts.js").Block} */
  #block(token, node) {
    return { type: token.type, raw: flat(token.raw), node, defined: this.defined };
  }

  /** How many tokens can't change any more: all before the last that shows something. @param {Token[]} tokens @param {string} source */
  #sealable(tokens, source) {
    let last = tokens.length - 1;
    while (last > 0 && tokens[last].type === "space") last -= 1;
    let end = 0; // only where the tokens cover the text exactly does an offset mean anything
    for (let i = 0; i < last; i++) {
      if (!source.startsWith(tokens[i].raw, end)) return i;
      end += tokens[i].raw.length;
    }
    return last;
  }

  /** A block is complete: out of the tail for good. @param {Token} token @param {Node|null} node */
  #push(token, node) {
    const element = node instanceof HTMLElement ? node : node ? el("p", "", node) : null;
    if (element) prepare(element);
    this.parts.push(this.#block(token, element));
    if (element && token.type === "code") void highlight(element);
  }

  /** A block again that was taken out of the page. @param {string} raw */
  #draw(raw) {
    const [token] = blocks(raw, { ...this.links });
    const node = token ? render(token, this.ctx).node : null;
    if (!node) return null;
    const element = node instanceof HTMLElement ? node : el("p", "", node);
    prepare(element);
    if (token.type === "code") void highlight(element);
    return element;
  }

  /** @param {Token[]} rest */
  #enterFence(rest) {
    this.fence = null;
    const [view] = this.views;
    const open = rest.length === 1 && view?.into ? openFence(rest[0]) : null;
    if (!open || !view.into) return;
    const body = this.rest.slice(open.from);
    const trailing = body.endsWith("\n");
    const pos = open.from + (trailing ? body.length : 0);
    if (!trailing && body.length) return; // enter only between lines: what a half line is, is not known yet
    this.fence = { fence: open.fence, pos, lineStart: true, code: view.into, pendingNewline: trailing && body.length > 0 };
  }

  /** Append what is certainly code; false when the fence may have closed. @param {NonNullable<MarkdownStream["fence"]>} fence */
  #feedFence(fence) {
    while (fence.pos < this.rest.length) {
      const newline = this.rest.indexOf("\n", fence.pos);
      const line = this.rest.slice(fence.pos, newline < 0 ? undefined : newline);
      if (fence.lineStart) {
        if (newline < 0 ? mayClose(line, fence.fence) : closes(line, fence.fence)) {
          if (newline < 0) return true; // wait for the rest of the line
          this.fence = null;
          return false;
        }
      }
      appendText(fence.code, `${fence.pendingNewline ? "\n" : ""}${visible(line)}`);
      fence.pendingNewline = newline >= 0;
      fence.lineStart = newline >= 0;
      fence.pos = newline < 0 ? this.rest.length : newline + 1;
    }
    return true;
  }

  /** The text is complete. @param {string} full */
  finish(full) {
    if (this.done) return;
    const whole = full.length <= MAX_WHOLE;
    if (this.length || !whole) this.update(full, Infinity); // else nothing is shown yet: one parse is enough
    this.done = true;
    this.fence = null;
    if (whole) this.#mend(full.replace(/\r$/, "").replace(/\r\n?/g, "\n"));
    else this.#sealRest(blocks(this.rest, this.links));
    this.rest = "";
    this.tail.remove();
  }

  /** Compare with a parse of the whole; draw anew what differs. @param {string} text */
  #mend(text) {
    const links = {};
    const tokens = blocks(text, links);
    this.links = links;
    this.defined = JSON.stringify(links);
    const sealed = this.parts.blocks;
    let same = 0;
    while (same < sealed.length && same < tokens.length && alike(sealed[same], tokens[same])) same += 1;
    this.parts.truncate(same);
    sealed.forEach((block, i) => {
      if (block.defined === this.defined || !block.raw.includes("[") || !block.node) return;
      const fresh = render(tokens[i], this.ctx).node;
      if (!(fresh instanceof HTMLElement)) return;
      block.node.replaceWith(fresh);
      block.node = fresh;
      prepare(fresh);
      if (block.type === "code") void highlight(fresh);
    });
    this.#sealRest(tokens.slice(same));
  }

  /** @param {Token[]} tokens */
  #sealRest(tokens) {
    const code = this.views.length === 1 && tokens.length && this.views[0].token.type === "code" ? this.views[0] : null;
    for (const view of this.views) if (view !== code) /** @type {ChildNode|null} */ (view.node)?.remove();
    const [first] = tokens;
    this.views = [];
    const skipped = code ? 0 : this.#skip(tokens);
    for (const token of tokens.slice(skipped)) {
      const keep = code && token === first && token.type === "code" && code.token.lang === token.lang && code.into?.textContent === visible(token.text ?? "");
      if (code && token === first && !keep) /** @type {ChildNode} */ (code.node)?.remove();
      this.#push(token, keep && code ? code.node : render(token, this.ctx).node);
    }
  }
}

/** @param {import("./parts.js").Block} block @param {Token} token */
const alike = (block, token) => block.type === token.type && block.raw === token.raw;

/** @param {HTMLElement} block */
function prepare(block) {
  block.classList.add("md-block");
  block.dir = "auto";
}
