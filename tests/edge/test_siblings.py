"""Another GPU of a member's machine: let in by the signature of the first worker, and by nobody else's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from coordinator.edge.server import CoordinatorServer
from coordinator.engine import events as ev
from coordinator.store.registry import MOST_SIBLINGS, Registry
from protocol.errors import Refused as RefusedError
from protocol.identity import PrivateIdentity
from protocol.siblings import vouch_for_sibling

Join = Callable[..., Any]
Refused = Callable[[grpc.StatusCode, str], Any]
Code = grpc.StatusCode


def beside(first: PrivateIdentity, new: bytes, audience: bytes) -> dict[str, Any]:
    signature = vouch_for_sibling(first, new, audience)
    return {"invite": "", "sibling_of": first.public_key, "sibling_signature": signature}


async def test_a_sibling_comes_in_by_the_first_ones_signature(
    server: CoordinatorServer, join: Join, refused: Refused
) -> None:
    first = await join()
    second, other = await join(enrolled=False), PrivateIdentity.generate()
    asked = beside(first.identity, second.identity.public_key, second.audience)
    for wrong in (
        {"sibling_signature": bytes(64)},
        {"sibling_signature": vouch_for_sibling(first.identity, other.public_key, second.audience)},
        {"sibling_signature": vouch_for_sibling(first.identity, second.identity.public_key, b"another run")},
    ):
        await refused(Code.UNAUTHENTICATED, "does not hold").of(second.enrol(**asked | wrong))
    stranger = beside(other, second.identity.public_key, second.audience)
    await refused(Code.UNAUTHENTICATED, "not enrolled itself").of(second.enrol(**stranger))
    both = second.enrol(**asked | {"invite": second.link.invite})
    await refused(Code.INVALID_ARGUMENT, "not both").of(both)
    for _ in range(2):
        assert (await second.enrol(**asked)).worker_id == second.identity.worker_id
    await second.open()
    state = server._opened().pump.engine.state
    assert state.workers[second.identity.worker_id].person == first.identity.worker_id
    third = await join(enrolled=False)
    await third.enrol(**beside(second.identity, third.identity.public_key, third.audience))
    assert state.workers[third.identity.worker_id].sibling_of == first.identity.worker_id, "of the first, always"


async def test_of_a_machine_that_is_shut_out_no_other_gpu_comes_in(
    server: CoordinatorServer, join: Join, refused: Refused
) -> None:
    first, second = await join(), await join(enrolled=False)
    run = server._opened()
    await run.pump.submit(
        ev.WorkerBanned(at_s=run.run_time(), worker=first.identity.worker_id, by="operator", why="lied")
    )
    asked = second.enrol(**beside(first.identity, second.identity.public_key, second.audience))
    await refused(Code.FAILED_PRECONDITION, "lied").of(asked)


def test_one_signature_does_not_fill_a_run(tmp_path: Path) -> None:
    registry = Registry.open(tmp_path / "registry.sqlite")
    first = PrivateIdentity.generate().public_key
    invite = registry.create_invite(trusted=True, expires_at_s=10.0, owner="anna")
    head = registry.redeem(invite, first, "", 0.0)
    for _ in range(MOST_SIBLINGS):
        member = registry.seat_sibling(first, PrivateIdentity.generate().public_key, "", 1.0)
        assert (member.sibling_of, member.owner, member.trusted) == (head.worker, "anna", True)
        first = member.public_key  # a sibling's sibling is the first one's
    with pytest.raises(RefusedError, match=f"{MOST_SIBLINGS + 1} workers at the most"):
        registry.seat_sibling(first, PrivateIdentity.generate().public_key, "", 1.0)
    assert registry.seat_sibling(first, member.public_key, "", 2.0) == member
