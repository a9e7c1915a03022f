/**
 * The scrolling part of a pane: the turns of one lane, oldest first. It follows the end until the reader scrolls up
 * by a pixel, and again when he is back at the end.
 *
 * @typedef {import("../conversation.js").Entry} Entry
 * @typedef {import("../conversation.js").Turn} Turn
 */
import { el } from "../markdown/render.js";
import { visible } from "../markdown/safe.js";
import { attempts, panes, scheduler } from "../state.js";
import { shownAttempt } from "../conversation.js";
import { t } from "../i18n.js";
import { probe } from "../probe.js";
import { TranscriptView } from "./transcript-view.js";
import { lazy } from "../lazy.js";

const loadWorkers = lazy(() => import("./workers.js"));

const NEAR = 24;
const LINE = 20;
const AHEAD = 800; // px above what a reader sees that are there before he comes

/** What a lane knows besides its prompt: others only where it was told to read them. @param {import("../store.js").Lane} lane @param {number} index of the turn */
function contextOf(lane, index) {
  const words = [lane.dependsOn.length ? t("pane.reads", { lanes: lane.dependsOn.join(", ") }) : "", t(index ? "pane.history" : "pane.fresh")];
  return words.filter(Boolean).join(" ");
}

export class PaneBody {
  /** @param {HTMLElement} scroller @param {HTMLElement} pill @param {any} ctx */
  constructor(scroller, pill, ctx) {
    this.scroller = scroller;
    this.pill = pill;
    this.ctx = ctx;
    this.content = el("div", "pane-content");
    scroller.append(this.content);
    this.pinned = true;
    this.visible = true;
    this.heightWhenLeft = 0;
    this.newLines = 0;
    this.mounting = false;
    this.laidOut = false;
    this.lastTop = 0;
    this.lastHeight = 0;
    this.lastClient = 0;
    /** @type {Map<string, {box: HTMLElement, view: TranscriptView, key: string, drawable: any, folds: any[]}>} by run */
    this.turns = new Map();
    this.#listen();
  }

  #listen() {
    this.scroller.addEventListener("wheel", (event) => event.deltaY < 0 && this.#unpin(), { passive: true });
    this.scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    this.resize = new ResizeObserver(() => {
      if (!this.pinned || !this.#moved()) return;
      if (this.scroller.clientHeight > this.lastClient) this.#again(); // a taller pane shows more above
      this.#toEnd();
    });
    this.resize.observe(this.scroller);
    this.resize.observe(this.content);
    this.seen = new IntersectionObserver((entries) => {
      this.visible = entries[entries.length - 1].isIntersecting; // the last: a busy page gets several at once
      if (this.visible) this.#again();
    });
    this.seen.observe(this.scroller);
  }

  /** Another turn for everything in the pane. */
  #again() {
    for (const turn of this.turns.values()) for (const drawable of [turn.drawable, ...turn.folds]) scheduler.request(drawable);
  }

  #unpin() {
    if (!this.pinned || this.scroller.scrollHeight <= this.scroller.clientHeight) return;
    this.pinned = false;
    this.heightWhenLeft = this.content.offsetHeight;
  }

  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    const fromEnd = scrollHeight - clientHeight - scrollTop;
    // A new width or height moves the text too; only where nothing changed it was the reader who scrolled up.
    if (this.pinned && this.#moved()) return this.#toEnd();
    if (scrollTop < this.lastTop - 1 && fromEnd > NEAR) this.#unpin();
    else if (fromEnd <= 2 || (fromEnd <= NEAR && scrollTop > this.lastTop)) this.#pin();
    this.lastTop = scrollTop;
    this.#mountAbove();
  }

  /** Some at a time, until what the reader is near to is there. */
  #mountAbove() {
    if (this.pinned || this.mounting) return;
    const above = this.scroller.getBoundingClientRect().top - AHEAD;
    const height = this.content.offsetHeight;
    for (const { view } of this.turns.values()) if (view.mountAbove(above)) this.mounting = true;
    if (!this.mounting) return;
    this.heightWhenLeft += this.content.offsetHeight - height; // a guessed height that was wrong is no new line
    requestAnimationFrame(() => {
      this.mounting = false;
      this.#mountAbove();
    });
  }

  #pin() {
    this.pinned = true;
    this.pill.hidden = true;
  }

  /** Follow the end again. */
  follow() {
    this.#pin();
    this.#toEnd();
  }

  /** Whether the text or the pane has another height than when its end was shown last. */
  #moved() {
    return this.scroller.scrollHeight !== this.lastHeight || this.scroller.clientHeight !== this.lastClient;
  }

  #toEnd() {
    this.#look();
    this.#scroll();
  }

  /** Reads the layout. */
  #look() {
    this.lastHeight = this.scroller.scrollHeight;
    this.lastClient = this.scroller.clientHeight;
  }

  /** Writes the position that goes with what was read. */
  #scroll() {
    this.lastTop = Math.max(0, this.lastHeight - this.lastClient);
    this.scroller.scrollTop = this.lastTop + 1; // a height may have a fraction: the browser stops at the end
  }

  /** Show these turns. @param {Entry} entry */
  show(entry) {
    const wanted = new Set();
    entry.turns.forEach((turn, index) => {
      const lane = shownAttempt(turn, attempts.value);
      wanted.add(turn.run.id);
      const old = this.turns.get(turn.run.id);
      if (old?.view.lane === lane) {
        this.#prompt(old.box, turn, lane, index);
        return;
      }
      if (old) this.#forget(turn.run.id);
      this.#add(turn, lane, index);
    });
    for (const id of [...this.turns.keys()]) if (!wanted.has(id)) this.#forget(id);
    for (const turn of entry.turns) this.#workers(turn.run.id, turn.workers ?? []);
  }

  /** @param {string} run @param {import("../store.js").Lane[]} lanes folded into this pane */
  #workers(run, lanes) {
    const turn = this.turns.get(run);
    const box = turn?.box.querySelector(":scope > .workers");
    if (!turn || !(lanes.length || box?.childElementCount)) return;
    void loadWorkers().then(({ showWorkers }) => {
      if (lanes.length && !turn.box.isConnected) return;
      const pane = { ctx: this.ctx, seen: () => this.visible, phases: this.#phases(turn.view) };
      turn.folds = showWorkers(/** @type {HTMLElement} */ (box), lanes, pane);
    });
  }

  /** @param {Turn} turn @param {import("../store.js").Lane} lane @param {number} index */
  #add(turn, lane, index) {
    const transcript = el("div", "transcript");
    const gone = el("p", "line line-note", t("pane.earlier"));
    const box = el("section", "turn", el("div", "prompt-slot"), gone, transcript, el("div", "workers"));
    const next = this.content.children[index] ?? null;
    this.content.insertBefore(box, next);
    this.#prompt(box, turn, lane, index);
    const view = new TranscriptView(transcript, lane, { ...this.ctx, windowed: () => this.pinned });
    const key = `${turn.run.id}/${lane.id}`;
    const drawable = {
      flush: (/** @type {number} */ now) => {
        if (!this.visible) return true; // counts only; drawn when it comes into view
        const all = view.flush(now);
        probe.drawn(key);
        return all;
      },
      ...this.#phases(view),
      visible: () => this.visible,
    };
    // A lane that was drawn before (another attempt, a new layout) is drawn from its beginning.
    lane.transcripts.touched.clear();
    this.turns.set(turn.run.id, { box, view, key, drawable, folds: [] });
    panes.set(key, drawable);
    scheduler.request(drawable);
  }

  /** @param {string} run */
  #forget(run) {
    const turn = this.turns.get(run);
    if (!turn) return;
    this.#workers(run, []);
    turn.box.remove();
    scheduler.forget(turn.drawable);
    if (panes.get(turn.key) === turn.drawable) panes.delete(turn.key);
    this.turns.delete(run);
  }

  /** @param {HTMLElement} box @param {Turn} turn @param {import("../store.js").Lane} lane @param {number} index */
  #prompt(box, turn, lane, index) {
    const own = turn.run.metadata?.lanes?.[lane.id]?.message ?? turn.run.metadata?.lanes?.[lane.id.replace(/~\d+$/, "")]?.message;
    // What a sub-agent or a worker was asked stands in its parent's call; the run's prompt it never saw.
    const shared = "path" in lane || lane.parent || lane.title === "Σ" ? "" : turn.run.message;
    const text = own ?? shared;
    const slot = /** @type {HTMLElement} */ (box.firstChild);
    /** @type {HTMLElement} */ (slot.nextSibling).hidden = !turn.run.partial;
    const context = contextOf(lane, index);
    const drawn = `${context}\n${text}`;
    if (slot.dataset.drawn === drawn) return;
    slot.dataset.drawn = drawn;
    if (!text) return slot.replaceChildren();
    const who = el("span", "prompt-who", own ? t("pane.ownPrompt") : index ? t("pane.turn", { n: index + 1 }) : t("pane.prompt"));
    const first = el("span", "prompt-line", visible(text.split("\n")[0].slice(0, 200)));
    const full = el("div", "prompt-full", visible(text), el("p", "prompt-context", context));
    full.dir = first.dir = "auto";
    slot.replaceChildren(el("details", "prompt", el("summary", "", who, first), full));
  }

  /** What follows in a turn when something in the pane was drawn. @param {TranscriptView} view */
  #phases(view) {
    return {
      measure: () => this.#measure(view),
      settle: () => void (this.laidOut && this.pinned && this.#scroll()),
      tidy: () => void (this.laidOut && this.#tidy(view)),
    };
  }

  /** All reads of a turn, after all panes have drawn: the first one lays the page out. @param {TranscriptView} view */
  #measure(view) {
    this.laidOut = this.visible && this.scroller.clientHeight > 0; // else there are no positions
    if (!this.laidOut) return;
    if (this.pinned) {
      this.#look();
      view.measure(this.content.getBoundingClientRect().bottom, this.lastClient + AHEAD);
    } else this.newLines = Math.max(0, Math.round((this.content.offsetHeight - this.heightWhenLeft) / LINE));
  }

  /** What changes the layout again comes last; a spacer is as high as what it stands for, so positions stay right. @param {TranscriptView} view */
  #tidy(view) {
    if (this.pinned) {
      if (view.trim()) this.#again();
      return;
    }
    if (!this.newLines) return;
    this.pill.hidden = false;
    const text = t("pane.newLines", { n: this.newLines });
    if (this.pill.textContent !== text) this.pill.textContent = text;
  }

  close() {
    this.resize?.disconnect();
    this.seen?.disconnect();
    for (const id of [...this.turns.keys()]) this.#forget(id);
    this.content.remove();
  }
}
