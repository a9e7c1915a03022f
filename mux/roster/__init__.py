"""Loads the roster: agents by path, from folders of Markdown and Python files."""

from __future__ import annotations

from mux.roster.roster import PLAIN, Problem, Roster

__all__ = ["PLAIN", "Problem", "Roster"]
