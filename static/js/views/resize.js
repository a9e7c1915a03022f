/** Edges between the columns and rows of the grid; their shares are remembered by number of columns and of rows. */
import { useEffect, useState } from "preact/hooks";
import { html } from "../html.js";
import { layout, saved } from "../state.js";
import { t } from "../i18n.js";
import { Edge } from "./edge.js";

/** @typedef {"columns"|"rows"} Kind */

const LEAST = { columns: 0.25, rows: 0.4 };
const TRACK = {
  columns: (/** @type {number} */ share) => `minmax(0, ${share.toFixed(3)}fr)`,
  rows: (/** @type {number} */ share) => `minmax(220px, ${share.toFixed(3)}fr)`,
};
const STYLE = /** @type {const} */ ({ columns: "gridTemplateColumns", rows: "gridTemplateRows" });

/** @param {Kind} kind @param {number} count @returns {number[]} */
function shares(kind, count) {
  const all = saved.get(kind, {})[count];
  return Array.isArray(all) && all.length === count ? all : Array.from({ length: count }, () => 1);
}

/** @param {HTMLElement} grid @param {number} columns @param {number} rows */
export function setTracks(grid, columns, rows) {
  const even = layout.value === "columns";
  for (const [kind, count] of /** @type {[Kind, number][]} */ ([["columns", columns], ["rows", rows]])) {
    grid.style[STYLE[kind]] = even || count === 1 ? "" : shares(kind, count).map(TRACK[kind]).join(" ");
    grid.dataset[kind] = String(count);
  }
}

/** @param {HTMLElement} grid @param {Kind} kind @param {number} at @param {number} px */
function move(grid, kind, at, px) {
  const count = Number(grid.dataset[kind]);
  const next = shares(kind, count);
  const by = (px * count) / (kind === "columns" ? grid.clientWidth : Math.max(grid.clientHeight, grid.scrollHeight));
  const step = Math.max(LEAST[kind] - next[at], Math.min(next[at + 1] - LEAST[kind], by));
  next[at] += step;
  next[at + 1] -= step;
  saved.set(kind, { ...saved.get(kind, {}), [count]: next });
  setTracks(grid, Number(grid.dataset.columns), Number(grid.dataset.rows));
}

/** Where the edges are. @param {HTMLElement} grid */
function edgesOf(grid) {
  const columns = Number(grid.dataset.columns ?? 1);
  const panes = /** @type {HTMLElement[]} */ ([...grid.querySelectorAll(":scope > .pane")]);
  const first = panes.filter((_, i) => i % columns === 0);
  return {
    columns: panes.slice(0, columns).slice(0, -1).map((p) => ({ left: `${p.offsetLeft + p.offsetWidth}px`, height: `${grid.scrollHeight - 16}px` })),
    rows: first.slice(0, -1).map((p) => ({ top: `${p.offsetTop + p.offsetHeight}px`, width: `${grid.clientWidth - 24}px` })),
  };
}

/** @param {{grid: {current: HTMLElement|null}, lanes: number, one: boolean}} props */
export function Resizers({ grid, lanes, one }) {
  const [edges, place] = useState(/** @type {Record<Kind, Record<string, string>[]>} */ ({ columns: [], rows: [] }));
  const measure = () => {
    const node = grid.current;
    if (!node) return;
    const hidden = one || node.hasAttribute("data-one") || layout.value === "columns";
    place(hidden ? { columns: [], rows: [] } : edgesOf(node));
  };
  useEffect(() => {
    const node = grid.current;
    if (!node) return undefined;
    const observer = new ResizeObserver(measure);
    observer.observe(node);
    return () => observer.disconnect();
  }, [lanes, one, layout.value]);
  const drag = (/** @type {Kind} */ kind, /** @type {number} */ at) => (/** @type {number} */ px) => {
    if (grid.current) move(grid.current, kind, at, px);
    measure();
  };
  return /** @type {const} */ (["columns", "rows"]).map((kind) =>
    edges[kind].map((style, at) => html`<${Edge} key=${`${kind}${at}`} className="resizer" label=${t(`pane.resize.${kind}`)} lying=${kind === "rows"} style=${style}
      now=${shares(kind, edges[kind].length + 1)[at] * 100} onMove=${drag(kind, at)} />`),
  );
}
