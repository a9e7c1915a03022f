"""Files that people hand over: what is a line, and what is said of one that can't be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mux.files import json_lines, read_text

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(values=st.lists(_VALUES, max_size=6), end=st.sampled_from(["\n", "\r\n"]), mark=st.booleans())
def test_only_a_line_feed_ends_a_line(
    values: list[Any], end: str, mark: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "values.jsonl"
    text = "".join(json.dumps(v, ensure_ascii=False) + end for v in values)
    path.write_bytes(text.encode("utf-8-sig" if mark else "utf-8", "surrogatepass"))
    if any("\ud800" <= c <= "\udfff" for c in text):
        with pytest.raises(ValueError, match="is not UTF-8"):
            list(json_lines(path))
    else:
        assert [v for _, v in json_lines(path)] == values


@pytest.mark.parametrize("bare", ["\u2028", "\u2029", "\x85", "\x0c", "\x1c", "\x0b"])
def test_other_separators_belong_to_the_line(tmp_path: Path, bare: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"{json.dumps(f'a{bare}b', ensure_ascii=False)}\n\n  \n7", encoding="utf-8")
    assert list(json_lines(path)) == [(1, f"a{bare}b"), (4, 7)]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"a": 1}\n{"a"', "line 2: not JSON"),
        (b"[" * 100_000, "line 1: nested too deeply"),
        (b"caf\xe9", "is not UTF-8 (byte 3)"),
        (None, "can't be read"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, data: bytes | None, said: str) -> None:
    path = tmp_path / "a.jsonl"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.jsonl") as error:
        list(json_lines(path))
    assert said in str(error.value)


def test_text_of_other_editors(tmp_path: Path) -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / encoding).write_text("häfen 港", encoding=encoding)
        assert read_text(tmp_path / encoding) == "häfen 港"
    (tmp_path / "large").write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(ValueError, match="larger than 1 MiB"):
        read_text(tmp_path / "large", 1 << 20)
