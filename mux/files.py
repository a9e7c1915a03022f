"""Text files that people hand over, and JSON Lines in them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

__all__ = ["json_lines", "read_text"]

MAX_BYTES: Final = 1 << 30


def read_text(path: Path, max_bytes: int = MAX_BYTES) -> str:
    """A file's text: UTF-8 with or without a byte order mark, or UTF-16 with one.

    Raises:
        ValueError: why it can't be read, with the path.
    """
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise ValueError(f"{path} is larger than {max_bytes >> 20} MiB.")
        data = path.read_bytes()
    except OSError as e:
        raise ValueError(f"{path} can't be read: {e.strerror}.") from None
    wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as e:
        raise ValueError(f"{path} is not UTF-8 (byte {e.start}). Save it as UTF-8.") from None


def json_lines(path: Path, max_bytes: int = MAX_BYTES) -> Iterator[tuple[int, Any]]:
    """The values of a JSON Lines file with their lines' numbers; empty lines are passed over.

    Only LF ends a line (jsonlines.org): JSON strings may hold U+2028 and other separators bare.

    Raises:
        ValueError: as `read_text`; or a line is no JSON, with its number.
    """
    for number, line in enumerate(read_text(path, max_bytes).split("\n"), 1):
        if line and not line.isspace():
            try:
                value = json.loads(line)
            except ValueError as e:
                raise ValueError(f"{path}, line {number}: not JSON: {e}") from None
            except RecursionError:
                raise ValueError(f"{path}, line {number}: nested too deeply.") from None
            yield number, value
