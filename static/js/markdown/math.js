/**
 * Formulas as MathML. temml is loaded with the first formula; its tree becomes nodes by an allow-list, because its
 * own output sets `style` attributes, which the page's policy refuses.
 */
import { lazy } from "../lazy.js";

const NS = "http://www.w3.org/1998/Math/MathML";
const TAGS = new Set(
  ("math mrow mi mn mo mtext mspace ms mfrac msqrt mroot mstyle merror mpadded mphantom mfenced menclose msub msup " +
    "msubsup munder mover munderover mmultiscripts mprescripts none mtable mtr mtd mlabeledtr semantics annotation").split(" "),
);
const ATTRIBUTES = new Set(
  ("display displaystyle scriptlevel mathvariant stretchy fence separator lspace rspace accent accentunder width height " +
    "depth minsize maxsize movablelimits linethickness columnalign rowspacing columnspacing rowspan columnspan form symmetric largeop").split(" "),
);
const MAX_FORMULA = 5000;

const library = lazy(() => import("temml"));

/** @param {string} tex @param {boolean} display @returns {HTMLElement} */
export function formula(tex, display) {
  const node = document.createElement(display ? "div" : "span");
  node.className = `md-math is-source${display ? " md-math-block" : ""}`;
  node.textContent = tex;
  if (tex.length <= MAX_FORMULA) void fill(node, tex, display);
  return node;
}

/** @param {HTMLElement} node @param {string} tex @param {boolean} display */
async function fill(node, tex, display) {
  try {
    const temml = /** @type {any} */ ((await library()).default);
    const tree = temml.__renderToMathMLTree(tex, { displayMode: display, throwOnError: true, maxSize: [10, 10], maxExpand: 300 });
    const math = convert(tree);
    if (!math) return;
    node.replaceChildren(math);
    node.classList.remove("is-source");
  } catch {
    return; // not a formula that we can set: what was written stays
  }
}

/** @param {any} tree @param {number} [depth] @returns {Node|null} */
function convert(tree, depth = 0) {
  if (depth > 100 || !tree) return null;
  if (typeof tree.text === "string" && !tree.type) return document.createTextNode(tree.text);
  const children = (tree.children ?? []).map((/** @type {any} */ kid) => convert(kid, depth + 1)).filter(Boolean);
  const tag = tree.type ?? "mrow";
  if (tag === "annotation") return null;
  const node = document.createElementNS(NS, TAGS.has(tag) ? tag : "mrow");
  for (const [name, value] of Object.entries(tree.attributes ?? {})) {
    if (ATTRIBUTES.has(name)) node.setAttribute(name, String(value));
  }
  node.append(...children);
  return node;
}
