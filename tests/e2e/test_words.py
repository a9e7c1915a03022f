"""Everything that people read on the page comes from the language file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

STATIC = Path(__file__).resolve().parents[2] / "static"

WORDS = re.compile(
    r"""(?:aria-label|title|placeholder|alt)="(?!Ctrl\+)[^"$]*[A-Za-z]{3}  # an attribute with plain words
      | >[^<>${}`=();]*[A-Za-z]{3,}\s[^<>${}`=();]*</            # text between tags
      | \.textContent\s*=\s*["'][^"']*[A-Za-z]{3,}\s             # text set by hand
    """,
    re.X,
)


def shown_words() -> Iterator[str]:
    for path in sorted((STATIC / "js").rglob("*.js")):
        code = re.sub(r"/\*.*?\*/|^\s*//.*$", "", path.read_text(encoding="utf-8"), flags=re.S | re.M)
        for line in code.splitlines():
            if WORDS.search(line):
                yield f"{path.relative_to(STATIC)}: {line.strip()[:140]}"


def test_all_words_that_people_see_are_in_the_language_file() -> None:
    assert list(shown_words()) == []


def test_every_text_that_is_asked_for_is_in_the_language_file() -> None:
    words = (STATIC / "i18n" / "en.js").read_text(encoding="utf-8")
    keys = {a or b for a, b in re.findall(r'(?:"([^"\s]+)"|\b([a-zA-Z]+)):\s*["{]', words)}
    code = "\n".join(p.read_text(encoding="utf-8") for p in (STATIC / "js").rglob("*.js"))
    used = set(re.findall(r"\bt\(\s*[\"']([^\"'`$]+)[\"']", code))
    assert used - keys == set()
