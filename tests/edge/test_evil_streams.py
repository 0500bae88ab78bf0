"""The worker's edge: a coordinator whose streams never end or stall, and whose replies are too large."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from coordinator.run.folder import RunFolder
from protocol.limits import MAX_MESSAGE_BYTES
from protocol.v1 import barnraise_pb2 as pb
from tests.edge.evil_coordinator import Meeting, field


@pytest.mark.parametrize("what", ["block", "lease_data"])
async def test_an_endless_stream_is_hung_up_on(meeting: Meeting, what: str) -> None:
    evil = meeting.evil
    sent = 0

    async def endless(request: pb.DownloadRequest) -> AsyncIterator[bytes]:
        nonlocal sent
        for frame in evil.honest_frames(request):
            yield frame
        if (request.WhichOneof("resource") == "lease_data") is (what == "lease_data"):
            while True:
                sent += 1
                yield frame

    evil.stream = endless
    ended = await meeting.end()
    assert ended.exit_code == 1
    assert "frame" in str(meeting.told)
    after = sent
    await asyncio.sleep(0.1)
    assert sent <= after + 2  # it was told to stop, not just ignored


async def test_a_stalled_download_is_broken_off_and_taken_up_again(meeting: Meeting) -> None:
    evil = meeting.evil
    stalls = 0

    async def stalled(request: pb.DownloadRequest) -> AsyncIterator[bytes]:
        nonlocal stalls
        if request.block_digest and stalls < 2:
            stalls += 1
            await asyncio.Event().wait()
        for frame in evil.honest_frames(request):
            yield frame

    evil.stream = stalled
    ended = await meeting.end(stall_s=0.2)
    assert ended.exit_code == 0
    assert "nothing came for 0.2 s" in str(meeting.told)


async def test_a_stream_that_stalls_for_ever_costs_the_lease_and_not_the_volunteer(meeting: Meeting) -> None:
    async def never(_: pb.DownloadRequest) -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    meeting.evil.stream = never
    meeting.evil.bent["AcquireLease"] = field(lease__ttl_s=0.5)
    task = meeting.start(stall_s=0.1)
    await meeting.saw("deadline passed")
    meeting.agent.leave("enough")
    async with asyncio.timeout(3):
        assert (await task).exit_code == 0


async def test_an_upload_that_nobody_takes_is_broken_off_and_sent_again(meeting: Meeting) -> None:
    stalls = 0

    async def take(_: Any) -> None:
        nonlocal stalls
        stalls += 1
        if stalls == 1:
            await asyncio.Event().wait()

    meeting.evil.take = take
    ended = await meeting.end(stall_s=0.3)
    assert ended.exit_code == 0
    assert "nothing was taken for 0.3 s" in str(meeting.told)
    assert stalls == 2


async def test_an_oversized_or_compressed_reply_is_not_read(meeting: Meeting, run: RunFolder) -> None:
    meeting.evil.bent["GetManifest"] = field(manifest_json=bytes(MAX_MESSAGE_BYTES + 1))
    meeting.start()
    await meeting.saw("larger than max")
    assert meeting.kept_bytes == 0


async def test_a_compressed_reply_is_not_unpacked(meeting: Meeting) -> None:
    evil = meeting.evil
    await evil.stop()
    evil.compression, evil.raw_options = grpc.Compression.Gzip, ()
    await evil.start()
    evil.bent["Enrol"] = field(manifest_key_vouch=bytes(500_000))  # small enough to be read, if it were unpacked
    meeting.start()
    await meeting.saw("ompress")
    assert "did not vouch" not in str(meeting.told)
