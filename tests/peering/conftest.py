"""Where real sidecars run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.peering.apart import end, namespace


@pytest.fixture
def apart() -> Iterator[tuple[str, ...]]:
    """What goes before a sidecar's command."""
    holder, enter = namespace()
    print("sidecars are in a network namespace of their own" if enter else "sidecars are on this machine's loopback")
    yield enter
    if holder is not None:
        end(holder)
