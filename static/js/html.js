/** `html` templates for preact. */
import { h } from "preact";
import htm from "htm";

export const html = htm.bind(h);

/** An icon of the sprite in index.html. @param {{name: string}} props */
export function Icon({ name }) {
  return html`<svg class="icon" aria-hidden="true" width="16" height="16"><use href=${`#i-${name}`} /></svg>`;
}
