"""One zygote for all servers of these tests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.support.servers import Zygote, zygote


@pytest.fixture(scope="session")
def servers() -> Iterator[Zygote]:
    with zygote() as made:
        yield made


@pytest.fixture(autouse=True)
async def _quick_client() -> None:
    """The code under test runs in other processes; what runs here is a crowd of clients, whose loop in debug
    mode would use more time than the server."""
    asyncio.get_running_loop().set_debug(False)
