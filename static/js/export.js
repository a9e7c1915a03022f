/**
 * A run as something to keep: Markdown with front matter, and one HTML file that shows the run without a server.
 * The NDJSON events and the JSON summary are the server's own answers.
 */
import { api } from "./api.js";
import { el } from "./markdown/render.js";
import { MarkdownStream } from "./markdown/stream.js";
import { visible } from "./markdown/safe.js";
import { metrics } from "./lanestate.js";
import { argsTable } from "./pane/toolcard.js";
import { resultView } from "./pane/result.js";
import { download } from "./files.js";
import { channelIds, restored } from "./compose.js";
import { baseOf, entries } from "./conversation.js";
import { caughtUp } from "./session.js";
import { runs } from "./state.js";
import { t } from "./i18n.js";

/** @typedef {import("./store.js").Lane} Lane @typedef {import("./store.js").Run} Run */

/** The lane's mark, the same as on the page. @param {Lane} lane */
function letter(lane) {
  const run = runs.get(lane.run);
  return lane.title === "Σ" ? "Σ" : ((run && entries([run]).find((entry) => entry.key === baseOf(lane.id))?.letter) ?? "");
}

/** @param {Lane} lane */
const name = (lane) => (lane.title && lane.title !== "Σ" ? lane.title : lane.id);

/** What the composer set for the lane, in one line: parameters, instructions, tools, budget. @param {Lane} lane */
function settings(lane) {
  const draft = runs.get(lane.run)?.metadata?.composer;
  const spec = draft && channelIds(restored(draft)).find(({ id }) => id === baseOf(lane.id))?.spec;
  if (!spec) return "";
  const { params, budget, tools, instructions } = spec;
  const parts = Object.entries({ ...params, ...(budget ? { budget } : {}), ...(tools ? { tools } : {}), ...(instructions ? { instructions } : {}) });
  return parts.map(([name, value]) => `${name}=${JSON.stringify(value)}`).join(", ");
}

/** @param {Lane} lane @param {number} [level] */
export function laneMarkdown(lane, level = 1) {
  const m = metrics(lane, lane.endTs);
  const mark = "#".repeat(level);
  const facts = [`agent: ${lane.agent}`, lane.model && `model: ${lane.model}`, settings(lane) && `parameters: ${settings(lane)}`, `status: ${lane.status}`, m.elapsed && `duration_ms: ${m.elapsed}`, m.ttft && `ttft_ms: ${m.ttft}`,
    m.input !== undefined && `input_tokens: ${m.input}`, m.output !== undefined && !m.estimated && `output_tokens: ${m.output}`, m.cost !== undefined && `cost: ${m.cost} ${m.currency ?? ""}`];
  const parts = [`${mark} ${letter(lane)} ${name(lane)}`, facts.filter(Boolean).map((f) => `- ${f}`).join("\n")];
  for (const item of lane.items) {
    if (item.kind === "text" || item.kind === "refusal") parts.push(item.text ?? "");
    else if (item.kind === "reasoning") parts.push(quote(`*${t("item.reasoning")}*\n\n${item.text}`));
    else if (item.kind === "tool" && item.tool) {
      const { tool } = item;
      parts.push(`**${tool.name}** (${tool.state})`, fence(JSON.stringify(tool.args ?? tool.argsText, null, 2), "json"), fence(tool.output ?? "", ""));
    } else if (item.kind === "message") parts.push(quote(item.event.content ?? ""));
    else if (item.kind === "error") parts.push(`> **${item.event.code}**: ${item.event.message}`);
  }
  return `${parts.filter(Boolean).join("\n\n")}\n`;
}

/** @param {string} text */
const quote = (text) => text.split("\n").map((line) => `> ${line}`).join("\n");

/** A fence longer than any inside. @param {string} text @param {string} lang */
function fence(text, lang) {
  const longest = Math.max(2, ...[...text.matchAll(/`+/g)].map((m) => m[0].length));
  const mark = "`".repeat(longest + 1);
  return `${mark}${lang}\n${text}\n${mark}`;
}

/** @param {Run} run */
export function runMarkdown(run) {
  const head = { run: run.id, thread: run.thread, status: run.status, created: new Date(run.created || run.startTs).toISOString(), duration_ms: run.finished?.duration_ms };
  const front = Object.entries(head).filter(([, v]) => v !== undefined).map(([k, v]) => `${k}: ${JSON.stringify(v)}`).join("\n");
  const lanes = [...run.lanes.values()].map((lane) => laneMarkdown(lane, 2));
  return `---\n${front}\n---\n\n# ${run.title || run.message.split("\n")[0]}\n\n${quote(run.message)}\n\n${lanes.join("\n")}`;
}

/** @param {Run} run */
export async function exportHtml(run) {
  const css = await Promise.all([...document.styleSheets].map((sheet) => fetch(/** @type {string} */ (sheet.href)).then((r) => r.text())));
  const main = el("main", "export");
  main.append(el("h1", "", visible(run.title || run.message.split("\n")[0])), el("p", "muted", `${run.id} · ${t(`status.${run.status}`)} · ${new Date(run.created || run.startTs).toLocaleString()}`), el("pre", "export-prompt", visible(run.message)));
  const grid = el("div", "export-lanes");
  for (const entry of entries([run])) for (const lane of entry.turns[0].attempts) grid.append(laneHtml(lane, entry.index));
  main.append(grid);
  const { highlight } = await import("./markdown/code.js");
  await Promise.all([...main.querySelectorAll(".md-code")].map((node) => highlight(node)));
  for (const node of main.querySelectorAll("[data-action]")) node.remove();
  const theme = document.documentElement.dataset.theme;
  return `<!doctype html>\n<html lang="en"${theme ? ` data-theme="${theme}"` : ""}><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:"><title>${escape(run.title || run.id)}</title><style>${css.join("\n").replaceAll("</", "<\\/")}</style></head><body class="export-body">${main.outerHTML}</body></html>\n`;
}

/** @param {string} text */
const escape = (text) => text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);

/** @param {Lane} lane @param {number} index */
function laneHtml(lane, index) {
  const m = metrics(lane, lane.endTs);
  const box = el("section", `export-lane lane-${index % 16}`, el("h2", "", el("span", `swatch ${lane.title === "Σ" ? "sigma" : `lane-${index % 16}`}`, letter(lane)), ` ${name(lane)}`));
  const facts = [lane.agent, lane.model, settings(lane), t(`status.${lane.status}`), m.elapsed !== undefined && `${(m.elapsed / 1000).toFixed(1)} s`, m.ttft !== undefined && `TTFT ${m.ttft} ms`, m.output !== undefined && `${m.estimated ? "~" : ""}${m.output} tokens`, m.cost !== undefined && `${m.cost} ${m.currency ?? ""}`];
  box.append(el("p", "muted num", facts.filter(Boolean).join(" · ")));
  for (const item of lane.items) {
    const node = itemHtml(item);
    if (node) box.append(node);
  }
  return box;
}

/** @param {import("./transcript.js").Item} item @returns {HTMLElement|null} */
function itemHtml(item) {
  if (item.kind === "text" || item.kind === "refusal") return markdown(item.text ?? "");
  if (item.kind === "reasoning") return el("details", "fold", el("summary", "", t("item.reasoning")), markdown(item.text ?? ""));
  if (item.kind === "error") return el("p", "card error", `${item.event.code}: ${visible(item.event.message)}`);
  if (item.kind === "message") return el("p", "message", visible(item.event.content ?? ""));
  if (item.kind === "nest" && item.nested) {
    const box = el("details", "nest", el("summary", "", item.nested.name));
    for (const inner of item.nested.items) box.append(itemHtml(inner) ?? "");
    return box;
  }
  if (!item.tool) return null;
  return el("details", "tool", el("summary", "tool-head", el("strong", "tool-name", visible(item.tool.name)), el("span", "tool-state", t(`tool.${item.tool.state}`))),
    el("div", "tool-body", argsTable(item.tool), item.tool.output === undefined ? "" : resultView(item.tool)));
}

/** @param {string} text */
function markdown(text) {
  const box = el("div", "md");
  new MarkdownStream(box).finish(text);
  return box;
}

/** @param {Run} run @param {"ndjson"|"json"|"md"|"html"} format */
export async function exportRun(run, format) {
  const file = `mux-${run.id}.${format}`;
  if (format === "md" || format === "html") await caughtUp(run.id); // these are made of what this page has read
  if (format === "ndjson") download(file, await (await api.events(run.id)).blob(), "application/x-ndjson");
  else if (format === "json") download(file, JSON.stringify(await api.run(run.id), null, 2), "application/json");
  else if (format === "md") download(file, runMarkdown(run), "text/markdown");
  else download(file, await exportHtml(run), "text/html");
}

