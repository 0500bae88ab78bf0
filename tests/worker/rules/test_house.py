"""Rules in force: a changed file counts at the next look, a broken one changes nothing, each cap reaches its place."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from protocol.errors import ConfigError
from tests.worker.leases import lease_message, read_lease
from worker.allowance import DiskAllowance
from worker.blocks import BlockCache
from worker.rules.file import RULES_FILE, PauseNote, note_pause, noted_pause, set_rule
from worker.rules.house import TIDY_EVERY_S, House
from worker.rules.traffic import HouseLine


class Idle:
    """A made-up sense."""

    fields = frozenset({"idle_s", "on_battery"})

    def __init__(self) -> None:
        self.facts: dict[str, object] = {"idle_s": 0.0, "on_battery": False}

    def read(self) -> Mapping[str, object]:
        return dict(self.facts)


class Lived:
    """A house, its clock, and what it told."""

    def __init__(self, home: Path, **how: Any) -> None:
        self.now_s, self.idle, self.told = 1000.0, Idle(), list[str]()
        self.home = home
        self.house = House(home, senses=[self.idle], clock=lambda: self.now_s, tell=self.told.append, **how)

    def allowed(self, after_s: float = 1.0) -> bool:
        self.now_s += after_s
        return self.house.policy.may_work(self.house.look()).allowed

    def rule(self, key: str, value: str) -> None:
        set_rule(self.home / RULES_FILE, key, value)


@pytest.fixture
def lived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lived:
    monkeypatch.setattr(House, "_step_back", lambda _: None)  # the tests' own process keeps its priority
    return Lived(tmp_path)


def test_a_changed_rule_counts_at_the_next_look(lived: Lived) -> None:
    assert lived.allowed()
    lived.rule("when.idle_minutes", "5")
    assert not lived.allowed()
    lived.idle.facts["idle_s"] = 301.0
    assert lived.allowed()
    lived.rule("when.idle_minutes", "10")
    assert not lived.allowed()
    assert lived.told == ["your rules were changed, and are in force"] * 2


def test_a_file_that_makes_no_sense_leaves_the_rules_as_they_were(lived: Lived) -> None:
    lived.rule("when.idle_minutes", "5")
    assert not lived.allowed()
    (lived.home / RULES_FILE).write_text("[when")
    assert not lived.allowed()
    assert "those of before go on" in lived.told[-1]
    assert lived.house.trouble == lived.told[-1]
    (lived.home / RULES_FILE).unlink()
    assert lived.allowed()
    assert lived.house.trouble == ""


def test_a_worker_does_not_start_under_rules_that_make_no_sense(tmp_path: Path) -> None:
    (tmp_path / RULES_FILE).write_text("[when")
    with pytest.raises(ConfigError):
        House(tmp_path)


def test_what_the_volunteer_says_outlives_the_process_and_may_come_from_another(lived: Lived) -> None:
    lived.house.pause(None)
    assert not lived.allowed()
    assert not Lived(lived.home).allowed()
    lived.house.resume()
    assert lived.allowed()
    note_pause(lived.home, PauseNote())
    assert not lived.allowed()
    note_pause(lived.home, None)
    assert lived.allowed()
    assert noted_pause(lived.home) is None


def test_a_lease_that_is_too_long_is_not_wanted(lived: Lived) -> None:
    lease = read_lease(lease_message(ttl_s=3600.0))
    assert lived.house.unwanted(lease) == ""
    lived.rule("lease.longest_hours", "0.5")
    lived.allowed()
    assert lived.house.unwanted(lease) == "it lasts 60 min, and the rules of this machine accept 30 min at most"


def test_a_quota_and_a_licence_reach_the_rules(lived: Lived) -> None:
    lived.rule("network.daily", "1MB")
    lived.house.ledger.add(1 << 20, datetime.now().date())
    assert not lived.allowed()
    lived.rule("network.daily", "2MB")
    assert lived.allowed()
    lived.rule("lease.licences", "CC0-1.0")
    assert lived.allowed(), "not known yet"
    lived.house.learn_licence("GPL-3.0")
    assert not lived.allowed()


def test_the_cache_obeys_a_cap_that_is_set_while_it_runs_and_yields_to_a_full_disk(
    lived: Lived, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    blocks = BlockCache(folder / "blocks")
    for number in range(10):
        (folder / "blocks" / f"{number:064x}").write_bytes(bytes(1000))
        os.utime(folder / "blocks" / f"{number:064x}", (number, number))
    progress: Any = None
    disk = DiskAllowance(folder, blocks, progress, None)
    disk.ruled, disk.short = lambda: lived.house.disk_bytes, lived.house.short_of_disk_bytes

    def look() -> int:
        lived.now_s += TIDY_EVERY_S
        lived.house.look(disk.make_room)
        return blocks.used_bytes

    usage = [shutil.disk_usage(tmp_path)]
    usage[0] = type(usage[0])(total=1_000_000, used=0, free=900_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage[0])
    blocks.need({f"{9:064x}"})  # type: ignore[arg-type]  # a digest
    assert look() == 10_000
    lived.rule("disk.most", "7000")
    assert look() == 7000
    lived.rule("disk.most", '""')
    usage[0] = usage[0]._replace(free=48_500)  # a twentieth is to be free: 1,500 bytes are missing
    assert look() == 5000
    usage[0] = usage[0]._replace(free=0)
    assert look() == 1000, "what the lease needs stays"
    assert disk.make_room(100), "and work that fits is done"


async def test_the_line_is_held_to_the_rate_that_is_ruled(lived: Lived) -> None:
    wire = lived.house.counted(None)  # type: ignore[arg-type]  # it is not used
    assert wire._up._rate() is None
    lived.rule("network.upload_rate", "64KB")
    lived.allowed()
    assert (wire._up._rate(), wire._down._rate()) == (65536, None)


async def test_runs_of_one_process_have_one_line(lived: Lived, tmp_path: Path) -> None:
    """Two that send at the ruled rate would send at twice that; and a quota counts what the other sent just now."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def one() -> AsyncIterator[bytes]:
        yield bytes(1 << 16)

    async def upload(_name: str, messages: AsyncIterator[bytes], *_: object) -> bytes:
        return b"".join([message async for message in messages])

    line = HouseLine(tmp_path, lambda: lived.now_s, sleep)
    first, second = Lived(tmp_path, line=line), Lived(tmp_path, line=line)
    lived.rule("network.upload_rate", "64KB")
    assert first.allowed()
    far: Any = SimpleNamespace(upload=upload)
    for house in (first.house, second.house):
        await house.counted(far).upload("Upload", one(), (), 1.0)
    assert slept == [1.0, 2.0], "one after the other"
    assert second.house.look().today_bytes == 1 << 17
