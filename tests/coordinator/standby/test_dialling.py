"""What a person reads of a call that failed: the other side's own words, or ours, never the library's."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import grpc
import pytest

from coordinator.edge.dialling import told
from coordinator.edge.rpc import status_of, trailers_of
from coordinator.edge.witnessing import WitnessProcess, asking
from coordinator.standby.seat import Request
from protocol.causes import Cause
from protocol.errors import Refused, RemoteError, Unauthenticated, Unavailable

NO_METADATA = grpc.aio.Metadata()


@pytest.mark.parametrize(
    "error",
    [
        Unauthenticated("another machine has redeemed this link"),
        Refused("run the same release", cause=Cause.OTHER_VERSION),
        Unavailable("FENCED", cause=Cause.FENCED),
    ],
)
def test_the_other_sides_own_words_are_told(error: RemoteError) -> None:
    raised = grpc.aio.AioRpcError(status_of(error), NO_METADATA, grpc.aio.Metadata(*trailers_of(error)), str(error))
    found = told(raised)
    assert (type(found), str(found)) == (type(error), str(error))
    assert found.cause in {error.cause, Cause.REFUSED}


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (grpc.StatusCode.UNAVAILABLE, "nobody answers at barn.example:7465"),
        (grpc.StatusCode.UNAUTHENTICATED, "nobody answers at barn.example:7465"),
        (grpc.StatusCode.UNIMPLEMENTED, "does not know this: is it of another version"),
    ],
)
def test_of_the_librarys_words_none_is(status: grpc.StatusCode, words: str) -> None:
    raised = grpc.aio.AioRpcError(status, NO_METADATA, NO_METADATA, "ipv4:192.0.2.7:7465: tcp handshaker shutdown")
    found = str(told(raised, "at barn.example:7465"))
    assert words in found
    assert "handshaker" not in found


async def test_a_witness_says_why_it_does_not_answer(tmp_path: Path) -> None:
    witness = WitnessProcess(tmp_path)
    link = await witness.start("127.0.0.1", 0)
    try:
        with pytest.raises(Unauthenticated, match=r"^the secret of this witness's link is another one"):
            await asking(dataclasses.replace(link, invite="guessed" * 3), "run")(Request(by="anna"))
        with pytest.raises(RemoteError, match=r"^a run's or a machine's name"):
            await asking(link, "")(Request(by="anna"))
        assert (await asking(link, "run")(Request(by="anna"))).held is None
    finally:
        await witness.stop()
