"""Readers of runs: a viewer is a cursor into the log, never a queue (DESIGN section 9)."""

from __future__ import annotations

from mux.viewers.encoder import Encoder, Sink
from mux.viewers.hub import Describe, Hub
from mux.viewers.selection import Selection
from mux.viewers.shared import Shared
from mux.viewers.viewer import Viewer

__all__ = ["Describe", "Encoder", "Hub", "Selection", "Shared", "Sink", "Viewer"]
