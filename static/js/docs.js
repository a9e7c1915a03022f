// @ts-check
/**
 * The reference of the HTTP API, made in the browser from /openapi.json: what is shown is what is served.
 * Own code, because the known viewers need inline styles or HTML sinks, which the page's policy forbids.
 */

/** @typedef {Record<string, any>} Json */

const METHODS = ["get", "post", "put", "patch", "delete"];

/**
 * An element with attributes and children; strings become text nodes.
 * @param {string} name @param {Record<string, string>} [attributes] @param {...(Node|string)} children
 */
function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

/** The last part of a reference, `#/components/schemas/Run` → `Run`. @param {string} ref */
const nameOf = (ref) => ref.split("/").pop() ?? ref;

/** A schema in a few words, references as links. @param {Json|undefined} schema @returns {(Node|string)[]} */
export function describe(schema) {
  if (!schema) return ["any"];
  if (schema.$ref) {
    const name = nameOf(schema.$ref);
    return [el("a", { href: `#schema-${name}` }, name)];
  }
  const union = schema.anyOf ?? schema.oneOf;
  if (union) {
    const parts = union.filter((/** @type {Json} */ s) => s.type !== "null").map(describe);
    return parts.flatMap((/** @type {(Node|string)[]} */ part, /** @type {number} */ i) => (i ? [" | ", ...part] : part));
  }
  if (schema.enum) return [schema.enum.map((/** @type {unknown} */ v) => JSON.stringify(v)).join(" | ")];
  if (schema.const !== undefined) return [JSON.stringify(schema.const)];
  if (schema.type === "array") return ["list of ", ...describe(schema.items)];
  if (schema.type === "object" && typeof schema.additionalProperties === "object") {
    return ["map of ", ...describe(schema.additionalProperties)];
  }
  return [schema.type ?? "any"];
}

/** @param {Json[]} rows each `{name, kind, about, required}` */
function table(rows) {
  const body = el("tbody");
  for (const row of rows) {
    body.append(el("tr", {},
      el("th", { scope: "row" }, row.name, row.required ? " *" : ""),
      el("td", { class: "kind" }, ...row.kind),
      el("td", {}, row.about ?? "")));
  }
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "fields" }, el("table", {}, body));
}

/** @param {Json} schema */
function fields(schema) {
  const required = new Set(schema.required ?? []);
  return Object.entries(schema.properties ?? {}).map(([name, value]) => ({
    name, kind: describe(value), about: value.description, required: required.has(name),
  }));
}

/** @param {string} method @param {string} path @param {Json} operation */
function article(method, path, operation) {
  const node = el("article", { id: operation.operationId },
    el("h3", {}, el("span", { class: "method" }, method.toUpperCase()), path),
    el("p", {}, operation.summary ?? ""));
  if (operation.parameters?.length) {
    node.append(el("h4", {}, "Parameters"), table(operation.parameters.map((/** @type {Json} */ p) => ({
      name: p.name, kind: [...describe(p.schema), ` in ${p.in}`], about: p.description, required: p.required,
    }))));
  }
  for (const [media, content] of Object.entries(operation.requestBody?.content ?? {})) {
    node.append(el("h4", {}, "Body"), el("p", {}, el("code", {}, media), ": ", ...describe(content.schema)));
  }
  node.append(el("h4", {}, "Answers"), table(Object.entries(operation.responses).map(([status, answer]) => ({
    name: status,
    kind: Object.entries(answer.content ?? {}).flatMap(([media, content], i) => [
      ...(i ? [", "] : []), ...(content["x-item-schema"] ? [`${media}: `, ...describe(content["x-item-schema"])]
        : media === "application/json" ? describe(content.schema) : [media])]),
    about: answer.description,
  }))));
  return node;
}

/** @param {Json} api @param {Element} main @param {Element} index */
export function render(api, main, index) {
  main.replaceChildren(el("h1", {}, `${api.info.title}: HTTP API`),
    el("p", {}, `${api.info.summary ?? ""} Version ${api.info.version}. The document itself: `,
      el("a", { href: "openapi.json" }, "/openapi.json"), ". Fields marked * are required."));
  const all = Object.entries(api.paths).flatMap(([path, item]) =>
    METHODS.filter((m) => item[m]).map((m) => ({ method: m, path, operation: item[m] })));
  for (const { name } of api.tags) {
    main.append(el("h2", { class: "tag" }, name));
    index.append(el("h2", {}, name));
    for (const { method, path, operation } of all.filter((o) => o.operation.tags?.includes(name))) {
      main.append(article(method, path, operation));
      index.append(el("a", { class: "op", href: `#${operation.operationId}` }, `${method.toUpperCase()} ${path}`));
    }
  }
  main.append(el("h2", { class: "tag" }, "schemas"));
  for (const [name, schema] of Object.entries(api.components.schemas)) {
    const rows = fields(schema);
    main.append(el("article", { id: `schema-${name}` }, el("h3", {}, name), el("p", {}, schema.description ?? ""),
      rows.length ? table(rows) : el("p", {}, ...describe(schema))));
  }
  main.removeAttribute("aria-busy");
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

const main = document.getElementById("main");
const index = document.getElementById("index");
if (main && index) {
  try {
    const answer = await fetch("openapi.json");
    if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
    render(await answer.json(), main, index);
  } catch (error) {
    main.removeAttribute("aria-busy");
    main.replaceChildren(el("p", { role: "alert" }, `The description could not be loaded (${error}). Reload to try again.`));
  }
}
