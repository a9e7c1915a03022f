"""A server with small agents, on both stores."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mux.http.service import Service
from tests.support.agents_for_http import agents_folder
from tests.support.service import serving


@pytest.fixture
def agents_dir(tmp_path: Path) -> Path:
    return agents_folder(tmp_path)


@pytest.fixture
async def service(no_leaks: None, agents_dir: Path) -> AsyncIterator[Service]:
    async with serving(agents=[agents_dir], limits={"max_viewers": 20}) as running:
        yield running


@pytest.fixture
def url(service: Service) -> str:
    return service.url
