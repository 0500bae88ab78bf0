"""What a worker reads from its coordinator: every reply, through the client and the agent that ask for it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from random import Random
from typing import Any

from google.protobuf.message import DecodeError, Message

from moe.config import config_from_json, config_to_json
from moe.presets import preset
from protocol.errors import ConfigError, MalformedMessage, Refused, RemoteError
from protocol.ids import LeaseId, RunId
from protocol.tls import manifest_key_message
from protocol.v1 import barnraise_pb2 as pb
from tests.fuzz.fakes import finish
from tests.fuzz.mutate import (
    Mutate,
    after_head,
    message_mutated,
    message_mutations,
    mutated,
)
from tests.fuzz.target import Target
from tests.fuzz.targets.protocol import IDENTITY, authority
from tests.fuzz.targets.worker_world import STATUS_HEAD, cheaply, description, world
from tests.worker.leases import lease_message, read_lease
from worker import messages as m
from worker.agent import MAX_HEARTBEAT_S, MIN_HEARTBEAT_S, Agent
from worker.calls import MIN_RETRY_AFTER_S
from worker.fetched import understand_run
from worker.lease import description_from_message
from worker.offer import Offer

REFUSED = (RemoteError, ConfigError)
LAYOUT_BYTES = 16 << 20
"""The largest model that a worker listens to has 256 layers; its layout takes 10 MiB."""


# ---- the run and its leases, as messages


def _described(data: bytes) -> object:
    try:
        message = pb.RunDescription.FromString(data)
    except DecodeError as error:
        raise MalformedMessage("not a RunDescription") from error
    with cheaply():
        return understand_run(description_from_message(message))


def _description_mutated(random: Random, samples: Sequence[bytes]) -> bytes:
    """Half of the time the model within the description, which is JSON."""
    sample = random.choice(samples)
    if random.random() < 0.5:
        return _DESCRIPTION_FIELDS(random, samples)
    message = pb.RunDescription.FromString(sample)
    message.model_json = mutated(random, [message.model_json.encode()]).decode("utf-8", "replace")
    return message.SerializeToString()


_DESCRIPTION_FIELDS = message_mutations(pb.RunDescription)


def _config(data: bytes) -> object:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage("not JSON") from error
    return config_from_json(values)


def _lease(data: bytes) -> object:
    try:
        return read_lease(pb.Lease.FromString(data))
    except DecodeError as error:
        raise MalformedMessage("not a Lease") from error


# ---- replies

CALLS: dict[str, m.Call] = {
    "Enrol": m.Enrol(ticket=1),
    "OpenSession": m.OpenSession(ticket=1, session=1),
    "AcquireLease": m.AcquireLease(ticket=1, after_s=0.0, may_wait=True),
    "CommitSubmission": m.CommitSubmission(ticket=1, lease_id=LeaseId("r1.1")),
    "Upload": m.UploadSubmission(ticket=1, lease_id=LeaseId("r1.1"), offset=0),
    "ReturnLease": m.ReturnLease(ticket=1, lease_id=LeaseId("r1.1"), reason="enough"),
}


def _answered(name: str, data: bytes) -> m.SessionEvent:
    """The event that the agent makes of a reply; RemoteError where it refuses it."""
    there = world()
    there.answer(data)
    agent = there.agent()
    if name == "OpenSession":
        there.channel.answers *= 2  # it is opened again once the worker knows what it can offer
        there.joining._run = there.joining._offer = None
    elif there.joining._offer is None:
        there.joining._offer = Offer(columns=3, tokens_per_s=1.0, measures=False)

    async def ask() -> m.SessionEvent:
        await agent._perform(CALLS[name])
        event = agent._events.get_nowait()
        if isinstance(event, Exception):
            raise event
        if agent._heartbeats is not None:
            _check_heartbeats(agent)
        return event

    with cheaply():
        event = finish(ask())
    if isinstance(event, m.CallRefused | m.SessionLost):
        raise Refused(event.reason)
    if isinstance(event, m.ToldToWait):
        assert event.retry_after_s >= MIN_RETRY_AFTER_S
    return event


def _check_heartbeats(agent: Agent) -> None:
    """The heartbeats that a session began: a timer at no time (NaN) holds up those of everything else in the loop."""
    assert agent._heartbeats is not None
    beating: Any = agent._heartbeats.get_coro()
    interval_s = beating.cr_frame.f_locals["interval_s"]
    agent._heartbeats.cancel()
    assert MIN_HEARTBEAT_S <= interval_s <= MAX_HEARTBEAT_S, f"a heartbeat every {interval_s} s"


def _beaten(data: bytes) -> object:
    """One heartbeat's reply; each lease that it cancels is an event."""
    there = world()
    there.answer(data)
    agent = there.agent()

    async def beat() -> list[Any]:
        beating = asyncio.create_task(agent._beat(agent._session.session, 1.0))
        await asyncio.sleep(1.5)
        failed = beating.done()
        beating.cancel()
        error = beating.exception() if failed else None
        if error is not None:
            raise error
        return [agent._events.get_nowait() for _ in range(agent._events.qsize())]

    for event in finish(beat()):
        assert isinstance(event, m.LeaseCancelled | m.SessionLost)
    return None


_VERDICT = pb.Verdict(lease_id="r1.1", outcome=pb.Verdict.ACCEPTED, reason="good")
_CANCELLED = pb.CancelledLease(lease_id="r1.1", reason="late")
REPLIES: dict[str, list[Message]] = {
    "CommitSubmission": [pb.CommitSubmissionReply(upload_offset=64), pb.CommitSubmissionReply(verdict=_VERDICT)],
    "Upload": [pb.UploadReply(received_bytes=64, complete=True), pb.UploadReply(received_bytes=3)],
    "ReturnLease": [pb.ReturnLeaseReply()],
    "Heartbeat": [pb.HeartbeatReply(latest_version=3, cancelled=[_CANCELLED])],
}
_SMALL = list(REPLIES)


def _small_reply(data: bytes) -> object:
    """The first byte says to which of the small calls this is the answer, too."""
    name = _SMALL[data[0] % len(_SMALL)] if data else "Heartbeat"
    return _beaten(data) if name == "Heartbeat" else _answered(name, data)


def _small_replies() -> list[bytes]:
    heads = [(bytes([number]), reply) for number, name in enumerate(_SMALL) for reply in REPLIES[name]]
    refusals = [bytes([head]) + b"the words of a refusal" for head in range(STATUS_HEAD, STATUS_HEAD + 20)]
    return [*(head + reply.SerializeToString() for head, reply in heads), *refusals]


def _small_mutated(random: Random, samples: Sequence[bytes]) -> bytes:
    sample = random.choice(samples)
    kind = type(REPLIES[_SMALL[sample[0] % len(_SMALL)]][0])
    mutate: Mutate = lambda random, rest: message_mutated(random, kind, rest[0])  # noqa: E731
    return after_head(mutate if random.random() < 0.5 else mutated)(random, [sample])


def _lease_replies() -> list[bytes]:
    verdicts = [pb.Verdict(lease_id="r0.1", outcome=pb.Verdict.REJECTED, reason="norm")]
    replies = (
        pb.AcquireLeaseReply(lease=lease_message(), verdicts=verdicts),
        pb.AcquireLeaseReply(wait=pb.Wait(reason="nothing to do", retry_after_s=0.2)),
        pb.AcquireLeaseReply(over=pb.RunOver(reason="done")),
    )
    return [b"\0" + reply.SerializeToString() for reply in replies]


def _sessions() -> list[bytes]:
    reply = pb.OpenSessionReply(session_id=bytes(16), heartbeat_interval_s=2.0, run=description())
    return [b"\0" + reply.SerializeToString()]


def _session_mutated(random: Random, samples: Sequence[bytes]) -> bytes:
    reply = pb.OpenSessionReply.FromString(samples[0])
    if random.random() < 0.3:
        with contextlib.suppress(DecodeError):
            reply.run.ParseFromString(_description_mutated(random, [reply.run.SerializeToString()]))
            return reply.SerializeToString()
    return message_mutations(pb.OpenSessionReply)(random, samples)


def _enrolments() -> list[bytes]:
    reply = pb.EnrolReply(
        worker_id=IDENTITY.worker_id,
        run_id="run",
        manifest_public_key=IDENTITY.public_key,
        manifest_key_vouch=bytes.fromhex(world().enrolment.manifest_key_vouch_hex),
        trusted=True,
    )
    return [b"\0" + reply.SerializeToString()]


def _vouched_again(data: bytes) -> bytes:
    """The reply with a vouch of the run's CA over whatever it says."""
    try:
        reply = pb.EnrolReply.FromString(data[1:])
    except DecodeError:
        return data
    reply.manifest_key_vouch = authority().sign(manifest_key_message(RunId(reply.run_id), reply.manifest_public_key))
    return data[:1] + reply.SerializeToString()


def _enrolled(data: bytes) -> object:
    """What was enrolled is kept as it is, and believed at the next start; looked at one time in eight."""
    _answered("Enrol", data)
    there = world()
    if len(data) % 8 == 0:
        assert there.home.enrolment() == there.joining._enrolment
    return there.joining._enrolment


def _replies(kind: type[Message]) -> Mutate:
    return after_head(message_mutations(kind))


TARGETS = (
    Target(
        name="lease",
        decode=_lease,
        refusals=(MalformedMessage,),
        samples=lambda: [lease_message().SerializeToString()],
        mutate=message_mutations(pb.Lease),
    ),
    Target(
        name="run-description",
        decode=_described,
        refusals=(MalformedMessage, ConfigError),
        samples=lambda: [description().SerializeToString()],
        mutate=_description_mutated,
        base_bytes=LAYOUT_BYTES,
    ),
    Target(
        name="model-config",
        decode=_config,
        refusals=(MalformedMessage,),
        samples=lambda: [json.dumps(config_to_json(preset("tiny"))).encode()],
    ),
    Target(
        name="enrol-reply",
        decode=_enrolled,
        refusals=REFUSED,
        samples=_enrolments,
        mutate=_replies(pb.EnrolReply),
        seal=_vouched_again,
    ),
    Target(
        name="session-reply",
        decode=lambda data: _answered("OpenSession", data),
        refusals=REFUSED,
        samples=_sessions,
        mutate=after_head(_session_mutated),
        base_bytes=LAYOUT_BYTES,
    ),
    Target(
        name="lease-reply",
        decode=lambda data: _answered("AcquireLease", data),
        refusals=REFUSED,
        samples=_lease_replies,
        mutate=_replies(pb.AcquireLeaseReply),
    ),
    Target(name="small-replies", decode=_small_reply, refusals=REFUSED, samples=_small_replies, mutate=_small_mutated),
)
