"""How often the edge calls on a thread or sets a timer for what moves: not for every frame."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from coordinator.edge.patience import Patience
from coordinator.edge.throttle import EdgeLimits
from coordinator.edge.upload_writer import UploadWriter
from protocol.errors import MalformedMessage, TooSlow, Unavailable
from protocol.framing import FrameReader, frames_of
from protocol.ids import digest_of
from protocol.limits import FRAME_BYTES

CONTENT = os.urandom(3 * FRAME_BYTES + 5)


class Kept:
    """An upload in memory."""

    def __init__(self) -> None:
        self.received_bytes = 0
        self.content = bytearray()

    def write(self, piece: bytes) -> None:
        self.content += piece


@pytest.fixture
def hops(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the loop gave to threads."""
    given: list[Any] = []
    real = asyncio.BaseEventLoop.run_in_executor

    def counted(loop: Any, executor: Any, work: Any, *arguments: Any) -> Any:
        given.append(work)
        return real(loop, executor, work, *arguments)

    monkeypatch.setattr(asyncio.BaseEventLoop, "run_in_executor", counted)
    return given


async def delivered(writer: UploadWriter, content: bytes = CONTENT) -> bytes:
    kept, reader = Kept(), FrameReader(len(content), digest_of(content))
    for frame in frames_of(lambda start, length: content[start : start + length], len(content)):
        await writer.write(kept, reader, frame)  # type: ignore[arg-type]
    reader.finish()
    return bytes(kept.content)


async def test_frames_of_many_uploads_go_together(hops: list[Any]) -> None:
    uploads, frames = 16, 4
    assert set(await asyncio.gather(*(delivered(UploadWriter()) for _ in range(uploads)))) == {CONTENT}
    apart = len(hops)
    hops.clear()
    writer = UploadWriter()
    assert set(await asyncio.gather(*(delivered(writer) for _ in range(uploads)))) == {CONTENT}
    assert apart == uploads * frames
    assert len(hops) <= apart / 4


async def test_a_frame_that_fails_fails_alone() -> None:
    writer = UploadWriter()

    class Full(Kept):
        def write(self, piece: bytes) -> None:
            raise Unavailable("the disk is full")

    frame = next(frames_of(lambda start, length: CONTENT[start : start + length], len(CONTENT)))

    def of(upload: Kept, content: bytes) -> Any:
        return writer.write(upload, FrameReader(len(CONTENT), digest_of(CONTENT)), content)  # type: ignore[arg-type]

    good = Kept()
    results = await asyncio.gather(of(Full(), frame), of(good, frame), of(Kept(), b"no frame"), return_exceptions=True)
    assert [type(result) for result in results] == [Unavailable, type(None), MalformedMessage]
    assert good.content == CONTENT[:FRAME_BYTES]


async def test_an_upload_that_is_broken_off_holds_up_no_other() -> None:
    writer = UploadWriter()
    first, hasty, second = (asyncio.ensure_future(delivered(writer)) for _ in range(3))
    await asyncio.sleep(0)
    hasty.cancel()  # while its frame waits for the thread, before that of another
    assert await first == await second == CONTENT


# ---- patience -------------------------------------------------------------------------------------------------------


def patient(**limits: Any) -> Patience:
    return Patience("this transfer", EdgeLimits(**limits), asyncio.get_running_loop().time)


async def test_waits_that_end_in_time_share_one_timer_and_make_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, patience, timers = asyncio.get_running_loop(), patient(), 0
    real = loop.call_at

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal timers
        timers += 1
        return real(*arguments, **named)

    monkeypatch.setattr(loop, "call_at", counted)
    tasks = len(asyncio.all_tasks())

    async def step() -> int:
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == tasks
        return 7

    assert [await patience.wait(step()) for _ in range(100)] == [7] * 100
    assert timers == 1
    patience.end()


async def test_a_timer_that_went_off_early_looks_again() -> None:
    patience, never = patient(stall_s=0.05), asyncio.Event()
    for _ in range(4):
        await patience.wait(asyncio.sleep(0.03))
    with pytest.raises(TooSlow, match="nothing moved"):
        await patience.wait(never.wait())
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0, "the call can go on: a refusal is still to be sent"
    patience.end()


async def test_who_is_told_to_end_while_waiting_ends() -> None:
    patience, never = patient(), asyncio.Event()
    waiting = asyncio.ensure_future(patience.wait(never.wait()))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    patience.end()
