"""A leader, closed at the end of its test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from coordinator.run.folder import RunFolder
from tests.coordinator.standby.leader import Leader


@pytest.fixture
def leader(run: RunFolder) -> Iterator[Leader]:
    opened = Leader(run)
    yield opened
    opened.replication.close()
    opened.journal.close()
