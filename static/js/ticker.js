/** Four times a second while the page is visible: numbers that change with time are written here, all in one go. */
/** @type {Set<() => void>} */
const listeners = new Set();
let timer = 0;

/** @param {() => void} listener @returns {() => void} stops it */
export function onTick(listener) {
  listeners.add(listener);
  listener();
  if (!timer) timer = window.setInterval(tick, 250);
  return () => {
    listeners.delete(listener);
    if (!listeners.size) {
      clearInterval(timer);
      timer = 0;
    }
  };
}

export function tick() {
  if (document.hidden) return;
  for (const listener of listeners) listener();
}
