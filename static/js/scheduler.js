/**
 * One drawing loop for all panes. A pane asks for a turn; the focused one gets every frame, the others 12 a second
 * in turn, within a budget of 8 ms a frame. Each turn has phases, so that the page is laid out once: all panes change,
 * all measure, all scroll, all tidy up. Knows no DOM; the clock is given.
 *
 * @typedef {object} Drawable
 * @property {(now: number) => boolean} flush  draw what is new; false = more remains for later
 * @property {() => void} [measure]            read positions, after all have drawn
 * @property {() => void} [settle]             set the scroll position, after all have measured
 * @property {() => void} [tidy]               change what does not change positions: after all have scrolled
 * @property {() => boolean} [visible]         whether a reader sees it
 */

const BUDGET_MS = 8;
const INTERVAL_MS = 80;
const EARLY_MS = 20; // a frame has a price of its own: what is nearly due is drawn with what is
const HASTE_MS = 50; // so long after an input the frames are for what the reader did
const MAX_LAYOUT_MS = 1; // above this the machine is busy with something else: more frames would make it worse

export class Scheduler {
  /**
   * @param {{frame: (callback: (now: number) => void) => unknown, now: () => number,
   *   later?: (callback: () => void, ms: number) => unknown}} clock
   */
  constructor(clock) {
    this.clock = clock;
    /** @type {Map<Drawable, number>} when it drew last */
    this.dirty = new Map();
    /** @type {WeakMap<Drawable, number>} */
    this.last = new WeakMap();
    /** @type {Drawable|null} */
    this.focused = null;
    this.pending = false;
    /** What the phases after drawing cost a pane, ms: nearly all of it is the layout. */
    this.layoutCost = 0;
    this.inputAt = -Infinity;
    /** Whether the last turn left the others out. */
    this.hasty = false;
    /** Length of each turn, ms: for the probe. @type {((ms: number) => void)|null} */
    this.onTurn = null;
  }

  /** @param {Drawable} pane */
  request(pane) {
    if (!this.dirty.has(pane)) this.dirty.set(pane, this.last.get(pane) ?? -Infinity);
    this.#arm();
  }

  /** @param {Drawable} pane */
  forget(pane) {
    this.dirty.delete(pane);
  }

  /** A person typed or pointed: the next frame is drawn for that, and only the focused pane with it. */
  input() {
    this.inputAt = this.clock.now();
  }

  #arm() {
    if (this.pending) return;
    this.pending = true;
    this.clock.frame((now) => {
      this.pending = false;
      this.turn(now);
      if (!this.dirty.size) return;
      const wait = this.#wait();
      if (wait > 20 && this.clock.later) {
        this.pending = true; // nobody is due yet: sleep instead of waking at every frame for nothing
        this.clock.later(() => {
          this.pending = false;
          this.#arm();
        }, wait - 8);
      } else this.#arm();
    });
  }

  /** How long until the next pane is due, ms. */
  #wait() {
    const now = this.clock.now();
    let wait = Infinity;
    for (const [pane, last] of this.dirty) wait = Math.min(wait, pane === this.focused ? 0 : last + INTERVAL_MS - now);
    return wait;
  }

  /** @param {number} now */
  turn(now) {
    const started = this.clock.now();
    // Every second turn at least is for all, however fast somebody types.
    this.hasty = !this.hasty && started - this.inputAt < HASTE_MS;
    /** @type {Drawable[]} */
    const drawn = [];
    for (const pane of this.#due(now)) {
      if (drawn.length && this.clock.now() - started + drawn.length * this.layoutCost > BUDGET_MS) break;
      this.last.set(pane, now);
      if (pane.flush(now)) this.dirty.delete(pane);
      else this.dirty.set(pane, now);
      drawn.push(pane);
    }
    if (!drawn.length) return;
    const changed = this.clock.now();
    for (const pane of drawn) pane.measure?.();
    for (const pane of drawn) pane.settle?.();
    for (const pane of drawn) pane.tidy?.();
    const ended = this.clock.now();
    this.layoutCost += (Math.min(MAX_LAYOUT_MS, (ended - changed) / drawn.length) - this.layoutCost) / 8;
    this.onTurn?.(ended - started);
  }

  /** The panes whose turn it is, the longest waiting first, but the focused one before all. @param {number} now */
  #due(now) {
    const focused = (/** @type {Drawable} */ pane) => pane === this.focused;
    const due = [...this.dirty].filter(([pane, last]) => focused(pane) || (!this.hasty && now - last >= INTERVAL_MS - EARLY_MS));
    due.sort((a, b) => Number(focused(b[0])) - Number(focused(a[0])) || a[1] - b[1]);
    return due.map(([pane]) => pane);
  }
}
