"""What is refused is thrown away only when it is refused for good, or would count no more."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from coordinator.edge.service import WorkerService
from coordinator.edge.transfers import Transfers
from protocol.errors import (
    FINAL_TRAILER,
    BrokeDown,
    DigestMismatch,
    FinalRefusal,
    MalformedMessage,
    Refused,
    RemoteError,
    Unavailable,
)
from protocol.ids import LeaseId
from tests.worker.conftest import Swarm
from tests.worker.leases import lease_message, read_lease
from worker import messages as m
from worker.lease import ReceivedLease
from worker.pauses import Pauses
from worker.refusals import Refusals
from worker.wire import error_of

KEPT_AFTER_DEADLINE_S = Pauses().kept_after_deadline_s
COMMIT = m.CommitSubmission(ticket=3, lease_id=LeaseId("r1.1"))
UPLOAD = m.UploadSubmission(ticket=4, lease_id=LeaseId("r1.1"), offset=0)
PASSING: list[Exception] = [
    Refused("Upload needs a deadline of at most 3600 s"),
    BrokeDown("the coordinator failed on this call"),
    DigestMismatch("said without a word that it is final"),
    MalformedMessage("the reply is not an UploadReply"),
    OSError(errno.EIO, "the disk"),
]


def lease_of(lease_id: str) -> ReceivedLease:
    return dataclasses.replace(read_lease(lease_message(lease_id=lease_id)), ttl_s=900.0)


def answer(refusals: Refusals, call: m.Call, error: Exception) -> m.CallRefused:
    event = refusals.answer(call, error)
    assert isinstance(event, m.CallRefused)
    assert event.ticket == call.ticket
    assert str(error) in (event.detail or event.reason)
    return event


def rpc_error(code: grpc.StatusCode, *trailers: tuple[str, str]) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), details="a sentence")


@pytest.mark.parametrize("code", list(grpc.StatusCode), ids=lambda code: code.name)
def test_no_status_is_final_by_itself(code: grpc.StatusCode) -> None:
    assert not isinstance(error_of("Upload", rpc_error(code)), FinalRefusal)
    assert not isinstance(error_of("Upload", rpc_error(code, (FINAL_TRAILER[0], "0"))), FinalRefusal)
    final = error_of("Upload", rpc_error(code, ("other", "1"), FINAL_TRAILER))
    assert isinstance(final, FinalRefusal)
    assert "a sentence" in str(final)


def test_a_coordinator_that_broke_on_a_call_is_told_from_one_that_is_away() -> None:
    kinds: dict[grpc.StatusCode, type[RemoteError]] = {
        grpc.StatusCode.INTERNAL: BrokeDown,
        grpc.StatusCode.UNKNOWN: BrokeDown,
        grpc.StatusCode.UNAVAILABLE: Unavailable,
        grpc.StatusCode.DEADLINE_EXCEEDED: Unavailable,
        grpc.StatusCode.RESOURCE_EXHAUSTED: Unavailable,
    }
    for code, kind in kinds.items():
        assert type(error_of("CommitSubmission", rpc_error(code))) is kind


@pytest.mark.parametrize("call", [COMMIT, UPLOAD], ids=["commit", "upload"])
@pytest.mark.parametrize("error", PASSING, ids=lambda error: type(error).__name__)
def test_only_what_is_final_is_final_until_it_would_count_no_more(
    error: Exception, call: m.CommitSubmission | m.UploadSubmission
) -> None:
    now_s = [1000.0]
    refusals = Refusals(lambda: now_s[0], KEPT_AFTER_DEADLINE_S)
    assert answer(refusals, call, FinalRefusal("the lease is void")).final
    assert not answer(refusals, call, error).final
    refusals.keep_for(lease_of("r1.1"))
    now_s[0] += 900.0 + KEPT_AFTER_DEADLINE_S - 1.0
    assert not answer(refusals, call, error).final
    now_s[0] += 2.0
    late = answer(refusals, call, error)
    assert late.final
    assert "2 h" in late.reason
    refusals.keep_for(lease_of("r2.1"))
    assert answer(refusals, call, error).final, "another lease's deadline does not count"
    another = dataclasses.replace(call, lease_id=LeaseId("r2.1"))
    assert not answer(refusals, another, error).final, "it has a deadline of its own"


def test_work_of_an_earlier_process_is_kept_as_long() -> None:
    now_s = [1000.0]
    refusals = Refusals(lambda: now_s[0], KEPT_AFTER_DEADLINE_S)
    now_s[0] += KEPT_AFTER_DEADLINE_S - 1.0
    assert not answer(refusals, COMMIT, Refused("no")).final
    now_s[0] += 2.0
    assert answer(refusals, COMMIT, Refused("no")).final


# ---- a real coordinator that refuses --------------------------------------------------------------------------------


def refusing(times: int, error: Callable[[], Exception]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Puts a refusal before the first `times` calls of what it is given."""
    left = [times]

    def wrapped(honest: Callable[..., Any]) -> Callable[..., Any]:
        async def call(*arguments: Any) -> Any:
            if left[0] > 0:
                left[0] -= 1
                raise error()
            return await honest(*arguments)

        return call

    return wrapped


@pytest.mark.parametrize(
    ("owner", "name"), [(Transfers, "upload"), (WorkerService, "commit_submission")], ids=["upload", "commit"]
)
@pytest.mark.parametrize(
    "error",
    [
        lambda: MalformedMessage("needs another deadline"),
        lambda: Refused("commit first"),
        lambda: RuntimeError("a bug"),
    ],
    ids=["our bug", "a refusal", "their bug"],
)
async def test_work_outlives_refusals_that_are_not_final(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, error: Callable[[], Exception]
) -> None:
    monkeypatch.setattr(owner, name, refusing(3, error)(getattr(owner, name)))
    await _restarted(swarm)
    _, told, task = swarm.agent(pauses=Pauses(refused_s=0.01))
    await told.saw("uploaded")
    assert (await task).exit_code == 0
    assert len([text for text in told.texts("note") if "safe on this disk" in text]) == 3
    assert not any("dropped" in text for text in told.texts("note"))


async def test_a_coordinator_that_never_takes_it_is_left_for_other_work(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Transfers, "upload", refusing(1, lambda: Refused("never"))(Transfers.upload))
    await _restarted(swarm)
    agent, told, _ = swarm.agent(pauses=Pauses(kept_after_deadline_s=-1e6))
    dropped = await told.saw("note")
    assert "dropped" in dropped
    assert not agent._session.has_unsent


async def _restarted(swarm: Swarm) -> None:
    """A coordinator takes its methods when it starts."""
    await swarm.stop()
    await swarm.start()
