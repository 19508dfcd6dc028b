"""Processes that tests of pre-training share."""

from __future__ import annotations

import pytest
from processes import Processes


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Processes:
    """Start commands in processes of their own; see `Processes`."""
    return Processes(tmp_path_factory.mktemp("processes"))
