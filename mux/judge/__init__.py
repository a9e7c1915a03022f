"""Experiments: cases × lanes × repeats, their checks, and what they add up to. No I/O but reading files."""
