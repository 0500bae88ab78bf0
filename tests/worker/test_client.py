"""A worker's calls against a real coordinator over loopback TLS: what they ask for is what is allowed."""

from __future__ import annotations

from protocol.limits import MAX_TRANSFER_S, MIN_TRANSFER_BYTES_PER_S
from protocol.v1 import barnraise_pb2 as pb
from worker.client import CoordinatorClient

LARGE_BYTES = int(2 * MAX_TRANSFER_S * MIN_TRANSFER_BYTES_PER_S)
"""A transfer of this size asks for as long as one stream may last."""


async def test_the_longest_deadline_of_a_download_is_taken(client: CoordinatorClient) -> None:
    lease = (await client.acquire_lease(10.0)).lease
    for _ in range(20):
        assert await client.download_lease_data(lease.lease_id, LARGE_BYTES, lambda _: None)


async def test_a_heartbeat_may_come_as_seldom_as_a_coordinator_asks(client: CoordinatorClient) -> None:
    assert (await client.heartbeat(pb.HeartbeatRequest(), timeout_s=300.0)).latest_version == 0
