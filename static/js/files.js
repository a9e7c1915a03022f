/** Clipboard and downloads. */
import { toast } from "./state.js";
import { t } from "./i18n.js";

/** @param {string} text */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast(t("copied"), { ms: 1500 });
  } catch {
    toast(t("copy.failed"), { bad: true });
  }
}

/** @param {string} name @param {string|Blob} content @param {string} type */
export function download(name, content, type) {
  const blob = content instanceof Blob ? content : new Blob([content], { type: `${type};charset=utf-8` });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name.replace(/[^\w.~-]+/g, "_");
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
