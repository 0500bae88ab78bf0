"""What people read of orders."""

from __future__ import annotations

from coordinator.edge.ordered import WORDS
from coordinator.engine import events as ev
from coordinator.engine.order_events import Ordered


def test_every_order_has_a_word() -> None:
    assert issubclass(ev.RollbackOrdered, Ordered), "all of them are loaded"
    assert {kind.__name__ for kind in Ordered.__subclasses__()} == set(WORDS)
