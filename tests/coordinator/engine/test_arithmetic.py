"""Audits whose auditor rounds otherwise than the worker: what they may say, and what a liar gains by naming a class."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from coordinator.engine.arithmetic import caution, caution_of_workers
from coordinator.engine.audit_notes import audit_notes
from coordinator.engine.commands import AggregateRound, CompareSubmissions, ReplayLease
from coordinator.engine.config import AuditConfig, InnerRecipe, check_config
from coordinator.engine.explain import cautions
from coordinator.engine.phases import LeaseStatus
from coordinator.engine.rows import WorkerRecord
from coordinator.engine.trust import trust_of
from coordinator.engine.trust_config import ReputationConfig
from protocol.errors import ConfigError
from protocol.ids import WorkerId
from simulator.arithmetic import EVERYBODYS_ARITHMETIC

OWN = str(EVERYBODYS_ARITHMETIC)
THREADS = str(dataclasses.replace(EVERYBODYS_ARITHMETIC, threads=8))
BF16 = str(dataclasses.replace(EVERYBODYS_ARITHMETIC, dtype="bf16"))
GPU = str(dataclasses.replace(EVERYBODYS_ARITHMETIC, device="cuda", chip="GPU", threads=0))
FAR = 0.5


@pytest.fixture
def long_swarm(swarm):
    """Leases of 8 steps, where rounding decides after 4: everybody holds everything, and all is audited."""

    def make(*names: str, trusted: tuple[str, ...] = (), **changes: Any) -> Any:
        audits = AuditConfig(**{"budget": 99.0, "decisive_steps": 4, "wait_s": 60.0, **changes.pop("audits", {})})
        everybody = len(names) + len(trusted)
        s = swarm(
            **{"columns": 1, "audits": audits, "min_workers": everybody, "replicas": 9, "max_rounds": 99, **changes}
        )
        s.join(*names)
        for name in trusted:
            s.join(name, trusted=True, owner=f"owner of {name}")
        s.after(1)
        return s

    return make


def worker(s: Any, name: str) -> WorkerRecord:
    return s.engine.state.workers[WorkerId(name)]


def send(s: Any, name: str, arithmetic: str = OWN, micro_batch: int = 1) -> str:
    lease = s.lease(name)
    s.commit(name, lease, arithmetic=arithmetic, micro_batch=micro_batch)
    s.upload(name, lease)
    if lease.audits is None:
        s.measured(lease.lease_id)
    return str(lease.lease_id)


def set_audits(s: Any, **changes: Any) -> None:
    """At once, whatever a journal would say."""
    s.config = dataclasses.replace(s.config, audits=dataclasses.replace(s.config.audits, **changes))
    s.engine.state.config = s.config


def is_replayed(s: Any, lease_id: str) -> bool:
    return any(isinstance(one, ReplayLease) and one.lease.lease_id == lease_id for one in s.engine.pending)


def share(s: Any, lease_id: str) -> float:
    """Of its weight, by what audits say."""
    from coordinator.engine.audits import share_of

    return share_of(s.engine.state, s.record(lease_id))


def round_after(s: Any, *names: str) -> None:
    """The present round ends, and everybody has a lease of the next."""
    for command in [one for one in s.engine.pending if isinstance(one, ReplayLease)]:
        s.answer(command)
    if any(isinstance(one, AggregateRound) for one in s.engine.pending):
        s.aggregated()
    s.ask(*names)
    s.after(1)


# ---- when a difference counts


@pytest.mark.parametrize(
    ("workers", "auditors", "steps", "decisive"),
    [
        (OWN, OWN, 4, True),
        (BF16, BF16, 4, True),
        (OWN, THREADS, 8, True),
        (OWN, GPU, 8, True),
        (OWN, THREADS, 4, False),
        (GPU, GPU, 4, False),
        (OWN, BF16, 8, False),
        (BF16, OWN, 8, False),
        ("", "", 4, False),
        ("", OWN, 8, False),
        ("nonsense", "nonsense", 4, False),
    ],
)
def test_a_difference_counts_in_one_class_or_after_few_steps_in_fp32(
    long_swarm, workers: str, auditors: str, steps: int, decisive: bool
):
    s = long_swarm("a", "b", audits={"decisive_steps": steps})
    lease_id = send(s, "a", workers)
    send(s, "b")
    s.audited(lease_id, FAR, arithmetic=auditors)
    refused = s.record(lease_id).status is LeaseStatus.REJECTED
    assert (refused, worker(s, "a").accused is not None) == (decisive, decisive)
    assert worker(s, "a").undecided_in_row == (0 if decisive else 1)


def test_an_auditor_that_cuts_its_batches_otherwise_says_nothing(long_swarm):
    s = long_swarm("a", trusted=("t",), audits={"by_coordinator": False})
    send(s, "t")
    lease_id = send(s, "a", micro_batch=2)
    s.ask("t")
    send(s, "t", micro_batch=1)
    s.compared("t", FAR)
    assert s.record(lease_id).status is LeaseStatus.ACCEPTED
    assert s.record(lease_id).is_undecided
    assert worker(s, "a").ban is worker(s, "a").accused is None


def test_what_comes_near_enough_is_passed_whoever_computed_it(long_swarm):
    s = long_swarm("a", "b")
    lease_id = send(s, "a", BF16)
    s.audited(lease_id, s.config.audits.tolerance, arithmetic=OWN)
    assert worker(s, "a").audits_passed == 1
    assert share(s, lease_id) == 1.0


def test_the_coordinator_is_asked_for_the_workers_own_class(long_swarm):
    s = long_swarm("a", "b")
    send(s, "a", THREADS)
    assert s.waiting_for(ReplayLease).arithmetic == THREADS


# ---- an honest worker of another class


@pytest.mark.parametrize("open_run", [False, True])
def test_an_honest_worker_of_another_class_is_never_refused_nor_banned(long_swarm, open_run: bool):
    s = long_swarm("a", "b", "c", open_run=open_run, audits={"first": 4})
    for _ in range(8):
        send(s, "b"), send(s, "c")
        lease_id = send(s, "a", GPU)
        if is_replayed(s, lease_id):
            s.audited(lease_id, FAR, arithmetic=OWN)
        assert s.record(lease_id).status is LeaseStatus.ACCEPTED
        assert share(s, lease_id) == (0.0 if open_run else s.config.audits.unpaid_weight)
        round_after(s, "a", "b", "c")
    record = worker(s, "a")
    assert (record.rejected, record.audits_failed, record.ban, record.accused) == ({}, 0, None, None)
    assert record.audits_passed == 0
    assert record.undecided_in_row >= s.config.audits.first
    assert s.engine.state.accusations == ()
    assert any("a (" in note and "could not decide" in note for note in audit_notes(s.engine.state))


def test_what_cannot_be_decided_is_not_asked_for_surely_for_ever(long_swarm):
    s = long_swarm("a", "b", "c", audits={"first": 2})
    record = dataclasses.replace(worker(s, "a"), undecided_in_row=1, valid_in_row=100)
    assert trust_of(s.config, record).audit_probability == 1.0
    record = dataclasses.replace(record, undecided_in_row=2)
    assert trust_of(s.config, record).audit_probability == s.config.audits.least_probability


# ---- a liar that names a class which nobody has


def vouched(s: Any, names: tuple[str, ...], rounds: int = 4) -> None:
    """Everybody's audits pass for so many rounds."""
    for _ in range(rounds):
        for name in names:
            send(s, name)
        round_after(s, *names)


def test_a_change_of_class_makes_a_stranger_of_whoever_was_vouched_for(long_swarm):
    s = long_swarm("a", "b", "c", open_run=True, audits={"first": 1}, reputation=ReputationConfig(vouched_after=1))
    vouched(s, ("a", "b", "c"))
    assert trust_of(s.config, worker(s, "a")).weight > 0.0
    for _ in range(6):
        lease_id = send(s, "a", BF16)
        assert is_replayed(s, lease_id) or worker(s, "a").undecided_in_row >= 1
        if is_replayed(s, lease_id):
            s.audited(lease_id, FAR, arithmetic=OWN)
        assert share(s, lease_id) == 0.0, "it lies in a class in which nobody has vouched for it"
        send(s, "b"), send(s, "c")
        round_after(s, "a", "b", "c")
    lease_id = send(s, "a")
    assert share(s, lease_id) > 0.0 or is_replayed(s, lease_id), "its own class is as it was"


def test_an_audit_that_says_nothing_ends_that_a_worker_is_vouched_for(long_swarm):
    """Its class was reproduced while leases were short; they are long now, and nobody has the class."""
    s = long_swarm("a", "b", "c", open_run=True, audits={"first": 1, "decisive_steps": 50, "least_probability": 1.0})
    vouched(s, ("a", "b", "c"))
    set_audits(s, decisive_steps=4)
    lease_id = send(s, "a")
    assert share(s, lease_id) > 0.0 or is_replayed(s, lease_id)
    s.audited(lease_id, FAR, arithmetic=GPU)
    assert worker(s, "a").vouched_in == ()
    assert share(s, lease_id) == 0.0
    send(s, "b"), send(s, "c")
    round_after(s, "a", "b", "c")
    assert share(s, send(s, "a")) == 0.0


def test_who_says_no_class_is_a_stranger(long_swarm):
    s = long_swarm("a", "b", "c", open_run=True)
    vouched(s, ("a", "b", "c"))
    assert share(s, send(s, "a", "")) == 0.0
    assert share(s, send(s, "b", OWN, micro_batch=0)) == 0.0


def test_whom_an_older_release_vouched_for_stays_so(long_swarm):
    s = long_swarm("a", "b", "c", open_run=True)
    vouched(s, ("a", "b", "c"))
    s.engine.state.update_worker(WorkerId("a"), vouched_in=(), valid_in_row=10**6)
    s.config = dataclasses.replace(
        s.config, audits=dataclasses.replace(s.config.audits, first=1, least_probability=0.0)
    )
    s.engine.state.config = s.config
    assert share(s, send(s, "a")) == 1.0


# ---- who is asked


def test_a_trusted_worker_of_the_same_class_decides_where_the_coordinator_could_not(long_swarm):
    s = long_swarm("a", trusted=("t", "u"), audits={"wait_s": 300.0})
    send(s, "t", GPU), send(s, "u", THREADS)
    lease_id = send(s, "a", THREADS)
    s.audited(lease_id, FAR, arithmetic=OWN)
    assert s.record(lease_id).audit_due, "somebody here has the class"
    s.ask("t")
    assert not any(record.lease.audits for record in s.leases("t"))
    s.ask("u")
    assert s.lease("u").audits == lease_id
    send(s, "u", THREADS)
    s.compared("u", FAR)
    assert s.record(lease_id).accusers == ("owner owner of u",)
    assert s.record(lease_id).status is LeaseStatus.REJECTED


def test_who_has_the_class_goes_before_who_has_not_until_the_audit_has_waited(long_swarm):
    s = long_swarm("a", trusted=("t", "u"), audits={"by_coordinator": False, "wait_s": 30.0})
    send(s, "t", GPU), send(s, "u", THREADS)
    s.beat("a", "t", "u")
    lease_id = send(s, "a", THREADS)
    s.ask("t")
    assert s.lease("t").audits is None
    s.beat("a", "t", "u")
    s.after(15)
    s.beat("a", "t", "u")
    s.after(20)
    assert s.lease("t").audits == lease_id
    assert not any(isinstance(one, CompareSubmissions) for one in s.engine.pending)


# ---- what the operator is told


def test_leases_that_are_too_long_to_be_decided_are_told(swarm):
    config = swarm().config
    long = dataclasses.replace(config, inner=InnerRecipe(inner_steps=200), audits=AuditConfig(budget=1.0))
    assert "longer than audits.decisive_steps (20)" in str(caution(long))
    assert caution(dataclasses.replace(long, audits=AuditConfig(budget=0.0))) is None
    assert caution(dataclasses.replace(long, inner=InnerRecipe(inner_steps=20))) is None
    twice = dataclasses.replace(long, inner=InnerRecipe(inner_steps=20), most_steps_share=2.0)
    assert "up to 40 steps" in str(caution(twice)), "fast machines do more than the recipe"


@pytest.mark.parametrize("rung", [{"masters": "bf16"}, {"moments": "compact"}])
def test_what_is_rounded_at_random_is_decided_within_one_class_alone(long_swarm, rung: dict[str, Any]):
    for auditors, decisive in ((OWN, True), (THREADS, False)):
        s = long_swarm("a", "b", audits={"decisive_steps": 50}, inner=InnerRecipe(inner_steps=8, **rung))
        lease_id = send(s, "a", OWN)
        send(s, "b")
        s.audited(lease_id, FAR, arithmetic=auditors)
        assert (s.record(lease_id).status is LeaseStatus.REJECTED) == decisive
        assert "rounded at random" in str(caution(s.config))


def test_workers_that_multiply_in_bf16_are_told(long_swarm):
    s = long_swarm("a", "b", audits={"decisive_steps": 50})
    assert caution_of_workers(s.engine.state) is None
    send(s, "a", BF16)
    assert any("1 workers compute in bf16" in one for one in cautions(s.engine.state))


def test_decisive_steps_are_checked(swarm):
    config = swarm().config
    with pytest.raises(ConfigError, match="decisive_steps"):
        check_config(dataclasses.replace(config, audits=AuditConfig(decisive_steps=-1)))
