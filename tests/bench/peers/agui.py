"""pydantic-ai's AG-UI adapter with a fake model in the same process. Argument: words in an answer."""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from pydantic_ai import Agent
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.ui.ag_ui import AGUIAdapter

COUNT = int(sys.argv[1])


async def words(messages: Any, info: Any) -> AsyncIterator[str]:
    for _ in range(COUNT):
        yield "hello "


app = FastAPI()
agent = Agent(FunctionModel(stream_function=words))


@app.post("/")
async def run(request: Request) -> Response:
    return await AGUIAdapter.dispatch_request(request, agent=agent)


def main() -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    print(f"ready http://127.0.0.1:{sock.getsockname()[1]}/", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).run([sock])


main()
