"""A run opened to be served, without gRPC: the handlers that gRPC would be given, real stores, and the real engine.

Every signature is taken for good, so that each byte gets past it (the `metadata` target has the signatures). Events go
into the real engine, by way of the journal's format; the state is put back after each input.
"""

from __future__ import annotations

import json
import shutil
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import grpc
from structlog.testing import capture_logs

import coordinator.edge.auth
from coordinator.edge.server import CoordinatorServer
from coordinator.edge.throttle import EdgeLimits, Rate, Throttle
from coordinator.engine.commands import Command, GrantLease, Item, MeasureSubmission
from coordinator.engine.engine import Engine
from coordinator.engine.events import Event, LeaseRequested, SubmissionCommitted, WorkerEnrolled, WorkerSeen
from coordinator.engine.records import command_from_json, command_to_json, event_from_json, event_to_json
from coordinator.run.clock import Clocks
from coordinator.run.delegation import Delegation
from coordinator.run.folder import init_run
from coordinator.run.opened import OpenedRun
from coordinator.settings import RunSettings
from protocol.errors import IllegalEvent, Unauthenticated
from protocol.identity import PUBLIC_KEY_BYTES, PrivateIdentity
from protocol.ids import WorkerId, digest_of
from protocol.lease import DataRange
from protocol.signing import CallSigner
from tests.fuzz.fakes import Aborted, FakeContext, finish, stream
from tests.fuzz.target import scratch
from tests.fuzz.targets.protocol import PAYLOAD, SEED
from tests.fuzz.targets.worker_world import Unsigned

ENGINE: dict[str, Any] = {
    "max_rounds": 100,
    "replicas": 1,
    "quorum": 1,
    "gather_s": 0.0,
    "inner": {"inner_steps": 2, "batch_sequences": 2, "warmup_steps": 0},
}
NOW_S = 2e9
"""After whatever the making of the run took for now."""
_UNLIMITED = Rate(burst=1 << 40, per_s=1e12)
_NOTHING = Rate(burst=0, per_s=1e-9)


class OneItem(Delegation):
    """One worker has one item to measure, whatever it has said of it."""

    def __init__(self, engine: Engine, holder: WorkerId, command: MeasureSubmission) -> None:
        super().__init__(engine)
        self._holder, self._command = holder, command

    def held(self, worker: WorkerId, item_id: str) -> Item | None:
        return self._command if (worker, item_id) == (self._holder, self._command.command_id) else None


class StillPump:
    """The pump without its journal file: each event goes through the journal's format into the engine."""

    def __init__(self, engine: Engine, secret: bytes, deliver: Callable[[GrantLease], None]) -> None:
        self.engine = engine
        self._secret = secret
        self._deliver = deliver
        self._rest = json.dumps(engine.snapshot())
        self._touched = False
        self.delegation: Delegation = Delegation(engine)
        self.stalled: str | None = None

    async def submit(self, event: Event) -> list[Command]:
        """What the real one does, and that the journal gives back what was written."""
        record = event_to_json(event)
        again = event_from_json(record)
        assert event_to_json(again) == record
        json.dumps(json.loads(record), allow_nan=False)  # no NaN of a stranger's gets into the engine's sums
        self._touched = True
        commands = self.engine.handle(again)
        for command in commands:
            assert command_from_json(command_to_json(command)) == command
            if isinstance(command, GrantLease):
                self._deliver(command)
        return commands

    def seen(self, event: WorkerSeen) -> None:
        """A heartbeat."""
        try:
            self.engine.handle(event)
        except IllegalEvent:
            return

    def put_back(self) -> None:
        """The state is what it was at first."""
        if self._touched:
            self.engine = Engine.restore(json.loads(self._rest), self._secret)
            self._touched = False


def _key_is_one(public_key: bytes, *_: Any, **__: Any) -> None:
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise Unauthenticated("no key")


@contextmanager
def _signatures_hold() -> Iterator[None]:
    """Inside, each signature is good: the `metadata` target has those, and they are a third of a call's cost."""
    auth: Any = coordinator.edge.auth
    checked = auth.verify_call
    auth.verify_call = _key_is_one
    try:
        yield
    finally:
        auth.verify_call = checked


class World:
    """A run folder opened to be served, without gRPC: two workers in a session, an operator, and strangers."""

    def __init__(self) -> None:
        folder = init_run(scratch() / "run", self._settings())
        limits = EdgeLimits(calls=_UNLIMITED, registrations=_UNLIMITED, worker_calls=_UNLIMITED, log_lines=_NOTHING)
        clocks = Clocks(machine=lambda: NOW_S, wall=lambda: NOW_S)
        server = CoordinatorServer(folder, clocks=clocks, throttle=Throttle(limits=limits, clock=lambda: NOW_S))
        self.parts = OpenedRun.open(folder, clocks)
        self.maria, self.jan = (PrivateIdentity.from_seed(bytes([number]) * 32) for number in (1, 2))
        self.operator = folder.operator_identity()
        self.stranger = PrivateIdentity.from_seed(bytes([3]) * 32)
        self._prepare_engine()
        self.pump = StillPump(self.parts.engine, folder.draw_secret(), self._deliver)
        self.item = self._item()
        self.pump.delegation = OneItem(self.parts.engine, self.maria.worker_id, self.item)
        server._parts = self.parts
        server.port = 50051
        self.run_folder, self.summary = folder, server.summary
        self.run = server._run = replace(finish(self._assembled(server)), pump=self.pump)
        self.handlers: dict[str, Any] = {}
        server._add_services(self, self.run, self.parts)
        self.invite = self.run.registry.create_invite(trusted=False, expires_at_s=NOW_S + 60)
        self.signers = {
            identity.public_key: CallSigner(
                Unsigned.from_seed(SEED),
                self.run.sessions.open(
                    identity.public_key, identity.worker_id, is_operator=identity is self.operator
                ).session_id,
            )
            for identity in (self.maria, self.jan, self.operator)
        }

    async def _assembled(self, server: CoordinatorServer) -> Any:
        return server._assemble(self.parts)

    def _settings(self) -> RunSettings:
        text = scratch() / "text"
        text.mkdir()
        for name in ("abc.py", "ast.py", "calendar.py", "codecs.py", "csv.py", "dis.py", "enum.py", "inspect.py"):
            shutil.copy(Path(sysconfig.get_paths()["stdlib"]) / name, text / name)
        return RunSettings(
            preset="tiny", data=str(text), port=0, sequence_length=32, codec="fp32", heldout_limit=4,
            screening_sequences=4, engine=ENGINE,
        )  # fmt: skip

    def _prepare_engine(self) -> None:
        engine, now_s = self.parts.engine, self.parts.clock.now_s()
        for identity in (self.maria, self.jan):
            engine.handle(
                WorkerEnrolled(
                    at_s=now_s, worker=identity.worker_id, name="x", trusted=False, max_columns=2, tokens_per_s=900.0
                )
            )
        for identity in (self.maria, self.jan):
            engine.handle(LeaseRequested(at_s=now_s, worker=identity.worker_id, wait_s=30.0))
        self.marias, self.jans = (
            next(lease for lease, held in engine.state.leases.items() if held.lease.worker == identity.worker_id)
            for identity in (self.maria, self.jan)
        )
        engine.handle(
            SubmissionCommitted(
                at_s=now_s, worker=self.jan.worker_id, lease_id=self.jans, digest=digest_of(PAYLOAD),
                payload_bytes=len(PAYLOAD), codec="fp32", inner_steps_done=2, train_loss_first=5.0,
                train_loss_last=4.0, train_s=1.0,
            )
        )  # fmt: skip

    def _item(self) -> MeasureSubmission:
        return MeasureSubmission(
            command_id=f"measure:{self.jans}", lease=self.parts.engine.state.leases[self.jans].lease,
            digest=digest_of(PAYLOAD), payload_bytes=len(PAYLOAD), codec="fp32", heldout_seed=1, measure_gain=True,
            rows=DataRange(seed=1, start=0, count=8), delegate=True,
        )  # fmt: skip

    def _deliver(self, command: GrantLease) -> None:
        self.run.mailboxes.of(command.lease.worker).deliver(command.lease)

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """What a gRPC server is told."""
        for handler in handlers:
            self.handlers.update(handler._method_handlers)

    def call(self, method: str, identity: PrivateIdentity, messages: Sequence[bytes], *, keyed: bool = False) -> int:
        """Bytes that the handler of `method` answers with; Aborted where it refuses."""
        body = messages[0] if messages else b""
        signer = CallSigner(Unsigned.from_seed(SEED)) if keyed else self.signers[identity.public_key]
        context = FakeContext(signer.metadata(method, body))
        try:
            with _signatures_hold(), capture_logs():
                finish(self.handlers[method].stream_stream(stream(messages), context))
        except Aborted as refusal:
            if refusal.code is grpc.StatusCode.INTERNAL:
                raise AssertionError(f"{method} failed: {refusal.__context__!r}") from refusal.__context__
            raise
        finally:
            context.end()
            self.pump.put_back()
        return context.sent_bytes


@cache
def world() -> World:
    """The one."""
    return World()
