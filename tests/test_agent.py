"""What the context does for agents that are written by hand."""

from __future__ import annotations

import pytest

from mux.events import ToolResult
from tests.support.fake_host import FakeHost, bodies_of, context
from tests.support.legal import play


async def test_a_call_by_hand_has_its_start_its_progress_and_one_result() -> None:
    host = FakeHost()
    async with context(host=host).tool_call("look", {"at": "sea"}) as call:
        await call.progress("half", 0.5)
        call.result("blue", {"depth": 3})
    play(host.emitted)
    kinds = [body.type for body in bodies_of(host.emitted)]
    assert kinds == ["tool_call", "tool_args", "tool_start", "tool_progress", "tool_result"]
    result = bodies_of(host.emitted)[-1]
    assert isinstance(result, ToolResult)
    assert (result.output, result.data, result.is_error) == ("blue", {"depth": 3}, False)


async def test_a_call_that_raises_is_closed_and_the_exception_goes_on() -> None:
    host = FakeHost()
    with pytest.raises(ValueError, match="fog"):
        async with context(host=host).tool_call("look", {}):
            raise ValueError("fog")
    play(host.emitted)
    result = bodies_of(host.emitted)[-1]
    assert isinstance(result, ToolResult)
    assert (result.output, result.error) == ("fog", "tool_failed")
