/** Desktop notifications: only where a person asked for them, and only while the tab is out of sight. */
import { signal } from "@preact/signals";
import { focus, saved, toast } from "./state.js";
import { t } from "./i18n.js";

export const notices = signal(Boolean(saved.get("notices", false)) && globalThis.Notification?.permission === "granted");

export async function toggleNotices() {
  const wanted = !notices.value;
  if (wanted && (await globalThis.Notification?.requestPermission()) !== "granted") {
    toast(t("notices.refused"), { bad: true });
    return;
  }
  notices.value = wanted;
  saved.set("notices", wanted);
  toast(t(wanted ? "notices.on" : "notices.off"), { ms: 3000 });
}

/** @param {string} title @param {string} body @param {string} [lane] which to show when it is clicked */
export function notice(title, body, lane) {
  if (!notices.value || !document.hidden) return;
  const note = new Notification(title, { body, tag: `mux-${lane ?? "run"}`, icon: "icon.svg" });
  note.onclick = () => {
    window.focus();
    if (lane) focus.value = lane;
    note.close();
  };
}
