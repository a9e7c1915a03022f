/**
 * The finished blocks of a growing text, in parts of ten. A part is laid out and painted on its own (`contain` in
 * markdown.css), so that a growing tail costs the number of parts and not of blocks; with a containment for each
 * block a frame of 16 lanes took twice as long. Parts far above the reader are taken out, and a spacer of exactly
 * their height takes their place until he comes near.
 *
 * @typedef {{type: string, raw: string, node: HTMLElement|null, defined: string}} Block  node: null while unmounted, or where it shows nothing
 * @typedef {{from: number, size: number, node: HTMLElement|null, height: number}} Part  the blocks from `from` on, `size` of them with a node
 */
import { el } from "./render.js";

const SIZE = 10;
const LINE = 21; // px; and characters a line, to guess a height that has not been measured
const WIDTH = 60;

export class Parts {
  /** @param {Element} root @param {Element} tail what comes after the parts @param {(raw: string) => HTMLElement|null} draw a block anew */
  constructor(root, tail, draw) {
    this.root = root;
    this.tail = tail;
    this.draw = draw;
    /** @type {Block[]} */
    this.blocks = [];
    /** @type {Part[]} */
    this.parts = [];
    /** The first part that is in the DOM. */
    this.first = 0;
    /** @type {HTMLElement|null} */
    this.spacer = null;
    /** How many blocks are in the DOM. */
    this.mounted = 0;
  }

  /** @param {Block} block */
  push(block) {
    this.blocks.push(block);
    if (!block.node) return;
    let part = this.parts.at(-1);
    if (!part?.node || part.size >= SIZE) {
      part = { from: this.parts.length ? this.blocks.length - 1 : 0, size: 0, node: el("div", "md-part"), height: 0 };
      this.parts.push(part);
      this.root.insertBefore(/** @type {HTMLElement} */ (part.node), this.tail);
    }
    part.node?.append(block.node);
    part.size += 1;
    this.mounted += 1;
  }

  /** Take blocks as if they had been shown and taken out again: nothing is drawn, heights are guessed. @param {Block[]} blocks */
  skip(blocks) {
    for (const part of this.shown) part.height ||= this.#guess(this.parts.indexOf(part));
    this.drop(this.shown.length);
    for (let i = 0; i < blocks.length; i += SIZE) {
      this.parts.push({ from: this.parts.length ? this.blocks.length : 0, size: 0, node: null, height: 0 });
      this.blocks.push(...blocks.slice(i, i + SIZE));
      this.parts[this.first].height = this.#guess(this.first);
      this.first += 1;
    }
    this.#space();
  }

  /** @param {number} index of a part */
  #guess(index) {
    let lines = 0;
    for (const { type, raw } of this.#of(index)) if (type !== "space") lines += 1 + raw.split("\n").length + raw.length / WIDTH;
    return Math.round(lines * LINE * 0.6);
  }

  /** Keep only the first `count` blocks. @param {number} count */
  truncate(count) {
    if (count >= this.blocks.length) return;
    for (let last = this.parts.at(-1); last && this.blocks.length > count; last = this.parts.at(-1)) {
      if (last.from < count && !last.node) this.#mount();
      for (const block of this.blocks.splice(Math.max(count, last.from))) {
        if (!block.node) continue;
        block.node.remove();
        last.size -= 1;
        this.mounted -= 1;
      }
      if (last.from < count && last.size) break;
      last.node?.remove();
      this.parts.pop();
      this.first = Math.min(this.first, this.parts.length);
    }
    this.blocks.length = Math.min(this.blocks.length, count);
    this.#space();
  }

  /** The blocks of a part. @param {number} index */
  #of(index) {
    return this.blocks.slice(this.parts[index].from, this.parts[index + 1]?.from);
  }

  /** Parts in the DOM, from the top. */
  get shown() {
    return this.parts.slice(this.first);
  }

  /**
   * Take out the first `count` mounted parts, whose `height` has been measured.
   * @param {number} count
   */
  drop(count) {
    for (; count > 0; count--, this.first++) {
      const part = this.parts[this.first];
      part.node?.remove();
      part.node = null;
      for (const block of this.#of(this.first)) block.node = null;
      this.mounted -= part.size;
    }
    this.#space();
  }

  /** Bring back up to `count` parts above the first mounted one. @param {number} count @returns {boolean} whether any came */
  mountMore(count) {
    const before = this.first;
    while (this.first > 0 && count-- > 0) this.#mount();
    this.#space();
    return this.first < before;
  }

  /** Bring back the part above the first mounted one. */
  #mount() {
    const part = this.parts[--this.first];
    const next = this.parts[this.first + 1]?.node ?? (this.tail.isConnected ? this.tail : null);
    part.node = el("div", "md-part");
    part.size = 0;
    for (const block of this.#of(this.first)) {
      block.node = block.type === "def" ? null : this.draw(block.raw);
      if (!block.node) continue;
      part.node.append(block.node);
      part.size += 1;
    }
    this.mounted += part.size;
    this.root.insertBefore(part.node, next);
  }

  #space() {
    if (!this.first) {
      this.spacer?.remove();
      this.spacer = null;
      return;
    }
    if (!this.spacer) {
      this.spacer = el("div", "md-spacer");
      this.root.prepend(this.spacer);
    }
    let height = 0;
    for (let i = 0; i < this.first; i++) height += this.parts[i].height;
    this.spacer.style.height = `${height}px`;
  }
}
