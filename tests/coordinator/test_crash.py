"""What a coordinator that died between two steps of an upload owes the worker that was uploading."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from coordinator.edge.server import CoordinatorServer
from coordinator.engine.phases import LeaseStatus
from coordinator.run.folder import RunFolder
from protocol.ids import LeaseId, digest_of


async def test_bytes_that_are_whole_but_not_in_place_are_asked_for_again(
    run: RunFolder, server: CoordinatorServer, join: Callable[[], Any], submission: Callable[..., bytes]
) -> None:
    client = await join()
    lease = (await client.acquire()).lease
    payload = submission(run, lease)
    await client.commit(lease, payload)
    partial: Path = run.artifacts()._upload_path(LeaseId(lease.lease_id), digest_of(payload))
    partial.write_bytes(payload)  # the process died after the last byte and before the rename
    again = await client.commit(lease, payload)
    assert again.upload_offset < len(payload), "a worker with nothing left to send would forget its submission"
    assert (await client.upload(lease, payload, offset=again.upload_offset)).complete
    assert (await client.commit(lease, payload)).upload_offset == len(payload)


async def test_bytes_in_place_whose_event_was_lost_are_taken_at_once(
    run: RunFolder, server: CoordinatorServer, join: Callable[[], Any], submission: Callable[..., bytes]
) -> None:
    client = await join()
    lease = (await client.acquire()).lease
    payload = submission(run, lease)
    await client.commit(lease, payload)
    run.artifacts().payloads.put(payload)  # the process died after the rename and before the event
    assert (await client.commit(lease, payload)).upload_offset == len(payload)
    record = server._opened().pump.engine.state.leases[lease.lease_id]
    assert record.status in {LeaseStatus.UPLOADED, LeaseStatus.ACCEPTED}, "said to be here, so it is the engine's, too"
