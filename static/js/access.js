/** Who is at this page, and the login where the server asks for a key. What is being written stays as it is. */
import { signal } from "@preact/signals";
import { api } from "./api.js";
import { dialog, toast } from "./state.js";
import { t } from "./i18n.js";

/**
 * @typedef {{access: "on"|"off"|"insecure", owner: string, scopes: string[], title?: string, expires?: number,
 *   login: boolean, run?: string}} Who
 */
export const who = signal(/** @type {Who|null} */ (null));

const WARN_MS = 5 * 60_000; // before the session ends
const LONGEST_MS = 2 ** 31 - 1; // of a browser's timer
let warning = 0;

document.addEventListener("mux:login", askForKey);

/** Open the login, unless it is open. */
function askForKey() {
  if (dialog.value?.kind !== "login") dialog.value = { kind: "login" };
}

/** Ask the server who we are; an older server does not say. */
export async function look() {
  try {
    take(await api.session());
  } catch {
    return; // 401 has opened the login; anything else is said where it matters
  }
}

/** @param {Who} session */
function take(session) {
  who.value = session;
  clearTimeout(warning);
  const left = session.login && session.expires ? session.expires - Date.now() : Infinity;
  if (left <= LONGEST_MS) warning = window.setTimeout(warn, Math.max(0, left - WARN_MS), left);
}

/** @param {number} left ms */
function warn(left) {
  const minutes = Math.max(1, Math.round(Math.min(left, WARN_MS) / 60_000));
  toast(t("login.soon", { n: minutes }), { ms: WARN_MS, action: { label: t("login.now"), run: askForKey } });
}

/** @param {string} key @returns {Promise<void>} rejects with what was wrong */
export async function logIn(key) {
  take(await api.logIn(key));
  if (dialog.value?.kind === "login") dialog.value = null;
  document.dispatchEvent(new CustomEvent("mux:loggedin"));
}

export async function logOut() {
  await api.logOut().catch(() => undefined);
  location.reload();
}
