"""What a run's folder keeps to be found again: it is small, and whoever wrote it is believed nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.run.found_again import MOST_PEERS, PEERS_FILE, FoundAgain
from protocol.joinlink import Bootstrap


def node(number: int) -> Bootstrap:
    return Bootstrap(peer_id=str(number).replace("0", "z").rjust(46, "Q"), host="192.0.2.1", port=7000 + number)


def test_nodes_met_last_are_kept_before_those_of_earlier_and_not_forgotten_while_alone(tmp_path: Path) -> None:
    files = FoundAgain(tmp_path)
    assert files.peers() == ()
    files.keep_peers([node(1), node(2)])
    files.keep_peers([])
    assert files.peers() == (node(1), node(2))
    files.keep_peers([node(3), node(2)])
    assert files.peers() == (node(3), node(2), node(1))
    files.keep_peers(map(node, range(10, 60)))
    assert files.peers() == tuple(map(node, range(10, 10 + MOST_PEERS)))


@pytest.mark.parametrize("content", [b"", b"[", b"7", b'{"a": 1}', b'["x"]', b"[null]", b"[" * 100_000])
def test_what_makes_no_sense_is_nobody(tmp_path: Path, content: bytes) -> None:
    (tmp_path / PEERS_FILE).write_bytes(content)
    assert FoundAgain(tmp_path).peers() == ()
