"""Runs in the terminal: live panes side by side, or plain lines; one colour per channel either way.

Renderers only look: they are given events in order and keep what they show in a `RunState` of their own.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterable, Mapping
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console, Group
from rich.layout import Layout
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.text import Text

from mux.events import Event, Refusal, RunFinished, Token, ToolProgress, ToolResult, ToolStart
from mux.run import RunState

__all__ = ["Renderer", "renderer", "show"]

_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red", "bright_cyan", "bright_magenta")
_FRAMES_PER_S = 12
_GLYPHS = {
    "completed": "✓", "refused": "⊘", "failed": "✗", "cancelled": "■", "timed_out": "⏱",
    "budget_exceeded": "$", "running": "▍", "waiting": "!", "queued": "○", "pending": "○",
}  # fmt: skip


class Renderer(Protocol):
    """Shows events as they come."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None: ...

    def event(self, event: Event) -> None:
        """Show one event."""


def renderer(*, as_json: bool, plain: bool, console: Console | None = None) -> Renderer:
    """The renderer for what was asked and for where the output goes: panes need a terminal."""
    console = console or Console(highlight=False)
    if as_json:
        return JsonLines()
    return Lines(console) if plain or not console.is_terminal else Panes(console)


async def show(events: AsyncIterable[Event], to: Renderer) -> str:
    """Show a whole run; returns its final status (``cancelled`` if the stream ended without one)."""
    status = "cancelled"
    with to:
        async for event in events:
            to.event(event)
            if isinstance(event.body, RunFinished):
                status = event.body.status
    return status


def colour_of(channel: str, seen: dict[str, str]) -> str:
    """The colour of a channel, in the order of first sight."""
    return seen.setdefault(channel, _COLOURS[len(seen) % len(_COLOURS)])


class _Base:
    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        return None


class JsonLines(_Base):
    """NDJSON: the events as they are logged."""

    def event(self, event: Event) -> None:
        print(event.to_json().decode(), flush=True)


class Lines(_Base):
    """Whole lines, each with its channel's name: reads well in logs and pipes."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._colours: dict[str, str] = {}
        self._open: dict[str, str] = {}

    def event(self, event: Event) -> None:
        channel, body = event.channel, event.body
        if channel is None:
            if isinstance(body, RunFinished):
                self.console.print(f"[dim]run {event.run}: {body.status}[/]")
            return
        if isinstance(body, Token | Refusal):
            *lines, self._open[channel] = (self._open.get(channel, "") + body.content).split("\n")
            for line in lines:
                self._print(channel, escape(line))
            return
        note = _note(event)
        if note or event.type in ("step_finished", "done"):
            self._flush(channel)
        if note:
            self._print(channel, f"[dim]{escape(note)}[/]")

    def _flush(self, channel: str) -> None:
        if rest := self._open.pop(channel, ""):
            self._print(channel, escape(rest))

    def _print(self, channel: str, text: str) -> None:
        colour = colour_of(channel, self._colours)
        self.console.print(f"[{colour}]{escape(channel)}[/] │ {text}", soft_wrap=True)


def _note(event: Event) -> str:
    """One line for what is worth a line beside the text."""
    body = event.body
    if isinstance(body, ToolStart):
        return f"→ {body.tool}({_short(body.arguments)})"
    if isinstance(body, ToolProgress) and body.message:
        return f"… {body.message}"
    if isinstance(body, ToolResult):
        mark = "✗" if body.is_error else "✓"
        return f"{mark} {body.tool}: {_first_line(body.output)}"
    if event.type in ("error", "retry", "guardrail", "done"):
        fields = body.model_dump(exclude_none=True, exclude={"type", "output", "usage"})
        return f"{event.type}: {_short(fields)}"
    return ""


def _short(value: Mapping[str, Any]) -> str:
    text = ", ".join(
        f"{k}={v if isinstance(v, str) else json.dumps(v, default=str)}" for k, v in value.items()
    )
    return text if len(text) <= 100 else text[:99] + "…"


def _first_line(text: str) -> str:
    line = text.strip().split("\n", 1)[0]
    return line if len(line) <= 120 else line[:119] + "…"


class Panes(_Base):
    """Live panes side by side; at the end every answer whole, so that it stays in the scroll-back."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.state: RunState | None = None
        self._colours: dict[str, str] = {}
        self._notes: dict[str, str] = {}
        self._live = Live(
            Text(""), console=console, refresh_per_second=_FRAMES_PER_S, transient=True,
            get_renderable=self._render,
        )  # fmt: skip

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._live.stop()
        for channel in self._channels():
            self.console.print(self._panel(channel, height=None))

    def event(self, event: Event) -> None:
        if self.state is None:
            self.state = RunState(event.run)
        self.state.apply(event)
        if event.channel is not None and (note := _note(event)):
            self._notes[event.channel] = note

    def _channels(self) -> list[dict[str, Any]]:
        return list(self.state.snapshot()["channels"]) if self.state else []

    def _render(self) -> Any:
        channels = self._channels()
        if not channels:
            return Text("starting …", style="dim")
        width, height = shutil.get_terminal_size()
        columns = max(1, min(len(channels), width // 40))
        rows = -(-len(channels) // columns)
        each = max(6, (height - 1) // rows)
        grid = Layout()
        grid.split_column(
            *[
                self._row(channels[r * columns : (r + 1) * columns], each)
                for r in range(rows)
                if (r + 1) * each < height or r == 0
            ]
        )
        return Group(grid) if rows * each >= height else grid

    def _row(self, channels: list[dict[str, Any]], height: int) -> Layout:
        row = Layout(size=height)
        row.split_row(*[Layout(self._panel(c, height=height)) for c in channels])
        return row

    def _panel(self, channel: dict[str, Any], *, height: int | None) -> Panel:
        name, status = channel["id"], channel["status"]
        colour = colour_of(name, self._colours)
        text = channel["text"] or channel["reasoning"]
        if height is not None:
            text = "\n".join(text.split("\n")[-height:])[-4000:]
        body = Text(text, style="" if channel["text"] else "dim italic", overflow="fold")
        if height is not None and (note := self._notes.get(name)):
            body.append(("\n" if text else "") + note, style="dim")
        if height is not None:
            lines = body.wrap(self.console, max(20, self.console.width // max(1, len(self._colours)) - 4))
            body = Text("\n").join(lines[-(height - 2) :])
        model = escape(channel.get("model") or "")
        title = f"[{colour}]{_GLYPHS.get(status, '·')} {escape(name)}[/] [dim]{model}[/]"
        return Panel(
            body, title=title, title_align="left", border_style=colour, height=height,
            subtitle=f"[dim]{_numbers(channel)}[/]", subtitle_align="right",
        )  # fmt: skip


def _numbers(channel: Mapping[str, Any]) -> str:
    parts = [channel["status"]]
    if channel.get("ttft_ms") is not None:
        parts.append(f"first token {channel['ttft_ms']} ms")
    if channel.get("tokens_per_s"):
        parts.append(f"{channel['tokens_per_s']:.0f} tokens/s")
    return " · ".join(parts)
