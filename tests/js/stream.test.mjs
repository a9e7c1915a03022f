import assert from "node:assert/strict";
import { createServer } from "node:http";
import { after, before, test } from "node:test";
import { follow, StreamError, streamUrl } from "../../static/js/stream.js";

const EVENTS = Array.from({ length: 400 }, (_, i) => ({ run: "r1", seq: i + 1, channel: i % 3 ? "a" : "b", cseq: i + 1, type: "token", ts: i, content: `t${i} ` }));
let server;
let base;
/** What the server does with the next request. */
let behave;
const connections = [];

before(async () => {
  server = createServer((request, response) => {
    const url = new URL(request.url, "http://x");
    connections.push(url);
    behave(url, response);
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  base = `http://127.0.0.1:${server.address().port}`;
});
after(() => server.closeAllConnections() ?? server.close());

const frame = (event) => `id: r1.1.${event.seq}\ndata: ${JSON.stringify(event)}\n\n`;
const open = (response) => response.writeHead(200, { "Content-Type": "text/event-stream" });
const from = (url) => Number(url.searchParams.get("after")?.split(".")[2] ?? 0);
const END = 'data: {"type": "stream_end", "status": "completed", "final": true}\n\n';

async function collect(options = {}) {
  const events = [];
  for await (const part of follow({ base, runs: "r1", ...options })) events.push(...part.events);
  return events;
}

test("nothing is lost and nothing doubled, wherever the connection is cut", async () => {
  let cuts = 0;
  behave = (url, response) => {
    open(response);
    const rest = EVENTS.slice(from(url)).map(frame).join("") + END;
    cuts += 1;
    if (cuts > 12) return response.end(rest);
    const bytes = Buffer.from(rest);
    response.write(bytes.subarray(0, 20 + Math.floor(Math.random() * 6000)), () => response.destroy());
  };
  assert.deepEqual(await collect(), EVENTS);
});

test("a compact window is applied whole or not at all", async () => {
  let first = true;
  behave = (url, response) => {
    open(response);
    const events = EVENTS.slice(from(url), from(url) + 100);
    const block = events.length ? `id: r1.1.${events.at(-1).seq}\ndata: ${JSON.stringify({ type: "batch", events })}\n\n` : END;
    if (first) {
      first = false;
      response.write(block.slice(0, block.length - 40), () => response.destroy());
    } else response.end(block);
  };
  assert.deepEqual(await collect({ compact: true }), EVENTS);
});

test("204 ends it, 503 is tried again, and 404 is an error with its code", async () => {
  const answers = [503, 204];
  behave = (_url, response) => response.writeHead(answers.shift(), { "Retry-After": "0" }).end();
  assert.deepEqual(await collect(), []);
  behave = (_url, response) => response.writeHead(404, { "Content-Type": "application/problem+json" }).end('{"code": "run_unknown", "detail": "No such run."}');
  await assert.rejects(collect(), (error) => error instanceof StreamError && error.code === "run_unknown" && error.status === 404);
});

test("silence longer than two heartbeats makes it connect again", async () => {
  let count = 0;
  behave = (url, response) => {
    open(response);
    count += 1;
    response.write(EVENTS.slice(from(url), from(url) + 200).map(frame).join("") + (count === 2 ? END : ""));
  };
  assert.deepEqual(await collect({ silenceMs: 150 }), EVENTS);
});

test("rotation reconnects at once and goes on behind the last id", async () => {
  let count = 0;
  behave = (url, response) => {
    open(response);
    count += 1;
    const part = EVENTS.slice(from(url), from(url) + 200).map(frame).join("");
    response.end(part + (count === 1 ? 'data: {"type": "stream_rotate", "reason": "age"}\n\n' : END));
  };
  const delays = [];
  assert.deepEqual(await collect({ onState: (_state, detail) => delays.push(detail.delayMs ?? 0) }), EVENTS);
  assert.deepEqual(delays.filter((ms) => ms > 0), []);
});

test("abort stops it without an error", async () => {
  behave = (_url, response) => {
    open(response);
    response.write(frame(EVENTS[0]));
  };
  const controller = new AbortController();
  const seen = [];
  for await (const part of follow({ base, runs: "r1", signal: controller.signal })) {
    seen.push(...part.events);
    controller.abort();
  }
  assert.equal(seen.length, 1);
});

test("several runs share one connection with a vector cursor", () => {
  assert.equal(streamUrl({ runs: ["a", "b"], compact: true }, "a.1.2,b.1.0"), "/api/events?run=a%2Cb&after=a.1.2%2Cb.1.0&compact=1");
  assert.equal(streamUrl({ base: "/mux/", runs: "a", channels: ["x"] }, null), "/mux/api/runs/a/events?channel=x");
});

test("a server that repeats or skips an event is found out", async () => {
  const orders = { repeats: [0, 1, 1], skips: [0, 1, 3], "goes back": [0, 2] };
  for (const [what, order] of Object.entries(orders)) {
    behave = (_url, response) => {
      open(response);
      response.end(order.map((i) => frame(EVENTS[i])).join("") + END);
    };
    await assert.rejects(collect(), (error) => error instanceof StreamError && error.code === "stream_broken", what);
  }
});

test("a filter and merged deltas leave gaps in seq, but never go back", async () => {
  for (const options of [{ channels: ["a"] }, { types: ["token"] }, { compact: true }]) {
    const some = EVENTS.filter((event) => event.seq % 3 === 0);
    behave = (url, response) => {
      open(response);
      response.end(some.filter((e) => e.seq > from(url)).map(frame).join("") + END);
    };
    assert.deepEqual(await collect(options), some);
    behave = (_url, response) => {
      open(response);
      response.end([some[1], some[0]].map(frame).join("") + END);
    };
    await assert.rejects(collect(options), { code: "stream_broken" });
  }
});

test("it continues behind a cursor, and behind a gap that the server tells of", async () => {
  behave = (url, response) => {
    open(response);
    response.end(EVENTS.slice(from(url)).map(frame).join("") + END);
  };
  assert.deepEqual(await collect({ after: "r1.1.390" }), EVENTS.slice(390));
  behave = (_url, response) => {
    open(response);
    response.end(`data: {"type": "stream_gap", "requested": 0, "first": 100}\n\n${EVENTS.slice(99).map(frame).join("")}${END}`);
  };
  assert.deepEqual(await collect(), EVENTS.slice(99));
});
