"""Events that the present state does not allow raise, and leave the state as it was (conftest compares snapshots)."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from coordinator.engine import events as ev
from coordinator.engine.commands import AggregateRound
from coordinator.engine.engine import Engine
from coordinator.engine.event_table import EVENT_TABLE, ROWS
from coordinator.engine.hold import HoldKind
from coordinator.engine.phases import Phase
from protocol.errors import ConfigError, IllegalEvent, LocalError
from protocol.ids import LeaseId, Version, WorkerId, digest_of


def gathering(s):
    s.enrol("a", "b")


def training(s):
    s.join("a", "b")


def grace(s):
    s.join("a", "b", "c")
    s.after(10)
    s.submit("a", "b")


def aggregating(s):
    grace(s)
    s.submit("c")


def finishing(s):
    training(s)
    s.stop()


def over(s):
    finishing(s)
    s.do_slow_work()


REACH = {
    Phase.GATHERING: gathering,
    Phase.TRAINING: training,
    Phase.GRACE: grace,
    Phase.AGGREGATING: aggregating,
    Phase.FINISHING: finishing,
    Phase.OVER: over,
}


@pytest.fixture(params=list(Phase))
def in_phase(request, swarm):
    s = swarm()
    REACH[request.param](s)
    assert s.phase is request.param
    return s


def event_of(kind: type[ev.Event], s) -> ev.Event:
    """A well-formed event of a kind, about nothing in particular."""
    lease = LeaseId("r1.1")
    worker = WorkerId("a")
    extra = {
        ev.RunCreated: {"engine_version": 1, "config": s.config, "base_manifest": digest_of(b"")},
        ev.RoundAggregated: {
            "command_id": "aggregate:r1",
            "round": 1,
            "version": 1,
            "parent_version": 0,
            "manifest": digest_of(b""),
            "update_norm_l2": 1.0,
        },
        ev.ContributionsTried: {"command_id": "try:r1", "round": 1, "failed": ()},
        ev.LeaseReplayed: {"command_id": "replay:r1.1", "lease_id": lease, "auditor": None},
        ev.HarmfulFound: {"command_id": "harm:r1", "round": 1, "harmful": (), "suspected": (), "passes": 0},
        ev.VersionValidated: {"command_id": "validate:v0", "version": 0, "val_loss": 1.0, "val_loss_se": 0.1},
        ev.CheckpointWritten: {"command_id": "checkpoint:v1", "version": 1, "path": ""},
        ev.CommandFailed: {"command_id": "validate:v0", "error": "", "trouble": ev.CommandTrouble.MACHINE},
        ev.SubmissionCommitted: {
            "worker": worker,
            "lease_id": lease,
            "digest": s.digest("r1.1"),
            "payload_bytes": 1,
            "codec": "fp32",
            "inner_steps_done": 8,
            "train_loss_first": 1.0,
            "train_loss_last": 1.0,
            "train_s": 1.0,
        },
        ev.SubmissionUploaded: {"worker": worker, "lease_id": lease, "digest": s.digest("r1.1")},
        ev.ResidualOpened: {"worker": worker, "lease_id": lease, "digest": s.digest("r1.1")},
        ev.AuditAsked: {"worker": worker, "lease_id": lease},
        ev.RunStopped: {"reason": "enough"},
        ev.RunHeld: {"kind": HoldKind.PAUSED, "why": ""},
        ev.SettingChanged: {"key": "quorum", "value": "1"},
        ev.RollbackOrdered: {"worker": worker, "by": "operator", "why": ""},
        ev.VersionRebuilt: {
            "command_id": "rebuild:r1:0",
            "version": 2,
            "parent_version": 1,
            "manifest": digest_of(b""),
            "change_l2": 1.0,
        },
    }
    return kind(at_s=s.now_s, **extra[kind])


@pytest.mark.parametrize(
    "kind",
    [row.event for row in ROWS if row.phases != frozenset(Phase)],
    ids=lambda kind: kind.__name__,
)
def test_an_event_outside_its_phases(in_phase, kind):
    s = in_phase
    if s.phase in EVENT_TABLE[kind].phases:
        return
    with pytest.raises(IllegalEvent, match=f"{kind.__name__} while the run is {s.phase}"):
        s.handle(event_of(kind, s))


def test_every_event_has_exactly_one_row():
    kinds = [k for k in vars(ev).values() if isinstance(k, type) and issubclass(k, ev.Event) and k is not ev.Event]
    rows = Counter(row.event for row in ROWS)
    assert rows == Counter(kinds)


def test_each_event_has_a_handler_of_its_own():
    """Named after it, but for those that change no state: what makes an engine, heartbeats, what the registry has."""
    named = {row.event: row.apply.__name__ for row in ROWS}
    assert named.pop(ev.RunCreated) == named.pop(ev.WorkerSeen)
    registry = (ev.InviteRevoked, ev.InvitesMade, ev.OperatorKeyAdded, ev.OperatorKeyRevoked)
    assert {named.pop(one) for one in registry} == {"on_registry_changed"}
    assert named == {k: "on" + re.sub("([A-Z])", lambda found: f"_{found[1].lower()}", k.__name__) for k in named}


def test_workers_and_leases_that_do_not_exist(in_phase):
    s = in_phase
    for act in (
        lambda: s.ask("z"),
        lambda: s.handle(ev.WorkerSeen(at_s=0, worker=WorkerId("z"))),
        lambda: s.handle(ev.CapabilityChanged(at_s=0, worker=WorkerId("z"), max_columns=1, tokens_per_s=1.0)),
        lambda: s.handle(ev.WorkerSilent(at_s=0, worker=WorkerId("z"), last_seen_at_s=0.0)),
        lambda: s.handle(ev.LeaseReturned(at_s=0, worker=WorkerId("a"), lease_id=LeaseId("r9.1"), reason="")),
        lambda: s.enrol("a"),
        lambda: s.handle(
            ev.SubmissionMeasured(at_s=0, command_id="measure:r9.1", lease_id=LeaseId("r9.1"), malformed="")
        ),
        lambda: s.handle(ev.Ticked(at_s=float("nan"))),
    ):
        with pytest.raises(IllegalEvent):
            act()


def test_a_lease_of_somebody_else(swarm):
    s = swarm()
    s.join("a", "b")
    lease = s.lease("a")
    for act in (
        lambda: s.handle(ev.LeaseReturned(at_s=1, worker=WorkerId("b"), lease_id=lease.lease_id, reason="")),
        lambda: s.commit("b", lease),
        lambda: s.upload("b", lease),
    ):
        with pytest.raises(IllegalEvent, match="belongs to a, not to b"):
            act()


def test_submissions_out_of_order(swarm):
    s = swarm()
    s.join("a")
    with pytest.raises(IllegalEvent, match="nothing was committed"):
        s.upload("a")
    s.commit("a")
    with pytest.raises(IllegalEvent, match="and now brings"):
        s.commit("a", digest=digest_of(b"something else"))
    with pytest.raises(IllegalEvent, match="and now brings"):
        s.upload("a", digest=digest_of(b"something else"))
    with pytest.raises(IllegalEvent, match="was not to be measured"):
        s.measured("r1.1")
    s.give_back("a")
    with pytest.raises(IllegalEvent, match="was handed back"):
        s.commit("a")


def test_results_that_were_not_asked_for(swarm):
    s = swarm()
    s.join("a")
    s.after(5)
    s.commit("a")
    s.upload("a")
    with pytest.raises(IllegalEvent, match="one norm for each leased block"):
        s.handle(
            ev.SubmissionMeasured(at_s=5, command_id="measure:r1.1", lease_id=LeaseId("r1.1"), malformed="", norms=())
        )
    with pytest.raises(IllegalEvent, match="does not measure"):
        s.handle(ev.SubmissionMeasured(at_s=5, command_id="measure:r1.2", lease_id=LeaseId("r1.1"), malformed="x"))
    s.measured("r1.1")
    command = s.waiting_for(AggregateRound)
    event = event_of(ev.RoundAggregated, s)
    for field, value in (("parent_version", 3), ("version", 2), ("round", 2), ("command_id", "validate:v0")):
        changed = ev.RoundAggregated(**{**{n: getattr(event, n) for n in event.__slots__}, "at_s": 5.0, field: value})
        with pytest.raises(IllegalEvent):
            s.handle(changed)
    assert s.engine.state.version == 0
    s.aggregated()
    with pytest.raises(IllegalEvent):
        s.handle(event)
    with pytest.raises(IllegalEvent, match="is not a pending"):
        s.failed(command.command_id)
    s.validated()
    with pytest.raises(IllegalEvent, match="is not a pending ValidateVersion"):
        s.handle(event_of(ev.VersionValidated, s))


def test_results_about_another_version(swarm):
    s = swarm()
    s.join("a")
    s.stop()
    for kind, command_id in ((ev.VersionValidated, "validate:v0"), (ev.CheckpointWritten, "checkpoint:v0")):
        fields = {"val_loss": 1.0, "val_loss_se": 0.1} if kind is ev.VersionValidated else {"path": ""}
        with pytest.raises(IllegalEvent, match="is about version 0, got 7"):
            s.handle(kind(at_s=0, command_id=command_id, version=Version(7), **fields))


def test_configurations_under_which_nothing_could_go_well(swarm):
    for changes, words in (
        ({"columns": 0}, "1 to 65536 expert columns"),
        ({"columns": 10**9}, "1 to 65536 expert columns"),
        ({"min_columns": 9}, "min_columns must be 1 to"),
        ({"max_rounds": 0}, "max_rounds"),
        ({"quorum": 0}, "quorum"),
        ({"train_sequences": 31}, "needs 32 training sequences"),
        ({"heartbeat_interval_s": 0.0}, "heartbeat"),
    ):
        with pytest.raises(ConfigError, match=words):
            swarm(**changes)


@pytest.mark.parametrize("columns", [0, 10**9, 10**30])
def test_a_snapshot_of_a_model_that_cannot_be_is_refused_before_room_is_made_for_it(swarm, columns):
    snapshot = swarm().engine.snapshot()
    with pytest.raises(LocalError, match="1 to 65536 expert columns"):
        Engine.restore({**snapshot, "config": {**snapshot["config"], "columns": columns}}, b"0123456789abcdef")


def test_journals_of_another_engine(swarm):
    s = swarm()
    created = ev.RunCreated(at_s=0, engine_version=99, config=s.config, base_manifest=digest_of(b""))
    with pytest.raises(ConfigError, match="engine version 99"):
        Engine.create(created, b"0123456789abcdef")
    with pytest.raises(ConfigError, match="engine version 99"):
        Engine.restore({**s.engine.snapshot(), "engine_version": 99}, b"0123456789abcdef")
    with pytest.raises(LocalError):
        Engine.restore({"engine_version": 1}, b"0123456789abcdef")


def test_a_snapshot_whose_leases_are_of_another_model_is_refused(swarm):
    s = swarm()
    s.join("a")
    snapshot = s.engine.snapshot()
    assert snapshot["leases"]
    with pytest.raises(LocalError, match="not a record"):
        Engine.restore({**snapshot, "config": {**snapshot["config"], "columns": 1}}, b"0123456789abcdef")
