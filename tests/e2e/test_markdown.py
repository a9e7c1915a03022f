"""The Markdown renderer in the browser: the same DOM however the text arrives, and no harm from any input."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from playwright.async_api import Page

from tests.e2e.conftest import BROWSER, Rig
from tests.e2e.test_javascript import packages  # noqa: F401  # the fixture that installs the specification

pytestmark = [*BROWSER, pytest.mark.timeout(240)]

HARNESS = """
async (cases) => {
  const { MarkdownStream } = await import("/js/markdown/stream.js");
  const dom = (feed) => {
    const box = document.createElement("div");
    feed(new MarkdownStream(box));
    box.normalize();
    return box;
  };
  const failures = [];
  for (const text of cases) {
    const whole = dom((s) => s.finish(text));
    const check = (other, how) => {
      const same = other.isEqualNode(whole);
      if (!same) failures.push({ text, how, whole: whole.innerHTML, other: other.innerHTML });
      return same;
    };
    check(dom((s) => {
      for (let i = 1; i <= text.length; i++) s.update(text.slice(0, i), i * 1000);
      s.finish(text);
    }), "grown");
    for (let k = 1; k < text.length; k++) {
      const cut = dom((s) => {
        s.update(text.slice(0, k), 0);
        s.update(text, 1000);
        s.finish(text);
      });
      if (!check(cut, k)) break;
    }
  }
  return failures;
}
"""

GFM = [
    "| foo | bar |\n| --- | --- |\n| baz | bim |",
    "| abc | defghi |\n:-: | -----------:\nbar | baz",
    "| f\\|oo  |\n| ------ |\n| b `\\|` az |\n| b **\\|** im |",
    "| abc | def |\n| --- | --- |\n| bar | baz |\n> bar",
    "| abc | def |\n| --- | --- |\n| bar | baz |\nbar\n\nbar",
    "| abc | def |\n| --- |\n| bar |",
    "| abc | def |\n| --- | --- |\n| bar |\n| bar | baz | boo |",
    "| abc | def |\n| --- | --- |",
    "- [ ] foo\n- [x] bar",
    "- [x] foo\n  - [ ] bar\n  - [x] baz\n- [ ] bim",
    "~~Hi~~ Hello, ~there~ world!",
    "This ~~has a\n\nnew paragraph~~.",
    "This will ~~~not~~~ strike.",
    "www.commonmark.org/help and https://a.example/x_(y)_z, also foo@bar.baz.",
    "(www.google.com/search?q=Markup+(business))",
    "Money: $5 and $6. Formula: $a_1 + b$ and\n\n$$\n\\frac{1}{2}\n$$\n\nend",
    "[a]\n\ntext [a] and ![a]\n\n- in a [a] list\n\n> [a]\n\n[a]: https://late.example 'late'\n",
    "```js\nlet x = 1;\n```\n```\nopen\n\n  fence",
    "~~~~ python\ncode\n~~~\nstill\n~~~~~~\nafter",
    "1. one\n\n   two\n2. three\n   ```sh\n   ls\n   ```\n\nend",
    "a\r\nb\r\n\r\n- c\r- d\r\n",
]


async def same_dom(rig: Rig, cases: list[str]) -> None:
    page = await rig.page()
    failures = []
    for start in range(0, len(cases), 60):
        failures += await page.evaluate(HARNESS, cases[start : start + 60])
    assert not failures, f"{len(failures)}: {json.dumps(failures[:3], indent=1)}"


async def test_every_commonmark_case_ends_in_the_same_dom_whole_and_at_every_prefix(
    rig: Rig,
    packages: Path,  # noqa: F811
) -> None:
    spec = (packages / "node_modules" / "commonmark-spec" / "spec.txt").read_text(encoding="utf-8")
    examples = re.findall(r"^`{32} example\n(.*?)^\.\n.*?^`{32}$", spec, re.S | re.M)
    cases = [e.replace("→", "\t") for e in examples]
    assert len(cases) > 640
    await same_dom(rig, cases)


async def test_every_gfm_case_ends_in_the_same_dom_whole_and_at_every_prefix(rig: Rig) -> None:
    await same_dom(rig, GFM)


PAYLOADS = [
    "<script>window.hit = 1</script>",
    "<img src=x onerror='window.hit = 1'>",
    "<iframe src='https://evil.example'></iframe> <svg onload='window.hit=1'>",
    "[x](javascript:window.hit=1) [y](JaVaScRiPt:window.hit=1) [z](java&#115;cript:window.hit=1)",
    "[d](data:text/html,<script>window.hit=1</script>) <javascript:window.hit=1>",
    "![t](https://evil.example/track.png) ![u](/api/chat/stream?message=start)",
    "[s](/api/chat/stream?message=start) [r]\n\n[r]: javascript:window.hit=1",
    "<style>*{display:none}</style> <base href='https://evil.example/'>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<a href='javascript:window.hit=1'>x</a> <form action='https://evil.example'><button>y</button></form>",
    "`\u202egnp.exe` and [\u202etxt](https://a.example/\u202egnp.exe)",
    "$\\href{javascript:window.hit=1}{x}$ $$\\url{https://evil.example}$$ $\\htmlStyle{position:fixed}{x}$",
    "![svg](data:image/svg+xml;base64,PHN2ZyBvbmxvYWQ9YWxlcnQoMSk+)",
    "```html\n<script>window.hit=1</script>\n```",
    "| <img src=x onerror=window.hit=1> | b |\n|---|---|\n| [x](javascript:window.hit=1) | <b> |",
]

INSPECT = """
async ([text, size]) => {
  const { MarkdownStream } = await import("/js/markdown/stream.js");
  const box = document.createElement("div");
  document.body.append(box);
  const stream = new MarkdownStream(box);
  for (let i = size; i < text.length; i += size) stream.update(text.slice(0, i), i * 1000);
  stream.finish(text);
  await new Promise((r) => setTimeout(r, 30));
  const banned = "script, iframe, style, base, meta, form, object, embed, svg, math [href]";
  const found = [...box.querySelectorAll(banned)];
  for (const node of box.querySelectorAll("a")) {
    const away = /^(https?|mailto):/.test(node.getAttribute("href")) && node.origin !== location.origin;
    if (!away) found.push(node);
  }
  for (const node of box.querySelectorAll("img")) if (!node.src.startsWith("data:image/")) found.push(node);
  for (const node of box.querySelectorAll("*")) {
    if (node.getAttributeNames().some((a) => a.startsWith("on") || a === "style")) found.push(node);
  }
  const bidi = /[\u202d\u202e]/.test(box.textContent) ? "bidi" : "";
  box.remove();
  return found[0]?.outerHTML ?? bidi;
}
"""


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
async def test_no_payload_runs_loads_or_leads_here_in_whatever_pieces_it_comes(
    rig: Rig, payload: str
) -> None:
    page = await rig.page()
    for size in (1, 3, 7, 10_000):
        assert await page.evaluate(INSPECT, [payload, size]) == "", size
    assert await page.evaluate("window.hit") is None


async def shown(page: Page, text: str) -> dict[str, float]:
    result: dict[str, float] = await page.evaluate(
        """async (text) => {
          const { MarkdownStream } = await import("/js/markdown/stream.js");
          const box = document.createElement("div");
          document.body.append(box);
          const started = performance.now();
          const stream = new MarkdownStream(box);
          for (let i = 4000; i < text.length; i += 40000) stream.update(text.slice(0, i), performance.now());
          stream.finish(text);
          const out = { ms: performance.now() - started, nodes: box.querySelectorAll("*").length };
          box.remove();
          return out;
        }""",
        text,
    )
    return result


async def test_huge_tables_and_deep_nesting_are_bounded(rig: Rig) -> None:
    page = await rig.page()
    table = "| a | b |\n|---|---|\n" + "| x | y |\n" * 4000
    assert (await shown(page, table))["nodes"] < 2500
    wide = "|" + " a |" * 2000 + "\n|" + "---|" * 2000 + "\n"
    assert (await shown(page, wide))["nodes"] < 300
    for deep in (
        ">" * 5000 + " x",
        "- " * 3000 + "x",
        "[" * 4000,
        "*a **a " * 2000,
        "![" * 3000,
        "(" * 5000 + "`" * 3000,
    ):
        assert (await shown(page, deep))["ms"] < 4000, deep[:20]


async def test_sealed_blocks_keep_their_nodes_while_the_text_grows(rig: Rig) -> None:
    page = await rig.page()
    kept = await page.evaluate(
        """async () => {
          const { MarkdownStream } = await import("/js/markdown/stream.js");
          const box = document.createElement("div");
          const stream = new MarkdownStream(box);
          stream.update("# One\\n\\nTwo *three*\\n\\n- a\\n- b", 0);
          const first = box.querySelector("h3"), item = box.querySelector("li");
          stream.update("# One\\n\\nTwo *three*\\n\\n- a\\n- b\\n- c\\n\\nend", 1000);
          stream.finish("# One\\n\\nTwo *three*\\n\\n- a\\n- b\\n- c\\n\\nend");
          return [first === box.querySelector("h3"), item === box.querySelector("li")];
        }"""
    )
    assert kept == [True, True]


WINDOWED = """
async ([text, cuts]) => {
  const { MarkdownStream } = await import("/js/markdown/stream.js");
  const blocks = (box) => [...box.querySelectorAll(".md-block")].map((n) => n.outerHTML);
  const box = () => document.body.appendChild(document.createElement("div"));
  const whole = box();
  new MarkdownStream(whole).finish(text);
  const all = blocks(whole);
  const failures = [];
  for (const [cut, dropped] of cuts) {
    const part = box();
    const stream = new MarkdownStream(part, { windowed: () => true });
    stream.update(text.slice(0, cut), 0);
    stream.parts.drop(Math.min(dropped, stream.parts.shown.length));
    stream.update(text, 1000);
    stream.finish(text);
    const fewer = blocks(part).length;
    while (stream.parts.mountMore(3));
    const same = JSON.stringify(blocks(part)) === JSON.stringify(all) && stream.parts.mounted === all.length;
    if (!same || part.querySelector(".md-spacer")) failures.push([cut, dropped]);
    if (cut < 10 && fewer > 70) failures.push(["nothing was left out", fewer]);
    part.remove();
  }
  whole.remove();
  return failures;
}
"""


async def test_a_windowed_text_that_is_mounted_again_is_the_whole_text(rig: Rig) -> None:
    page = await rig.page()
    parts = [
        "# Part {n}\n\nSee [the end] and *this*.\n\n- a\n- b\n\n",
        "```py\nx = {n}\n```\n\n> said {n}\n\n",
    ]
    text = "".join(parts[n % 2].format(n=n) for n in range(90)) + "[the end]: https://late.example 'late'\n"
    lengths = [0, 1, len(text) // 3, len(text) // 2, len(text) - 200, len(text) - 10, len(text) - 1]
    cuts = [[cut, dropped] for cut in lengths for dropped in (0, 1, 3, 99)]
    assert await page.evaluate(WINDOWED, [text, cuts]) == []
