"""Client processes for the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from client_processes import ClientProcesses
from hub import Hub


@pytest.fixture(scope="module")
def clients(hub: Hub) -> Iterator[ClientProcesses]:
    with ClientProcesses(hub) as clients:
        yield clients
