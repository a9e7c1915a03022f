/** Every call that waits for a person, over all lanes on screen. */
import { useEffect, useRef } from "preact/hooks";
import { html } from "../html.js";
import { focusLane } from "../actions.js";
import { approvalBox } from "../pane/approval.js";
import { waitingApprovals } from "../waiting.js";
import { t } from "../i18n.js";

export function Inbox() {
  const list = waitingApprovals();
  if (!list.length) return html`<p class="muted pad">${t("inbox.empty")}</p>`;
  return html`<ul class="inbox">
    ${list.map(({ entry, lane, tool }) => html`<li key=${tool.callId}>
      <button class="btn quiet" onClick=${() => focusLane(entry.key)}><span class=${`swatch lane-${entry.index % 16}`}>${entry.letter}</span>${entry.key}</button>
      <${Box} lane=${lane} tool=${tool} />
    </li>`)}
  </ul>`;
}

/** @param {{lane: import("../store.js").Lane, tool: import("../transcript.js").Tool}} props */
function Box({ lane, tool }) {
  const ref = useRef(/** @type {HTMLElement|null} */ (null));
  useEffect(() => ref.current?.replaceChildren(...approvalBox(tool, lane)), [tool.callId]);
  return html`<div ref=${ref}></div>`;
}
