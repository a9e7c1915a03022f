"""The wire contract, version 1: what happened, as frozen values.

A **body** says what happened (:class:`Token`, :class:`ToolStart`, …). Agents yield bodies. The engine adds
the **envelope** (run, seq, channel, cseq, ts) when it appends to the log, which makes an :class:`Event`:
one flat JSON object on the wire. Readers ignore unknown types (:class:`Unknown`) and unknown fields.

Optional fields are left out of the JSON, never ``null``; only ``channel`` is ``null`` on run events.

This module does no I/O and imports nothing of Mux but the errors.
"""

from __future__ import annotations

from mux.events.base import Body, quote
from mux.events.bodies import (
    BODIES,
    BY_TYPE,
    AnyBody,
    ApprovalRequested,
    ApprovalResolved,
    ChannelAdded,
    ChannelInfo,
    ChannelStarted,
    Custom,
    Done,
    DoneStatus,
    Error,
    GuardrailHit,
    MessageApplied,
    MessageReceived,
    MessageReturned,
    Phase,
    PhaseName,
    Reasoning,
    Refusal,
    Retry,
    RunFinished,
    RunStarted,
    RunStatus,
    SteerMode,
    StepFinished,
    StepReset,
    StepStarted,
    Token,
    ToolArgs,
    ToolCall,
    ToolErrorCode,
    ToolProgress,
    ToolResult,
    ToolStart,
    Unknown,
    Usage,
    UsageReport,
)
from mux.events.cursor import (
    Cursor,
)
from mux.events.envelope import Envelope, Event, Record, Tokens, token_records
from mux.events.schema import (
    event_json_schema,
    logged_models,
)

__all__ = [
    "BODIES",
    "BY_TYPE",
    "AnyBody",
    "ApprovalRequested",
    "ApprovalResolved",
    "Body",
    "ChannelAdded",
    "ChannelInfo",
    "ChannelStarted",
    "Cursor",
    "Custom",
    "Done",
    "DoneStatus",
    "Envelope",
    "Error",
    "Event",
    "GuardrailHit",
    "MessageApplied",
    "MessageReceived",
    "MessageReturned",
    "Phase",
    "PhaseName",
    "Reasoning",
    "Record",
    "Refusal",
    "Retry",
    "RunFinished",
    "RunStarted",
    "RunStatus",
    "SteerMode",
    "StepFinished",
    "StepReset",
    "StepStarted",
    "Token",
    "Tokens",
    "ToolArgs",
    "ToolCall",
    "ToolErrorCode",
    "ToolProgress",
    "ToolResult",
    "ToolStart",
    "Unknown",
    "Usage",
    "UsageReport",
    "event_json_schema",
    "logged_models",
    "quote",
    "token_records",
]
