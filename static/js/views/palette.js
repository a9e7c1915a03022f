/** Every command by name, and the sheet of keys. */
import { useState } from "preact/hooks";
import { html } from "../html.js";
import { leaveDialog } from "../state.js";
import { focusLane, paneEntries } from "../actions.js";
import { COMMANDS } from "../keys.js";
import { t } from "../i18n.js";

export function Palette() {
  const [text, setText] = useState("");
  const [at, setAt] = useState(0);
  const lanes = paneEntries().map((e) => ({ id: e.key, label: t("palette.lane", { lane: `${e.letter} ${e.key}` }), keys: "", run: () => focusLane(e.key) }));
  const all = [...COMMANDS.filter((c) => c.id !== "palette").map((c) => ({ ...c, label: t(`key.${c.id}`) })), ...lanes];
  const found = all.filter((c) => c.label.toLowerCase().includes(text.toLowerCase()));
  const chosen = Math.min(at, found.length - 1);
  const run = (/** @type {typeof all[number]} */ command) => leaveDialog(command.run);
  const keys = (/** @type {KeyboardEvent} */ event) => {
    if (event.key === "ArrowDown") setAt(Math.min(found.length - 1, chosen + 1));
    else if (event.key === "ArrowUp") setAt(Math.max(0, chosen - 1));
    else if (event.key === "Enter" && found[chosen]) run(found[chosen]);
    else return;
    event.preventDefault();
  };
  return html`
    <input class="field" autofocus role="combobox" aria-expanded="true" aria-controls="palette-list" aria-activedescendant=${found[chosen] ? `cmd-${found[chosen].id}` : undefined}
      aria-label=${t("palette.title")} placeholder=${t("palette.hint")} onKeyDown=${keys} onInput=${(/** @type {any} */ e) => { setText(e.target.value); setAt(0); }} />
    <ul class="pick" id="palette-list" role="listbox" aria-label=${t("palette.title")}>
      ${found.map((c, i) => html`<li key=${c.id} id=${`cmd-${c.id}`} role="option" aria-selected=${i === chosen} class="pick-row" onClick=${() => run(c)}>${c.label}${c.keys ? html`<kbd>${c.keys}</kbd>` : null}</li>`)}
    </ul>
  `;
}

export function Keys() {
  const rows = [...COMMANDS.filter((c) => c.keys).map((c) => [c.keys, t(`key.${c.id}`)]), ["1–9", t("key.lane")], ["Y", t("key.approve")], ["N", t("key.deny")], ["Esc", t("key.escape")]];
  return html`<dl class="keys">${rows.map(([keys, what]) => html`<div key=${keys}><dt><kbd>${keys}</kbd></dt><dd>${what}</dd></div>`)}</dl>`;
}
