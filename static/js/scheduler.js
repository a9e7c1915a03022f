/**
 * One drawing loop for all panes. A pane asks for a turn; the focused one gets every frame, the others 10 a second
 * in turn, within a budget of 8 ms a frame. Each turn has two phases: first all panes change, then all scroll
 * positions are set (measured: 9 ms instead of 37 ms a flush). Knows no DOM; the clock is given.
 *
 * @typedef {object} Drawable
 * @property {(now: number) => boolean} flush  draw what is new; false = more remains for later
 * @property {() => void} [settle]             set the scroll position, after all have drawn
 * @property {() => boolean} [visible]         whether a reader sees it
 */

const BUDGET_MS = 8;
const INTERVAL_MS = 100;
const EARLY_MS = 25; // a frame has a price of its own: what is nearly due is drawn with what is

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
    const due = [...this.dirty].filter(([pane, last]) => pane === this.focused || now - last >= INTERVAL_MS - EARLY_MS);
    due.sort((a, b) => (a[0] === this.focused ? -1 : b[0] === this.focused ? 1 : a[1] - b[1]));
    /** @type {Drawable[]} */
    const drawn = [];
    for (const [pane] of due) {
      if (drawn.length && this.clock.now() - started > BUDGET_MS) break;
      this.last.set(pane, now);
      if (pane.flush(now)) this.dirty.delete(pane);
      else this.dirty.set(pane, now);
      drawn.push(pane);
    }
    for (const pane of drawn) pane.settle?.();
    if (drawn.length) this.onTurn?.(this.clock.now() - started);
  }
}
