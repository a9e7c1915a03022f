/**
 * A tool's result by its type: text, a diff, a JSON tree, a table, sources, a picture. What is shown is capped (the first
 * 200 and last 300 lines, 100 kB); "open full" and "download" give all of it.
 *
 * @typedef {import("../transcript.js").Tool} Tool
 */
import { el } from "../markdown/render.js";
import { safeImage, safeLink, visible } from "../markdown/safe.js";
import { t } from "../i18n.js";

const FIRST = 200;
const LAST = 300;
const MAX_CHARS = 100_000;
const MAX_ENTRIES = 200;

/** @param {string} text @returns {{text: string, cut: number}} what is shown, and how many lines are not */
export function cap(text) {
  const bounded = text.length > MAX_CHARS ? `${text.slice(0, MAX_CHARS * 0.4)}\n…\n${text.slice(-MAX_CHARS * 0.6)}` : text;
  const lines = bounded.split("\n");
  if (lines.length <= FIRST + LAST) return { text: bounded, cut: text.length - bounded.length > 0 ? text.split("\n").length - lines.length : 0 };
  const cut = text.split("\n").length - FIRST - LAST;
  return { text: [...lines.slice(0, FIRST), `… ${t("tool.cut", { n: cut })} …`, ...lines.slice(-LAST)].join("\n"), cut };
}

/** @param {Tool} tool @param {any} [_ctx] @returns {HTMLElement} */
export function resultView(tool, _ctx) {
  const box = el("div", "result");
  const data = tool.data ?? jsonOf(tool.output ?? "");
  const sources = sourcesOf(data);
  if (sources.length) box.append(sourceList(sources));
  else if (isTable(data)) box.append(table(data));
  else if (data && typeof data === "object") box.append(tree(data, 0));
  const image = data?.image && safeImage(String(data.image));
  if (image) box.append(Object.assign(el("img"), { src: image, alt: "" }));
  if (!box.childElementCount || (tool.data !== undefined && !sources.length)) {
    const { text } = cap(tool.output ?? "");
    const pre = isDiff(text) ? diff(text) : el("pre", "", visible(text));
    pre.tabIndex = 0;
    box.append(pre);
  }
  return box;
}

/** A unified diff, as `diff -u` and `git diff` write it. @param {string} text */
const isDiff = (text) => /^@@ -\d+(,\d+)? \+\d+(,\d+)? @@/m.test(text);

const MARKS = /** @type {Record<string, string>} */ ({ "+": "ins", "-": "del" });

/** @param {string} text */
function diff(text) {
  const pre = el("pre", "diff-lines");
  for (const line of text.trimEnd().split("\n")) {
    const head = /^(@@|---|\+\+\+|diff |index )/.test(line);
    pre.append(el(head ? "span" : (MARKS[line[0]] ?? "span"), head ? "muted" : "", `${visible(line)}\n`));
  }
  return pre;
}

/** @param {string} text */
function jsonOf(text) {
  if (!/^\s*[[{]/.test(text) || text.length > MAX_CHARS) return null;
  try {
    return JSON.parse(text);
  } catch {
    return null; // it only looked like JSON
  }
}

/** Documents or pages that a result names. @param {any} data @returns {{title: string, href: string|null, detail: string}[]} */
export function sourcesOf(data) {
  const list = Array.isArray(data) ? data : (data?.sources ?? data?.results ?? data?.hits ?? data?.documents);
  if (!Array.isArray(list)) return [];
  const found = [];
  for (const one of list.slice(0, 50)) {
    if (!one || typeof one !== "object") return [];
    const place = one.url ?? one.path ?? one.source ?? one.document ?? one.doc ?? one.file;
    if (typeof place !== "string") return [];
    const detail = String(one.snippet ?? one.excerpt ?? one.text ?? one.heading ?? "").slice(0, 300);
    found.push({ title: String(one.title ?? place), href: safeLink(place), detail: place === one.title ? detail : `${place}${detail ? ` — ${detail}` : ""}` });
  }
  return found;
}

/** @param {ReturnType<typeof sourcesOf>} sources */
export function sourceList(sources) {
  const list = el("ol", "sources");
  for (const source of sources) {
    const title = el(source.href ? "a" : "span", "source-title", visible(source.title));
    if (source.href) Object.assign(title, { href: source.href, target: "_blank", rel: "noopener noreferrer nofollow" });
    list.append(el("li", "", title, el("span", "muted", visible(source.detail))));
  }
  return list;
}

/** @param {any} data */
function isTable(data) {
  return Array.isArray(data) && data.length > 0 && data.every((row) => row && typeof row === "object" && !Array.isArray(row) && Object.values(row).every((v) => v === null || typeof v !== "object"));
}

/** @param {Record<string, any>[]} rows */
function table(rows) {
  const columns = [...new Set(rows.slice(0, MAX_ENTRIES).flatMap((row) => Object.keys(row)))].slice(0, 20);
  const head = el("tr", "", ...columns.map((c) => el("th", "", visible(c))));
  const body = rows.slice(0, MAX_ENTRIES).map((row) => el("tr", "", ...columns.map((c) => el("td", "", visible(String(row[c] ?? ""))))));
  const box = el("div", "md-table", el("table", "", el("thead", "", head), el("tbody", "", ...body)));
  box.tabIndex = 0;
  return box;
}

/** @param {any} value @param {number} depth @returns {HTMLElement} */
export function tree(value, depth) {
  if (value === null || typeof value !== "object") return el("span", `json-${value === null ? "null" : typeof value}`, visible(JSON.stringify(value) ?? "null"));
  const all = Object.entries(value);
  const list = el("ul", "json");
  for (const [key, inner] of all.slice(0, MAX_ENTRIES)) {
    const name = el("span", "json-key", `${visible(key)}: `);
    if (inner === null || typeof inner !== "object" || depth > 12) {
      list.append(el("li", "", name, depth > 12 ? visible(JSON.stringify(inner).slice(0, 500)) : tree(inner, depth + 1)));
      continue;
    }
    const size = Array.isArray(inner) ? `[${inner.length}]` : `{${Object.keys(inner).length}}`;
    const fold = /** @type {HTMLDetailsElement} */ (el("details", "", el("summary", "", name, el("span", "muted", size))));
    const fill = () => fold.open && fold.childElementCount === 1 && fold.append(tree(inner, depth + 1));
    fold.addEventListener("toggle", fill);
    if (depth < 2 && size.length < 5) fold.open = true;
    list.append(el("li", "", fold));
  }
  if (all.length > MAX_ENTRIES) list.append(el("li", "muted", t("tool.cut", { n: all.length - MAX_ENTRIES })));
  return list;
}
