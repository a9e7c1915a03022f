"""An ACP agent on the SDK's own server half: reads a file, asks, writes it, and says so."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import acp
from acp import schema


class Writer:
    """One turn with everything that an agent usually does."""

    def on_connect(self, conn: Any) -> None:
        self._client = conn

    async def initialize(self, protocol_version: int, **_: Any) -> acp.InitializeResponse:
        return acp.InitializeResponse(
            protocol_version=protocol_version,
            agent_capabilities=schema.AgentCapabilities(),
            agent_info=schema.Implementation(name="writer", version="1.0"),
        )

    async def new_session(self, cwd: str, **_: Any) -> acp.NewSessionResponse:
        self._cwd = cwd
        return acp.NewSessionResponse(session_id="one")

    async def prompt(self, session_id: str, prompt: Any, **_: Any) -> acp.PromptResponse:
        client, path = self._client, os.path.join(self._cwd, "a.txt")
        await client.session_update(session_id, acp.update_agent_thought_text("I read it first."))
        old = (await client.read_text_file(session_id, path)).content
        await client.session_update(session_id, acp.start_edit_tool_call("c1", "Edit", path, old))
        options = [schema.PermissionOption(option_id="y", name="Yes", kind="allow_once")]
        call = schema.ToolCallUpdate(tool_call_id="c1", title="Edit")
        answer = await client.request_permission(session_id, call, options)
        if answer.outcome.outcome == "selected":
            await client.write_text_file(session_id, path, old.upper())
            diff = acp.tool_diff_content(path, old.upper(), old)
            await client.session_update(
                session_id, acp.update_tool_call("c1", status="completed", content=[diff])
            )
        await client.session_update(session_id, acp.update_agent_message_text("Done: " + prompt[0].text))
        return acp.PromptResponse(stop_reason="end_turn")

    async def cancel(self, session_id: str, **_: Any) -> None:
        """Nothing to stop."""


if __name__ == "__main__":
    asyncio.run(acp.run_agent(Writer()))  # type: ignore[arg-type]
