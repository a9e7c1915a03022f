/**
 * Draws one lane's transcript: an ordered list of items, each drawn by its own small view. Takes what the fold
 * marked as touched, so that a flush costs what changed and not what is there.
 *
 * @typedef {import("../transcript.js").Item} Item
 * @typedef {import("../transcript.js").Transcript} Transcript
 * @typedef {{node: HTMLElement, update: (item: Item, now: number) => boolean, into?: HTMLElement, markdown?: () => import("../markdown/stream.js").MarkdownStream|null}} ItemView
 */
import { makeItem } from "./items.js";

const MAX_MOUNTED = 90;
const KEEP_MOUNTED = 60;

export class TranscriptView {
  /** @param {HTMLElement} root @param {import("../store.js").Lane} lane @param {any} ctx */
  constructor(root, lane, ctx) {
    this.root = root;
    this.lane = lane;
    this.ctx = ctx;
    /** @type {Map<number, ItemView>} */
    this.views = new Map();
    /** @type {Map<Transcript, number>} */
    this.drawn = new Map();
    this.generation = -1;
    /** Items that asked for another turn. @type {Set<Item>} */
    this.later = new Set();
  }

  /** Draw what is new; false = something waits for a later turn. @param {number} now */
  flush(now) {
    const { transcripts } = this.lane;
    if (this.generation !== transcripts.generation) this.#restart();
    const touched = transcripts.touched;
    for (const item of this.later) touched.add(item);
    this.later.clear();
    this.#grow(transcripts.root, this.root, now);
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
  }

  /** Make views for items that have none. @param {Transcript} place @param {HTMLElement} into @param {number} now */
  #grow(place, into, now) {
    const from = this.drawn.get(place) ?? 0;
    for (let i = from; i < place.items.length; i++) {
      const item = place.items[i];
      const view = makeItem(item, this.lane, this.ctx);
      if (!view) continue;
      this.views.set(item.id, view);
      into.append(view.node);
      if (!view.update(item, now)) this.later.add(item);
    }
    this.drawn.set(place, place.items.length);
    for (const item of place.items) {
      const view = item.nested && this.views.get(item.id);
      if (item.nested && view?.into) this.#grow(item.nested, view.into, now);
    }
  }

  #texts() {
    const list = [];
    for (const item of this.lane.items) {
      const markdown = this.views.get(item.id)?.markdown?.();
      if (markdown) list.push(markdown);
    }
    return list;
  }

  /** Keep the DOM small while the pane follows the end. */
  trim() {
    const texts = this.#texts();
    let mounted = 0;
    for (const text of texts) mounted += text.mounted;
    if (mounted <= MAX_MOUNTED) return;
    let keep = KEEP_MOUNTED;
    for (const text of texts.reverse()) {
      text.trim(Math.max(0, keep));
      keep -= text.mounted;
    }
  }

  /** Bring earlier blocks back where the reader comes near them. @param {number} above y of the reader's view */
  mountAbove(above) {
    for (const text of this.#texts()) {
      if (text.first > 0 && text.spacer && text.spacer.getBoundingClientRect().bottom > above) return text.mountMore(30);
    }
    return false;
  }

  mountAll() {
    for (const text of this.#texts()) text.mountMore(Infinity);
  }
}
