"""Runs in the terminal: live panes side by side, or plain lines; one colour per channel either way.

Renderers only look: they are given events in order and keep what they show in a `RunState` of their own.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, Mapping
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markdown import Markdown
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from mux.events import (
    ApprovalRequested,
    Custom,
    Error,
    Event,
    Reasoning,
    Refusal,
    RunFinished,
    StepFinished,
    StepReset,
    Token,
    ToolProgress,
    ToolResult,
    ToolStart,
)
from mux.run import RunState
from mux.telemetry import printable

__all__ = ["Renderer", "renderer", "show"]

_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red", "bright_cyan", "bright_magenta")
_FRAMES_PER_S = 12
_MIN_WIDTH = 38  # narrower panes stand below each other
_MIN_HEIGHT = 4  # a frame and two lines
_GLYPHS = {
    "completed": "✓", "refused": "⊘", "failed": "✗", "cancelled": "■", "timed_out": "⏱",
    "budget_exceeded": "$", "running": "▍", "waiting": "!", "queued": "○", "pending": "○",
}  # fmt: skip


_SAID = (Token, Reasoning, Refusal)


class Renderer(Protocol):
    """Shows events as they come."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None: ...

    def event(self, event: Event) -> None:
        """Show one event."""


def renderer(
    *, as_json: bool, plain: bool, console: Console | None = None, server: str | None = None
) -> Renderer:
    """The renderer for what was asked and for where the output goes: panes need a terminal.

    Args:
        server: where the run can be answered while it is shown, for what waits for a person.
    """
    console = console or Console(highlight=False)
    if as_json:
        return JsonLines()
    return Lines(console, server) if plain or not console.is_terminal else Panes(console, server)


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

    def __init__(self, console: Console, server: str | None = None) -> None:
        self.console = console
        self._server = server
        self._colours: dict[str, str] = {}
        self._open: dict[str, str] = {}

    def event(self, event: Event) -> None:
        channel, body = event.channel, event.body
        if channel is None:
            if isinstance(body, RunFinished):
                self.console.print(Text(f"run {event.run}: {body.status}", style="dim"))
            return
        if isinstance(body, Token | Refusal):
            *lines, self._open[channel] = (self._open.get(channel, "") + printable(body.content)).split("\n")
            for line in lines:
                self._print(channel, line)
            return
        note = _note(event, self._server)
        if note or event.type in ("step_finished", "done"):
            self._flush(channel)  # also before a reset: what was said stands in the lines above already
        if note:
            self._print(channel, note, style="dim")

    def _flush(self, channel: str) -> None:
        if rest := self._open.pop(channel, ""):
            self._print(channel, rest)

    def _print(self, channel: str, text: str, style: str = "") -> None:
        # as a Text, not as markup: that would read brackets as styles, and ":x:" as an emoji
        line = Text.assemble((channel, colour_of(channel, self._colours)), " │ ", (text, style))
        self.console.print(line, soft_wrap=True)


def _note(event: Event, server: str | None = None) -> str:
    """One line for what is worth a line beside the text."""
    body, note = event.body, ""
    if isinstance(body, ToolStart):
        note = f"→ {body.tool}({_short(body.arguments)})"
    elif isinstance(body, ToolProgress) and body.message:
        note = f"… {body.message}"
    elif isinstance(body, ToolResult):
        mark = "✗" if body.is_error else "✓"
        note = f"{mark} {body.tool}: {_first_line(body.output)}"
    elif isinstance(body, ApprovalRequested):
        note = f"waits for a person: {body.tool}({_short(body.arguments)})"
        note += f"; answer at {server}/#/run/{event.run}" if server else ""
    elif isinstance(body, StepFinished) and body.finish_reason == "length":
        note = "… cut here: the model's output limit is reached"
    elif isinstance(body, StepReset):
        note = "… what this step has said is taken back: it is done again"
    elif isinstance(body, Custom):
        note = _custom(body)
    elif isinstance(body, Error):
        note = f"error: {body.message} [{body.code}]"  # whole: what to do stands at its end
    elif event.type in ("retry", "guardrail", "done"):
        fields = body.model_dump(exclude_none=True, exclude={"type", "output", "usage"})
        note = f"{event.type}: {_short(fields)}"
    return printable(note.replace("\n", " "))


def _custom(body: Custom) -> str:
    """What our own agents report beside their answer; others' events are theirs to show."""
    value = body.value
    if not isinstance(value, dict):
        return ""
    if body.name == "history_trimmed":
        left_out, cut = value.get("messages_dropped", 0), value.get("tool_outputs_shortened", 0)
        return f"… to fit the model's context, {left_out} messages were left out and {cut} results shortened"
    return f"… {value['message']}" if body.name == "progress" and value.get("message") else ""


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

    def __init__(self, console: Console, server: str | None = None) -> None:
        self.console = console
        self._server = server
        self.state: RunState | None = None
        self._colours: dict[str, str] = {}
        self._notes: dict[str, str] = {}
        self._cut: set[str] = set()  # channels whose last turn ended at the model's output limit
        self._live = Live(
            Text(""), console=console, refresh_per_second=_FRAMES_PER_S, get_renderable=self._render,
            screen=True,  # the alternate screen: a resize leaves no torn frames in the scroll-back
        )  # fmt: skip

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._live.stop()
        for channel in self._channels():
            self.console.print(self._whole(channel))

    def event(self, event: Event) -> None:
        if self.state is None:
            self.state = RunState(event.run)
        self.state.apply(event)
        if event.channel is None:
            return
        if isinstance(event.body, StepFinished):
            cut = event.body.finish_reason == "length"
            (self._cut.add if cut else self._cut.discard)(event.channel)
        if isinstance(event.body, _SAID) or event.type == "done":
            self._notes[event.channel] = ""  # the text goes on, or the frame says how it ended
        elif note := _note(event, self._server):
            self._notes[event.channel] = note

    def _channels(self) -> list[dict[str, Any]]:
        return list(self.state.snapshot()["channels"]) if self.state else []

    def _render(self) -> RenderableType:
        """As many rows of panes as fit, and how many do not."""
        channels = self._channels()
        if not channels:
            return Text("starting …", style="dim")
        width, height = self.console.size
        columns = max(1, min(len(channels), width // _MIN_WIDTH))
        rows = -(-len(channels) // columns)
        shown = max(1, min(rows, (height - 1) // _MIN_HEIGHT))
        each = max(3, (height - (shown < rows)) // shown)
        grid = Table.grid(expand=True)
        for _ in range(columns):
            grid.add_column(ratio=1)
        for row in range(shown):
            own = channels[row * columns : (row + 1) * columns]
            grid.add_row(*[self._pane(c, width // columns, each) for c in own])
        hidden = len(channels) - shown * columns
        return Group(grid, Text(f"and {hidden} more", style="dim")) if hidden > 0 else grid

    def _pane(self, channel: dict[str, Any], width: int, height: int) -> Panel:
        """The end of what a channel says, and what it does, in a pane of this size."""
        text = channel["text"] or channel.get("refusal") or channel["reasoning"]
        said = channel["text"] or channel.get("refusal")
        room = max(1, height - 2)
        body = Text(printable(text[-width * room :]), style="" if said else "dim italic", overflow="fold")
        if note := self._notes.get(channel["id"]):
            body.append(("\n" if text else "") + note, style="dim")
        lines = body.wrap(self.console, max(10, width - 4))
        return self._framed(channel, Text("\n").join(lines[-room:]), width, height)

    def _whole(self, channel: dict[str, Any]) -> Panel:
        """The answer, as it stays."""
        body: RenderableType = Markdown(printable(channel["text"]), hyperlinks=False)
        if not channel["text"]:
            why = channel.get("refusal") or (channel.get("error") or {}).get("message") or ""
            body = Text(printable(why), style="dim", overflow="fold")
        return self._framed(channel, body, self.console.width, None)

    def _framed(self, channel: dict[str, Any], body: RenderableType, width: int, height: int | None) -> Panel:
        name, status = channel["id"], channel["status"]
        colour = colour_of(name, self._colours)
        model = (printable(channel.get("model") or ""), "dim")
        title = Text.assemble((f"{_GLYPHS.get(status, '·')} {name}", colour), " ", model)
        return Panel(
            body, title=title, title_align="left", border_style=colour, height=height,
            subtitle=Text(_numbers(channel, width - 6, cut=name in self._cut), style="dim"),
            subtitle_align="right",
        )  # fmt: skip


def _numbers(channel: Mapping[str, Any], room: int, *, cut: bool) -> str:
    """How a channel stands, and as many of its measures as fit into so many columns."""
    said: str = channel["status"]
    measures = ["cut at the output limit"] if cut else []
    if channel.get("ttft_ms") is not None:
        measures.append(f"first token {channel['ttft_ms']} ms")
    if channel.get("tokens_per_s"):
        measures.append(f"{channel['tokens_per_s']:.0f} tokens/s")
    for measure in measures:
        if len(said) + len(measure) + 3 > room:
            break
        said = f"{said} · {measure}"
    return said
