"""Whose turn it is among several runs on one device, in virtual time."""

from __future__ import annotations

from functools import partial

import pytest

from protocol.errors import ConfigError
from worker.policy import Always, Circumstances, Permission
from worker.rules.file import read_rules, set_rule
from worker.turns import AWAY_S, PATIENCE_S, TurnPolicy, Turns

LEASE_S = 60


class Machine:
    """Runs that hold a lease for a minute whenever they may ask, but for those without work."""

    def __init__(self, shares: dict[str, float], without_work: frozenset[str] = frozenset()) -> None:
        self.now_s, self.shares, self.without_work = 0.0, shares, without_work
        self.turns = Turns(lambda: self.now_s)
        self.leases: dict[str, float] = {}
        self.trained_s = dict.fromkeys(shares, 0.0)
        self.begun: list[str] = []
        self.unwelcome: set[str] = set()
        for run in shares:
            self.turns.enter(run, partial(self.shares.__getitem__, run), partial(self.has_lease, run))

    def has_lease(self, run: str) -> bool:
        return run in self.leases

    def live(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now_s += 1.0
            self.leases = {run: ends_s for run, ends_s in self.leases.items() if ends_s > self.now_s}
            for run in self.shares:
                may = self.turns.may_ask(run, is_welcome=run not in self.unwelcome)
                if may and run not in self.leases and run not in self.without_work and run not in self.unwelcome:
                    self.leases[run] = self.now_s + LEASE_S
                    self.begun.append(run)
            assert len(self.leases) <= 1, "one run at a time"
            for run in self.leases:
                self.trained_s[run] += 1.0


@pytest.mark.parametrize("shares", [{"a": 1.0, "b": 1.0}, {"a": 3.0, "b": 1.0}, {"a": 1.0, "b": 2.0, "c": 4.0}])
def test_time_is_shared_as_it_is_ruled_and_none_is_wasted(shares: dict[str, float]) -> None:
    machine = Machine(shares)
    machine.live(100 * LEASE_S)
    total_s = sum(machine.trained_s.values())
    assert total_s > 0.95 * 100 * LEASE_S
    for run, share in shares.items():
        assert machine.trained_s[run] / total_s == pytest.approx(share / sum(shares.values()), abs=0.03)


def test_a_run_without_work_costs_the_others_little_and_gains_nothing_by_waiting() -> None:
    machine = Machine({"a": 1.0, "b": 1.0}, without_work=frozenset({"a"}))
    machine.live(50 * LEASE_S)
    assert machine.trained_s["b"] > (1 - 1.5 * PATIENCE_S / AWAY_S) * 50 * LEASE_S
    machine.without_work, machine.begun = frozenset(), []
    machine.live(int(AWAY_S) + 40 * LEASE_S)
    assert 0.35 < machine.begun.count("a") / len(machine.begun) < 0.55


def test_rules_and_shares_count_at_the_next_lease() -> None:
    machine = Machine({"a": 1.0, "b": 1.0})
    machine.unwelcome = {"a"}
    machine.live(5 * LEASE_S)
    assert set(machine.begun) == {"b"}
    machine.unwelcome, machine.shares["b"], machine.begun = set(), 0.0, []
    machine.live(5 * LEASE_S)
    assert set(machine.begun[1:]) == {"a"}
    machine.turns.leave("a")
    machine.shares.pop("a")
    machine.begun = []
    machine.live(3 * LEASE_S)
    assert machine.begun == [], "a run without a share waits, though nobody else is there"


def test_a_run_that_has_no_share_for_a_while_is_not_starved_afterwards() -> None:
    machine = Machine({"a": 1.0, "b": 1.0})
    machine.live(LEASE_S // 2)
    (holder,) = machine.leases
    machine.shares[holder] = 0.0  # in the middle of its lease
    machine.live(3 * LEASE_S)
    machine.shares[holder], machine.begun = 1.0, []
    machine.live(20 * LEASE_S)
    assert machine.begun.count(holder) >= 9


def test_out_of_turn_a_worker_says_whose_it_is_and_finishes_what_it_trains() -> None:
    machine = Machine({"a": 1.0, "b": 1.0})
    now = Circumstances(wall_s=0.0)
    first, second = (TurnPolicy(Always(), machine.turns, run, {"a": "Ann's", "b": "Bob's"}.get) for run in "ab")  # type: ignore[arg-type]
    assert first.may_work(now).allowed
    told = second.may_work(now)
    assert (told.allowed, told.stops_training, told.reason) == (False, False, "it is the turn of Ann's")

    class Never:
        look_again_s = None

        def may_work(self, _: Circumstances) -> Permission:
            return Permission(allowed=False, reason="not now", stops_training=True)

    assert TurnPolicy(Never(), machine.turns, "a").may_work(now).reason == "not now"
    assert second.look_again_s == 1.0


def test_a_share_is_a_rule_of_its_run(tmp_path: object) -> None:
    from pathlib import Path

    path = Path(str(tmp_path)) / "rules.toml"
    assert set_rule(path, "runs.my run 1.5.share", "3") == (1.0, 3.0)
    set_rule(path, "runs.example.org:7070.share", "0.5")
    rules = read_rules(path)
    assert rules.share_of(("my run 1.5", "id")) == 3.0
    assert rules.share_of(("other", "run-1", "example.org:7070")) == 0.5
    assert rules.share_of(("unknown",)) == 1.0
    for key, value in (("runs.x.share", "-1"), ("runs.x.shore", "1"), ("runs..share", "1")):
        with pytest.raises(ConfigError):
            set_rule(path, key, value)
