"""Mux: many agents, one labelled, ordered, resumable event stream."""

__version__ = "0.1.0"
