"""How a worker becomes part of a run: trust the CA by its fingerprint, enrol once, open a session, understand the run.

Decides what is offered to the run: columns by the planner, speed by a short measurement, both remembered for the next
start. Touches the network, the run's folder, and the device while measuring.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from protocol.errors import ConfigError, LocalError, MalformedMessage, Unavailable
from protocol.identity import PrivateIdentity
from protocol.ids import RunId, WorkerId, digest_of
from protocol.joinlink import JoinLink
from protocol.limits import MAX_NAME_CHARACTERS, PROTOCOL_VERSION
from protocol.v1 import barnraise_pb2 as pb
from worker.admission import work_for_admission
from worker.background import Threads
from worker.client import CoordinatorClient
from worker.detour import RelayedNetwork
from worker.epochs import require_latest
from worker.fetched import Run
from worker.finding import Finder
from worker.handiwork import HERE, Handiwork
from worker.home import Enrolment, RunHome
from worker.lease import description_from_message, printable
from worker.machine.machine import Machine, software_versions
from worker.offer import Offer, Speed, remember_speed, remembered_speed
from worker.options import WorkerOptions
from worker.ports import Background, Coordinator
from worker.progress import Reporter
from worker.repeats import Repeats
from worker.sentences import InHand, reached_again, unreached
from worker.siblings import vouch
from worker.swarm import DialHolder
from worker.timing import Timing
from worker.trouble import trouble_of
from worker.wire import GrpcWire, Wire
from worker.words import say

Value = TypeVar("Value")


class Dial(Protocol):
    """Makes the line to a coordinator."""

    def __call__(
        self, link: JoinLink, identity: PrivateIdentity, on_trouble: Callable[[Exception, float], None], /
    ) -> Coordinator:
        """To the coordinator of `link`, signing with `identity`; nothing is sent yet."""


class Joining:
    """One worker's membership of one run."""

    def __init__(
        self,
        options: WorkerOptions,
        link: JoinLink,
        home: RunHome,
        reporter: Reporter,
        *,
        timing: Timing | None = None,
        dial: Dial | None = None,
        background: Background | None = None,
        handiwork: Handiwork = HERE,
        counted: Callable[[Wire], Wire] = lambda wire: wire,
        licensed: Callable[[str], None] = lambda _licence: None,
        finder: Finder | None = None,
        dial_holder: DialHolder | None = None,
    ) -> None:
        """`handiwork`: where models are built. `counted` holds the line to the volunteer's rules; `licensed` hears
        under what licence the run's data is; `finder` looks for a run that has moved, None: nobody does;
        `dial_holder` makes lines to other workers, None: over gRPC.
        """
        self.home = home
        self.timing = timing or Timing()
        self._dial, self.dial_holder = dial or self._grpc, dial_holder
        self.handiwork = handiwork
        self._counted, self._licensed = counted, licensed
        self._options = options
        self._link, self._wire = link, None if dial else GrpcWire(link)
        self.finder = finder
        self.network: RelayedNetwork | None = None
        """This machine's node in the run's network; None: it takes no part."""
        if finder is not None:
            finder.moved = self._move
        self._reporter = reporter
        self._identity: PrivateIdentity = home.identity()
        self._enrolment = home.enrolment()
        self._background = background or Threads()
        self._client: Coordinator | None = None
        self._is_connected = False
        self._run: Run | None = None
        self.lease_length = ""
        """How long leases are, and why, as the coordinator says it; empty where it does not."""
        self._offer: Offer | None = None
        self._troubles = Repeats(self.timing.clock)
        self._work: Callable[[], InHand] = lambda: InHand.NOTHING

    @property
    def is_enrolled(self) -> bool:
        """Whether the run knows this worker's key."""
        return self._enrolment is not None

    @property
    def enrolment(self) -> Enrolment:
        """The enrolment; there is one once a session is open."""
        return _present(self._enrolment, "enrolment")

    @property
    def client(self) -> Coordinator:
        """The client; there is one once enrolling or opening has begun."""
        return _present(self._client, "client")

    @property
    def run(self) -> Run:
        """The run; known once a session is open."""
        return _present(self._run, "run")

    @property
    def run_name(self) -> str:
        """What the run is called; empty before the first session."""
        return printable(self._run.description.name, MAX_NAME_CHARACTERS) if self._run is not None else ""

    @property
    def identity(self) -> PrivateIdentity:
        """This worker's key for this run."""
        return self._identity

    @property
    def host(self) -> str:
        """Where the coordinator is looked for."""
        return self._link.host

    @property
    def columns(self) -> int:
        """Columns this worker offered to hold."""
        return _present(self._offer, "offer").columns

    @property
    def background(self) -> Background:
        """Where this worker's blocking work runs."""
        return self._background

    @property
    def address(self) -> str:
        """Where the coordinator is looked for, as `HOST:PORT`."""
        return self._link.address

    def tell_work(self, work: Callable[[], InHand]) -> None:
        """Ask `work` what is in hand, when trouble is told."""
        self._work = work

    def on_answer(self) -> None:
        """A call came to an end: whatever was in the way is over."""
        if self.finder is not None:
            self.finder.answered()
        lasted_s = self._troubles.over()
        if lasted_s is not None:
            self._reporter.say("reached_again", reached_again(self.address, lasted_s))

    def _on_trouble(self, error: Exception, pause_s: float) -> None:
        trouble = trouble_of(error)
        if self.finder is not None:
            self.finder.missed(trouble.cause)
        lasting_s = self._troubles.lasting_s(unreached(trouble.cause, self.address, self._work()))
        if lasting_s is not None:
            text = unreached(trouble.cause, self.address, self._work(), lasting_s)
            self._reporter.say("unavailable", text, detail=printable(trouble.detail), retry_in_s=round(pause_s, 1))

    def _move(self, link: JoinLink) -> None:
        self._link = link
        if self._wire is not None:
            self._wire.move(link)
        self._reporter.say("moved", say("moved", address=link.address), address=link.address)

    async def close(self) -> None:
        """Hang up."""
        if self.finder is not None:
            await self.finder.close()
        if self._client is not None:
            await self._client.close()

    async def enrol(self, machine: Machine) -> Enrolment:
        """Redeem the invite and remember what came of it."""
        if self._link.invite is None and self._options.first_home is None:
            raise ConfigError("what is stored of this run is damaged: join it anew with a join link from its operator")
        ca_pem = await self._connect()
        name = self._options.name[:MAX_NAME_CHARACTERS]  # none: the run calls it by two words that follow from its key
        request = pb.EnrolRequest(
            protocol_version=PROTOCOL_VERSION,
            public_key=self._identity.public_key,
            invite=self._link.invite or "",
            name=printable(name, MAX_NAME_CHARACTERS),
            capability=self._capability(machine),
        )
        if self._options.first_home is not None:
            vouch(request, self._options.first_home, self._link.fingerprint)
        reply = await self.client.enrol(request)
        if reply.work_bits:
            request.work = await self._background.run(
                work_for_admission, reply.run_id, self._identity.public_key, reply.work_bits, self._reporter
            )
            reply = await self.client.enrol(request)
        if reply.work_bits:
            raise MalformedMessage("the coordinator asks for work again that was done")
        if reply.worker_id not in (self._identity.worker_id, self.home.former_worker()):
            raise MalformedMessage(f"enrolled as {printable(reply.worker_id, 40)}, which is not this worker's key")
        if not (0 < len(reply.run_id) <= 128 and reply.run_id.isprintable()):
            raise MalformedMessage("enrolled in a run whose id is not 1 to 128 printable characters")
        enrolment = Enrolment(
            worker_id=WorkerId(reply.worker_id),
            run_id=RunId(reply.run_id),
            ca_pem=ca_pem.decode("ascii"),
            manifest_public_key_hex=reply.manifest_public_key.hex(),
            manifest_key_vouch_hex=reply.manifest_key_vouch.hex(),
            trusted=reply.trusted,
        )
        enrolment.check(self._link.fingerprint)
        self.home.save_enrolment(enrolment)
        self.home.remember_address(self._link)
        self._enrolment = enrolment
        return enrolment

    async def open(self, machine: Machine) -> float:
        """Open a session; returns the heartbeat interval in seconds. The first time, the run is measured first."""
        await self._connect()
        reply = await self.client.patiently(lambda: self._session(machine))
        description = description_from_message(reply.run)
        if description.run_id != self.enrolment.run_id:
            raise MalformedMessage(f"session of run {description.run_id}, but enrolled in {self.enrolment.run_id}")
        if self._run is None or self._run.description != description:
            self._run = await self._background.run(self.handiwork.understand, description)
        self.home.remember_address(self._link, description.name)
        self.lease_length = printable(reply.lease_length)
        self._licensed(printable(reply.data_licence, 100))
        if self.finder is not None:
            self.finder.heard(reply.record)
        if self._offer is None:
            before = self._capability(machine)
            self._offer = await self._worked_out(machine)
            if self._capability(machine) != before:
                reply = await self.client.patiently(lambda: self._session(machine))
        return reply.heartbeat_interval_s

    async def _session(self, machine: Machine) -> pb.OpenSessionReply:
        reply = await self.client.open_session(self._capability(machine), self._options.team)
        try:
            require_latest(self.home, reply.epoch)
        except Unavailable:
            await self.client.close()  # by its name, another machine may be reached the next time
            self.client.connect(self.enrolment.ca_pem.encode())
            raise
        return reply

    async def _connect(self) -> bytes:
        if self._client is None:
            self._client = self._dial(self._link, self._identity, self._on_trouble)
        if self._enrolment is not None:
            ca_pem = self._enrolment.ca_pem.encode()
        else:
            ca_pem = await self._client.certificate(self._background)
        if not self._is_connected:
            self._client.connect(ca_pem)
            self._is_connected = True
        return ca_pem

    def _grpc(
        self, link: JoinLink, identity: PrivateIdentity, on_trouble: Callable[[Exception, float], None]
    ) -> Coordinator:
        return CoordinatorClient(
            link,
            identity,
            wire=self._counted(self._wire or GrpcWire(link)),
            timing=self.timing,
            on_trouble=on_trouble,
            first_backoff_s=self._options.first_backoff_s,
            max_backoff_s=self._options.max_backoff_s,
            stall_s=self._options.stall_s,
        )

    def _capability(self, machine: Machine) -> pb.Capability:
        return pb.Capability(
            device=machine.kind,
            device_name=printable(machine.device_name, 100),
            # Until the run is known, what the process takes counts too: a cap that is too small for both is refused
            # here, where both figures are known.
            memory_bytes=machine.memory_bytes + (0 if self._offer else machine.process_bytes),
            max_columns=self._offer.columns if self._offer else self._options.max_columns or 0,
            tokens_per_s=self._offer.tokens_per_s if self._offer else 0.0,
            software=software_versions(),
            measures=self._offer.measures if self._offer else self._would_measure(machine),
        )

    def _would_measure(self, machine: Machine) -> bool:
        return machine.kind == "cuda" if self._options.measures is None else self._options.measures

    async def _worked_out(self, machine: Machine) -> Offer:
        run, most, work = self.run, self._options.max_columns, self.handiwork
        fitting = await self._background.run(work.plan, run, machine, most, self.home.disk.cap)
        columns = fitting.columns
        self._reporter.say("planned", fitting.reason, columns=columns)
        if columns < fitting.by_memory:
            self._reporter.say("disk_planned", say("disk_planned", columns=columns), columns=columns)
        if self._options.measures and not fitting.measures:
            self._reporter.say("not_measuring", say("not_measuring"))
        measures = fitting.measures and self._would_measure(machine)
        if not self._options.measure_speed:
            return Offer(columns=columns, tokens_per_s=0.0, measures=measures)
        basis = digest_of(f"{run.description} {machine.device_name} {machine.threads} {columns}".encode())
        speed = remembered_speed(self.home, basis)
        if speed is None:
            tokens_per_s = await self._background.run(work.measure_speed, run, machine, columns)
            speed = Speed(basis=basis, tokens_per_s=tokens_per_s)
            remember_speed(self.home, speed)
            text = say("speed", speed=f"{tokens_per_s:,.0f}")
            self._reporter.say("measured", text, tokens_per_s=round(tokens_per_s, 1))
        return Offer(columns=columns, tokens_per_s=speed.tokens_per_s, measures=measures)


def _present(value: Value | None, what: str) -> Value:
    if value is None:
        raise LocalError(f"no {what} yet: the session is not open")
    return value
