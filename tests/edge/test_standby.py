"""Who may follow a run, what a leader may write on its follower's disk, and which coordinator a worker goes with."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.run.folder import RunFolder
from coordinator.run.followed import place_of
from coordinator.run.seats import admit, new_standby_invite
from protocol.errors import MalformedMessage, Unauthenticated, Unavailable
from protocol.tls import fingerprint_of
from worker.epochs import require_latest
from worker.home import open_home

ANNA, BERT = b"a" * 32, b"b" * 32


def test_a_standby_link_is_for_one_machine(run: RunFolder) -> None:
    with pytest.raises(Unauthenticated, match="not good any more"):
        admit(run.root, ANNA, "x" * 32, 0.0)
    first = new_standby_invite(run.root, 0.0)
    with pytest.raises(Unauthenticated, match="not good any more"):
        admit(run.root, ANNA, "x" * 32, 0.0)
    admit(run.root, ANNA, first, 0.0)
    with pytest.raises(Unauthenticated, match="another machine"):
        admit(run.root, BERT, first, 0.0)
    second = new_standby_invite(run.root, 0.0)
    with pytest.raises(Unauthenticated, match="not good any more"):
        admit(run.root, ANNA, first, 0.0)
    admit(run.root, BERT, second, 0.0)


def test_a_standby_link_expires_unless_it_was_redeemed(run: RunFolder) -> None:
    invite = new_standby_invite(run.root, 0.0)
    with pytest.raises(Unauthenticated, match="expired"):
        admit(run.root, ANNA, invite, 25 * 3600.0)
    admit(run.root, ANNA, invite, 23 * 3600.0)
    admit(run.root, ANNA, "", 1e12)


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/passwd", "a//b", "a/./b", "seat.json", "standby/follower.key", ""]
)
def test_a_leader_writes_nothing_outside_of_the_run(name: str, tmp_path: Path) -> None:
    with pytest.raises(MalformedMessage):
        place_of(tmp_path, name)


def test_a_worker_goes_back_to_no_lower_epoch(run: RunFolder, tmp_path: Path) -> None:
    home = open_home(tmp_path, fingerprint_of(run.authority().cert_pem))
    for epoch in (0, 1, 2, 2):
        require_latest(home, epoch)
    with pytest.raises(Unavailable, match="epoch 2 was begun"):
        require_latest(home, 1)
