"""What a restart or a crash of the coordinator keeps: leases, commitments, and bytes that were sent."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from coordinator.edge.server import CoordinatorServer
from coordinator.engine.phases import LeaseStatus
from coordinator.run.clock import Clocks
from coordinator.run.folder import RunFolder
from protocol.framing import frames_of
from protocol.ids import Digest
from protocol.joinlink import JoinLink

Join = Callable[..., Any]
Code = grpc.StatusCode


async def test_a_restart_in_mid_upload_goes_on_with_the_same_lease_at_the_same_byte(
    run: RunFolder, submission: Callable[..., bytes], client_type: Any
) -> None:
    first = CoordinatorServer(run)
    port = await first.start()
    (link,) = await first.create_invites()
    client = client_type(JoinLink.parse(link), run)
    await client.enrol()
    await client.open()
    lease = (await client.acquire()).lease
    payload = submission(run, lease)
    await client.commit(lease, payload)

    def two_frames() -> Any:
        from itertools import islice

        return islice(frames_of(lambda a, n: payload[a : a + n], len(payload)), 2)

    sent = await client.upload(lease, payload, frames=two_frames())
    assert not sent.complete
    bytes_up = (await first.status()).bytes_up
    await first.stop(0.0)
    await client.close()

    second = CoordinatorServer(run)
    assert await second.start() == port
    client = client_type(JoinLink.parse(link), run, client.identity)
    await client.open()  # no new enrolment: membership is durable
    assert (await second.status()).bytes_up >= bytes_up
    assert second._run is not None
    record = second._run.pump.engine.state.leases[lease.lease_id]
    assert record.status is LeaseStatus.COMMITTED
    offset = (await client.commit(lease, payload)).upload_offset
    assert offset == sent.received_bytes
    assert (await client.upload(lease, payload, offset=offset)).complete
    following = await client.acquire(wait_s=20.0)
    assert following.lease.round == lease.round + 1
    assert following.lease.base_version == 1
    await client.close()
    await second.stop(0.0)


async def test_a_restart_in_mid_lease_gives_the_same_lease(run: RunFolder, client_type: Any) -> None:
    first = CoordinatorServer(run)
    await first.start()
    (link,) = await first.create_invites()
    client = client_type(JoinLink.parse(link), run)
    await client.enrol()
    await client.open()
    lease = (await client.acquire()).lease
    await first.stop(0.0)
    await client.close()
    second = CoordinatorServer(run)
    await second.start()
    client = client_type(JoinLink.parse(link), run, client.identity)
    await client.open()
    again = (await client.acquire()).lease
    again.ttl_s = lease.ttl_s = 0.0
    assert again == lease
    await client.close()
    await second.stop(0.0)


async def test_bytes_that_were_whole_when_the_process_died_need_not_be_sent_again(
    run: RunFolder, server: CoordinatorServer, join: Join, submission: Callable[..., bytes]
) -> None:
    client = await join()
    lease = (await client.acquire()).lease
    payload = submission(run, lease)
    await client.commit(lease, payload)
    run.artifacts().payloads.put(payload)  # what a crash between the rename and its event leaves
    assert (await client.commit(lease, payload)).upload_offset == len(payload)
    digest = Digest(hashlib.sha256(payload).hexdigest())
    assert server._run is not None
    assert server._run.pump.engine.state.leases[lease.lease_id].digest == digest
    assert (await client.acquire(wait_s=20.0)).lease.round == lease.round + 1


async def test_a_crash_loses_nothing_that_was_answered(
    run: RunFolder,
    server: CoordinatorServer,
    join: Join,
    submission: Callable[..., bytes],
    client_type: Any,
    tmp_path: Path,
) -> None:
    client = await join()
    lease = (await client.acquire()).lease
    payload = submission(run, lease)
    await client.commit(lease, payload)
    shutil.copytree(
        run.root, tmp_path / "crashed", ignore=shutil.ignore_patterns("*.sock")
    )  # what a power cut leaves: nothing was closed or snapshot
    (tmp_path / "crashed" / "endpoint.json").unlink()
    survivor = CoordinatorServer(RunFolder.open(tmp_path / "crashed"))
    await survivor.start()
    (link,) = await survivor.create_invites()
    client = client_type(JoinLink.parse(link), run, client.identity)
    await client.open()
    assert (await client.commit(lease, payload)).upload_offset == 0
    assert (await client.upload(lease, payload)).complete
    assert (await client.acquire(wait_s=20.0)).lease.round == lease.round + 1
    await client.close()
    await survivor.stop(0.0)


async def test_invites_expire_by_the_calendar_and_leases_by_run_time(run: RunFolder, client_type: Any) -> None:
    ahead = {"machine": 0.0, "wall": 0.0}
    clocks = Clocks(machine=lambda: ahead["machine"], wall=lambda: 2e9 + ahead["wall"])
    server = CoordinatorServer(run, clocks=clocks)
    await server.start()
    first, second = await server.create_invites(count=2, expires_in_s=3600.0)
    client = client_type(JoinLink.parse(first), run)
    ahead["machine"] += 10.0
    await client.enrol()
    await client.open()
    lease = (await client.acquire()).lease
    ahead["wall"] += 7200.0
    late = client_type(JoinLink.parse(second), run)
    with pytest.raises(grpc.aio.AioRpcError, match="expired"):
        await late.enrol()
    assert (await client.acquire()).lease.ttl_s == pytest.approx(lease.ttl_s, abs=1e-3)
    assert (await server.status()).at_s == 2e9 + 7200.0
    await client.close()
    await late.close()
    await server.stop(0.0)
    lines = [json.loads(line) for line in run.events_path.read_text().splitlines()]
    granted = next(line for line in lines if line["name"] == "GrantLease")
    assert granted["wall_s"] == pytest.approx(2e9, abs=60.0), "people read the calendar"
    assert granted["at_s"] < 2e6
