"""What a volunteer reads of trouble: a sentence for each cause, and never a library's text."""

from __future__ import annotations

import asyncio
import errno
import re
from typing import Any

import grpc
import pytest
import torch

from protocol.causes import Cause, cause_named
from protocol.errors import ConfigError, DigestMismatch, MalformedMessage, Refused, StorageTrouble, Unavailable
from worker import messages as m
from worker import sentences
from worker.messages import News
from worker.repeats import AGAIN_AFTER_S, Repeats
from worker.sentences import InHand
from worker.trouble import training_trouble_of, trouble_of
from worker.wire import error_of

FOREIGN = re.compile(
    r"UNKNOWN|UNAVAILABLE|ipv4:|ipv6:|last error|addresses|SSL|handshake|CUDA|RuntimeError|Error\b|SessionEnded|Enrol:"
    r"|Traceback|errno|tensor|pydantic|gRPC|status"
)
"""What no sentence may have in it."""

RAW = {
    "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Failed to connect to remote host:"
    " connect: Connection refused (111)": Cause.CONNECTION_REFUSED,
    "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Ssl handshake failed (TSI_PROTOCOL"
    "_FAILURE): SSL_ERROR_SSL: error:1000007d:SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED":
    Cause.WRONG_CERTIFICATE,
    "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Ssl handshake failed:"
    " SSL_ERROR_SSL: WRONG_VERSION_NUMBER": Cause.NOT_A_COORDINATOR,
    "DNS resolution failed for nowhere.invalid:1: C-ares status is not ARES_SUCCESS": Cause.NAME_UNKNOWN,
    "failed to connect to all addresses; last error: UNKNOWN: connect: Network is unreachable (101)": Cause.NO_ROUTE,
    "last error: UNKNOWN: FD Shutdown: connection attempt timed out before receiving SETTINGS frame": Cause.NO_ANSWER,
    "Socket closed": Cause.BROKEN_OFF,
    "recvmsg:Connection reset by peer": Cause.BROKEN_OFF,
    "something new": Cause.UNREACHABLE,
}  # fmt: skip


@pytest.mark.parametrize(("details", "cause"), RAW.items(), ids=list(map(str, RAW.values())))
def test_what_grpc_says_becomes_a_cause_and_stays_out_of_sight(details: str, cause: Cause) -> None:
    error = error_of("OpenSession", _status(grpc.StatusCode.UNAVAILABLE, details))
    trouble = trouble_of(error)
    assert trouble.cause is cause
    assert details in trouble.detail, "for diagnosis"
    for work in InHand:
        sentence = sentences.unreached(trouble.cause, "example.org:7070", work)
        assert "example.org:7070" in sentence
        assert not FOREIGN.search(sentence), sentence


@pytest.mark.parametrize("status", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_no_status_without_a_word_from_the_coordinator_is_quoted_where_grpc_may_have_made_it(status: Any) -> None:
    """A proxy between the two answers with HTTP, which gRPC turns into statuses and texts of its own."""
    ours = {"INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "OUT_OF_RANGE", "ABORTED"}
    trouble = trouble_of(error_of("Enrol", _status(status, "Received http2 header with status: 403")))
    sentence = sentences.refusal(trouble.cause, trouble.detail, "h:1")
    assert ("http2" in sentence) == (status.name in ours), sentence


def test_a_refusal_that_grpc_hides_is_asked_for_again_and_not_taken_for_a_fault_over_there() -> None:
    """grpc.aio says so of a call that ends while a message is being sent, whatever the coordinator said."""
    error = error_of("UploadSubmission", _status(grpc.StatusCode.INTERNAL, "Internal error from Core"))
    assert type(error) is Unavailable
    assert error.cause is Cause.BROKEN_OFF


@pytest.mark.parametrize("cause", Cause)
def test_each_cause_ends_a_worker_with_a_sentence(cause: Cause) -> None:
    sentence = sentences.refusal(cause, "Enrol: no room here", "h:1")
    assert not FOREIGN.search(sentence)
    assert "{" not in sentence


@pytest.mark.parametrize(("cause", "news"), [(cause, news) for cause in (None, *Cause) for news in News])
def test_each_news_is_a_sentence(cause: Cause | None, news: News) -> None:
    sentence = sentences.told(
        m.Tell(news=news, reason="Commit: too late\x1b[31m", cause=cause, detail="RuntimeError: x")
    )
    assert sentence.endswith(".")
    assert sentence.isprintable()
    assert not FOREIGN.search(sentence)


def test_the_coordinators_own_word_is_believed_and_unknown_words_are_not() -> None:
    for word, cause in (("invite-used", Cause.INVITE_USED), ("something-new", Cause.REFUSED), ("", Cause.REFUSED)):
        error = _status(grpc.StatusCode.FAILED_PRECONDITION, "no", ("barnraise-cause", word))
        assert trouble_of(error_of("Enrol", error)).cause is cause
    assert cause_named(b"\xff") is None


@pytest.mark.parametrize(
    ("error", "cause", "report"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), Cause.OUT_OF_MEMORY, "out of memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            Cause.OUT_OF_MEMORY,
            "out of memory",
        ),
        (MemoryError(), Cause.OUT_OF_MEMORY, "out of memory"),
        (RuntimeError("CUDA error: no kernel image is available"), Cause.DEVICE_FAILED, "the GPU failed"),
        (RuntimeError("shape mismatch"), Cause.TRAINING_FAILED, "training failed on that machine"),
        (OSError(errno.ENOSPC, "No space left"), Cause.LOCAL_STORAGE, "the disk of that machine failed"),
    ],
)
def test_a_failed_training_is_told_plainly_to_both_sides(error: Exception, cause: Cause, report: str) -> None:
    trouble = training_trouble_of(error)
    assert trouble.cause is cause
    assert sentences.report(trouble.cause, trouble.detail) == report
    told = sentences.told(m.Tell(news=News.LEASE_FAILED, reason=report, cause=cause, detail=trouble.detail))
    assert "The lease goes back" in told
    assert not FOREIGN.search(told)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (MalformedMessage("lease_id"), Cause.MALFORMED),
        (DigestMismatch("block"), Cause.MALFORMED),
        (Refused("no"), Cause.REFUSED),
        (Unavailable("no line"), Cause.UNREACHABLE),
        (StorageTrouble("the disk is full: make room"), None),
        (FileNotFoundError("gone"), Cause.LOCAL_STORAGE),
        (ConnectionResetError("reset"), Cause.UNREACHABLE),
        (ConfigError("a sentence of ours"), None),
    ],
)
def test_errors_of_our_own_have_causes_by_their_kind(error: Exception, cause: Cause | None) -> None:
    assert trouble_of(error).cause is cause


def test_the_same_news_is_said_once_then_rarely_then_anew() -> None:
    now_s = 100.0
    repeats = Repeats(lambda: now_s)
    assert repeats.over() is None
    assert repeats.lasting_s("round 3 closes in about 2 min") == 0.0
    now_s += 20.0
    assert repeats.lasting_s("round 3 closes in about 90 s") is None, "only the estimate has changed"
    assert repeats.lasting_s("round 4 closes in about 90 s") == 0.0
    now_s += AGAIN_AFTER_S
    assert repeats.lasting_s("round 4 closes in about 1 min") == AGAIN_AFTER_S
    assert repeats.lasting_s("round 4 closes in about 1 min") is None
    now_s += 5.0
    assert repeats.over() == AGAIN_AFTER_S + 5.0
    assert repeats.over() is None
    assert repeats.lasting_s("round 4 closes in about 1 min") == 0.0


async def test_an_outage_is_told_once_and_so_is_its_end(swarm: Any) -> None:
    await swarm.stop()
    _, recorder, task = swarm.agent()
    await recorder.saw("unavailable")
    await asyncio.sleep(0)
    await swarm.start()
    assert (await task).exit_code == 0
    (told,) = recorder.texts("unavailable")
    assert told.startswith("Nobody answers at 127.0.0.1:")
    assert not FOREIGN.search(told)
    assert len(recorder.texts("reached_again")) == 1
    assert "refused" in dict(recorder.details)["unavailable"]


def _status(code: grpc.StatusCode, details: str, *marks: tuple[str, str]) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*marks), details)
