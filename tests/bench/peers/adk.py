"""google-adk's API server with a fake model in the same process. Argument: words in an answer."""

from __future__ import annotations

import socket
import sys
import tempfile
from pathlib import Path

import uvicorn

COUNT = int(sys.argv[1])
AGENT = f"""
from google.adk.agents import LlmAgent
from google.adk.models.base_llm import BaseLlm
from google.adk.models.llm_response import LlmResponse
from google.genai import types

class Fake(BaseLlm):
    async def generate_content_async(self, llm_request, stream=False):
        for _ in range({COUNT}):
            part = types.Part(text="hello ")
            yield LlmResponse(content=types.Content(role="model", parts=[part]), partial=True)
        part = types.Part(text="hello " * {COUNT})
        yield LlmResponse(content=types.Content(role="model", parts=[part]), partial=False)

root_agent = LlmAgent(name="fake", model=Fake(model="fake"), instruction="answer")
"""


def main() -> None:
    from google.adk.cli.fast_api import get_fast_api_app

    with tempfile.TemporaryDirectory(prefix="mux-bench-") as folder:
        package = Path(folder) / "fake"
        package.mkdir()
        (package / "__init__.py").write_text("from . import agent\n")
        (package / "agent.py").write_text(AGENT)
        app = get_fast_api_app(
            agents_dir=folder, web=False, session_service_uri="memory://", use_local_storage=False,
            auto_create_session=True,
        )  # fmt: skip
        sock = socket.create_server(("127.0.0.1", 0))
        print(f"ready http://127.0.0.1:{sock.getsockname()[1]}/", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).run([sock])


main()
