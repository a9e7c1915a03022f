"""Letters of other scripts that look like Latin ones, as the Latin ones.

The data is Unicode's confusables (UTS #39) as the package ``confusable-homoglyphs`` carries it, an extra: it
is a megabyte that only rules with ``fold = true`` need.
"""

from __future__ import annotations

import functools
import importlib
import string
import unicodedata
from collections.abc import Mapping
from typing import Any

from mux.errors import ConfigError

__all__ = ["latin"]

_HINT = "fold needs the extra: pip install 'mux-agents[fold]'"
_PLAIN = string.ascii_letters + string.digits
# Small letters that have the shape of another's capital, which UTS #39 leaves out since the sizes differ;
# nobody who reads them notices. Cyrillic, Greek, and the small capitals of the phonetic alphabet.
_SMALL_CAPITALS = {
    "к": "k", "м": "m", "т": "t", "в": "b", "н": "h", "п": "n", "и": "u", "я": "r", "ь": "b", "ё": "e",
    "κ": "k", "τ": "t", "η": "n", "ω": "w", "ε": "e", "χ": "x", "μ": "u", "β": "b", "ζ": "z", "θ": "o",
    "ᴀ": "a", "ʙ": "b", "ᴅ": "d", "ᴇ": "e", "ꜰ": "f", "ɢ": "g", "ʜ": "h", "ᴊ": "j", "ᴋ": "k", "ʟ": "l",
    "ᴍ": "m", "ɴ": "n", "ᴘ": "p", "ꞯ": "q", "ʀ": "r", "ᴛ": "t",
}  # fmt: skip
# Letters in boxes, which no normalisation opens
_BOXED = {
    chr(first + n): letter
    for first in (0x1F1E6, 0x1F130, 0x1F150, 0x1F170)
    for n, letter in enumerate(string.ascii_uppercase)
}


@functools.cache
def latin() -> Mapping[int, str]:
    """Code point → the Latin letter or digit that it looks like; for `str.translate`.

    Raises:
        ConfigError: ``extra_missing``.
    """
    try:
        data: Any = importlib.import_module("confusable_homoglyphs.confusables").confusables_data
    except ImportError as e:
        raise ConfigError("extra_missing", _HINT) from e
    found: dict[str, str] = {}
    for plain in _PLAIN:
        for entry in data.get(plain, ()):
            twin = entry["c"]
            if len(twin) == 1 and not twin.isascii():
                found[twin] = _nearer(twin, plain, found.get(twin))
    return {ord(twin): plain for twin, plain in (_SMALL_CAPITALS | _BOXED | found).items()}


def _nearer(twin: str, plain: str, known: str | None) -> str:
    """Of several that it looks like (l, I and 1 are one shape) the one of its own kind."""
    if known is None or unicodedata.category(plain) == unicodedata.category(twin):
        return plain
    return known
