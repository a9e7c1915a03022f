/**
 * Which tabs may keep a stream open. A browser allows six connections to a host over all its tabs, and what comes
 * seventh waits without a word, also a click on Stop. So four tabs follow live; any further one looks in every
 * second. A tab that comes to the front takes the place of another. Built on Web Locks, which a crashed tab gives
 * back by itself; where the browser has none (plain HTTP from another host) every tab follows live.
 *
 * @typedef {{lost: AbortSignal, release: () => void}} Place
 */

const PLACES = 4; // of six connections: the others are for requests, and for tabs that look in
const LOOK_IN_MS = 1000;

let front = false; // came to the front and has no place yet
/** @type {() => void} */
let wake = () => undefined;

if (typeof document !== "undefined") {
  front = !document.hidden;
  document.addEventListener("visibilitychange", () => {
    front = !document.hidden;
    if (front) wake();
  });
}

/** A place to follow live from, or null: then look in only. @returns {Promise<Place|null>} */
export async function takePlace() {
  if (!("locks" in navigator)) return { lost: new AbortController().signal, release: () => undefined };
  let place = null;
  for (let i = 0; i < PLACES && !place; i++) place = await hold(i, { ifAvailable: true });
  if (!place && front) place = await hold(Math.floor(Math.random() * PLACES), { steal: true });
  front = false;
  return place;
}

/** @param {number} number @param {LockOptions} options @returns {Promise<Place|null>} */
function hold(number, options) {
  return new Promise((resolve) => {
    const lost = new AbortController();
    const request = navigator.locks.request(`mux-stream-${number}`, options, (lock) => {
      if (!lock) return resolve(null);
      return /** @type {Promise<void>} */ (new Promise((release) => resolve({ lost: lost.signal, release })));
    });
    request.catch(() => lost.abort()); // another tab came to the front
  });
}

/** The time between two looks, or until the tab comes to the front. @param {AbortSignal} signal @returns {Promise<void>} */
export function untilNextLook(signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, LOOK_IN_MS);
    wake = () => {
      clearTimeout(timer);
      resolve();
    };
    signal.addEventListener("abort", wake, { once: true });
  });
}
