/** An edge between two parts of the page, moved by dragging or by the arrow keys. */
import { useRef } from "preact/hooks";
import { html } from "../html.js";

const STEP = 16; // px for a key press

/**
 * @param {{label: string, now: number, lying?: boolean, style?: Record<string, string>, className?: string, onMove: (px: number) => void}} props
 *   `now`: where it is, for screen readers; `lying`: between two rows; `onMove`: by so many pixels
 */
export function Edge({ label, now, lying = false, style, className = "", onMove }) {
  const start = useRef(0);
  const at = (/** @type {PointerEvent} */ e) => (lying ? e.clientY : e.clientX);
  const [back, on] = lying ? ["ArrowUp", "ArrowDown"] : ["ArrowLeft", "ArrowRight"];
  const key = (/** @type {KeyboardEvent} */ event) => {
    if (event.key !== back && event.key !== on) return;
    event.preventDefault();
    onMove(event.key === on ? STEP : -STEP);
  };
  return html`<div class=${`edge ${className}${lying ? " is-lying" : ""}`} role="separator" aria-orientation=${lying ? "horizontal" : "vertical"} tabindex="0"
    aria-label=${label} aria-valuenow=${Math.round(now)} style=${style} onKeyDown=${key}
    onPointerDown=${(/** @type {any} */ e) => { e.currentTarget.setPointerCapture(e.pointerId); start.current = at(e); }}
    onPointerMove=${(/** @type {any} */ e) => {
      if (!e.currentTarget.hasPointerCapture(e.pointerId) || at(e) === start.current) return;
      onMove(at(e) - start.current);
      start.current = at(e);
    }}></div>`;
}
