"""Readable text and a title out of bytes: plain text, Markdown, HTML, PDF, and office files by the extra.

Blocking, and for all but text at the mercy of a parser: `mux.tools.reader` calls it in a process.
"""

from __future__ import annotations

import codecs
import functools
import io
import logging
import math
import posixpath
import re
import time
import unicodedata
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from urllib.parse import unquote

import html_to_markdown

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
# Encoding, and the first bytes of the characters that texts in it are made of: kana, punctuation, the Hangul
# of KS X 1001, and the more frequent half of the ideographs (level 1 of JIS, GB 2312 and Big5). How frequent
# its characters are tells these encodings apart: S. Li and K. Momoi, A composite approach to
# language/encoding detection, 2001. Where two fit alike, the first is meant: Hangul is well-formed GB 2312,
# Chinese is seldom Hangul.
_EAST_ASIAN = (
    ("euc_jp", "euc_jp", (0xA1, 0xA3, 0xA4, 0xA5, *range(0xB0, 0xD0))),
    ("cp949", "euc_kr", (0xA1, 0xA3, *range(0xB0, 0xC9))),
    ("gb18030", "gb2312", (0xA1, 0xA3, *range(0xB0, 0xD8))),
    ("cp932", "shift_jis", (0x81, 0x82, 0x83, *range(0x88, 0x98))),
    ("big5", "big5", (0xA1, *range(0xA4, 0xC7))),
)
# Python's codecs that no text is sent in: punycode takes the square of the size, 25 minutes for a page
_NO_CHARSETS = frozenset({"punycode", "idna", "utf-7", "unicode-escape", "raw-unicode-escape", "undefined"})
_FREQUENT = 0.8  # of a text's characters beyond ASCII
_BEYOND_ASCII = re.compile(rb"[\x80-\xff]")
_KANA = re.compile("[\u3041-\u30fe]")
# a syllable of Thai: vowel before, consonant, vowel above or below, tone, vowels behind
_THAI = re.compile(
    rb"[\xe0-\xe4]?[\xa1-\xce][\xd1\xd4-\xda]?[\xe7-\xee]{0,2}[\xcf\xd0\xd2\xd3\xe5]{0,2}\xe6?"
)
_THAI_SIGNS = re.compile(rb"[\xd1-\xd9\xe0-\xe9]")
_IDEOGRAPHS = re.compile("[\u3041-\u30fe\u4e00-\u9fff\uac00-\ud7a3]")
# what a text in UTF-16 holds: letters of the living scripts, punctuation, no controls
_TEXT = re.compile(
    "[\t\n\r\x20-\x7e\xa0-\u024f\u0370-\u06ff\u0900-\u0fff\u1780-\u17ff\u1e00-\u1fff\u2010-\u2044\u20a0-\u20bf"
    "\u3000-\u30ff\u4e00-\u9fff\uac00-\ud7a3\uff00-\uffee]"
)
_HTML = frozenset({"html", "htm", "xhtml"})
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
    if head.startswith(b"PK") and extension in _PARSERS:
        return extension
    marked = head.startswith(_MARKS) or (b"\0" in head and _wide(head) is not None)
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


def extract(data: bytes, kind: str, *, charset: str | None = None, seconds: float | None = None) -> Extracted:
    """Title and text.

    Args:
        data: the document.
        kind: as `kind_of` says.
        charset: as it was announced.
        seconds: after which a document of many pages or chapters ends with those that were read by then.

    Raises:
        UnreadableError: the document is broken, encrypted or empty of text.
    """
    if kind == "text":
        text = _decode(data, charset)[:MAX_TEXT]
        return Extracted(first_heading(text[:_HEAD]), text)
    if kind == "html":
        found = _CHARSET.search(data[:2048])
        return extract_html(_decode(data, charset or (found.group(1).decode() if found else None)))
    try:
        title, parts = _PARSERS[kind](io.BytesIO(data))
        text = "\n\n".join(_within(parts, seconds))
    except ImportError as e:
        raise UnreadableError(_EXTRA) from e
    except (UnreadableError, MemoryError):
        raise
    except Exception as e:  # parsers answer broken files with anything
        raise UnreadableError(f"it is broken ({type(e).__name__})") from e
    if not text.strip():
        raise UnreadableError("it has no text" + " (scanned pages?)" * (kind == "pdf"))
    return Extracted(" ".join((title or first_heading(text[:_HEAD])).split()), text)


def _within(parts: Iterable[str], seconds: float | None) -> Iterator[str]:
    """The parts that are not empty, up to the most text that is kept, and as far as the time is enough."""
    end = math.inf if seconds is None else time.monotonic() + seconds
    size = 0
    for part in parts:
        if not part.strip():
            continue
        yield part[: MAX_TEXT - size]
        size += len(part)
        if size > MAX_TEXT:
            yield f"[… cut here: only the first {MAX_TEXT:,} characters of this document are read]"
            return
        if time.monotonic() > end:
            yield "[… cut here: what follows would take too long to read]"
            return


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
    wide = _wide(data[:_HEAD]) if b"\0" in data[:_HEAD] else None
    escaped = "iso2022_jp" if b"\x1b$B" in data[:_HEAD] else None
    for name in (bom, charset, wide, escaped, "utf-8"):
        try:
            if name and codecs.lookup(name).name not in _NO_CHARSETS:
                return _lines(data.decode(name))
        except (UnicodeDecodeError, LookupError, ValueError):
            continue
    return _lines(data.decode(_looks_like(data), "replace"))


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _looks_like(data: bytes) -> str:
    """The encoding of a text that is not wholly UTF-8."""
    first = next((match.start() for match in _BEYOND_ASCII.finditer(data)), 0)
    head = data[max(0, first - 64) : first + _HEAD]  # all is ASCII before it: no character is torn
    if _is_torn_utf8(head):
        return "utf-8"
    return _east_asian(head) or _thai(head) or _wide_letters(head) or _european(head)


def _is_torn_utf8(head: bytes) -> bool:
    """Whether it is UTF-8 with a few bad bytes, as logs and joined files have them."""
    text = head.decode("utf-8", "replace")
    beyond = sum(1 for c in text if not c.isascii())
    return text.count("\ufffd") * 10 < beyond


def _east_asian(head: bytes) -> str | None:
    best, most = None, _FREQUENT
    for encoding, _, _ in _EAST_ASIAN:
        try:
            text = codecs.getincrementaldecoder(encoding)().decode(head, final=len(head) < _HEAD)
        except UnicodeDecodeError:
            continue
        beyond = [c for c in text if not c.isascii()]
        # "Ångström" is well-formed Big5, but an ideograph is seldom alone among letters
        pairs = sum(not (a.isascii() or b.isascii()) for a, b in pairwise(text))
        if not beyond or pairs * 3 < len(beyond):
            continue
        if encoding == "euc_jp" and len(_KANA.findall(text)) * 20 < len(beyond):
            continue  # Japanese without kana is Chinese
        share = sum(c in _frequent(encoding) for c in beyond) / len(beyond)
        if share > most:
            best, most = encoding, share
    return best


@functools.cache
def _frequent(encoding: str) -> frozenset[str]:
    """The characters that texts in an encoding of East Asia are made of."""
    found: set[str] = set()
    for name, table, leads in _EAST_ASIAN:
        if name == encoding:
            for lead in leads:
                found.update(bytes((lead, trail)).decode(table, "ignore")[:1] for trail in range(0x40, 0xFF))
    return frozenset(found - {""})


def _thai(head: bytes) -> str | None:
    """Windows' Thai: well-formed syllables, with their signs, and next to nothing else beyond ASCII."""
    beyond = len(_BEYOND_ASCII.findall(head))
    syllables = sum(map(len, _THAI.findall(head)))
    signs = len(_THAI_SIGNS.findall(head))
    return "cp874" if syllables >= 0.97 * beyond and signs * 6 >= beyond > 1 else None


def _wide(head: bytes) -> str | None:
    """UTF-16 without a mark, by what it would say."""
    best, most = None, 1.0
    for encoding in ("utf-16-le", "utf-16-be"):
        try:
            text = codecs.getincrementaldecoder(encoding)().decode(head)
        except UnicodeDecodeError:
            continue
        if not text or len(_TEXT.findall(text)) < 0.97 * len(text):
            continue
        # in the wrong order small letters are ideographs
        score = 1.0 + sum(map(str.isascii, text)) / len(text)
        if best is None or score > most:
            best, most = encoding, score
    return best


def _wide_letters(head: bytes) -> str | None:
    """UTF-16 that has not even a space, which other encodings than those of East Asia would have."""
    encoding = _wide(head)
    if encoding is None or len(head) % 2:
        return None
    text = head.decode(encoding, "ignore")
    return encoding if len(_IDEOGRAPHS.findall(text)) > 0.8 * len(text) else None


def _european(head: bytes) -> str:
    """In Western European encodings short texts look alike, and Windows' is the one that files are in."""
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


def _pdf(file: io.BytesIO) -> tuple[str, Iterator[str]]:
    import pypdf  # a third of a second to import: paid by who has a PDF, not by every start
    from pypdf.errors import DependencyError

    try:
        reader = pypdf.PdfReader(file)
        if reader.is_encrypted and not reader.decrypt(""):
            raise UnreadableError("it is encrypted")
    except DependencyError as e:
        raise UnreadableError(_EXTRA) from e
    except NotImplementedError as e:
        raise UnreadableError("it is protected in a way that only its own program opens") from e
    meta = reader.metadata

    def parts() -> Iterator[str]:
        empty = True
        for page in reader.pages[:MAX_PDF_PAGES]:
            text = page.extract_text()
            empty = empty and not text.strip()
            yield text
        if len(reader.pages) > MAX_PDF_PAGES and not empty:
            yield f"[… cut here: only the first {MAX_PDF_PAGES:,} of {len(reader.pages):,} pages are read]"

    return str(meta.title or "") if meta is not None else "", parts()


# --- office files -------------------------------------------------------------------------------------------


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

    def flat(shapes: Any) -> Iterator[Any]:
        for shape in shapes:
            yield from flat(shape.shapes) if hasattr(shape, "shapes") else [shape]

    def parts() -> Iterator[str]:
        for number, slide in enumerate(deck.slides, 1):
            shapes = list(flat(slide.shapes))
            texts = [shape.text_frame.text for shape in shapes if shape.has_text_frame]
            texts += [
                "\n".join(_row(cell.text for cell in row.cells) for row in shape.table.rows)
                for shape in shapes
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


_PARSERS = {"pdf": _pdf, "docx": _docx, "xlsx": _xlsx, "pptx": _pptx, "epub": _epub}
