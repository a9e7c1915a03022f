"""Loads the roster: agents by path, from folders of Markdown and Python files."""

from __future__ import annotations

from mux.roster.roster import Problem, Roster

__all__ = ["Problem", "Roster"]
