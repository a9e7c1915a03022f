/**
 * Draws one lane's transcript: an ordered list of items, each drawn by its own small view. Takes what the fold
 * marked as touched, so that a flush costs what changed and not what is there.
 *
 * @typedef {import("../transcript.js").Item} Item
 * @typedef {import("../transcript.js").Transcript} Transcript
 * @typedef {{node: HTMLElement, update: (item: Item, now: number) => boolean, into?: HTMLElement, markdown?: () => MarkdownStream}} ItemView
 * @typedef {import("../markdown/stream.js").MarkdownStream} MarkdownStream
 */
import { makeItem } from "./items.js";

const MAX_MOUNTED = 50;
const KEEP_MOUNTED = 40;
const MOUNT_PARTS = 3;

export class TranscriptView {
  /** @param {HTMLElement} root @param {import("../store.js").Lane} lane @param {any} ctx */
  constructor(root, lane, ctx) {
    this.root = root;
    this.lane = lane;
    this.ctx = ctx;
    /** Only a lane's own texts are windowed: the pane brings back what the reader comes near to. */
    this.own = { ...ctx, markdown: { ...ctx.markdown, windowed: ctx.windowed } };
    /** @type {Map<number, ItemView>} */
    this.views = new Map();
    /** @type {Map<Transcript, number>} */
    this.drawn = new Map();
    this.generation = -1;
    /** Items that asked for another turn. @type {Set<Item>} */
    this.later = new Set();
    /** The lane's own texts, in order. @type {MarkdownStream[]} */
    this.texts = [];
    /** Where nested agents are drawn. @type {{place: Transcript, into: HTMLElement}[]} */
    this.nests = [];
    /** Parts to take out: found by `measure`, done by `trim`. @type {[MarkdownStream, number][]} */
    this.surplus = [];
    /** Where one has to come back. @type {import("../markdown/parts.js").Parts|null} */
    this.missing = null;
  }

  /** Draw what is new; false = something waits for a later turn. @param {number} now */
  flush(now) {
    const { transcripts } = this.lane;
    if (this.generation !== transcripts.generation) this.#restart();
    const touched = transcripts.touched;
    for (const item of this.later) touched.add(item);
    this.later.clear();
    this.#grow(transcripts.root, this.root, now);
    for (const { place, into } of this.nests) this.#grow(place, into, now); // the list may grow on the way
    for (const item of touched) {
      const view = this.views.get(item.id);
      if (view && !view.update(item, now)) this.later.add(item);
    }
    touched.clear();
    return this.later.size === 0;
  }

  #restart() {
    this.generation = this.lane.transcripts.generation;
    this.root.replaceChildren();
    this.views.clear();
    this.drawn.clear();
    this.later.clear();
    this.texts = [];
    this.nests = [];
    this.surplus = [];
    this.missing = null;
  }

  /** Make views for items that have none. @param {Transcript} place @param {HTMLElement} into @param {number} now */
  #grow(place, into, now) {
    const from = this.drawn.get(place) ?? 0;
    for (let i = from; i < place.items.length; i++) {
      const item = place.items[i];
      const view = makeItem(item, this.lane, into === this.root ? this.own : this.ctx);
      if (!view) continue;
      this.views.set(item.id, view);
      into.append(view.node);
      if (view.markdown && into === this.root) this.texts.push(view.markdown());
      if (item.nested && view.into) this.nests.push({ place: item.nested, into: view.into });
      if (!view.update(item, now)) this.later.add(item);
    }
    this.drawn.set(place, place.items.length);
  }

  /**
   * For a pane that follows the end: find what lies so far above that it may go, or what is missing of what the
   * reader sees. Reads the layout.
   * @param {number} end y of the end of the text @param {number} reach how far above it the reader sees, and somewhat more, px
   */
  measure(end, reach) {
    this.surplus = [];
    const lowest = this.texts.findLast(({ parts }) => parts.spacer)?.parts;
    this.missing = lowest?.spacer && end - lowest.spacer.getBoundingClientRect().bottom < reach ? lowest : null;
    let mounted = 0;
    for (const { parts } of this.texts) mounted += parts.mounted;
    if (this.missing || mounted <= MAX_MOUNTED) return;
    for (const text of this.texts) {
      let count = 0;
      for (const part of text.parts.shown) {
        const { bottom, height } = /** @type {HTMLElement} */ (part.node).getBoundingClientRect();
        if (mounted - part.size < KEEP_MOUNTED || end - bottom < reach) break;
        mounted -= part.size;
        part.height = height;
        count += 1;
      }
      if (count) this.surplus.push([text, count]);
      if (count < text.parts.shown.length) return;
    }
  }

  /** Do what `measure` found. @returns {boolean} whether it has to be measured again */
  trim() {
    for (const [text, count] of this.surplus) text.parts.drop(count);
    this.surplus = [];
    return this.missing?.mountMore(1) ?? false;
  }

  /** Bring earlier blocks back where the reader comes near them. @param {number} above y of the reader's view */
  mountAbove(above) {
    for (const { parts } of this.texts) {
      if (parts.spacer && parts.spacer.getBoundingClientRect().bottom > above) return parts.mountMore(MOUNT_PARTS);
    }
    return false;
  }
}
