/** Panes change places by dragging their header (or by "move left" and "move right" in the menu, on the keyboard). */
import { moveLane, paneEntries } from "../actions.js";
import { order, saved } from "../state.js";

let dragged = "";

/** @param {string} key */
export function dragHandle(key) {
  return {
    draggable: true,
    onDragStart: (/** @type {DragEvent} */ event) => {
      dragged = key;
      event.dataTransfer?.setData("text/plain", key);
    },
    onDragOver: (/** @type {DragEvent} */ event) => dragged && event.preventDefault(),
    onDrop: (/** @type {DragEvent} */ event) => {
      event.preventDefault();
      const keys = paneEntries().map((e) => e.key);
      if (dragged && dragged !== key) moveLane(dragged, keys.indexOf(key) - keys.indexOf(dragged));
      dragged = "";
      saved.set("order", order.value);
    },
  };
}
