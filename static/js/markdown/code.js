/** Colours for a closed code block: lowlight's tree → spans. Loaded with the first closed fence, one language at a time. */
import { lazy } from "../lazy.js";
import { el } from "./render.js";

const LANGUAGES = new Set("bash c cpp css diff go ini java javascript json markdown python rust sql typescript xml yaml".split(" "));
/** @type {Record<string, string>} */
const ALIASES = {
  sh: "bash", shell: "bash", zsh: "bash", console: "bash", h: "c", "c++": "cpp", cc: "cpp", hpp: "cpp", golang: "go", toml: "ini",
  js: "javascript", jsx: "javascript", mjs: "javascript", jsonc: "json", md: "markdown", py: "python", python3: "python",
  rs: "rust", ts: "typescript", tsx: "typescript", html: "xml", svg: "xml", yml: "yaml", patch: "diff",
};
const MAX_CODE = 60_000;

const core = lazy(() => import("lowlight").then((module) => module.createLowlight()));
/** @type {Map<string, () => Promise<boolean>>} */
const grammars = new Map();

/** @param {string} language */
async function grammar(language) {
  const lowlight = await core();
  let load = grammars.get(language);
  if (!load) {
    load = lazy(() => import(`highlight.js/languages/${language}.js`).then((module) => {
      lowlight.register(language, module.default);
      return true;
    }));
    grammars.set(language, load);
  }
  await load();
  return lowlight;
}

/** Blocks that are being coloured or are done. @type {WeakMap<Element, Promise<void>>} */
const started = new WeakMap();

/** Colour the code inside `block` (a rendered figure), once; resolves when that is done. @param {Element} block @returns {Promise<void>} */
export function highlight(block) {
  let work = started.get(block);
  if (!work) {
    // Without the network the code stays as it is, and is tried again when it is drawn again.
    work = colour(block).catch(() => void started.delete(block));
    started.set(block, work);
  }
  return work;
}

/** @param {Element} block */
async function colour(block) {
  const code = /** @type {HTMLElement|null} */ (block.querySelector("pre > code"));
  const name = code?.dataset.lang?.toLowerCase() ?? "";
  const language = ALIASES[name] ?? name;
  const text = code?.textContent ?? "";
  if (!code || !LANGUAGES.has(language) || text.length > MAX_CODE) return;
  const lowlight = await grammar(language);
  await idle();
  code.replaceChildren(...lowlight.highlight(language, text).children.map(toNode));
}

/** @param {any} tree @returns {Node} */
function toNode(tree) {
  if (tree.type === "text") return document.createTextNode(tree.value);
  return el("span", (tree.properties?.className ?? []).join(" "), ...tree.children.map(toNode));
}

/** @returns {Promise<void>} */
function idle() {
  return new Promise((resolve) => {
    if ("requestIdleCallback" in globalThis) requestIdleCallback(() => resolve(), { timeout: 1000 });
    else setTimeout(resolve, 0);
  });
}
