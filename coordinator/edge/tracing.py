"""A round as an OpenTelemetry trace: the round, in it its leases and the coordinator's own work, and how each ended.

Decides which events begin and end a span; the engine knows nothing of it. A span is of the moments at which its events
were seen here. No name, address or key of anybody stands in a span: a worker is the start of its id. Always: what never
ends (a lease that nobody resolved) ends with its round; a collector that is away costs the spans, never the run. Needs
`barnraise[otel]`, and imports it where tracing is asked for alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from coordinator.engine.commands import AnnounceVerdict, CancelLease, Command, GrantLease, SlowCommand
from coordinator.engine.events import CommandFailed, Event, LeaseReturned, RoundAggregated, SubmissionUploaded
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

INSTALL = "tracing needs OpenTelemetry: pip install -c constraints.txt 'barnraise[otel]'"
_WORKER_CHARACTERS = 12


class RoundTraces:
    """Makes spans of one run's events; an observer of its pump."""

    def __init__(self, tracer: Tracer, clock: Callable[[], float] = time.time) -> None:
        self._tracer = tracer
        self._clock = clock
        self._round: Span | None = None
        self._leases: dict[str, Span] = {}
        self._work: dict[str, Span] = {}

    def command(self, command: Command, at_s: float) -> None:
        """What follows from an event begins something, or ends it."""
        match command:
            case GrantLease(lease=lease):
                about = {
                    "barnraise.lease": lease.lease_id,
                    "barnraise.worker": lease.worker[:_WORKER_CHARACTERS],
                    "barnraise.columns": len(lease.columns),
                    "barnraise.inner_steps": lease.inner_steps,
                    "barnraise.spare": lease.spare,
                }
                self._leases[lease.lease_id] = self._begun("lease", about, round_=int(lease.round))
            case AnnounceVerdict():
                outcome = "accepted" if command.accepted else "refused"
                self._ended(self._leases, command.lease_id, outcome, command.reason)
            case CancelLease():
                self._ended(self._leases, command.lease_id, "cancelled", command.reason)
            case SlowCommand():
                if command.command_id not in self._work:
                    self._work[command.command_id] = self._begun(type(command).__name__, {})
            case _:
                pass

    def event(self, event: Event) -> None:
        """Something was applied."""
        match event:
            case LeaseReturned():
                self._ended(self._leases, event.lease_id, "handed back", event.reason)
            case SubmissionUploaded():
                if (span := self._leases.get(event.lease_id)) is not None:
                    span.add_event("uploaded", timestamp=self._now_ns())
            case CommandFailed():
                if (span := self._work.get(event.command_id)) is not None:
                    span.add_event("failed", {"barnraise.why": event.error}, timestamp=self._now_ns())
                return
            case _:
                pass
        self._ended(self._work, getattr(event, "command_id", ""), "done")
        if isinstance(event, RoundAggregated):
            self.close(f"version {event.version}")

    def close(self, outcome: str = "the coordinator stopped") -> None:
        """End the round's span, and the leases' that are open in it. Work goes on."""
        for lease_id in tuple(self._leases):
            self._ended(self._leases, lease_id, "open at the round's end")
        if self._round is not None:
            self._round.set_attribute("barnraise.outcome", outcome)
            self._round.end(self._now_ns())
            self._round = None

    def _begun(self, name: str, about: dict[str, Any], round_: int | None = None) -> Span:
        from opentelemetry.trace import set_span_in_context

        if self._round is None:
            begun = {} if round_ is None else {"barnraise.round": round_}
            self._round = self._tracer.start_span("round", attributes=begun, start_time=self._now_ns())
        elif round_ is not None:
            self._round.set_attribute("barnraise.round", round_)
        within = set_span_in_context(self._round)
        return self._tracer.start_span(name, within, attributes=about, start_time=self._now_ns())

    def _ended(self, spans: dict[str, Span], key: str, outcome: str, why: str = "") -> None:
        span = spans.pop(key, None)
        if span is not None:
            span.set_attributes({"barnraise.outcome": outcome} | ({"barnraise.why": why} if why else {}))
            span.end(self._now_ns())

    def _now_ns(self) -> int:
        return int(self._clock() * 1e9)


class Tracing:
    """Sends one run's traces to a collector, from a thread of its own, until it is closed."""

    def __init__(self, run_id: str, collector: str) -> None:
        """`collector`: where OTLP is taken over HTTP, as http://127.0.0.1:4318; ConfigError without OpenTelemetry."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise ConfigError(INSTALL) from error
        if not collector.startswith(("http://", "https://")):
            raise ConfigError(f"--traces {collector!r:.80}: expected a collector's address, as http://127.0.0.1:4318")
        resource = Resource.create({"service.name": "barnraise-coordinator", "barnraise.run": run_id})
        self._provider = TracerProvider(resource=resource)
        exporter = OTLPSpanExporter(endpoint=f"{collector.rstrip('/')}/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self.observer = RoundTraces(self._provider.get_tracer("barnraise"))

    def close(self) -> None:
        """End what is open, and send what is left."""
        self.observer.close()
        self._provider.shutdown()
