/** The panes in their grid: as many columns as the screen and the number of lanes ask for. */
import { useEffect, useRef } from "preact/hooks";
import { html } from "../html.js";
import { focus, layout, maximised, structure } from "../state.js";
import { focusNext, paneEntries } from "../actions.js";
import { Pane } from "./pane.js";
import { Resizers, setTracks } from "./resize.js";

/** Columns for so many lanes on so much room. @param {number} lanes @param {number} width */
export function columnsFor(lanes, width) {
  const fit = Math.max(1, Math.floor(width / 340));
  const even = lanes <= 3 ? lanes : lanes === 4 ? (width >= 1800 ? 4 : 2) : lanes <= 6 ? 3 : lanes <= 8 ? 4 : Math.ceil(Math.sqrt(lanes));
  return Math.max(1, Math.min(fit, even));
}

export function Grid() {
  structure.value;
  const list = paneEntries();
  const ref = useRef(/** @type {HTMLElement|null} */ (null));
  const one = maximised.value || layout.value === "tabs";
  const current = list.find((e) => e.key === focus.value)?.key ?? list[0]?.key;
  useEffect(() => {
    const grid = ref.current;
    if (!grid) return undefined;
    const fit = () => {
      const narrow = grid.clientWidth < 700;
      grid.toggleAttribute("data-one", one || narrow);
      const columns = one || narrow ? 1 : layout.value === "columns" ? list.length : columnsFor(list.length, grid.clientWidth);
      grid.style.setProperty("--columns", String(columns));
      const rows = Math.ceil(list.length / columns);
      grid.style.setProperty("--rows", String(rows));
      setTracks(grid, columns, one || narrow ? 1 : rows);
    };
    const observer = new ResizeObserver(fit);
    observer.observe(grid);
    fit();
    return () => observer.disconnect();
  }, [list.length, layout.value, one]);
  const touch = useRef({ x: 0, y: 0 });
  const began = (/** @type {TouchEvent} */ e) => (touch.current = { x: e.touches[0].clientX, y: e.touches[0].clientY });
  const ended = (/** @type {TouchEvent} */ e) => {
    const dx = e.changedTouches[0].clientX - touch.current.x;
    const dy = e.changedTouches[0].clientY - touch.current.y;
    if (ref.current?.hasAttribute("data-one") && Math.abs(dx) > 60 && Math.abs(dy) < 40) focusNext(dx < 0 ? 1 : -1);
  };
  return html`
    <div class="grid" ref=${ref} data-layout=${layout.value} onTouchStart=${began} onTouchEnd=${ended}>
      <${Resizers} grid=${ref} lanes=${list.length} one=${one} />
      ${list.map((entry) => html`<${Pane} key=${entry.key} entry=${entry} selected=${entry.key === current} />`)}
    </div>
  `;
}
