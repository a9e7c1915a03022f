/**
 * One small view for each kind of item in a transcript. A view has a node and an `update` that returns whether all
 * is drawn. Buttons carry `data-action`; the pane handles the clicks.
 *
 * @typedef {import("../transcript.js").Item} Item
 * @typedef {import("../store.js").Lane} Lane
 * @typedef {import("./transcript-view.js").ItemView} ItemView
 */
import { MarkdownStream } from "../markdown/stream.js";
import { el } from "../markdown/render.js";
import { visible } from "../markdown/safe.js";
import { count, endState, metrics, money, seconds } from "../lanestate.js";
import { apart, serverNow } from "../state.js";
import { baseOf } from "../conversation.js";
import { pathKey } from "../sublane.js";
import { t } from "../i18n.js";
import { sourceList, sourcesOf } from "./result.js";
import { toolCard } from "./toolcard.js";

/** @param {string} action @param {string} label @param {string} [className] @param {Record<string, string>} [data] */
export function button(action, label, className = "", data = {}) {
  const node = /** @type {HTMLButtonElement} */ (el("button", `btn ${className}`, label));
  node.type = "button";
  Object.assign(node.dataset, { action, ...data });
  return node;
}

/** @param {Item} item @param {Lane} lane @param {any} ctx @returns {ItemView|null} */
export function makeItem(item, lane, ctx) {
  return MAKERS[item.kind]?.(item, lane, ctx) ?? null;
}

/** @type {Record<string, (item: Item, lane: Lane, ctx: any) => ItemView|null>} */
const MAKERS = {
  text: (_item, _lane, ctx) => markdownView("item text", ctx),
  refusal(_item, _lane, ctx) {
    const head = el("div", "card-head", el("span", "glyph", "⊘"), t("item.refusal"));
    const view = markdownView("card refusal", ctx);
    view.node.prepend(head);
    return view;
  },
  reasoning: (item, _lane, ctx) => reasoningView(item, ctx),
  tool: (item, lane, ctx) => toolCard(item, lane, ctx),
  nest(item, lane) {
    const into = el("div", "nest-body");
    const head = el("summary", "nest-head", el("span", "glyph", "↳"), el("strong", "", visible(item.nested?.name ?? "")), el("span", "muted", t("item.nested")));
    const details = /** @type {HTMLDetailsElement} */ (el("details", "", head, into));
    const node = el("div", "nest", details, button("apart", t("nest.apart"), "quiet"));
    const [key] = [...lane.transcripts.nested].find(([, one]) => one === item.nested) ?? [""];
    node.dataset.path = pathKey(key.split("\u0000").slice(1));
    details.open = true;
    markNest(node, baseOf("path" in lane ? String(lane.parent) : lane.id));
    return { node, into, update: () => true };
  },
  guardrail: (item) => line("shield", t(`guardrail.${item.event.action}`, { rule: item.event.rule, stage: t(`stage.${item.event.stage}`) })),
  retry: (item) =>
    line("retry", t("item.retry", { attempt: item.event.attempt, reason: t(`error.${item.event.reason}`), delay: seconds(item.event.delay_ms) })),
  note: (item) => line("note", t(`item.${item.value}`)),
  custom: (item) => line("note", `${item.event.name}: ${visible(JSON.stringify(item.event.value ?? null)).slice(0, 500)}`),
  message: () => messageView(),
  error: (item, lane) => fixed(errorCard(item, lane)),
  end: (_item, lane) => fixed(endCard(lane)),
};

/** A sub-agent that has its own pane is only named here. @param {HTMLElement} node @param {string} entry key of the lane */
function markNest(node, entry) {
  const own = apart.value.includes(`${entry}/${node.dataset.path}`);
  node.classList.toggle("is-apart", own);
  /** @type {HTMLElement} */ (node.lastChild).textContent = t(own ? "nest.back" : "nest.apart");
}

/** @param {HTMLElement} root of a pane @param {string} entry its key */
export function markNests(root, entry) {
  for (const node of root.querySelectorAll(".nest[data-path]")) markNest(/** @type {HTMLElement} */ (node), entry.split("/")[0]);
}

/** @param {HTMLElement} node @returns {ItemView} */
const fixed = (node) => ({ node, update: () => true });

/** @param {string} kind @param {string} text */
const line = (kind, text) => fixed(el("p", `line line-${kind}`, text));

/** @param {string} className @param {any} ctx @returns {ItemView} */
function markdownView(className, ctx) {
  const body = el("div", "md");
  const node = el("div", className, body);
  const markdown = new MarkdownStream(body, ctx.markdown ?? {});
  return {
    node,
    markdown: () => markdown,
    update(item, now) {
      if (item.open && item.said) return markdown.grow(item.said.from(markdown.length), now);
      markdown.finish(item.text ?? "");
      return true;
    },
  };
}

const SHOWN_MS = 50; // a shorter time would read "0.0 s"

/** Folded by default with its last line as a ticker; the reader's choice is final. @param {Item} item @param {any} ctx @returns {ItemView} */
function reasoningView(item, ctx) {
  const title = el("span", "fold-title");
  const ticker = el("span", "fold-ticker");
  const body = el("div", "md md-reasoning");
  const node = /** @type {HTMLDetailsElement} */ (el("details", "fold reasoning", el("summary", "", el("span", "glyph", "◔"), title, ticker), body));
  /** @type {MarkdownStream|null} */
  let markdown = null;
  let length = 0;
  const draw = (/** @type {number} */ now) => {
    if (!node.open) return true;
    markdown ??= new MarkdownStream(body, { ...ctx.markdown, windowed: undefined });
    if (item.open && item.said) return markdown.grow(item.said.from(markdown.length), now);
    markdown.finish(item.text ?? "");
    return true;
  };
  node.addEventListener("toggle", () => draw(performance.now()));
  return {
    node,
    update(_item, now) {
      const spent = (item.endTs ?? item.ts) - item.ts;
      const word = item.open ? t("item.thinking") : spent >= SHOWN_MS ? t("item.thought", { time: seconds(spent) }) : t("item.reasoning");
      if (title.textContent !== word) title.textContent = word;
      if (item.said && item.said.length !== length) {
        length = item.said.length;
        ticker.textContent = item.open ? lastLine(item.said.from(length - 240)) : "";
      }
      if (!item.open) ticker.textContent = "";
      return draw(now);
    },
  };
}

/** @param {string} text its end */
function lastLine(text) {
  const end = text.trimEnd();
  return visible(end.slice(end.lastIndexOf("\n") + 1)).slice(-120);
}

/** @returns {ItemView} */
function messageView() {
  const who = el("span", "message-who");
  const text = el("div", "message-text");
  const node = el("div", "message", who, text);
  text.dir = "auto";
  return {
    node,
    update(item) {
      node.dataset.state = item.value;
      who.textContent = t(`message.${item.value}`, { mode: t(`mode.${item.event.mode}`) });
      if (item.event.content) text.textContent = visible(item.event.content);
      return true;
    },
  };
}

/** @param {Item} item @param {Lane} lane */
function errorCard(item, lane) {
  const event = item.event;
  const card = el("section", "card error", el("div", "card-head", el("span", "glyph", "✕"), t("error.title"), el("code", "", event.code)));
  card.append(el("p", "", visible(event.message)));
  const known = t(`hint.${event.code}`);
  const hint = [known === `hint.${event.code}` ? "" : known, event.retryable ? t("error.retryable") : ""].filter(Boolean).join(" ");
  if (hint) card.append(el("p", "muted", hint));
  const row = el("div", "row", button("retry", t("lane.retry")), button("swap", t("lane.swapAndRetry")));
  row.append(button("raw-event", t("lane.raw"), "quiet", { seq: String(event.seq) }));
  card.append(row);
  card.dataset.lane = lane.id;
  return card;
}

/** What the lane's tools found, each once. @param {Lane} lane */
function laneSources(lane) {
  const found = new Map();
  for (const { tool } of lane.transcripts.tools.values()) {
    for (const source of sourcesOf(tool?.data)) found.set(source.href ?? source.title, source);
  }
  return [...found.values()].slice(0, 40);
}

/** @param {Lane} lane */
function endCard(lane) {
  const m = metrics(lane, serverNow());
  const status = lane.status;
  const reason = t(`finish.${lane.finishReason}`);
  const totals = [
    reason === `finish.${lane.finishReason}` ? "" : reason,
    m.elapsed !== undefined ? seconds(m.elapsed) : "",
    m.output !== undefined ? t("item.tokens", { n: m.output, text: `${m.estimated ? "~" : ""}${count(m.output)}` }) : "",
    m.cost !== undefined ? money(m.cost, m.currency) : "",
  ].filter(Boolean);
  const finish = el("span", "muted", totals.join(" · "));
  const head = el("div", "end-head", el("span", `chip hue-${endState(lane).hue}`, `${endState(lane).glyph} ${t(`status.${status}`)}`), finish);
  const row = el("div", "end-actions");
  row.append(
    button("copy", t("end.copy"), "quiet"),
    button("export-lane", t("end.export"), "quiet"),
    button("use-as-prompt", t("end.asPrompt"), "quiet"),
    button("retry", t("lane.retry"), "quiet"),
  );
  const sources = laneSources(lane);
  const list = sources.length ? el("details", "fold end-sources", el("summary", "", t("item.sources", { n: sources.length })), sourceList(sources)) : "";
  return el("footer", "end", head, row, list);
}
