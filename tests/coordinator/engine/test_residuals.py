"""Which residual a lease names: what the newest commit left, or what is left where that came to nothing."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.engine import events as ev
from coordinator.engine.lease import GrantedLease
from coordinator.engine.phases import LeaseStatus
from coordinator.engine.residuals import on_lost
from coordinator.engine.turn import Turn
from protocol.ids import TRUNK, Digest, WorkerId, digest_of
from tests.coordinator.engine.conftest import Swarm, small_config


def left(lease: GrantedLease, kind: str = "out") -> tuple[Digest, ...]:
    return tuple(digest_of(f"{lease.lease_id} {block} {kind}".encode()) for block in lease.blocks)


def feeding_back(lease: GrantedLease, **changes: Any) -> dict[str, Any]:
    began = lease.residuals or ("",) * len(lease.blocks)
    return {
        "residuals_in": began, "residuals_out": left(lease), "residuals_back": left(lease, "back"), **changes
    }  # fmt: skip


@pytest.fixture
def s() -> Swarm:
    """Two workers, each of which holds all columns."""
    made = Swarm(small_config(max_rounds=6, replicas=2, quorum=1))
    made.join("a", "b")
    return made


def close_with(s: Swarm, *names: str) -> None:
    """These deliver, the round closes and is published, and everybody asks again."""
    s.after(5.0)
    leases = {name: s.lease(name) for name in names}
    for name, lease in leases.items():
        s.commit(name, lease, **feeding_back(lease))
        s.upload(name, lease)
    for lease in leases.values():
        s.measured(lease.lease_id)
    s.after(100.0)
    s.do_slow_work()
    s.ask(*s.engine.state.workers)


def test_the_first_lease_names_none_and_the_next_what_the_newest_commit_left(s: Swarm) -> None:
    first = s.lease("a")
    assert first.codec == s.config.codec
    assert first.residuals == ()
    close_with(s, "a", "b")
    second = s.lease("a")
    assert second.round == 2
    assert second.residuals == left(first)
    assert s.lease("b").residuals != second.residuals, "a residual is its worker's own"


def test_a_refused_submission_is_the_workers_again(s: Swarm) -> None:
    first = s.lease("a")
    s.after(5.0).commit("a", first, **feeding_back(first))
    s.upload("a", first)
    s.measured(first.lease_id, malformed="of another shape")
    assert s.record(first.lease_id).status is LeaseStatus.REJECTED
    close_with(s, "b")
    assert s.lease("a").residuals == left(first, "back")


def test_a_commit_whose_bytes_never_came_is_the_workers_again(s: Swarm) -> None:
    first = s.lease("a")
    s.after(5.0).commit("a", first, **feeding_back(first))
    s.give_back("a")
    close_with(s, "b")
    assert s.lease("a").residuals == left(first, "back")


def test_a_commit_that_is_refused_is_the_workers_again(s: Swarm) -> None:
    first = s.lease("a")
    s.after(5.0).commit("a", first, **feeding_back(first), inner_steps_done=1)
    assert s.record(first.lease_id).status is LeaseStatus.REJECTED
    close_with(s, "b")
    assert s.lease("a").residuals == left(first, "back")


def test_a_lease_that_was_lost_leaves_what_was_there(s: Swarm) -> None:
    first = s.lease("a")
    close_with(s, "a", "b")
    s.silent("a")
    s.ask("a")
    again = s.lease("a")
    assert again.residuals == left(first)


def test_what_a_later_commit_went_on_from_is_not_given_back(s: Swarm) -> None:
    """Then nobody has the sum: what was sent with the refused one is lost."""
    first = s.lease("a")
    close_with(s, "a", "b")
    second = s.lease("a")
    s.after(5.0).commit("a", second, **feeding_back(second))
    state = s.engine.state
    on_lost(Turn(state=state, draws=s.engine._draws), s.record(first.lease_id))
    assert tuple(state.workers[WorkerId("a")].residuals.values()) == left(second)


def test_a_column_that_was_leased_elsewhere_has_no_residual_any_more() -> None:
    """A worker that holds fewer columns for one round; whoever took the others has trained them since."""
    s = Swarm(small_config(max_rounds=8, replicas=1, quorum=1))
    s.join("a", columns=3)
    leases = [s.lease("a")]
    for most in (1, 3):
        s.handle(ev.CapabilityChanged(at_s=s.now_s, worker=WorkerId("a"), max_columns=most, tokens_per_s=0.0))
        close_with(s, "a")
        leases.append(s.lease("a"))
        assert set(s.engine.state.workers[WorkerId("a")].residuals) <= set(leases[-1].blocks)
    first, second, third = leases
    assert [len(lease.columns) for lease in leases] == [3, 1, 3]
    named = dict(zip(third.blocks, third.residuals, strict=True))
    assert {block for block in third.blocks if named[block]} == set(second.blocks) & set(third.blocks)
    assert set(first.blocks) & set(third.blocks) - set(second.blocks), "one of them came back"


def test_blocks_without_a_vote_are_the_workers_again() -> None:
    """Of one owner's two machines that hold different columns, one votes on the trunk."""
    s = Swarm(small_config(max_rounds=3, replicas=1, quorum=1))
    s.join("a", "b", columns=2, owner="anna")
    leases = {name: s.lease(name) for name in ("a", "b")}
    close_with(s, "a", "b")
    trunk = {name: s.engine.state.workers[WorkerId(name)].residuals[TRUNK] for name in leases}
    assert sorted(trunk[name] == left(lease)[0] for name, lease in leases.items()) == [False, True]
    assert sorted(trunk[name] == left(lease, "back")[0] for name, lease in leases.items()) == [False, True]


def test_the_age_counts_commits_that_went_on_from_one_another(s: Swarm) -> None:
    ages = []
    for _ in range(3):
        lease = s.lease("a")
        close_with(s, "a", "b")
        ages.append(s.record(lease.lease_id).residual_age)
    assert ages == [0, 1, 2]
    lost = s.lease("a")
    s.after(5.0).commit("a", lost, **feeding_back(lost, residuals_in=("",) * len(lost.blocks)))
    assert s.record(lost.lease_id).residual_age == 0
    assert s.replayed().snapshot() == s.engine.snapshot()
