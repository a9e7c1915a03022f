// Events for tests: an envelope that counts by itself.
export function log(run = "r1") {
  let seq = 0;
  const cseqs = new Map();
  const next = (channel, type, fields) => {
    const cseq = (cseqs.get(channel) ?? 0) + 1;
    cseqs.set(channel, cseq);
    return { run, seq: ++seq, channel, cseq, type, ts: 1000 + seq * 10, ...fields };
  };
  return {
    on: (channel, type, fields = {}) => next(channel, type, fields),
    started: (...ids) => next(null, "run_started", { thread: "t1", message: "hello", channels: ids.map((id) => ({ id, agent: id })) }),
  };
}

/** Merge deltas as the server's compaction does. */
export function compact(events) {
  const out = [];
  const open = new Map();
  for (const event of events) {
    const last = open.get(event.channel);
    const delta = ["token", "reasoning", "tool_args"].includes(event.type);
    if (delta && last && out[last].type === event.type && out[last].call_id === event.call_id) {
      out[last] = { ...event, from_cseq: out[last].from_cseq ?? out[last].cseq, content: out[last].content + event.content };
      continue;
    }
    out.push(event);
    if (delta) open.set(event.channel, out.length - 1);
    else open.delete(event.channel);
  }
  return out;
}
