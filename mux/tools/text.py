"""Readable text and a title out of bytes: plain text, Markdown, HTML, PDF, and office files by the extra.

Blocking, and for all but text at the mercy of a parser: `mux.tools.reader` calls it in a process.
"""

from __future__ import annotations

import codecs
import io
import logging
import posixpath
import re
import unicodedata
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import html_to_markdown

if TYPE_CHECKING:
    import pypdf

__all__ = ["Extracted", "extract", "extract_html", "kind_of"]

MAX_PDF_PAGES = 2_000
MAX_TEXT = 20_000_000  # characters
_HEAD = 65_536
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_MARKS = tuple(mark for mark, _ in _BOMS)
# what files of people are written in; others are guesses that are wrong more often than right
_ENCODINGS = (
    "cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "koi8_r", "cp932",
    "euc_jp", "gb18030", "big5", "cp949",
)  # fmt: skip
_HTML = frozenset({"html", "htm", "xhtml"})
_OFFICE = frozenset({"docx", "xlsx", "pptx", "epub"})
MAX_CELLS = 200_000  # of a workbook
_EXTRA = "it needs an extra to be read: pip install 'mux-agents[documents]'"
_CHARSET = re.compile(rb"""<meta[^>]{0,200}charset=["']?([A-Za-z0-9_-]{2,40})""", re.IGNORECASE)
# pypdf reports every flaw of a file by logging; a broken PDF is no news for this server's operator
logging.getLogger("pypdf").setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True)
class Extracted:
    """What a reader sees: ``title`` may be empty."""

    title: str
    text: str


class UnreadableError(Exception):
    """The bytes hold no text that can be extracted; the message says why."""


def kind_of(name: str, head: bytes) -> str | None:
    """``pdf``, ``html``, ``text``, ``docx``, ``xlsx``, ``pptx``, ``epub``, or ``None`` for what is none of
    these, by name and first bytes."""
    extension = name.rpartition(".")[2].lower() if "." in name else ""
    if head.startswith(b"%PDF-"):
        return "pdf"
    if head.startswith(b"PK") and extension in _OFFICE:
        return extension
    marked = head.startswith(_MARKS)
    if b"\0" in head and not marked:
        return None
    if extension in _HTML:
        return "html"
    if marked:
        return "text"
    try:
        head.decode()
    except UnicodeDecodeError as e:
        if e.start < len(head) - 4 and not _looks_like_text(head):
            return None
    return "text"


def _looks_like_text(head: bytes) -> bool:
    """Legacy 8-bit text has few control characters; binaries have many."""
    controls = sum(1 for b in head if b < 32 and b not in b"\t\n\r\f\x1b")
    return controls * 50 < len(head)


def extract(data: bytes, kind: str, *, charset: str | None = None) -> Extracted:
    """Title and text.

    Raises:
        UnreadableError: the document is broken, encrypted or empty of text.
    """
    if kind == "pdf":
        return _pdf(data)
    if kind in _OFFICE:
        return _office(data, kind)
    if kind == "html":
        found = _CHARSET.search(data[:2048])
        return extract_html(_decode(data, charset or (found.group(1).decode() if found else None)))
    text = _decode(data, charset)[:MAX_TEXT]
    return Extracted(first_heading(text[:_HEAD]), text)


def extract_html(html: str) -> Extracted:
    """The page as Markdown, without scripts, navigation, forms and images."""
    try:
        text = html_to_markdown.convert(html, _options(metadata=False)).content or ""
        head = html_to_markdown.convert(html[:_HEAD], _options(metadata=True)).metadata
    except (html_to_markdown.ConversionError, ValueError) as e:
        raise UnreadableError("its HTML can't be converted") from e
    title = head.document.title if head is not None else None
    return Extracted(" ".join((title or first_heading(text[:_HEAD])).split()), text[:MAX_TEXT])


def first_heading(text: str) -> str:
    """The text of the first Markdown heading of level 1 to 3, or nothing. Line by line: a pattern for it took
    minutes for a heading of 1,600 spaces."""
    for line in text.split("\n"):
        level = len(line) - len(line.lstrip("#"))
        if 1 <= level <= 3 and line[level : level + 1].isspace():
            title = line[level:].strip().rstrip("#").rstrip()
            if title:
                return title
    return ""


def _options(*, metadata: bool) -> html_to_markdown.ConversionOptions:
    cleaning = html_to_markdown.PreprocessingOptions(
        enabled=True, preset="aggressive", remove_navigation=True, remove_forms=True
    )
    return html_to_markdown.ConversionOptions(
        extract_metadata=metadata, skip_images=True, autolinks=False, preprocessing=cleaning
    )


def _decode(data: bytes, charset: str | None) -> str:
    """As its BOM says, as it was announced, as UTF-8, or as it looks."""
    bom = next((name for mark, name in _BOMS if data.startswith(mark)), None)
    for name in (bom, charset, "utf-8"):
        try:
            if name:
                return _lines(data.decode(name))
        except (UnicodeDecodeError, LookupError, ValueError):
            continue
    return _lines(data.decode(_looks_like(data[:_HEAD]), "replace"))


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _looks_like(head: bytes) -> str:
    """The encoding of a text that is not UTF-8. In Western European ones short texts look alike, and Windows'
    is the one that files are in."""
    import charset_normalizer  # 30 ms: paid by who has such a file

    best = charset_normalizer.from_bytes(head, cp_isolation=list(_ENCODINGS)).best()
    west = charset_normalizer.from_bytes(head, cp_isolation=["cp1252"]).best()
    if best is None:
        return "latin-1"
    letters = (c for c in str(best) if c.isalpha() and not c.isascii())
    latin = all("LATIN" in unicodedata.name(c, "") for c in letters)
    if latin and west is not None and west.chaos <= best.chaos:
        return "cp1252"
    return best.encoding


def _pdf(data: bytes) -> Extracted:
    import pypdf  # a third of a second to import: paid by who has a PDF, not by every start
    from pypdf.errors import DependencyError

    try:
        title, text = _pages(pypdf.PdfReader(io.BytesIO(data)))
    except DependencyError as e:
        raise UnreadableError(_EXTRA) from e
    except (UnreadableError, MemoryError):
        raise
    except Exception as e:
        raise UnreadableError(f"its PDF can't be read ({type(e).__name__})") from e
    if not text.strip():
        raise UnreadableError("it has no text (scanned pages?)")
    return Extracted(" ".join(title.split()), text)


def _pages(reader: pypdf.PdfReader) -> tuple[str, str]:
    if reader.is_encrypted and not reader.decrypt(""):
        raise UnreadableError("it is encrypted")
    pages: list[str] = []
    size = 0
    for page in reader.pages[:MAX_PDF_PAGES]:
        pages.append(page.extract_text())
        size += len(pages[-1])
        if size > MAX_TEXT:
            break
    meta = reader.metadata
    return str(meta.title or "") if meta is not None else "", "\n\n".join(pages)[:MAX_TEXT]


# --- office files -------------------------------------------------------------------------------------------


def _office(data: bytes, kind: str) -> Extracted:
    read = {"docx": _docx, "xlsx": _xlsx, "pptx": _pptx, "epub": _epub}[kind]
    try:
        title, parts = read(io.BytesIO(data))
        text = "\n\n".join(_within(parts))
    except ImportError as e:
        raise UnreadableError(_EXTRA) from e
    if not text.strip():
        raise UnreadableError("it has no text")
    return Extracted(" ".join((title or first_heading(text[:_HEAD])).split()), text)


def _within(parts: Iterable[str]) -> Iterator[str]:
    """The parts that are not empty, up to the most text that is kept."""
    size = 0
    for part in parts:
        if part.strip():
            yield part[: MAX_TEXT - size]
            size += len(part)
            if size >= MAX_TEXT:
                return


def _docx(file: io.BytesIO) -> tuple[str, Iterator[str]]:
    import docx
    from docx.table import Table

    document = docx.Document(file)

    def parts() -> Iterator[str]:
        for block in document.iter_inner_content():
            if isinstance(block, Table):
                yield "\n".join(_row(cell.text for cell in row.cells) for row in block.rows)
                continue
            style = block.style.name if block.style is not None else ""
            level = style.removeprefix("Heading ") if style and style.startswith("Heading ") else ""
            yield f"{'#' * int(level)} {block.text}" if level.isdecimal() and block.text else block.text

    return document.core_properties.title or "", parts()


def _xlsx(file: io.BytesIO) -> tuple[str, Iterator[str]]:
    import openpyxl  # type: ignore[import-untyped]

    book = openpyxl.load_workbook(file, read_only=True, data_only=True)

    def parts() -> Iterator[str]:
        left = MAX_CELLS
        for sheet in book.worksheets:
            rows = []
            for row in sheet.iter_rows(values_only=True):
                left -= len(row)
                if any(cell is not None for cell in row):
                    rows.append(_row("" if cell is None else str(cell) for cell in row))
                if left <= 0:
                    rows.append("[… the workbook is longer]")
                    break
            yield f"## {sheet.title}\n" + "\n".join(rows)
            if left <= 0:
                return

    return book.properties.title or "", parts()


def _pptx(file: io.BytesIO) -> tuple[str, Iterator[str]]:
    import pptx

    deck = pptx.Presentation(file)

    def parts() -> Iterator[str]:
        for number, slide in enumerate(deck.slides, 1):
            texts = [shape.text_frame.text for shape in slide.shapes if shape.has_text_frame]
            texts += [
                "\n".join(_row(cell.text for cell in row.cells) for row in shape.table.rows)
                for shape in slide.shapes
                if shape.has_table
            ]
            if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
                texts.append(slide.notes_slide.notes_text_frame.text)
            yield f"## Slide {number}\n" + "\n".join(filter(None, texts))

    return deck.core_properties.title or "", parts()


def _epub(file: io.BytesIO) -> tuple[str, Iterator[str]]:
    """The chapters in reading order (EPUB 3.3: the container names the package, its spine the chapters)."""
    from lxml import etree  # type: ignore[import-untyped]

    book = zipfile.ZipFile(file)
    strict = etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=False)

    def xml(name: str) -> Any:
        return etree.fromstring(_member(book, name), strict)

    package_name = xml("META-INF/container.xml").xpath("string(//*[local-name()='rootfile'][1]/@full-path)")
    package = xml(package_name)
    items = {i.get("id"): i.get("href") for i in package.iterfind(".//{*}manifest/{*}item")}
    spine = [items.get(ref.get("idref")) for ref in package.iterfind(".//{*}spine/{*}itemref")]

    def parts() -> Iterator[str]:
        for href in filter(None, spine):
            name = posixpath.normpath(posixpath.join(posixpath.dirname(package_name), unquote(href)))
            if name in book.namelist():
                yield extract_html(_decode(_member(book, name), None)).text

    return str(package.xpath("string(//*[local-name()='title'][1])")), parts()


def _member(book: zipfile.ZipFile, name: str) -> bytes:
    """A file of the archive, of a size that a chapter may have."""
    with book.open(name) as member:
        return member.read(MAX_TEXT)


def _row(cells: Iterable[str]) -> str:
    return " | ".join(" ".join(cell.split()) for cell in cells)
