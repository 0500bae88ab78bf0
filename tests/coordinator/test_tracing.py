"""A round becomes a trace: played by the real engine in virtual time, read back from the SDK's in-memory exporter."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from barnraise.cli.app import run as barnraise
from coordinator.edge.server import CoordinatorServer
from coordinator.edge.tracing import RoundTraces
from coordinator.run.folder import RunFolder
from protocol.joinlink import JoinLink
from tests.served import RawClient

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


async def test_a_round_its_leases_and_its_work(run: RunFolder) -> None:
    exporter, provider, now = InMemorySpanExporter(), TracerProvider(), iter(range(1, 10_000))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    traces = RoundTraces(provider.get_tracer("test"), lambda: float(next(now)))
    server = CoordinatorServer(run, observers=(traces,))
    await server.start()
    try:
        (link,) = await server.create_invites()
        client = RawClient(JoinLink.parse(link), run)
        await client.enrol()
        await client.open()
        lease = (await client.acquire()).lease
        payload = client.submission(lease)
        await client.commit(lease, payload)
        await client.upload(lease, payload)
        async with asyncio.timeout(20):
            while not any(span.name == "round" for span in exporter.get_finished_spans()):
                await asyncio.sleep(0.02)
        await client.close()
    finally:
        await server.stop(0.0)
        traces.close()
    spans: tuple[Any, ...] = exporter.get_finished_spans()
    first = next(span for span in spans if span.name == "round")
    inside = [span for span in spans if span.parent is not None and span.parent.span_id == first.context.span_id]
    assert first.attributes["barnraise.round"] == int(lease.round)
    assert first.attributes["barnraise.outcome"] == "version 1"
    (leased,) = (
        span for span in inside if span.name == "lease" and span.attributes["barnraise.lease"] == lease.lease_id
    )
    assert leased.attributes["barnraise.outcome"] == "accepted"
    assert [event.name for event in leased.events] == ["uploaded"]
    assert {"AggregateRound"} <= {span.name for span in inside}
    assert all(span.start_time < span.end_time for span in spans)
    assert all(len(span.attributes.get("barnraise.worker", "")) <= 12 for span in spans)


def test_without_the_exporter_it_says_what_to_install(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert barnraise(["coordinator", "run", str(run.root), "--no-http", "--traces", "nonsense"]) == 2
    said = capsys.readouterr().err
    assert "barnraise[otel]" in said or "expected a collector's address" in said
