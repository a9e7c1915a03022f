/**
 * What untrusted text may become: which addresses may be links or images, and which characters must be seen.
 * Model and tool output decides nothing here: a link never points into this page's own origin (a GET there may
 * start a run), an image never makes a request.
 */

const LINK = /^(https?|mailto):/i;
const IMAGE = /^data:image\/(png|jpeg|gif|webp|avif);base64,[A-Za-z0-9+/=\s]+$/i;
const MAX_IMAGE = 4_000_000;

/** Controls that reorder or hide what a reader sees (CVE-2021-42574 "Trojan Source"), and C0 controls. */
const HIDDEN = /[\u202a-\u202e\u2066-\u2069\u200b\u2060\ufeff\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f]/g;
/** In prose only the overrides: isolates and embeddings are how right-to-left text is written. */
const OVERRIDE = /[\u202d\u202e\u0000-\u0008\u000b\u000c\u000e-\u001f]/g;

/** @param {string} c */
const mark = (c) => `⟨U+${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`;

/** For code, arguments and addresses: every character that hides or reorders is shown. @param {string} text */
export const visible = (text) => text.replace(HIDDEN, mark);

/** For prose. @param {string} text */
export const prose = (text) => text.replace(OVERRIDE, mark);

/**
 * The address that a link may open, or null.
 * @param {string} href @param {string} [origin] the page's own origin
 */
export function safeLink(href, origin = globalThis.location?.origin) {
  const text = href.trim();
  if (!LINK.test(text)) return null;
  try {
    const url = new URL(text);
    if (url.protocol === "mailto:") return url.href;
    if (url.origin === origin || url.username || url.password) return null;
    return url.href;
  } catch {
    return null;
  }
}

/** @param {string} src */
export const safeImage = (src) => (src.length <= MAX_IMAGE && IMAGE.test(src) ? src : null);
