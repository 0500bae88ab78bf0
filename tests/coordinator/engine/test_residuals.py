"""Which residual a lease names: what the newest commit left, or what is left where that came to nothing."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.engine import events as ev
from coordinator.engine import pacing
from coordinator.engine.config import InnerRecipe
from coordinator.engine.lease import GrantedLease
from coordinator.engine.phases import LeaseStatus
from coordinator.engine.residuals import STAYS, on_lost
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


def test_what_was_sent_in_a_round_that_is_withheld_is_the_workers_again(s: Swarm) -> None:
    first = s.lease("a")
    s.after(5.0)
    for name in ("a", "b"):
        lease = s.lease(name)
        s.commit(name, lease, **feeding_back(lease))
        s.upload(name, lease)
        s.measured(lease.lease_id)
    s.after(100.0)
    s.aggregated(gain=-1.0)
    s.harm_found()
    s.aggregated(gain=-1.0)  # the short step, too
    (row,) = s.engine.state.history
    assert row.version is None
    s.ask("a", "b")
    assert s.lease("a").residuals == left(first, "back")


DROPPED = InnerRecipe(
    inner_steps=8, batch_sequences=4, schedule="linear", decay_share=0.25, final_lr_share=0.05, warmup_steps=0
)
"""Of five rounds the last has a twentieth of the others' rate."""


def at_the_dropped_rate() -> Swarm:
    """Four people with four rounds behind them, and leases of the fifth."""
    s = Swarm(small_config(max_rounds=5, replicas=4, quorum=4, codec="ternary", inner=DROPPED))
    names = ("a", "b", "c", "d")
    s.join(*names)
    for _ in range(4):
        close_with(s, *names)
    lease = s.lease("a")
    assert lease.recipe.learning_rate == pytest.approx(s.config.inner.learning_rate / 20)
    return s


@pytest.mark.parametrize(
    ("norm", "goes_on", "accepted"),
    [
        (0.44, True, True),  # what is left of an encoding of noise, and nearly nothing that is new
        (1.9, True, True),
        (2.0, True, False),
        (0.44, False, False),
        (0.14, False, True),
        (0.15, True, False),  # so little of an old residual that most of the work is missing
    ],
)
def test_a_norm_is_held_against_what_its_residual_brings_along(norm: float, goes_on: bool, accepted: bool) -> None:
    s = at_the_dropped_rate()
    lease = s.lease("a")
    s.after(5.0)
    began = {} if goes_on else {"residuals_in": ("",) * len(lease.blocks)}
    s.commit("a", lease, **feeding_back(lease, **began))
    s.upload("a", lease)
    rate = lease.recipe.learning_rate / s.config.inner.learning_rate
    s.measured(lease.lease_id, norm=norm / rate)
    verdict = s.record(lease.lease_id).verdict
    assert verdict is not None
    assert verdict.accepted is accepted, verdict.reason
    s.after(100.0)
    assert s.replayed().snapshot() == s.engine.snapshot()


def test_what_a_residual_brings_along_is_less_with_each_encoding_and_all_of_what_came_to_nothing(s: Swarm) -> None:
    reach = pacing.reach(s.lease("a"))
    close_with(s, "a", "b")
    assert s.engine.state.workers[WorkerId("a")].residual_reach == pytest.approx(reach)
    second = s.lease("a")
    close_with(s, "a", "b")
    assert s.record(second.lease_id).carried_reach == pytest.approx(STAYS * reach)
    third = s.lease("a")
    s.after(5.0).commit("a", third, **feeding_back(third))
    s.upload("a", third)
    s.measured(third.lease_id, malformed="of another shape")
    brought = STAYS * s.engine.state.workers[WorkerId("a")].residual_reach
    assert brought == pytest.approx(pacing.reach(third)), "nobody gains room for longer steps by being refused"
