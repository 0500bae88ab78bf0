"""Coming back to a run: without a link, by an address, by an old link; and what is said where that is not enough."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import ConfigError
from protocol.ids import RunId
from protocol.joinlink import Bootstrap, JoinLink, WayBack
from protocol.tls import CertificateAuthority
from worker.rejoin import ADDRESS_FILE, Address, address_from, known_runs, link_of

INVITE = "i" * 22


def enrolled(root: Path, run_id: str, address: Address | None) -> str:
    """A run folder as an enrolment leaves it; returns the run's fingerprint."""
    authority = CertificateAuthority.create(RunId(run_id))
    ca_pem, fingerprint = authority.cert_pem, authority.fingerprint
    folder = root / "runs" / fingerprint[:32]
    folder.mkdir(parents=True)
    (folder / "enrolment.json").write_text(json.dumps({"ca_pem": ca_pem.decode(), "run_id": run_id}))
    if address is not None:
        (folder / ADDRESS_FILE).write_bytes(address.to_json())
    return fingerprint


def at(host: str, name: str = "") -> Address:
    return Address(host=host, port=7070, run_name=name)


def test_the_only_run_is_meant_by_nothing_at_all(tmp_path: Path) -> None:
    fingerprint = enrolled(tmp_path, "r1", at("2001:db8::1", "tiny"))
    assert link_of("", tmp_path) == JoinLink(host="2001:db8::1", port=7070, fingerprint=fingerprint)


def test_other_addresses_and_ways_in_of_the_link_are_kept(tmp_path: Path) -> None:
    others, through = (("second.org", 7070), ("192.0.2.7", 7071)), (Bootstrap(peer_id="Q" * 46, host="p.org", port=1),)
    link = JoinLink(host="first.org", port=7070, fingerprint="0" * 64, others=others, through=through)
    fingerprint = enrolled(tmp_path, "r1", Address.of(link, "tiny"))
    assert link_of("", tmp_path) == replace(link, fingerprint=fingerprint)
    assert link_of("second.org:7070/#" + fingerprint[:12], tmp_path).others == (others[1],)


@pytest.mark.parametrize("field", [{"others": 7}, {"others": [["a", 0]]}, {"through": ["x"]}, {"through": {"a": 1}}])
def test_an_address_that_was_tampered_with_is_none(field: dict[str, Any]) -> None:
    assert address_from(json.dumps({"host": "a.org", "port": 1, "run_name": "", **field}).encode()) is None


def test_of_several_each_is_named_with_what_chooses_it(tmp_path: Path) -> None:
    fingerprints = [enrolled(tmp_path, run, at("example.org", run)) for run in ("first", "second")]
    for text in ("", "example.org:7070"):
        with pytest.raises(ConfigError, match=r"enrolled in 2 runs.*'first'.*'second'") as raised:
            link_of(text, tmp_path)
        for run, fingerprint in zip(known_runs(tmp_path), fingerprints, strict=True):
            assert run.choice in str(raised.value)
            assert link_of(run.choice, tmp_path).fingerprint == fingerprint


@pytest.mark.parametrize("text", ["EXAMPLE.org:7070", "barnraise://example.org:7070", "barnraise://example.org:7070/"])
def test_an_address_picks_the_run_that_was_there(tmp_path: Path, text: str) -> None:
    enrolled(tmp_path, "other", at("other.org"))
    fingerprint = enrolled(tmp_path, "mine", at("example.org"))
    assert link_of(text, tmp_path).fingerprint == fingerprint


def test_a_coordinator_that_moved_is_found_by_its_fingerprint(tmp_path: Path) -> None:
    enrolled(tmp_path, "other", at("other.org"))
    fingerprint = enrolled(tmp_path, "mine", at("example.org"))
    for start in (fingerprint, fingerprint[:12].upper()):
        assert link_of(f"new.org:1/#{start}", tmp_path) == JoinLink(host="new.org", port=1, fingerprint=fingerprint)


def test_an_old_link_is_still_good(tmp_path: Path) -> None:
    fingerprint = enrolled(tmp_path, "mine", at("example.org"))
    link = JoinLink(host="example.org", port=7070, fingerprint=fingerprint, invite=INVITE)
    assert link_of(f" {link}\n", tmp_path) == link


def test_an_enrolment_without_an_address_asks_for_it_once(tmp_path: Path) -> None:
    fingerprint = enrolled(tmp_path, "r1", None)
    with pytest.raises(ConfigError, match="give it once"):
        link_of("", tmp_path)
    assert link_of("example.org:7070", tmp_path).fingerprint == fingerprint


@pytest.mark.parametrize("text", ["", "example.org:7070", f"example.org:7070#{'0' * 64}"])
def test_a_machine_that_is_enrolled_nowhere_is_told_to_paste_the_link(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"paste the (whole )?join link"):
        link_of(text, tmp_path)


@pytest.mark.parametrize("broken", ["", "[]", "{}", '{"ca_pem": 7, "run_id": "x"}', "[" * 100_000])
def test_what_is_damaged_is_no_enrolment(tmp_path: Path, broken: str) -> None:
    folder = tmp_path / "runs" / ("0" * 32)
    folder.mkdir(parents=True)
    (folder / "enrolment.json").write_text(broken)
    assert known_runs(tmp_path) == []


@pytest.mark.parametrize(
    "broken", ["", "[]", '{"host": "-", "port": 1, "run_name": ""}', '{"host": "h", "port": 70000}']
)
def test_an_address_that_is_damaged_is_none(tmp_path: Path, broken: str) -> None:
    fingerprint = enrolled(tmp_path, "r1", at("example.org"))
    (tmp_path / "runs" / fingerprint[:32] / "address.json").write_text(broken)
    assert [run.address for run in known_runs(tmp_path)] == [None]


@pytest.mark.parametrize(
    "text", ["nonsense", "h", "h:", ":1", "h:0", "h:65536", "h:1#xyz", "h:1#abc", "http://h:1", "a b:1"]
)
def test_what_is_no_way_back(text: str) -> None:
    assert WayBack.parse(text) is None


async def test_a_worker_comes_back_without_a_link(swarm: Any) -> None:
    """Enrolled by a link, then by nothing, then by the bare address: one worker, one key."""
    _, _, task = swarm.agent()
    assert (await task).exit_code == 0
    root = swarm.root / "home"
    (run,) = known_runs(root)
    assert run.address is not None
    assert run.address.run_name
    invite = JoinLink.parse(swarm.link).invite
    assert invite is not None
    for text in ("", f"127.0.0.1:{run.address.port}", swarm.link):
        swarm.link = text
        _, again, task = swarm.agent()
        assert (await task).exit_code == 0
        assert again.texts("enrolled") == []
        assert len(again.texts("session_opened")) == 1
    stored = b"".join(path.read_bytes() for path in root.rglob("*") if path.is_file())
    assert invite.encode() not in stored
