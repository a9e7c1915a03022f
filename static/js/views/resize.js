/** Handles between the columns of the grid: drag, or arrow keys; the shares are remembered by number of columns. */
import { useEffect, useRef, useState } from "preact/hooks";
import { html } from "../html.js";
import { layout, saved } from "../state.js";
import { t } from "../i18n.js";

const LEAST = 0.25;

/** @param {number} columns @returns {number[]} */
function shares(columns) {
  const all = saved.get("columns", {})[columns];
  return Array.isArray(all) && all.length === columns ? all : Array.from({ length: columns }, () => 1);
}

/** @param {HTMLElement} grid @param {number} columns */
export function setColumns(grid, columns) {
  const even = columns === 1 || layout.value === "columns";
  grid.style.gridTemplateColumns = even ? "" : shares(columns).map((s) => `minmax(0, ${s.toFixed(3)}fr)`).join(" ");
  grid.dataset.columns = String(columns);
}

/** @param {HTMLElement} grid @param {number} at @param {number} by share of a column */
function move(grid, at, by) {
  const columns = Number(grid.dataset.columns);
  const next = shares(columns);
  const step = Math.max(LEAST - next[at], Math.min(next[at + 1] - LEAST, by));
  next[at] += step;
  next[at + 1] -= step;
  saved.set("columns", { ...saved.get("columns", {}), [columns]: next });
  setColumns(grid, columns);
}

/** @param {{grid: {current: HTMLElement|null}, lanes: number, one: boolean}} props */
export function Resizers({ grid, lanes, one }) {
  const [edges, place] = useState(/** @type {{left: number, height: number}[]} */ ([]));
  const start = useRef(0);
  const measure = () => {
    const node = grid.current;
    if (!node) return;
    const columns = Number(node.dataset.columns ?? 1);
    const panes = [...node.querySelectorAll(":scope > .pane")].slice(0, columns);
    const hidden = one || node.hasAttribute("data-one") || layout.value === "columns";
    place(hidden ? [] : panes.slice(0, -1).map((p) => ({ left: /** @type {HTMLElement} */ (p).offsetLeft + p.clientWidth + 1, height: node.scrollHeight - 16 })));
  };
  useEffect(() => {
    const node = grid.current;
    if (!node) return undefined;
    const observer = new ResizeObserver(measure);
    observer.observe(node);
    return () => observer.disconnect();
  }, [lanes, one, layout.value]);
  const by = (/** @type {number} */ at, /** @type {number} */ amount) => {
    if (grid.current) move(grid.current, at, amount);
    measure();
  };
  return edges.map((edge, at) => html`
    <div key=${at} class="resizer" role="separator" aria-orientation="vertical" tabindex="0" aria-label=${t("pane.resize")} aria-valuenow=${Math.round(shares(edges.length + 1)[at] * 100)}
      style=${{ left: `${edge.left}px`, height: `${edge.height}px` }}
      onKeyDown=${(/** @type {KeyboardEvent} */ e) => { if (e.key === "ArrowLeft") by(at, -0.05); else if (e.key === "ArrowRight") by(at, 0.05); }}
      onPointerDown=${(/** @type {any} */ e) => { e.currentTarget.setPointerCapture(e.pointerId); start.current = e.clientX; }}
      onPointerMove=${(/** @type {any} */ e) => {
        if (!e.currentTarget.hasPointerCapture(e.pointerId)) return;
        const width = (grid.current?.clientWidth ?? 1) / (edges.length + 1);
        by(at, (e.clientX - start.current) / width);
        start.current = e.clientX;
      }}></div>`);
}
