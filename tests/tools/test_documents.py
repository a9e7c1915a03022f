"""Searching, listing and reading documents, as numbered sources."""

from __future__ import annotations

import asyncio
import io
import os
import random
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pypdf
import pytest
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

from mux.tools import Toolbox, ToolProblem, documents
from mux.tools.documents import document_tools
from mux.tools.index import DocumentIndex
from mux.tools.reader import Reader
from mux.tools.roots import Found, Roots
from mux.tools.sources import Sources
from tests.support.tools import call, collect, context
from tests.tools.test_reader import pdf_bomb

pytestmark = pytest.mark.usefixtures("no_leaks")

Make = Callable[..., Toolbox]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    opened: list[DocumentIndex] = []
    reader = Reader(seconds=3.0)

    def build(*folders: Path, **options: Any) -> Toolbox:
        roots = Roots(folders)
        opened.append(DocumentIndex(roots, reader, **options))
        return Toolbox(document_tools(roots, opened[-1], reader, Sources()))

    yield build
    for index in opened:
        await index.aclose()
    await reader.aclose()


def _pdf(text: str) -> bytes:
    """A PDF of one page with this text, made by hand: pypdf writes no text."""
    writer = pypdf.PdfWriter()
    page = writer.add_blank_page(300, 300)
    font = DictionaryObject(
        {
            NameObject("/Type"): NameObject("/Font"),
            NameObject("/Subtype"): NameObject("/Type1"),
            NameObject("/BaseFont"): NameObject("/Helvetica"),
        }
    )
    fonts = DictionaryObject({NameObject("/F1"): font})
    page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
    stream = DecodedStreamObject()
    stream.set_data(f"BT /F1 12 Tf 20 200 Td ({text}) Tj ET".encode())
    page[NameObject("/Contents")] = stream
    writer.add_metadata({"/Title": "A paper"})
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


async def test_a_word_just_written_is_found_and_not_found_once_the_file_is_gone(
    make: Make, tmp_path: Path
) -> None:
    box = make(tmp_path)
    search = box.tools["search_docs"]
    assert (await call(search, query="zanzibarite")).data["sources"] == []
    file = tmp_path / "new.md"
    file.write_text("Today we found zanzibarite.")
    assert "we found zanzibarite" in (await call(search, query="zanzibarite")).output
    file.write_text("Today we found nothing.  ..")  # the same length as before
    assert (await call(search, query="zanzibarite")).data["sources"] == []
    file.write_text("More zanzibarite!")
    assert (await call(search, query="zanzibarite")).data["sources"] != []
    file.unlink()
    result = await call(search, query="zanzibarite")
    assert result.data["sources"] == []
    assert "Nothing in the 0 documents" in result.output


async def test_text_markdown_html_and_pdf_are_searched_and_read(make: Make, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("plain granite")
    (tmp_path / "b.md").write_text("# Stones\n\nmarked granite\n")
    page = (
        "<html><head><title>Rocks &amp; co</title><script>granite()</script></head><body><p>web granite</p>"
    )
    (tmp_path / "c.html").write_text(page)
    (tmp_path / "d.pdf").write_bytes(_pdf("paper granite"))
    box = make(tmp_path)
    result = await call(box.tools["search_docs"], query="granite")
    found = {s["path"]: s["title"] for s in result.data["sources"]}
    assert found == {"a.txt": "a.txt", "b.md": "Stones", "c.html": "Rocks & co", "d.pdf": "A paper"}
    assert "granite()" not in result.output
    for name, text in (("a.txt", "plain"), ("c.html", "web granite"), ("d.pdf", "paper granite")):
        assert text in (await call(box.tools["read_doc"], path=name)).output


@pytest.mark.parametrize(
    ("encoding", "text", "word"),
    [
        ("utf-16", "Grüße aus München", "München"),
        ("utf-32", "Grüße aus München", "München"),
        ("utf-8-sig", "Grüße aus München", "Grüße"),
        ("latin-1", "Das Café öffnet um acht. El niño come piñas.", "niño"),
        ("cp1252", "price: 5 € – “quoted”", "quoted"),
        ("cp1250", "Zażółć gęślą jaźń, to jest polski tekst", "gęślą"),
        ("cp1251", "Привет, это проверка кириллицы", "кириллицы"),
        ("koi8-r", "Привет, как дела? Это проверка.", "проверка"),
        ("cp1253", "Ελληνικά κείμενα για δοκιμή", "κείμενα"),
        ("shift_jis", "これは日本語の文章です。", "日本語"),
        ("gb18030", "中文文档测试内容", "文档"),
    ],
)
async def test_documents_of_other_encodings_are_read(
    make: Make, tmp_path: Path, encoding: str, text: str, word: str
) -> None:
    (tmp_path / "a.txt").write_bytes(f"{text}\rold Mac\r\nDOS".encode(encoding))
    box = make(tmp_path)
    found = await call(box.tools["search_docs"], query=word)
    assert f"{text}\nold Mac\nDOS" in found.output
    assert "lines 1-3 of 3" in (await call(box.tools["read_doc"], path="a.txt")).output


async def test_a_document_has_one_number_however_it_is_called(make: Make, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").write_text("granite")
    read = make(tmp_path).tools["read_doc"]
    for name in ("sub/a.txt", "./sub/a.txt", "sub/../sub/a.txt", str(tmp_path / "sub" / "a.txt"), "1"):
        assert (await call(read, path=name)).data["sources"] == [
            {"n": 1, "title": "a.txt", "path": "sub/a.txt"}
        ]


async def test_search_always_reports_progress(make: Make, tmp_path: Path) -> None:
    progress, _ = await collect(make(tmp_path).tools["search_docs"], query="nothing")
    assert [p.fraction for p in progress] == [0.0, 1.0]


async def test_numbers_are_stable_on_a_channel_and_start_again_on_another(make: Make, tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / f"{name}.txt").write_text(f"{name} stone")
    box = make(tmp_path)
    search, read = box.tools["search_docs"], box.tools["read_doc"]
    assert (await call(search, query="two")).data["sources"][0]["n"] == 1
    assert (await call(search, query="three")).data["sources"][0]["n"] == 2
    both = (await call(search, query="stone")).data["sources"]
    assert {s["path"]: s["n"] for s in both} == {"two.txt": 1, "three.txt": 2, "one.txt": 3}
    assert (await call(read, path="[2]")).data["sources"][0]["path"] == "three.txt"
    other = context(channel="b")
    assert (await call(search, other, query="three")).data["sources"][0]["n"] == 1
    assert "no source 9" in (await call(read, path="9")).output


async def test_all_words_are_preferred_to_some_and_parts_of_words_are_a_last_resort(
    make: Make, tmp_path: Path
) -> None:
    (tmp_path / "both.txt").write_text("red apples")
    (tmp_path / "one.txt").write_text("red wine")
    (tmp_path / "日本.txt").write_text("東京都の天気は晴れです")
    search = make(tmp_path).tools["search_docs"]
    paths = [s["path"] for s in (await call(search, query="red apple")).data["sources"]]
    assert paths == ["both.txt"]
    assert (await call(search, query="wine cheese")).data["sources"][0]["path"] == "one.txt"
    assert (await call(search, query="天気")).data["sources"][0]["path"] == "日本.txt"
    for query in ('"', "AND OR NOT", "a* NEAR(", "100%", "'; DROP TABLE files; --", "red:apples", ""):
        assert not (await call(search, query=query)).is_error


async def test_a_document_is_read_by_line_ranges(make: Make, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("\n".join(f"line {i}" for i in range(1, 101)))
    read = make(tmp_path).tools["read_doc"]
    result = await call(read, path="long.txt", first_line=10, last_line=12)
    assert result.output.endswith("line 10\nline 11\nline 12")
    assert "lines 10-12 of 100" in result.output
    assert (await call(read, path="long.txt", first_line=200)).is_error
    assert (await call(read, path="long.txt", first_line=5, last_line=2)).error == "invalid_arguments"
    (tmp_path / "huge.txt").write_text("\n".join("x" * 100 for _ in range(5_000)))
    result = await call(read, path="huge.txt")
    assert "cut here; go on with first_line=" in result.output
    assert len(result.output) < 50_000


async def test_documents_are_listed_with_titles_and_why_some_can_not_be_read(
    make: Make, tmp_path: Path
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.md").write_text("# Alpha\n")
    (tmp_path / "b.bin").write_bytes(bytes(range(256)))
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7 nothing more")
    (tmp_path / ".hidden").write_text("secret")
    listing = make(tmp_path).tools["list_docs"]
    result = await call(listing)
    assert "- sub/a.md: Alpha (2 lines)" in result.output
    assert "b.bin (can't be read: it is not a text document)" in result.output
    assert "broken.pdf (can't be read:" in result.output
    assert ".hidden" not in result.output
    assert "1 documents with 'alpha'" in (await call(listing, contains="alpha")).output


async def test_several_roots_are_told_apart_by_name(make: Make, tmp_path: Path) -> None:
    for folder in ("x/docs", "y/docs"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "same.txt").write_text(f"from {folder}")
    box = make(tmp_path / "x" / "docs", tmp_path / "y" / "docs")
    assert "docs/same.txt" in (await call(box.tools["list_docs"])).output
    assert "from y/docs" in (await call(box.tools["read_doc"], path="docs-2/same.txt")).output


async def test_a_folder_that_does_not_exist_is_empty_and_is_used_once_it_exists(
    make: Make, tmp_path: Path
) -> None:
    folder = tmp_path / "later"
    search = make(folder).tools["search_docs"]
    assert (await call(search, query="stone")).data["sources"] == []
    folder.mkdir()
    (folder / "a.txt").write_text("a stone")
    assert (await call(search, query="stone")).data["sources"] != []


@pytest.mark.parametrize(
    "path",
    [
        "../secret.txt",
        "sub/../../secret.txt",
        "link.txt",
        "linked/secret.txt",
        "/etc/passwd",
        "/proc/self/environ",
        "sub/\0",
        ".env",
        ".git/config",
        "pipe",
        "sub",
        "",
        "a" * 5_000,
        "missing.txt",
    ],
)
async def test_nothing_outside_the_roots_can_be_read(make: Make, tmp_path: Path, path: str) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / ".git").mkdir()
    (root / ".git" / "config").write_text("secret")
    (root / ".env").write_text("KEY=secret")
    (tmp_path / "secret.txt").write_text("secret")
    (root / "link.txt").symlink_to(tmp_path / "secret.txt")
    (root / "linked").symlink_to(tmp_path)
    os.mkfifo(root / "pipe")
    box = make(root)
    result = await call(box.tools["read_doc"], path=path)
    assert result.is_error
    assert "secret" not in result.output.replace(path, "")
    assert (await call(box.tools["search_docs"], query="secret")).data["sources"] == []


async def test_links_inside_the_roots_and_absolute_names_of_their_files_work(
    make: Make, tmp_path: Path
) -> None:
    (tmp_path / "real.txt").write_text("a stone")
    (tmp_path / "link.txt").symlink_to("real.txt")
    read = make(tmp_path).tools["read_doc"]
    assert "a stone" in (await call(read, path="link.txt")).output
    assert "a stone" in (await call(read, path=str(tmp_path / "real.txt"))).output


def test_a_file_that_became_a_link_after_it_was_checked_is_not_read(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret").write_text("secret")
    (root / "a.txt").write_text("a")
    roots = Roots([root])
    found = roots.locate("a.txt")
    (root / "a.txt").unlink()
    (root / "a.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic links"):
        roots.read(found)
    with pytest.raises(ToolProblem):
        roots.locate("a.txt")


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file takes a millisecond to read; a fast machine would be done before anything can be watched."""
    read = Roots.read

    def read_slowly(roots: Roots, found: Found) -> bytes:
        time.sleep(0.001)
        return read(roots, found)

    monkeypatch.setattr(Roots, "read", read_slowly)


async def test_a_large_folder_is_indexed_off_the_loop_and_only_once(
    make: Make, tmp_path: Path, slow_disk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "_REPORT_S", 0.02)
    for i in range(1_000):
        (tmp_path / f"{i}.txt").write_text(f"number{i} " + "filler words of a document " * 60)
    search = make(tmp_path).tools["search_docs"]
    task = asyncio.create_task(collect(search, query="number777"))
    gaps: list[float] = []
    while not task.done():
        before = time.monotonic()
        await asyncio.sleep(0.001)
        gaps.append(time.monotonic() - before)
    progress, result = await task
    assert result.data["sources"][0]["path"] == "777.txt"
    # the interpreter is given up every 5 ms; now and then a shared machine takes longer
    assert sorted(gaps)[len(gaps) // 2] < 0.05
    assert any("of 1000" in (p.message or "") for p in progress)
    _, again = await collect(search, query="number42")
    assert again.elapsed_ms < result.elapsed_ms / 2


async def test_a_cancelled_search_leaves_the_index_usable(
    make: Make, tmp_path: Path, slow_disk: None
) -> None:
    for i in range(300):
        (tmp_path / f"{i}.txt").write_text(f"number{i} " + "filler words of a document " * 100)
    search = make(tmp_path).tools["search_docs"]
    task = asyncio.create_task(call(search, query="number7"))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await call(search, query="number299")).data["sources"][0]["path"] == "299.txt"


async def test_searches_of_many_channels_at_once_agree(make: Make, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one stone")
    search = make(tmp_path).tools["search_docs"]
    results = await asyncio.gather(*(call(search, context(channel=str(i)), query="stone") for i in range(16)))
    assert {len(r.data["sources"]) for r in results} == {1}


# --- what would take the whole folder down ------------------------------------------------------------------


async def test_a_bad_neighbour_is_named_and_the_rest_is_found(make: Make, tmp_path: Path) -> None:
    (tmp_path / "note.md").write_text("The keeper is Ada Tern.\n")
    (tmp_path / "bomb.pdf").write_bytes(pdf_bomb())
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7 and no more")
    (tmp_path / "broken.docx").write_bytes(b"PK\x03\x04 no zip")
    (tmp_path / os.fsdecode(b"caf\xe9.md")).write_text("gulls\n")
    (tmp_path / "picture.png").write_bytes(bytes(range(256)))
    tools = make(tmp_path)
    found = (await call(tools.tools["search_docs"], query="keeper")).output
    assert "Ada Tern" in found
    assert "3 documents can't be read: bomb.pdf (it takes longer than 3 s to read), broken.docx (" in found
    listed = (await call(tools.tools["list_docs"])).output
    assert "bomb.pdf: bomb.pdf (can't be read: it takes longer than 3 s to read)" in listed
    assert "broken.docx: broken.docx (can't be read: it is broken (BadZipFile))" in listed
    assert "gulls" in (await call(tools.tools["search_docs"], query="gulls")).output
    assert "gulls" in (await call(tools.tools["read_doc"], path="caf\\xe9.md")).output
    began = time.monotonic()
    assert (
        "Ada Tern" in (await call(tools.tools["search_docs"], query="keeper")).output
    )  # it is not tried again
    assert time.monotonic() - began < 1


async def test_a_call_takes_in_what_it_can_and_says_what_is_left(make: Make, tmp_path: Path) -> None:
    for n in range(5):
        (tmp_path / f"{n}.md").write_text(f"word{n} sea\n")
    tools = make(tmp_path, take_in_s=0.0)
    first = (await call(tools.tools["search_docs"], query="sea")).output
    assert "word0" in first
    assert "4 documents are not read yet: ask again." in first
    for _ in range(4):
        last = (await call(tools.tools["search_docs"], query="sea", limit=20)).output
    assert all(f"word{n}" in last for n in range(5))
    assert "not read yet" not in last


async def test_more_files_than_are_looked_at_are_said(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mux.tools.index.MAX_FILES", 3)
    for n in range(5):
        (tmp_path / f"{n}.md").write_text("sea\n")
    tools = make(tmp_path)
    said = "Only the first 3 files of the folders are looked at."
    assert said in (await call(tools.tools["search_docs"], query="sea")).output
    assert said in (await call(tools.tools["list_docs"])).output


async def test_names_in_other_normal_forms_and_of_digits_are_found(make: Make, tmp_path: Path) -> None:
    (tmp_path / "u\u0308bersicht.md").write_text("the overview\n")  # as some systems store it
    (tmp_path / "2024").write_text("the year\n")
    tools = make(tmp_path)
    assert "the overview" in (await call(tools.tools["read_doc"], path="\u00fcbersicht.md")).output
    assert "1 documents" in (await call(tools.tools["list_docs"], contains="\u00fcber")).output
    assert "the year" in (await call(tools.tools["read_doc"], path="2024")).output


# --- scripts without spaces ---------------------------------------------------------------------------------

TEXTS = {
    "contract.md": "第一条 甲方迟延付款的，应当按日支付千分之三的违约金。",
    "note.md": "灯台の管理人は田中さんです。カモメが好き。",
    "thai.md": "ประภาคารสูงสี่สิบเมตร และเรือเฟอร์รี่เข้าท่าเทียบเรือ",
    "korean.md": "항구의 등대는 매일 밤 불을 밝힙니다.",
    "english.md": "The harbour has a lighthouse; the ferry leaves at nine.",
}


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("违约金", "contract.md"),
        ("合同 违约金", "contract.md"),
        ("迟延付款的违约金是多少？", "contract.md"),
        ("harbour 违约金", "contract.md"),
        ("条", "contract.md"),
        ("灯台 管理人", "note.md"),
        ("ｶﾓﾒ", "note.md"),
        ("田中", "note.md"),
        ("ประภาคาร", "thai.md"),
        ("เรือเฟอร์รี่ ท่าเทียบเรือ", "thai.md"),
        ("등대", "korean.md"),
        ("항구 불", "korean.md"),
        ("lighthouse ferry", "english.md"),
    ],
)
async def test_scripts_without_spaces_are_searched(make: Make, tmp_path: Path, query: str, name: str) -> None:
    for file, text in TEXTS.items():
        (tmp_path / file).write_text(text)
    (tmp_path / "other.md").write_text("完全 别的 東京 รถไฟ 기차 train\n")
    found = (await call(make(tmp_path).tools["search_docs"], query=query)).output
    assert found.startswith("[1]"), found
    assert name in found


@pytest.mark.parametrize("encoding", ["shift_jis", "gb18030", "euc_kr", "utf-16", "utf-8-sig"])
async def test_encodings_of_east_asia_are_read(make: Make, tmp_path: Path, encoding: str) -> None:
    text, query = {
        "gb18030": (TEXTS["contract.md"], "违约金"),
        "euc_kr": (TEXTS["korean.md"], "등대"),
    }.get(encoding, (TEXTS["note.md"], "管理人"))
    (tmp_path / "file.txt").write_bytes((text * 5).encode(encoding))
    assert "file.txt" in (await call(make(tmp_path).tools["search_docs"], query=query)).output


async def test_one_endless_line_is_passages_and_is_read_on(make: Make, tmp_path: Path) -> None:
    line = " ".join(f"word{n}" for n in range(300_000))
    (tmp_path / "dump.txt").write_text(line)
    tools = make(tmp_path)
    hit = (await call(tools.tools["search_docs"], query="word250000")).output
    assert "word250000" in hit
    assert len(hit) < 5_000
    read = (await call(tools.tools["read_doc"], path="dump.txt")).output
    assert "[… cut here; go on with first_line=1 and offset=40000]" in read
    more = (await call(tools.tools["read_doc"], path="dump.txt", first_line=1, offset=40_000)).output
    assert line[40_000:40_050] in more
    end = (await call(tools.tools["read_doc"], path="dump.txt", offset=len(line) - 10)).output
    assert end.endswith(line[-10:])
    assert (await call(tools.tools["read_doc"], path="dump.txt", offset=len(line))).is_error


@pytest.mark.parametrize(
    ("text", "queries"),
    [
        ("यह हिन्दी भाषा का दस्तावेज़ है", ["हिन्दी", "भाषा दस्तावेज़"]),
        ("الكِتَابُ مُفِيدٌ جداً", ["الكتاب", "مفيد جدا"]),
        ("שָׁלוֹם עוֹלָם", ["שלום", "עולם שלום"]),
        ("Η Αθήνα είναι ωραία", ["αθηνα", "ΑΘΗΝΑ ωραια"]),
        ("ＡＢＣ株式会社の設立", ["abc", "ABC 株式会社", "ＡＢＣ"]),
        ("使用Python编写程序", ["Python", "python 程序"]),
        ("Le cafe\u0301 est ferme\u0301", ["caf\u00e9", "cafe ferme"]),
        ("Die Straße ist naß", ["STRASSE", "straße nass"]),
        ("か\u3099っこうへ行く", ["がっこう"]),
        ("甲方应当支付违\n  约金。\n乙方", ["违约金", "应当 违约金"]),
        ("เรือเฟอร์\nรี่เข้าท่า", ["เฟอร์รี่"]),
    ],
)
async def test_what_is_written_in_another_way_is_found(
    make: Make, tmp_path: Path, text: str, queries: list[str]
) -> None:
    (tmp_path / "a.md").write_text(text)
    (tmp_path / "b.md").write_text("something else\n")
    search = make(tmp_path).tools["search_docs"]
    for query in queries:
        found = (await call(search, query=query)).data["sources"]
        assert [s["path"] for s in found] == ["a.md"], query


_LETTERS = {
    "han": "".join(map(chr, range(0x4E00, 0x4E60))),
    "kana": "".join(map(chr, range(0x3041, 0x3094))) + "ー",
    "hangul": "".join(map(chr, range(0xAC00, 0xAC60))),
    "thai": "".join(map(chr, [*range(0x0E01, 0x0E3A), *range(0x0E40, 0x0E4D)])),
}


@pytest.mark.parametrize("script", sorted(_LETTERS))
async def test_every_piece_of_a_text_without_spaces_is_found(make: Make, tmp_path: Path, script: str) -> None:
    chance = random.Random(script)
    texts = {f"{n}.md": "".join(chance.choices(_LETTERS[script], k=60)) for n in range(15)}
    for name, text in texts.items():
        (tmp_path / name).write_text(f"{text}。 plain{name.removesuffix('.md')} words")
    search = make(tmp_path).tools["search_docs"]
    for name, text in texts.items():
        at, size = chance.randrange(40), chance.randint(1, 20)
        pieces = [text[at : at + size], f"{text[:4]} {text[at : at + size]}", f"plain{name[:-3]} {text[-4:]}"]
        pieces.append(f"{text[at : at + 8]}{chance.choice(_LETTERS[script])}")  # as a question goes on
        for piece in pieces:
            found = (await call(search, query=piece, limit=20)).data["sources"]
            assert name in {s["path"] for s in found}, piece


async def test_a_file_that_is_too_large_is_named(make: Make, tmp_path: Path) -> None:
    with (tmp_path / "big.txt").open("wb") as file:
        file.truncate(20_000_001)
    tools = make(tmp_path).tools
    assert "(can't be read: it is larger than 20 MB)" in (await call(tools["list_docs"])).output
    result = await call(tools["read_doc"], path="big.txt")
    assert result.error == "tool_failed"
    assert "it is larger than 20 MB" in result.output


async def test_a_document_named_by_a_digit_comes_before_the_source_of_that_number(
    make: Make, tmp_path: Path
) -> None:
    for name in ("1", "2", "3"):
        (tmp_path / name).write_text(f"this is {name}")
    read = make(tmp_path).tools["read_doc"]
    assert "this is 3" in (await call(read, path="3")).output
    assert "this is 1" in (await call(read, path="1")).output
    assert "this is 3" in (await call(read, path="[1]")).output
    (tmp_path / "2").unlink()
    assert "this is 1" in (await call(read, path="2")).output


async def test_folders_whose_names_are_no_utf_8_are_used(make: Make, tmp_path: Path) -> None:
    roots = [tmp_path / os.fsdecode(b"caf\xe9"), tmp_path / "other"]
    for root in roots:
        (root / "u\u0308ber").mkdir(parents=True)
        (root / "u\u0308ber" / os.fsdecode(b"\xe9t\xe9.md")).write_text("gulls\n")
    tools = make(*roots).tools
    found = (await call(tools["search_docs"], query="gulls")).data["sources"]
    assert [s["path"] for s in found] == [
        "caf\\xe9/u\u0308ber/\\xe9t\\xe9.md",
        "other/u\u0308ber/\\xe9t\\xe9.md",
    ]
    for path in (found[0]["path"], "other/\u00fcber/\\xe9t\\xe9.md"):
        assert "gulls" in (await call(tools["read_doc"], path=path)).output


async def test_text_is_searched_before_the_parsers_get_their_turn(make: Make, tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf_bomb())
    (tmp_path / "z.md").write_text("gulls\n")
    search = make(tmp_path, take_in_s=0.0).tools["search_docs"]
    found = (await call(search, query="gulls")).output
    assert "z.md" in found
    assert "1 documents are not read yet" in found


@pytest.mark.parametrize(
    "query", ["合同违约金" * 5_000, "x" * 500_000, "字 " * 50_000, "%" * 5_000, "บ" * 5_000]
)
async def test_no_query_holds_the_index(make: Make, tmp_path: Path, query: str) -> None:
    (tmp_path / "a.md").write_text("合同违约金" * 20_000 + "\n" + "foo bar\n" * 20_000)
    search = make(tmp_path).tools["search_docs"]
    assert (await call(search, query="foo")).data["sources"]
    began = time.monotonic()
    assert not (await call(search, query=query)).is_error
    assert time.monotonic() - began < 5
