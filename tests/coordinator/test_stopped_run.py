"""What is ordered of a run that nobody serves, where this machine is not the one that leads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from coordinator.run.changing import change_while_stopped
from coordinator.run.folder import RunFolder
from coordinator.run.holding import hold_while_stopped
from coordinator.run.inviting import InviteTerms, make_links_while_stopped
from coordinator.run.migrate import migrate
from coordinator.run.operator_keys import KeyOrder, change_key_while_stopped
from coordinator.run.seats import keep_seat
from coordinator.run.standings import Act, StandingOrder, change_standing_while_stopped
from coordinator.standby.seat import Seat, SeatRole
from coordinator.store.journal import Journal
from protocol.errors import ConfigError
from protocol.identity import PrivateIdentity

ORDERS: dict[str, Callable[[RunFolder], Any]] = {
    "set": lambda run: change_while_stopped(run, "quorum", "1"),
    "pause": lambda run: hold_while_stopped(run, "pause", "moving house"),
    "ban": lambda run: change_standing_while_stopped(run, StandingOrder(act=Act.BAN, owner="liar")),
    "invite": lambda run: make_links_while_stopped(run, InviteTerms()),
    "key": lambda run: change_key_while_stopped(
        run, KeyOrder(name="maria", public_key=PrivateIdentity.generate().public_key.hex(), role="operator"), 0.0
    ),
    "migrate": lambda run: migrate(run, backup=None, dry_run=False),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("role", "words"), [(SeatRole.FOLLOWS, "follows another machine"), (SeatRole.FENCED, "is fenced")]
)
def test_only_who_leads_a_run_takes_orders_for_it(run: RunFolder, order: str, role: SeatRole, words: str) -> None:
    """A follower's journal is the leader's, record by record: one of its own would tear the chain."""
    keep_seat(run.root, Seat(me="b", role=role, epoch=2))
    before = _last(run)
    with pytest.raises(ConfigError, match=words):
        ORDERS[order](run)
    assert _last(run) == before


def _last(run: RunFolder) -> int:
    journal = Journal.open(run.journal_path, writable=False)
    try:
        return journal.last_position
    finally:
        journal.close()
