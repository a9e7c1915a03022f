/** The one layer above the page: a modal dialog of some kind. Escape and a click beside it close it. */
import { useLayoutEffect, useRef } from "preact/hooks";
import { html } from "../html.js";
import { dialog } from "../state.js";
import { t } from "../i18n.js";
import { AddLane, BudgetDialog, LaneEditor } from "./lane-editor.js";
import { SynthesisDialog } from "./synthesis.js";
import { LaneMenu, RunMenu, Share, Swap, TextDialog } from "./menus.js";
import { HistoryTable } from "./history.js";
import { Compare } from "./compare.js";
import { Keys, Palette } from "./palette.js";
import { Inbox } from "./inbox.js";
import { Login } from "./login.js";

/** @type {Record<string, {title: string, view: any, wide?: boolean}>} */
const KINDS = {
  lane: { title: "lane.edit", view: LaneEditor },
  "add-lane": { title: "composer.addLane", view: AddLane },
  budget: { title: "budget.run", view: BudgetDialog },
  synthesis: { title: "synthesis.title", view: SynthesisDialog },
  "lane-menu": { title: "lane.menu", view: LaneMenu },
  "run-menu": { title: "run.menu", view: RunMenu },
  swap: { title: "lane.swap", view: Swap },
  share: { title: "share", view: Share },
  text: { title: "tool.raw", view: TextDialog, wide: true },
  history: { title: "history.title", view: HistoryTable, wide: true },
  compare: { title: "compare.title", view: Compare, wide: true },
  palette: { title: "palette.title", view: Palette },
  keys: { title: "keys.title", view: Keys },
  login: { title: "login.title", view: Login },
  inbox: { title: "inbox.title", view: Inbox, wide: true },
};

/** @param {{kind: string, title?: string}} props */
export function Dialogs(props) {
  const ref = useRef(/** @type {HTMLDialogElement|null} */ (null));
  const kind = KINDS[props.kind];
  // Not `useEffect`, whose clean-up comes after the next frame: somebody may be typing elsewhere by then. As a microtask,
  // because what had the focus may be gone when all that changed with the dialog is drawn.
  useLayoutEffect(() => {
    const before = document.activeElement;
    ref.current?.showModal();
    return () => queueMicrotask(() => before instanceof HTMLElement && before.isConnected && before.focus());
  }, []);
  if (!kind) return null;
  const close = () => (dialog.value = null);
  const outside = (/** @type {MouseEvent} */ event) => event.target === ref.current && close();
  return html`
    <dialog ref=${ref} class=${`dialog dialog-${props.kind}${kind.wide ? " is-wide" : ""}`} aria-labelledby="dialog-title" onClose=${close}
      onCancel=${(/** @type {Event} */ e) => { e.preventDefault(); close(); }} onMouseDown=${outside}>
      <div class="dialog-box">
        <header class="dialog-head"><h2 id="dialog-title">${props.title ?? t(kind.title)}</h2>
          <button class="btn icon-only quiet" aria-label=${t("close")} onClick=${close}>×</button></header>
        <div class="dialog-body"><${kind.view} ...${props} /></div>
      </div>
    </dialog>
  `;
}
