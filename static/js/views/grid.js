/** The panes in their grid: as many columns as the screen and the number of lanes ask for. */
import { useEffect, useRef } from "preact/hooks";
import { html } from "../html.js";
import { focus, layout, maximised, structure } from "../state.js";
import { shownEntries } from "../actions.js";
import { Pane } from "./pane.js";

/** Columns for so many lanes on so much room. @param {number} lanes @param {number} width */
export function columnsFor(lanes, width) {
  const fit = Math.max(1, Math.floor(width / 340));
  const even = lanes <= 3 ? lanes : lanes === 4 ? (width >= 1800 ? 4 : 2) : lanes <= 6 ? 3 : lanes <= 8 ? 4 : Math.ceil(Math.sqrt(lanes));
  return Math.max(1, Math.min(fit, even));
}

export function Grid() {
  structure.value;
  const list = shownEntries();
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
      grid.style.setProperty("--rows", String(Math.ceil(list.length / columns)));
    };
    const observer = new ResizeObserver(fit);
    observer.observe(grid);
    fit();
    return () => observer.disconnect();
  }, [list.length, layout.value, one]);
  return html`
    <div class="grid" ref=${ref} data-layout=${layout.value}>
      ${list.map((entry) => html`<${Pane} key=${entry.key} entry=${entry} selected=${entry.key === current} />`)}
    </div>
  `;
}
