"""Which encoding a text is in, and what of a document is read."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mux.tools import text
from mux.tools.text import extract, kind_of

_JAPANESE = [
    "東京都の天気は晴れです。",
    "価格は5,000円(税込)です。",
    "Memo: 管理人は Tanaka さん\nfoo = bar\n",
]
_CHINESE = ["你好，世界", "合同", "他说：“好的”。", "# Contract\n\nThe penalty (违约金) is 0.3% a day.\n"]
_KOREAN = ["계약서", "한국어 문서입니다. 값은 5,000원입니다."]
_THAI = ["สวัสดีครับ", "สัญญาเช่า ข้อ 1", "ประภาคารสูงสี่สิบเมตร"]
_WESTERN = ["Århus er en by i Danmark.", "El niño comió piñas y mañana irá.", "naïve café", "Größe: 5 µm"]
_RUSSIAN = ["Договор аренды помещения от 5 мая", "Съешь ещё этих мягких французских булок"]


def _read(data: bytes) -> str:
    kind = kind_of("a.txt", data[:8192])
    assert kind == "text"
    return extract(data, kind).text


@pytest.mark.parametrize(
    ("encoding", "texts"),
    [
        ("shift_jis", _JAPANESE),
        ("euc_jp", _JAPANESE),
        ("iso2022_jp", _JAPANESE),
        ("gb18030", _CHINESE),
        ("big5", ["你好，世界", "臺北市信義區", "他說：「好的」。"]),
        ("euc_kr", _KOREAN),
        ("cp949", _KOREAN),
        ("cp874", _THAI),
        ("cp1252", _WESTERN),
        ("cp1251", _RUSSIAN),
    ],
)
def test_short_texts_without_a_mark_are_read(encoding: str, texts: list[str]) -> None:
    for expected in texts:
        assert _read(expected.encode(encoding)) == expected
        assert _read((expected + "\n").encode(encoding) * 50) == (expected + "\n") * 50


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("language", [_JAPANESE, _CHINESE, _KOREAN, _THAI, _WESTERN, _RUSSIAN])
def test_utf_16_without_a_mark_is_read(encoding: str, language: list[str]) -> None:
    expected = "".join(f"{line}\n" for line in language)
    assert _read(expected.encode(encoding)) == expected


def test_east_asian_letters_far_down_in_the_file_are_seen() -> None:
    expected = "plain words\n" * 20_000 + "违约金在末尾。"
    assert _read(expected.encode("gb18030")) == expected


def test_a_bad_byte_does_not_make_another_encoding_of_utf_8() -> None:
    data = "größe ok\n".encode() * 20 + b"\xff bad\n"
    assert _read(data) == "größe ok\n" * 20 + "\ufffd bad\n"


@given(st.binary(max_size=300))
def test_any_bytes_are_text_or_refused(data: bytes) -> None:
    if kind_of("a", data) == "text":
        extract(data, "text").text.encode()  # it is valid Unicode


def test_an_announced_codec_that_is_no_charset_is_not_used() -> None:
    began = time.monotonic()
    assert extract(b"abc-" + b"b" * 400_000, "text", charset="punycode").text.startswith("abc-bb")
    assert time.monotonic() - began < 2  # it took ten


@pytest.mark.parametrize(("seconds", "cut"), [(0.0, True), (60.0, False), (None, False)])
def test_a_document_ends_with_the_pages_that_there_is_time_for(
    monkeypatch: pytest.MonkeyPatch, seconds: float | None, cut: bool
) -> None:
    monkeypatch.setitem(text._PARSERS, "pdf", lambda file: ("", iter(["one", "", "two"])))
    found = extract(b"", "pdf", seconds=seconds).text
    assert found.startswith("one")
    assert ("two" not in found) is cut
    assert ("cut here: what follows would take too long to read" in found) is cut
