"""Guardrails: rules on what agents are asked, say, ask of tools and get from them.

They sit between an agent and the log. Output is held back just far enough that no forbidden span, nor any
prefix of it, is passed on; replay, snapshots and every face are clean because the log is.
"""

from __future__ import annotations

from mux.guardrails.rules import Rules

__all__ = ["Rules"]
