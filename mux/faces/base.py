"""What every face shares: JSON bytes, the look of a frame, and the protocol that encoders follow.

A face is a pure function from events to bytes; it knows no transport, no clock and no task.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import pydantic_core

from mux.events import Record
from mux.viewers.encoder import Encoder

__all__ = ["Encoder", "approval_id", "approval_of", "dump", "one_line", "plain", "sse_data"]


def dump(value: object) -> bytes:
    """Compact JSON in UTF-8, on one line (the encoder escapes every control character).

    Numbers that JSON has no word for are null, as in the log: Python would write ``Infinity``, which no
    other reader takes.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except ValueError:
        return pydantic_core.to_json(value, inf_nan_mode="null")
    return text.encode("utf-8", "replace")


def sse_data(value: object) -> bytes:
    """A value as one SSE block without an id, as the protocols of others use them."""
    return b"data: %b\n\n" % dump(value)


def approval_id(run: str, call_id: str) -> str:
    """What other protocols' clients answer a call's approval by: it says of which run it is."""
    return f"{run}/{call_id}"


def approval_of(approval: str) -> tuple[str, str] | None:
    """Run and call of an `approval_id`; ``None`` if it is none of ours."""
    run, _, call_id = approval.partition("/")
    return (run, call_id) if run and call_id else None


def plain(frame: Mapping[str, object]) -> dict[str, object]:
    """A control frame with ``type`` first, as readers expect it."""
    return {"type": frame["type"], **frame}


def one_line(record: Record) -> bytes:
    """The record's JSON, sure to hold no raw line break or NUL: one of them would forge a frame.

    Our own encoder never writes one. A log that was written by something else might, as white space between
    members, and is then written again.
    """
    data = record.data
    if b"\r" in data or b"\n" in data or b"\0" in data:
        return dump(json.loads(data.replace(b"\0", b"")))
    return data
