/** The keyboard: one table, which is also what the key sheet and the palette show. */
import { dialog, focus, maximised } from "./state.js";
import { closeTop, cycleLayout, focusLane, focusNext, laneAt, newRun, paneEntries, retryLane, stopAll, stopLane } from "./actions.js";
import { send } from "./views/composer.js";
import { toggleNotices } from "./notices.js";
import { toggleDensity } from "./theme.js";

/** @type {{keys: string, id: string, run: () => void}[]} */
export const COMMANDS = [
  { keys: "Ctrl+K", id: "palette", run: () => (dialog.value = { kind: "palette" }) },
  { keys: "Ctrl+Enter", id: "run", run: () => void send() },
  { keys: "n", id: "new", run: () => newRun() },
  { keys: "[", id: "previous", run: () => focusNext(-1) },
  { keys: "]", id: "next", run: () => focusNext(1) },
  { keys: "m", id: "maximise", run: () => (maximised.value = !maximised.value) },
  { keys: "g", id: "layout", run: cycleLayout },
  { keys: "s", id: "stop", run: () => onLane(stopLane) },
  { keys: "S", id: "stopAll", run: () => void stopAll() },
  { keys: "r", id: "retry", run: () => onLane(retryLane) },
  { keys: "w", id: "swap", run: () => onLane((key) => (dialog.value = { kind: "swap", laneId: key })) },
  { keys: "d", id: "compare", run: () => (dialog.value = { kind: "compare" }) },
  { keys: "a", id: "inbox", run: () => (dialog.value = { kind: "inbox" }) },
  { keys: "e", id: "export", run: () => (dialog.value = { kind: "share" }) },
  { keys: "h", id: "history", run: () => (dialog.value = { kind: "history" }) },
  { keys: "End", id: "end", run: () => onLane(follow) },
  { keys: "/", id: "search", run: () => document.getElementById("search")?.focus() },
  { keys: "c", id: "composer", run: () => document.getElementById("composer-text")?.focus() },
  { keys: "F6", id: "region", run: () => region(1) },
  { keys: "", id: "density", run: toggleDensity },
  { keys: "", id: "notices", run: () => void toggleNotices() },
  { keys: "?", id: "help", run: () => (dialog.value = { kind: "keys" }) },
];

/** @param {(key: string) => unknown} act */
function onLane(act) {
  const key = focus.value || paneEntries()[0]?.key;
  if (key && laneAt(key)) void act(key);
}

/** @param {string} key */
function follow(key) {
  const pill = document.getElementById(`pane-${key}`)?.querySelector(".pill");
  if (pill instanceof HTMLElement) pill.click();
}

/** F6 goes from region to region, Shift+F6 back. @param {number} step */
function region(step) {
  const all = /** @type {HTMLElement[]} */ ([...document.querySelectorAll("[data-region]")]).filter((node) => node.offsetParent !== null);
  const at = all.findLastIndex((node) => node.contains(document.activeElement));
  const next = all[(at + step + all.length) % all.length];
  const inner = next?.matches(".composer") ? next.querySelector("textarea") : next;
  if (inner instanceof HTMLElement) inner.focus();
}

/** @param {EventTarget|null} target */
const typing = (target) => target instanceof HTMLElement && (target.matches("input, textarea, select") || target.isContentEditable);

/** Approve or deny the one call in the box that the focus is in, or the focused lane's; behind a dialog, none. @param {string} key */
function answer(key) {
  const place = dialog.value ? document.querySelector("dialog") : document.getElementById(`pane-${focus.value}`);
  const box = document.activeElement?.closest(".approval") ?? place?.querySelector(".approval");
  const button = box?.querySelector(`[data-key="${key}"]`);
  if (button instanceof HTMLElement) button.click();
  return Boolean(button);
}

export function listenKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented) return;
    const command = event.ctrlKey || event.metaKey;
    if (event.key === "Escape") {
      if (typing(event.target) && !dialog.value) return; // never stops or closes anything from inside a text field
      if (closeTop()) event.preventDefault();
      return;
    }
    if (event.key === "F6") {
      event.preventDefault();
      region(event.shiftKey ? -1 : 1);
      return;
    }
    if (command && (event.key === "k" || event.key === "Enter")) {
      event.preventDefault();
      COMMANDS.find((c) => c.keys === (event.key === "k" ? "Ctrl+K" : "Ctrl+Enter"))?.run();
      return;
    }
    if (command || event.altKey || typing(event.target)) return;
    plain(event);
  });
}

/** @param {KeyboardEvent} event */
function plain(event) {
  if ((event.key === "y" || event.key === "n") && answer(event.key)) {
    event.preventDefault();
    return;
  }
  if (dialog.value) return;
  if (/^[1-9]$/.test(event.key)) {
    const entry = paneEntries()[Number(event.key) - 1];
    if (entry) focusLane(entry.key);
    return;
  }
  const found = COMMANDS.find((c) => c.keys === event.key);
  if (!found) return;
  event.preventDefault();
  found.run();
}
