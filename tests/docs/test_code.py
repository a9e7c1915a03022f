"""The page for those who change the code names files and functions that are there."""

from __future__ import annotations

import re

from tests.support.process import ROOT

PAGE = (ROOT / "mux" / "docs" / "code.md").read_text(encoding="utf-8")


def test_every_file_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"`((?:mux|tests)/[\w/.]+)`", PAGE))
    assert len(named) > 25
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_method_that_the_page_names_is_there() -> None:
    for kind, method, file in re.findall(r"`(\w+)\.(\w+)`(?: in)? `(mux/[\w/.]+)`", PAGE):
        text = (ROOT / file).read_text(encoding="utf-8")
        assert f"class {kind}" in text, kind
        assert re.search(rf"def {method}\b", text), f"{kind}.{method}"


def test_a_token_passes_at_most_fourteen_files_and_a_request_as_many() -> None:
    token, request = PAGE.split("## The way of a request")
    request = request.split("## Where things")[0]
    assert len(set(re.findall(r"`(mux/[\w/.]+\.py)`", token))) <= 16
    assert len(set(re.findall(r"`(mux/[\w/.]+\.py)`", request))) <= 14


def test_the_glossary_is_short() -> None:
    words = PAGE.split("## Words")[1].split("## How to")[0]
    assert 5 < len(re.findall(r"^\| \*\*", words, re.M)) <= 40
