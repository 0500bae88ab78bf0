"""Operators elsewhere: what a role allows, the end of a key, and an invite that was taken back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from coordinator.edge.elsewhere import RemoteLine
from coordinator.edge.operator_client import OperatorClient, change_operator_key, list_orders
from coordinator.edge.server import CoordinatorServer
from coordinator.run.folder import RunFolder
from coordinator.run.operator_keys import KeyOrder
from protocol.errors import BarnraiseError, Refused, Unauthenticated
from protocol.joinlink import JoinLink
from protocol.v1 import barnraise_pb2 as pb
from tests.coordinator.operators_elsewhere import elsewhere, let_in


@pytest.fixture
async def line(run: RunFolder, server: CoordinatorServer) -> AsyncIterator[RemoteLine]:
    await let_in(run)
    async with RemoteLine(elsewhere(run, server)) as one:
        yield one


async def test_a_viewer_looks_and_orders_nothing(run: RunFolder, server: CoordinatorServer) -> None:
    await let_in(run, "viewer")
    async with RemoteLine(elsewhere(run, server)) as line:
        operator = OperatorClient(line)
        await operator.status()
        await operator.orders()
        await operator.invites()
        before = await asyncio.to_thread(list_orders, run)
        orders = (
            operator.hold("pause"), operator.announce("x"), operator.stop_run("x"), operator.create_invites(_terms()),
            operator.change_setting("quorum", "1"), operator.revoke_invite("0" * 16),
            line.call("ChangeStanding", pb.ChangeStandingRequest(owner="x"), pb.ChangeStandingReply),
        )  # fmt: skip
        for order in orders:
            with pytest.raises(Refused, match="order nothing"):
                await order
    assert await asyncio.to_thread(list_orders, run) == before


@pytest.mark.parametrize("end", ["revoked", "other role"])
async def test_a_keys_sessions_end_with_it(run: RunFolder, line: RemoteLine, end: str) -> None:
    operator = OperatorClient(line)
    await operator.orders()
    if end == "revoked":
        await asyncio.to_thread(change_operator_key, run, KeyOrder(name="maria"))
    else:
        await let_in(run, "viewer")
    with pytest.raises(Unauthenticated, match="not open"):
        await operator.hold("pause")


async def test_an_invite_that_was_taken_back_is_refused(
    run: RunFolder, line: RemoteLine, join: Callable[..., Any]
) -> None:
    operator = OperatorClient(line)
    (link,) = await operator.create_invites(_terms(uses=2, owner="ben"))
    inside = await join(link=link)
    (row,) = [one for one in await operator.invites() if one["owner"] == "ben"]
    assert (row["state"], row["uses"], row["used"]) == ("open", 2, 1)
    assert str(JoinLink.parse(link).invite) not in json.dumps(await operator.invites())
    assert await operator.revoke_invite(link) == (row["invite"], True)
    assert await operator.revoke_invite(row["invite"]) == (row["invite"], False)
    with pytest.raises(Exception, match="taken back by the operator"):
        await join(link=link)
    await inside.beat()
    assert [one["about"] for one in await operator.orders() if one["kind"] == "InviteRevoked"] == [row["invite"]]
    with pytest.raises(BarnraiseError, match="no invite of this run"):
        await operator.revoke_invite("0" * 16)


def _terms(**terms: Any) -> Any:
    from coordinator.run.inviting import InviteTerms

    return InviteTerms(**terms)
