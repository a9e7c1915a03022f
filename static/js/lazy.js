/** Parts that are loaded when first needed. The network may be gone just then: a failed load is tried again. */

const DELAYS_MS = [500, 1000, 2000, 4000, 8000, 16_000];

/**
 * @template T
 * @param {() => Promise<T>} load
 * @returns {() => Promise<T>} gives the part; rejects when all tries failed, and begins anew when asked again
 */
export function lazy(load) {
  /** @type {Promise<T>|null} */
  let loading = null;
  return () => {
    loading ??= persistent(load).catch((error) => {
      loading = null;
      throw error;
    });
    return loading;
  };
}

/** @template T @param {() => Promise<T>} load @returns {Promise<T>} */
async function persistent(load) {
  for (const delay of DELAYS_MS) {
    try {
      return await load();
    } catch {
      await new Promise((resolve) => setTimeout(resolve, delay));
    }
  }
  return load();
}
