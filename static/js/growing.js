/**
 * A text that grows by pieces: appending costs the piece, and reading from a place near the end costs what is behind
 * it. (A string that is appended to and read in turn is copied whole each time: 300 kB for each drawing of a long
 * answer.) Remembers for its open step where each delta began, so that a reset can cut it. Pure.
 */

const PIECE = 4096;

/**
 * The same text in memory of its own. What is put together or cut out may keep all its parts, or all that it was cut
 * out of, alive: for the blocks of half a million tokens that was 720 MB.
 * @param {string} text
 */
export const flat = (text) => ` ${text}`.slice(1);

export class Growing {
  constructor() {
    /** @type {string[]} */
    this.pieces = [];
    /** Length of all pieces. */
    this.before = 0;
    this.recent = "";
    /** In turn the number of a delta and the length before it: two plain numbers a delta, no object. @type {number[]} */
    this.marks = [];
  }

  get length() {
    return this.before + this.recent.length;
  }

  /** @param {string} more @param {number} cseq of its first event */
  push(more, cseq) {
    this.marks.push(cseq, this.length);
    this.recent += more;
    if (this.recent.length < PIECE) return;
    this.pieces.push(flat(this.recent));
    this.before += this.recent.length;
    this.recent = "";
  }

  /** The text from an offset on; below 0 is from its beginning. @param {number} offset */
  from(offset) {
    let start = this.before;
    let i = this.pieces.length;
    while (i > 0 && start > offset) start -= this.pieces[--i].length;
    const text = i < this.pieces.length ? this.pieces.slice(i).join("") + this.recent : this.recent;
    return text.slice(Math.max(0, offset - start));
  }

  /** What was said can't be reset any more. */
  settle() {
    this.marks = [];
  }

  /** Discard the deltas from this number on; false where there are none. @param {number} cseq */
  cut(cseq) {
    for (let i = 0; i < this.marks.length; i += 2) {
      if (this.marks[i] < cseq) continue;
      const kept = this.toString().slice(0, this.marks[i + 1]);
      this.marks.length = i;
      this.pieces = [kept];
      this.before = kept.length;
      this.recent = "";
      return true;
    }
    return false;
  }

  toString() {
    if (this.pieces.length > 1) this.pieces = [this.pieces.join("")];
    return (this.pieces[0] ?? "") + this.recent;
  }
}
