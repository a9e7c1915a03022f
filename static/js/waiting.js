/** Which calls wait for a person, over all lanes on screen. */
import { attempts, laneSignal } from "./state.js";
import { shownEntries } from "./actions.js";
import { currentLane } from "./conversation.js";

/** @returns {{entry: import("./conversation.js").Entry, lane: import("./store.js").Lane, tool: import("./transcript.js").Tool}[]} */
export function waitingApprovals() {
  const out = [];
  for (const entry of shownEntries()) {
    const lane = currentLane(entry, attempts.value);
    laneSignal(`${lane.run}/${lane.id}`).value;
    for (const id of lane.approvals) {
      const tool = lane.transcripts.tools.get(id)?.tool;
      if (tool) out.push({ entry, lane, tool });
    }
  }
  return out;
}
