/** The top bar: what runs, in which state, what it cost, and the few commands that concern all of it. */
import { useEffect, useRef } from "preact/hooks";
import { html, Icon } from "../html.js";
import { connection, dialog, offlineSince, railOpen, runs, saved, serverNow, shown, structure, theme } from "../state.js";
import { currentRun, newRun, shownEntries, stopAll } from "../actions.js";
import { count, money, seconds, written } from "../lanestate.js";
import { waitingApprovals } from "../waiting.js";
import { logOut, who } from "../access.js";
import { NARROW } from "./rail.js";
import { onTick } from "../ticker.js";
import { applyTheme } from "../theme.js";
import { t } from "../i18n.js";

export function TopBar() {
  structure.value;
  const run = currentRun();
  const live = shown.value.some((id) => runs.get(id)?.live);
  const waiting = waitingApprovals().length;
  return html`
    <header class="topbar" data-region tabindex="-1" aria-label=${t("region.top")}>
      <button class="btn icon-only quiet" aria-label=${t("rail.toggle")} title=${t("rail.toggle")} aria-expanded=${railOpen.value} onClick=${toggleRail}><${Icon} name="menu" /></button>
      <button class="brand btn quiet" onClick=${() => newRun()} title=${t("run.new")}><span class="brand-mark" aria-hidden="true"></span>Mux</button>
      <h1 class="run-title" title=${run ? titleOf(run) : ""}>${run ? titleOf(run) : ""}</h1>
      ${run ? html`<span class=${`chip hue-${HUES[run.status] ?? "blue"}`} data-run-status=${run.status}>${t(`status.${run.status}`)}</span>` : null}
      <span class="grow"></span>
      ${run ? html`<${Totals} />` : null}
      <${ConnectionDot} />
      ${waiting ? html`<button class="btn amber" aria-label=${t("inbox.open", { n: waiting })} onClick=${() => (dialog.value = { kind: "inbox" })}><span class="glyph" aria-hidden="true">!</span><span class="waiting-words">${t("inbox.open", { n: waiting })}</span><span class="waiting-count num" aria-hidden="true">${waiting}</span></button>` : null}
      ${live ? html`<button class="btn danger" id="stop-all" aria-label=${t("stop.all")} title=${t("stop.all")} onClick=${stopAll}><${Icon} name="stop" /><span>${t("stop.all")}</span></button>` : null}
      ${run ? html`<button class="btn" aria-label=${t("share")} title=${t("share")} onClick=${() => (dialog.value = { kind: "share" })}><${Icon} name="share" /><span class="wide-only">${t("share")}</span></button>` : null}
      <button class="btn icon-only quiet" data-desktop aria-label=${t("palette.open")} title=${t("palette.open")} onClick=${() => (dialog.value = { kind: "palette" })}><${Icon} name="command" /></button>
      <button class="btn icon-only quiet" aria-label=${t("theme.switch", { theme: t(`theme.${theme.value}`) })} title=${t("theme.switch", { theme: t(`theme.${theme.value}`) })} onClick=${nextTheme} data-look><${Icon} name="theme" /></button>
      ${who.value?.login ? html`<button class="btn quiet" id="log-out" title=${t("login.outOf", { owner: who.value.owner })} onClick=${logOut}>${t("login.out")}</button>` : null}
    </header>
  `;
}

const HUES = /** @type {Record<string, string>} */ ({
  queued: "grey", running: "blue", waiting: "amber", completed: "green", partial: "amber", failed: "red", cancelled: "grey",
});

/** @param {{title?: string, message: string}} run */
export const titleOf = (run) => run.title || run.message.split("\n")[0].slice(0, 120) || t("run.untitled");

function toggleRail() {
  railOpen.value = !railOpen.value;
  if (!NARROW.matches) saved.set("rail", railOpen.value); // there it lies over the page, and is opened for a moment
}

function nextTheme() {
  const all = ["auto", "light", "dark"];
  theme.value = all[(all.indexOf(theme.value) + 1) % 3];
  saved.set("theme", theme.value);
  applyTheme();
}

/** Σ over everything on screen; written by the ticker, not by the virtual DOM. */
function Totals() {
  const ref = useRef(null);
  useEffect(
    () =>
      onTick(() => {
        const node = /** @type {HTMLElement|null} */ (/** @type {unknown} */ (ref.current));
        if (node) write(node);
      }),
    [],
  );
  return html`<span class="totals num" ref=${ref}><span></span><span></span><span></span></span>`;
}

/** @param {HTMLElement} node */
function write(node) {
  let tokens = 0;
  let cost = /** @type {number|undefined} */ (undefined);
  let currency;
  for (const entry of shownEntries()) {
    for (const turn of entry.turns) {
      for (const lane of turn.attempts) {
        const usage = lane.usage;
        tokens += (usage.input_tokens ?? 0) + (written(lane, usage) ?? 0);
        if (usage.cost !== undefined) cost = (cost ?? 0) + usage.cost;
        currency = usage.currency ?? currency;
      }
    }
  }
  const run = currentRun();
  const elapsed = run?.startTs ? (run.endTs || serverNow()) - run.startTs : 0;
  const texts = [cost === undefined ? "" : `Σ ${money(cost, currency)}`, t("totals.tokens", { n: tokens, text: count(tokens) }), seconds(elapsed)];
  texts.forEach((text, i) => {
    const slot = node.children[i];
    if (slot && slot.textContent !== text) slot.textContent = text;
  });
}

function ConnectionDot() {
  const state = connection.value;
  const word = t(`connection.${state}`);
  return html`<span class=${`dot dot-${offlineSince.value ? "waiting" : state}`} role="status" aria-label=${word} title=${word}></span>`;
}
