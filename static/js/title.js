/** The tab's title says how many lanes still run, or how many wait for a person. */
import { effect } from "@preact/signals";
import { shown, structure } from "./state.js";
import { currentRun, shownEntries } from "./actions.js";
import { currentLane } from "./conversation.js";
import { waitingApprovals } from "./waiting.js";
import { titleOf } from "./views/topbar.js";
import { onTick } from "./ticker.js";

export function watchTitle() {
  effect(() => {
    structure.value;
    shown.value;
    write();
  });
  onTick(write);
}

function write() {
  const run = currentRun();
  const running = run ? shownEntries().filter((e) => !currentLane(e).finished).length : 0;
  const waiting = run ? waitingApprovals().length : 0;
  const mark = waiting ? `! ${waiting} · ` : running ? `${running} ▸ ` : "";
  const title = run ? `${mark}${titleOf(run)} · Mux` : "Mux";
  if (document.title !== title) document.title = title;
}
