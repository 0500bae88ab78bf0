"""What is ruled about other workers, where the command says nothing of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.errors import ConfigError
from worker.options import WorkerOptions
from worker.rules.file import RULES_FILE, set_rule
from worker.rules.peers import with_peers_ruled


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for key, value in (("share", "2MB"), ("port", "7500"), ("archive", "true"), ("p2p", "yes"), ("p2p_port", "7501")):
        set_rule(tmp_path / RULES_FILE, f"peers.{key}", value)
    return tmp_path


def test_a_worker_that_is_told_nothing_keeps_to_the_rules(root: Path) -> None:
    ruled = with_peers_ruled(WorkerOptions(), root)
    assert (ruled.share_bytes_per_s, ruled.share_port, ruled.archive) == (2 << 20, 7500, True)
    assert (ruled.p2p, ruled.p2p_port) == (True, 7501)


def test_what_the_command_says_counts_more(root: Path) -> None:
    ruled = with_peers_ruled(WorkerOptions(share_bytes_per_s=300_000, share_port=9, p2p_port=10), root)
    assert (ruled.share_bytes_per_s, ruled.share_port, ruled.p2p_port) == (300_000, 9, 10)


def test_another_worker_of_the_machine_leaves_ports_and_archive_to_the_first(root: Path) -> None:
    ruled = with_peers_ruled(WorkerOptions(first_home=root), root)
    assert (ruled.share_bytes_per_s, ruled.share_port, ruled.archive, ruled.p2p_port) == (2 << 20, 0, False, 0)


def test_a_relay_needs_a_rate_and_a_way_to_be_found(tmp_path: Path) -> None:
    relay = WorkerOptions(be_relay=True)
    with pytest.raises(ConfigError, match="needs --p2p"):
        with_peers_ruled(relay, tmp_path)
    set_rule(tmp_path / RULES_FILE, "peers.share", "1MB")
    with pytest.raises(ConfigError, match="and --share"):
        with_peers_ruled(relay, tmp_path)
    set_rule(tmp_path / RULES_FILE, "peers.p2p", "true")
    assert with_peers_ruled(relay, tmp_path).be_relay
    set_rule(tmp_path / RULES_FILE, "peers.relay", "true")
    assert with_peers_ruled(WorkerOptions(), tmp_path).be_relay
    assert not with_peers_ruled(WorkerOptions(first_home=tmp_path), tmp_path).be_relay


@pytest.mark.parametrize("text", [None, "[peers]\nshare = 3"])
def test_without_rules_or_with_a_file_that_makes_no_sense_nothing_changes(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / RULES_FILE).write_text(text)
    options = WorkerOptions()
    assert with_peers_ruled(options, tmp_path) == options


@pytest.mark.parametrize(("value", "told"), [("1KB", "less than 100KB a second"), ("much", "much")])
def test_a_share_that_is_none_is_told(tmp_path: Path, value: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        set_rule(tmp_path / RULES_FILE, "peers.share", value)
