/**
 * A growing Markdown text as DOM blocks. What is sealed is never parsed or drawn again while the text grows; only
 * the last block is. `finish` parses the whole once more and mends the few blocks that later text changed (a link
 * definition at the end, say), so that the result is the same however the text was cut into pieces.
 *
 * @typedef {import("./parse.js").Token} Token
 * @typedef {import("./render.js").View} View
 * @typedef {{type: string, raw: string, node: HTMLElement|null, defined: string}} Block  node: null while unmounted
 */
import { blocks, closes, mayClose, openFence } from "./parse.js";
import { appendText, el, patch, render } from "./render.js";
import { visible } from "./safe.js";
import { highlight } from "./code.js";

const LONG_TAIL = 4096;
const LONG_TAIL_MS = 250;
const MAX_WHOLE = 1_500_000; // above this the last whole parse is not worth its time

export class MarkdownStream {
  /** @param {HTMLElement} root @param {import("./render.js").Context} [ctx] */
  constructor(root, ctx = {}) {
    this.root = root;
    this.ctx = ctx;
    this.text = "";
    this.done = false;
    /** @type {Block[]} */
    this.sealed = [];
    this.sealedEnd = 0;
    /** First sealed block that is in the DOM. */
    this.first = 0;
    /** @type {HTMLElement|null} */
    this.spacer = null;
    this.tail = el("div", "md-tail");
    root.append(this.tail);
    /** @type {View[]} */
    this.views = [];
    /** Link definitions of the sealed part. @type {import("./parse.js").Links} */
    this.links = {};
    /** All definitions that the views were made with, as text. */
    this.defined = "{}";
    this.lexedLength = 0;
    this.lexedAt = -Infinity;
    /** @type {{fence: string, pos: number, lineStart: boolean, code: Element, pendingNewline: boolean}|null} */
    this.fence = null;
  }

  /**
   * Show this text, which begins with what was shown before. Returns false where it decided to wait.
   * @param {string} full @param {number} now ms @returns {boolean}
   */
  update(full, now) {
    this.text = full.includes("\r") ? full.replace(/\r\n?(?=[^])/g, "\n").replace(/\r$/, "") : full;
    if (this.text.length === this.lexedLength) return true;
    if (this.fence && this.#feedFence(this.fence)) {
      this.lexedLength = this.text.length;
      return true;
    }
    if (this.text.length - this.sealedEnd > LONG_TAIL && now - this.lexedAt < LONG_TAIL_MS) return false;
    this.#lexTail(now);
    return true;
  }

  /** @param {number} now */
  #lexTail(now) {
    const source = this.text.slice(this.sealedEnd);
    const links = { ...this.links }; // a definition in the tail may still grow: it holds for this parse only
    const tokens = blocks(source, links);
    const defined = JSON.stringify(links);
    this.lexedLength = this.text.length;
    this.lexedAt = now;
    if (defined !== this.defined) {
      this.defined = defined;
      this.tail.replaceChildren(); // a new link definition: what reads the same may mean something else
      this.views = [];
    }
    this.views = patch(this.tail, this.views, tokens, this.ctx);
    const sealing = this.#sealable(tokens, source);
    if (sealing && Object.keys(links).length > Object.keys(this.links).length) {
      blocks(tokens.slice(0, sealing).map((token) => token.raw).join(""), this.links);
    }
    for (const view of this.views.splice(0, sealing)) {
      this.sealedEnd += view.token.raw.length;
      this.#push(view.token, view.node);
    }
    for (const child of this.tail.children) if (child instanceof HTMLElement) child.dir = "auto";
    this.#enterFence(tokens.slice(sealing));
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
    const block = { type: token.type, raw: own(token.raw), node: element, defined: this.defined };
    this.sealed.push(block);
    if (!element) return;
    this.root.insertBefore(element, this.tail);
    prepare(element);
    if (token.type === "code") void highlight(element);
  }

  /** @param {Token[]} rest */
  #enterFence(rest) {
    this.fence = null;
    const [view] = this.views;
    const open = rest.length === 1 && view?.into ? openFence(rest[0]) : null;
    if (!open || !view.into) return;
    const body = this.text.slice(this.sealedEnd + open.from);
    const trailing = body.endsWith("\n");
    const pos = this.sealedEnd + open.from + (trailing ? body.length : 0);
    if (!trailing && body.length) return; // enter only between lines: what a half line is, is not known yet
    this.fence = { fence: open.fence, pos, lineStart: true, code: view.into, pendingNewline: trailing && body.length > 0 };
  }

  /** Append what is certainly code; false when the fence may have closed. @param {NonNullable<MarkdownStream["fence"]>} fence */
  #feedFence(fence) {
    while (fence.pos < this.text.length) {
      const newline = this.text.indexOf("\n", fence.pos);
      const line = this.text.slice(fence.pos, newline < 0 ? undefined : newline);
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
      fence.pos = newline < 0 ? this.text.length : newline + 1;
    }
    return true;
  }

  /** The text is complete. @param {string} full */
  finish(full) {
    if (this.done) return;
    this.update(full, Infinity);
    this.done = true;
    this.fence = null;
    this.lexedAt = -Infinity;
    const whole = full.length <= MAX_WHOLE;
    if (whole) this.#mend();
    else this.#sealRest(blocks(this.text.slice(this.sealedEnd), this.links));
    this.tail.remove();
  }

  /** Compare with a parse of the whole; draw anew what differs. */
  #mend() {
    const links = {};
    const tokens = blocks(this.text, links);
    this.links = links;
    this.defined = JSON.stringify(links);
    let same = 0;
    while (same < this.sealed.length && same < tokens.length && alike(this.sealed[same], tokens[same])) same += 1;
    for (const block of this.sealed.splice(same)) block.node?.remove();
    this.first = Math.min(this.first, same);
    this.sealed.forEach((block, i) => {
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
    for (const token of tokens) {
      const keep = code && token === first && token.type === "code" && code.token.lang === token.lang && code.into?.textContent === visible(token.text ?? "");
      if (code && token === first && !keep) /** @type {ChildNode} */ (code.node)?.remove();
      this.#push(token, keep && code ? code.node : render(token, this.ctx).node);
    }
    this.sealedEnd = this.text.length;
  }

  get mounted() {
    return this.sealed.length - this.first;
  }

  /**
   * Unmount all but the last `keep` sealed blocks; a spacer takes their place. Measures, so call it where the
   * layout is known anyway.
   * @param {number} keep
   */
  trim(keep) {
    const cut = this.sealed.length - keep;
    if (cut <= this.first) return;
    const removed = this.sealed.slice(this.first, cut).filter((b) => b.node);
    const next = this.sealed.slice(cut).find((b) => b.node)?.node ?? this.tail;
    const top = removed[0]?.node;
    if (top && next.isConnected) {
      const height = next.getBoundingClientRect().top - top.getBoundingClientRect().top;
      this.#space(this.#height() + height);
    }
    for (const block of removed) {
      block.node?.remove();
      block.node = null;
    }
    this.first = cut;
  }

  #height() {
    return Number(this.spacer?.dataset.height ?? 0);
  }

  /** @param {number} height */
  #space(height) {
    if (!this.spacer) {
      this.spacer = el("div", "md-spacer");
      this.root.prepend(this.spacer);
    }
    this.spacer.dataset.height = String(Math.max(0, height));
    this.spacer.style.height = `${Math.max(0, height)}px`;
  }

  /** Bring `count` blocks back above the first mounted one. @param {number} count @returns {boolean} whether any came */
  mountMore(count) {
    if (this.first === 0) return false;
    const from = Math.max(0, this.first - count);
    const anchor = this.sealed.slice(this.first).find((b) => b.node)?.node ?? (this.tail.isConnected ? this.tail : null);
    for (let i = from; i < this.first; i++) {
      const block = this.sealed[i];
      const [token] = blocks(block.raw, { ...this.links });
      const node = token ? render(token, this.ctx).node : null;
      if (!node || block.type === "def") continue;
      block.node = node instanceof HTMLElement ? node : el("p", "", node);
      this.root.insertBefore(block.node, anchor);
      prepare(block.node);
      if (block.type === "code") void highlight(block.node);
    }
    const share = from / this.first;
    this.first = from;
    this.#space(from === 0 ? 0 : this.#height() * share);
    return true;
  }
}

/**
 * The same text in memory of its own. What the lexer gives is a view into the whole answer as it was then: kept for
 * each block, it kept a copy of the answer for each (720 MB after half a million tokens).
 * @param {string} text
 */
const own = (text) => ` ${text}`.slice(1);

/** @param {Block} block @param {Token} token */
const alike = (block, token) => block.type === token.type && block.raw === token.raw;

/** @param {HTMLElement} block */
function prepare(block) {
  block.classList.add("md-block");
  block.dir = "auto";
}
