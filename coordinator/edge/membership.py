"""How a worker gets in: enrolment with an invite, and sessions.

Decides who is let in and how many columns a worker is taken to hold. Touches the registry, the session table and, for
the engine's events, the pump. Always: a worker that the registry knows is made known to the engine too, even when the
process ended between the two.
"""

from __future__ import annotations

import asyncio
import json
import math
from functools import cached_property, lru_cache, partial

from coordinator.edge.auth import Authenticator
from coordinator.edge.served import RunContext
from coordinator.edge.sessions import CallerSession
from coordinator.edge.throttle import range_of
from coordinator.engine import appeals
from coordinator.engine.credit import place_of
from coordinator.engine.events import AuditAsked, CapabilityChanged, WorkerEnrolled, WorkerLeft
from coordinator.engine.telling import banned_sentence
from coordinator.run.receipts import PAGE_RECEIPTS
from coordinator.store.registry import Member, RangeQuota, clean_name, invite_id
from moe.planner import ANY_HOST, Burden, Memory, Plan, planned
from protocol.admission import has_worked
from protocol.causes import Cause
from protocol.errors import MalformedMessage, Refused, Unauthenticated
from protocol.ids import LeaseId, WorkerId, worker_id_of
from protocol.recipe import recipe_of
from protocol.residency import ABSENT, FROZEN
from protocol.rotation import check_agreement
from protocol.siblings import check_sibling
from protocol.tls import manifest_key_message
from protocol.v1 import barnraise_pb2 as pb
from protocol.versions import check_version

MAX_TOKENS_PER_S = 1e9
"""No machine is faster; a claim above this is an error or a lie."""
BF16_BYTES, FP32_BYTES = 2, 4
MOST_LOSSES = 60
"""Told to a worker: as many as a wide terminal shows."""
MAX_RECEIPT_NUMBER = 2**62
"""A database's integers end at 2^63."""


class Membership:
    """Answers Enrol, OpenSession and AskAudit, and whoever asks for receipts, leaves or has another key."""

    def __init__(self, run: RunContext, auth: Authenticator) -> None:
        self._run = run
        self._auth = auth
        self._plan = lru_cache(maxsize=256)(self._plan_of)

    def _check_version(self, version: int) -> None:
        run = self._run
        check_version(version, run.pump.engine.state.chosen_config.inner, run.settings.column_parts)

    async def enrol(self, request: pb.EnrolRequest, address: str) -> pb.EnrolReply:
        """Redeem an invite for the key that signed the call, or say which work has to be done first."""
        self._check_version(request.protocol_version)
        columns = self._columns(request.capability)  # before the invite is spent: a machine too small may try again
        name = clean_name(request.name) if request.name.strip() else ""
        run = self._run
        self._check_sibling(request)
        await self._refuse_banned(request.public_key, request.invite)
        if request.sibling_of:  # of a machine that is shut out, no other GPU comes in
            await self._refuse_banned(request.sibling_of, "")
        bits = run.settings.admission_work_bits
        if not has_worked(run.run_id, request.public_key, request.work, bits):
            return pb.EnrolReply(run_id=run.run_id, work_bits=bits)
        member = await self._admitted(request, name, address)
        await self._make_known(member, columns, request.capability)
        manifest_key = run.manifest_identity.public_key
        return pb.EnrolReply(
            worker_id=member.worker,
            run_id=run.run_id,
            manifest_public_key=manifest_key,
            manifest_key_vouch=run.authority.sign(manifest_key_message(run.run_id, manifest_key)),
            trusted=member.trusted,
        )

    async def open_session(self, request: pb.OpenSessionRequest, _: str) -> pb.OpenSessionReply:
        """A new session for an enrolled key, or the operator's."""
        run = self._run
        self._check_version(request.protocol_version)
        key = run.registry.operators.find(request.public_key)
        is_operator = key is not None or request.public_key == run.operator_key
        if not is_operator:
            member = await self._member(request.public_key)
            self._refuse_banned_worker(member.worker)
            columns = self._columns(request.capability)
            self._auth.spend_nonce(request.public_key, request.nonce)
            worker = member.worker
            await self._make_known(member, columns, request.capability)
            if request.HasField("team"):
                team = clean_name(request.team) if request.team.strip() else ""
                await asyncio.to_thread(run.registry.people.set_team, worker, team)
        else:
            self._auth.spend_nonce(request.public_key, request.nonce)
            worker = worker_id_of(request.public_key)
        version = request.protocol_version
        session = run.sessions.open(request.public_key, worker, is_operator=is_operator, key=key, version=version)
        return pb.OpenSessionReply(
            session_id=session.session_id,
            heartbeat_interval_s=run.pump.engine.state.config.heartbeat_interval_s,
            run=self._description(),
            lease_length=run.lease_length(run.pump.engine.state.config),
            data_licence=run.dataset.licence,
            protocol_version=session.version,
            record=run.record,
            epoch=run.epoch,
        )

    async def ask_audit(self, request: pb.AskAuditRequest, _: str) -> pb.AskAuditReply:
        """A worker asks that its work be computed again; what it may not ask is answered, not recorded."""
        run = self._run
        state = run.pump.engine.state
        worker = (await self._member(request.public_key)).worker
        if worker not in state.workers:
            raise Unauthenticated(f"this key has no work in run {run.run_id}", cause=Cause.NOT_ENROLLED)
        self._refuse_banned_worker(worker)
        lease_id = LeaseId(request.lease_id) if request.lease_id else appeals.latest_refused(state, worker)
        if lease_id is None:
            return pb.AskAuditReply(taken=False, reason="none of your latest submissions was refused")
        hindrance = appeals.why_not(state, worker, lease_id, run.run_time())
        if hindrance is not None:
            return pb.AskAuditReply(taken=False, reason=hindrance)
        await run.pump.submit(AuditAsked(at_s=run.run_time(), worker=worker, lease_id=lease_id))
        able = state.config.audits.budget > 0.0
        return pb.AskAuditReply(taken=True, reason=appeals.TAKEN if able else appeals.NOBODY_COMPUTES)

    async def list_receipts(self, session: CallerSession, request: pb.ListReceiptsRequest) -> pb.ListReceiptsReply:
        """The worker's next receipts, and which of all of its do not stand."""
        book, reply = self._run.receipts, pb.ListReceiptsReply(next=request.after)
        if book is None:
            return reply
        after = min(request.after, MAX_RECEIPT_NUMBER)
        found, reply.next = book.receipts(session.worker, session.public_key, after)
        for one in found:
            reply.receipts.add(receipt_json=one.content, signature=one.signature)
        revoked = book.revocations(session.worker)
        reply.revocations_json, reply.revocations_signature = revoked.content, revoked.signature
        if reply.next == after or len(found) < PAGE_RECEIPTS:
            reply.standing.CopyFrom(self._standing(session.worker))
        return reply

    def _standing(self, worker: WorkerId) -> pb.CreditStanding:
        """What the worker's owner is shown: its place, and how the model does."""
        state = self._run.pump.engine.state
        rank, ranked = place_of(state, worker)
        record = state.workers.get(worker)
        sequences = record.credit.sequences if record is not None else 0
        return pb.CreditStanding(
            tokens=sequences * self._run.settings.sequence_length,
            rank=rank,
            ranked=ranked,
            losses=[one.val_loss for one in state.validations[-MOST_LOSSES:]],
        )

    async def _admitted(self, request: pb.EnrolRequest, name: str, address: str) -> Member:
        """By its invite, or by the signature of its machine's first worker; for that it counts no more by range."""
        registry, now_s = self._run.registry, self._run.wall_time()  # an invite expires by the calendar
        key = request.public_key
        if request.sibling_of:
            return await asyncio.to_thread(registry.seat_sibling, request.sibling_of, key, name, now_s)
        quota = RangeQuota(range=range_of(address), most=self._run.settings.most_per_range)
        return await asyncio.to_thread(registry.redeem, request.invite, key, name, now_s, quota)

    def _check_sibling(self, request: pb.EnrolRequest) -> None:
        if not request.sibling_of:
            return
        if request.invite or request.sibling_of == request.public_key:
            raise MalformedMessage("enrolment: a worker comes with an invite, or as the sibling of another, not both")
        audience = bytes.fromhex(self._run.authority.fingerprint)
        check_sibling(request.sibling_of, request.public_key, audience, request.sibling_signature)

    async def leave(self, request: pb.LeaveRequest, _: str) -> pb.LeaveReply:
        """The worker takes part no more; a banned one may go, too."""
        run, worker = self._run, (await self._member(request.public_key)).worker
        self._auth.spend_nonce(request.public_key, request.nonce)
        if worker in run.pump.engine.state.workers:
            await run.pump.submit(WorkerLeft(at_s=run.run_time(), worker=worker))
        leave = partial(run.registry.people.leave, worker, forget=request.forget, revoke=request.revoke)
        await asyncio.to_thread(leave)
        run.sessions.close_of(worker)
        return pb.LeaveReply()

    async def rotate_key(self, request: pb.RotateKeyRequest, _: str) -> pb.RotateKeyReply:
        """Another key takes the place of the caller's; sessions of the old one end."""
        run = self._run
        old, new = request.public_key, request.new_public_key
        check_agreement(new, old, bytes.fromhex(run.authority.fingerprint), request.new_signature)
        self._refuse_banned_worker(await asyncio.to_thread(run.registry.worker_of, old))
        self._auth.spend_nonce(old, request.nonce)
        worker = await asyncio.to_thread(run.registry.people.rotate, old, new)
        run.sessions.close_of(worker)
        return pb.RotateKeyReply(worker_id=worker)

    async def _member(self, public_key: bytes) -> Member:
        member = await asyncio.to_thread(self._run.registry.find, public_key)
        if member is None:
            raise Unauthenticated(
                f"this key is not enrolled in run {self._run.run_id}; join with an invite first",
                cause=Cause.NOT_ENROLLED,
            )
        return member

    def _refuse_banned_worker(self, worker: WorkerId) -> None:
        known = self._run.pump.engine.state.workers.get(worker)
        if known is not None and known.ban is not None:
            raise Refused(banned_sentence(known.ban), cause=Cause.BANNED)

    async def _refuse_banned(self, public_key: bytes, invite: str) -> None:
        """Whoever is shut out is told so, why, and whom to write to; an invite is not spent on it."""
        state = self._run.pump.engine.state
        known = state.workers.get(await asyncio.to_thread(self._run.registry.worker_of, public_key))
        ban = known.ban if known is not None else None
        if ban is None and invite:
            owner = await asyncio.to_thread(self._run.registry.owner_of_invite, invite)
            ban = state.banned_invites.get(invite_id(invite)) or state.banned_owners.get(owner)
        if ban is not None:
            raise Refused(banned_sentence(ban), cause=Cause.BANNED)

    async def _make_known(self, member: Member, columns: int, capability: pb.Capability) -> None:
        pump, at_s = self._run.pump, self._run.run_time()
        tokens_per_s, measures = speed_of(capability), capability.measures
        known = pump.engine.state.workers.get(member.worker)
        if known is None:
            await pump.submit(
                WorkerEnrolled(
                    at_s=at_s,
                    worker=member.worker,
                    trusted=member.trusted,
                    max_columns=columns,
                    tokens_per_s=tokens_per_s,
                    owner=member.owner,
                    invite=member.invite,
                    sibling_of=member.sibling_of,
                    measures=measures,
                )
            )
        elif (known.max_columns, known.tokens_per_s, known.measures) != (
            columns,
            tokens_per_s or known.tokens_per_s,
            measures,
        ):
            await pump.submit(
                CapabilityChanged(
                    at_s=at_s,
                    worker=member.worker,
                    max_columns=columns,
                    tokens_per_s=tokens_per_s or known.tokens_per_s,
                    measures=measures,
                )
            )

    def _description(self) -> pb.RunDescription:
        """What never changes, and what leases come in at present."""
        found, recipe = pb.RunDescription(), self._run.pump.engine.state.config.inner
        found.CopyFrom(self._unchanging)
        found.optimizer, found.masters, found.moments = recipe.optimizer, recipe.masters, recipe.moments
        found.frozen_dtype = recipe.frozen_dtype
        found.trunk, found.lora_rank = recipe.trunk, recipe.lora_rank
        if self._run.settings.residency == FROZEN:
            found.frozen_codec = self._run.pump.engine.state.config.down.frozen_codec
        return found

    @cached_property
    def _unchanging(self) -> pb.RunDescription:
        run = self._run
        return pb.RunDescription(
            run_id=run.run_id,
            name=run.settings.name,
            model_json=json.dumps(run.layout.config_json, sort_keys=True),
            residency=run.settings.residency,
            column_parts=run.settings.column_parts,
            codec=run.settings.codec,
            sequence_length=run.settings.sequence_length,
            dataset_digest=run.dataset.digest,
            max_block_bytes=run.max_block_bytes,
        )

    def _columns(self, capability: pb.Capability) -> int:
        """Columns that this machine is leased: what its memory holds, or fewer where its owner says so."""
        if capability.device not in {"cpu", "cuda"}:
            raise MalformedMessage(f"capability: device must be cpu or cuda, got {capability.device[:32]!r}")
        fitting = self._plan(capability.memory_bytes, on_gpu=capability.device == "cuda")
        if not fitting.fits:
            raise Refused(f"this machine cannot take part: {fitting.reason}; offer more memory", cause=Cause.TOO_SMALL)
        wanted = capability.max_columns or self._run.layout.columns
        fewest = self._run.layout.top_k if self._run.layout.residency == ABSENT else 1
        if wanted < fewest:
            raise Refused(
                f"a shard of this run has at least {fewest} columns, and you offer to hold {wanted} (--columns)",
                cause=Cause.TOO_SMALL,
            )
        return min(fitting.columns, wanted)

    def _plan_of(self, memory_bytes: int, *, on_gpu: bool) -> Plan:
        load = Burden(
            layout=self._run.layout,
            recipe=recipe_of(self._run.pump.engine.state.config.inner),
            sequence_length=self._run.settings.sequence_length,
            compute_bytes=BF16_BYTES if on_gpu else FP32_BYTES,
            on_gpu=on_gpu,
            codec=self._run.settings.codec,
        )
        # One sequence at a time is the least: a batch that does not fit is accumulated from micro-batches.
        return planned(load, Memory(memory_bytes, ANY_HOST), (1,))


def speed_of(capability: pb.Capability) -> float:
    """Probed tokens a second; 0 where unknown."""
    speed = capability.tokens_per_s
    if not math.isfinite(speed) or not 0.0 <= speed <= MAX_TOKENS_PER_S:
        raise MalformedMessage(f"capability: tokens_per_s must be 0 to {MAX_TOKENS_PER_S:g}, got {speed}")
    return speed
