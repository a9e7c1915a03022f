"""One zygote for all servers of these tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.servers import Zygote, zygote


@pytest.fixture(scope="session")
def servers() -> Iterator[Zygote]:
    with zygote() as made:
        yield made
