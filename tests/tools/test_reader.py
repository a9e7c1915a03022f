"""Documents in processes: every format, and what hurts whoever reads it."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from mux.tools.reader import Reader
from mux.tools.text import UnreadableError, kind_of
from tests.support.tools import until

pytestmark = [pytest.mark.usefixtures("no_leaks"), pytest.mark.timeout(60)]

Make = Callable[..., Reader]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    made: list[Reader] = []

    def build(**options: float) -> Reader:
        made.append(Reader(**options))  # type: ignore[arg-type]
        return made[-1]

    yield build
    for reader in made:
        await reader.aclose()


def pdf_bomb(text: str = "", operators: int = 200_000) -> bytes:
    """2,000 pages that share one stream of many operators and hold a text, or none."""
    show = f"BT /F1 12 Tf 20 200 Td ({text}) Tj ET\n".encode() if text else b""
    stream = zlib.compress(show + b"BT /F1 12 Tf () Tj ET q Q\n" * operators, 9)
    pages = 2000
    kids = b" ".join(b"%d 0 R" % (5 + i) for i in range(pages))
    page = (
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R"
        b" /Resources << /Font << /F1 3 0 R >> >> >>"
    )
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [%b] /Count %d >>" % (kids, pages),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        b"<< /Length %d /Filter /FlateDecode >>\nstream\n%b\nendstream" % (len(stream), stream),
        *[page] * pages,
    ]
    out, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%b\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    head = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    trailer = b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, len(out))
    return out + head + table + trailer


def docx_file() -> bytes:
    import docx

    document = docx.Document()
    document.core_properties.title = "Harbour rules"
    document.add_heading("Berths", level=2)
    document.add_paragraph("Berth 4 is for ferries.")
    table = document.add_table(rows=2, cols=2)
    for at, text in enumerate(("ship", "berth", "Gull", "4")):
        table.cell(at // 2, at % 2).text = text
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def xlsx_file() -> bytes:
    import openpyxl  # type: ignore[import-untyped]

    book = openpyxl.Workbook()
    book.active.title = "Fees"
    for row in (("ship", "fee"), ("Gull", 12.5), (None, None), ("Tern", None)):
        book.active.append(row)
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


def pptx_file() -> bytes:
    import pptx

    deck = pptx.Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[1])
    slide.shapes.title.text = "The lighthouse"
    slide.placeholders[1].text = "It is 40 m high."
    group = slide.shapes.add_group_shape()
    group.shapes.add_textbox(0, 0, 9, 9).text_frame.text = "in a group"
    slide.notes_slide.notes_text_frame.text = "Ask Ada."
    out = io.BytesIO()
    deck.save(out)
    return out.getvalue()


def epub_file(chapters: int = 2, size: int = 0) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as book:
        book.writestr("mimetype", "application/epub+zip")
        book.writestr(
            "META-INF/container.xml",
            '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
            '<rootfile full-path="OEBPS/book.opf"/></rootfiles></container>',
        )
        items = "".join(f'<item id="c{n}" href="text/c%20{n}.xhtml"/>' for n in range(chapters))
        spine = "".join(f'<itemref idref="c{n}"/>' for n in range(chapters))
        book.writestr(
            "OEBPS/book.opf",
            '<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/">'
            f"<metadata><dc:title>Sea tales</dc:title></metadata><manifest>{items}</manifest>"
            f"<spine>{spine}</spine></package>",
        )
        for n in range(chapters):
            body = "x" * size or f"<h1>Chapter {n}</h1><p>The {n}th gull.</p>"
            book.writestr(f"OEBPS/text/c {n}.xhtml", f"<html><body>{body}</body></html>")
    return out.getvalue()


@pytest.mark.parametrize(
    ("kind", "data", "title", "parts"),
    [
        ("docx", docx_file(), "Harbour rules", ["## Berths", "Berth 4 is for", "ship | berth\nGull | 4"]),
        ("xlsx", xlsx_file(), "Fees", ["## Fees\nship | fee\nGull | 12.5\nTern | "]),
        ("pptx", pptx_file(), "", ["## Slide 1", "The lighthouse", "40 m high.", "in a group", "Ask Ada."]),
        ("epub", epub_file(), "Sea tales", ["# Chapter 0\n\nThe 0th gull.", "# Chapter 1"]),
        ("html", b"<title>T</title><h1>One</h1><p>two</p>", "T", ["One", "two"]),
        ("text", "# Überschrift\nein".encode("cp1252"), "Überschrift", ["ein"]),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) == 4 else "",
)  # fmt: skip
async def test_each_format_is_read(make: Make, kind: str, data: bytes, title: str, parts: list[str]) -> None:
    assert kind_of(f"file.{kind}" if kind != "text" else "a.md", data[:8192]) == kind
    found = await make().read(data, kind)
    assert title in found.title
    for part in parts:
        assert part in found.text


@pytest.mark.parametrize("kind", ["docx", "xlsx", "pptx", "epub", "pdf", "html"])
@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 no zip", b"%PDF-1.7 no more", b"<" * 5000])
async def test_a_broken_file_says_so_and_the_next_is_read(make: Make, kind: str, data: bytes) -> None:
    reader = make()
    if kind != "html":
        with pytest.raises(UnreadableError):
            await reader.read(data, kind)
    assert (await reader.read(b"<p>fine</p>", "html")).text.strip() == "fine"


async def test_a_document_that_takes_too_long_is_given_up_and_holds_nobody_up(make: Make) -> None:
    reader = make(seconds=4.0)
    bombs = [asyncio.create_task(reader.read(pdf_bomb(), "pdf")) for _ in range(2)]
    worst, began = 0.0, time.monotonic()
    assert (await reader.read(b"<p>a page</p>", "html")).text.strip() == "a page"
    assert not any(bomb.done() for bomb in bombs)  # it did not wait for them
    while not all(bomb.done() for bomb in bombs):
        asleep = time.monotonic()
        await asyncio.sleep(0.02)
        worst = max(worst, time.monotonic() - asleep)
    for bomb in bombs:
        with pytest.raises(UnreadableError, match="longer than 4 s"):
            await bomb
    assert time.monotonic() - began < 15
    assert worst < 1.0
    began = time.monotonic()
    with pytest.raises(UnreadableError, match="longer than 4 s"):  # it is not tried again
        await reader.read(pdf_bomb(), "pdf")
    assert time.monotonic() - began < 1.0
    assert (await reader.read(b"<p>fine</p>", "html")).text.strip() == "fine"


async def test_a_long_document_ends_with_the_pages_that_there_was_time_for(make: Make) -> None:
    data = await asyncio.to_thread(pdf_bomb, "gulls", 2_000)
    found = await make(seconds=8.0).read(data, "pdf")
    assert found.text.split().count("gulls") > 1
    assert found.text.endswith("[… cut here: what follows would take too long to read]")


async def test_a_pdf_that_its_own_program_alone_opens_says_so(make: Make) -> None:
    head = b"<< /Filter /Other /V 1 >>"
    data = pdf_bomb("x", 1).replace(b"/Root 1 0 R", b"/Root 1 0 R /Encrypt %b /ID [(a) (b)]" % head)
    with pytest.raises(UnreadableError, match="only its own program opens"):
        await make().read(data, "pdf")


async def test_a_document_that_eats_the_memory_is_given_up(make: Make) -> None:
    reader = make(memory=180 << 20, seconds=20.0)
    with pytest.raises(UnreadableError):
        await reader.read(epub_file(chapters=40, size=30_000_000), "epub")
    assert (await reader.read(b"<p>fine</p>", "html")).text.strip() == "fine"


def _children(pid: int) -> list[int]:
    """Readers below a process, and who watches over them."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        try:
            is_reader = b"mux.tools._reader" in (stat.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z" and is_reader:
            found += [int(stat.parent.name), *_children(int(stat.parent.name))]
    return found


@pytest.mark.allow_blocking
async def test_a_cancelled_caller_s_document_is_not_read_any_further(make: Make) -> None:
    reader = make(seconds=60.0)
    reading = asyncio.create_task(reader.read(pdf_bomb(), "pdf"))
    await until(lambda: len(_children(os.getpid())) == 2, 20)  # the watcher and its program
    reading.cancel()
    began = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await until(lambda: not _children(os.getpid()))
    assert time.monotonic() - began < 5


@pytest.mark.allow_blocking
async def test_its_processes_die_with_a_server_that_is_killed() -> None:
    code = textwrap.dedent("""
        import asyncio
        from mux.tools.reader import Reader
        from tests.tools.test_reader import pdf_bomb
        async def main():
            reading = asyncio.create_task(Reader(seconds=600).read(pdf_bomb(), "pdf"))
            await asyncio.sleep(1)
            print("reading", flush=True)
            await reading
        asyncio.run(main())
    """)
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=subprocess.PIPE, cwd=ROOT
    )
    assert server.stdout is not None
    assert await server.stdout.readline() == b"reading\n"
    children = _children(server.pid)
    assert children
    server.send_signal(signal.SIGKILL)
    await server.communicate()
    await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))


async def test_a_closed_reader_reads_nothing(make: Make) -> None:
    reader = make()
    await reader.aclose()
    with pytest.raises(UnreadableError, match="shutting down"):
        await reader.read(b"<p>x</p>", "html")
