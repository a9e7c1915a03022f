"""The model that needs no key: a small deterministic policy behind the same protocol as every other model.

It is not a language model and says so. It reads the task with plain rules, makes real calls of the tools
that it is offered, and answers with what the tools really said: nothing in its answers is prepared.
"""

from __future__ import annotations

from mux.llm.rehearsal.model import RehearsalModel

__all__ = ["RehearsalModel"]
