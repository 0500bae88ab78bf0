"""Frames carry any payload from any offset; a frame that is not the expected next one changes nothing."""

import hashlib
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import DigestMismatch, LocalError, MalformedMessage
from protocol.framing import FrameReader, frames_of
from protocol.ids import Digest, digest_of
from protocol.limits import FRAME_BYTES, FRAME_HEADER_BYTES, MAX_MESSAGE_BYTES

_FRAME = struct.Struct(">4sIQ")


def _reader_of(content: bytes) -> Callable[[int, int], bytes]:
    return lambda offset, length: content[offset : offset + length]


def _frame(offset: int, payload: bytes, *, magic: bytes = b"BNR1", length: int | None = None) -> bytes:
    return _FRAME.pack(magic, len(payload) if length is None else length, offset) + payload


@given(content=st.binary(max_size=300), frame_bytes=st.integers(1, 64), data=st.data())
def test_round_trip_broken_off_and_resumed_anywhere(content: bytes, frame_bytes: int, data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("protocol.framing.FRAME_BYTES", frame_bytes)
        received = bytearray()
        breaks = data.draw(st.lists(st.integers(0, 4), max_size=3))
        for arriving in (*breaks, len(content)):
            reader = FrameReader(len(content), digest_of(content), len(received))
            reader.skip(bytes(received))
            frames = list(frames_of(_reader_of(content), len(content), len(received)))
            assert all(len(frame) <= FRAME_HEADER_BYTES + frame_bytes for frame in frames)
            for frame in frames[:arriving]:
                received += reader.feed(frame)
                assert reader.offset == len(received)
            if reader.complete:
                break
            with pytest.raises(MalformedMessage, match="ended at byte"):
                reader.finish()
        reader.finish()
        assert received == content


def test_real_frame_size_fits_the_message_limit() -> None:
    content = bytes(FRAME_BYTES + 1)
    frames = list(frames_of(_reader_of(content), len(content), 0))
    assert [len(frame) for frame in frames] == [FRAME_HEADER_BYTES + FRAME_BYTES, FRAME_HEADER_BYTES + 1]
    assert max(len(frame) for frame in frames) <= MAX_MESSAGE_BYTES


def test_the_layout_is_fixed() -> None:
    assert list(frames_of(_reader_of(b"abcdef"), 6, 2)) == [b"BNR1\0\0\0\4\0\0\0\0\0\0\0\2cdef"]


_EXPECTED = 10


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        pytest.param(b"", "less than its header", id="empty message"),
        pytest.param(b"BNR1" + bytes(11), "less than its header", id="short header"),
        pytest.param(_frame(0, b"abc", magic=b"BNR2"), "starts with", id="magic"),
        pytest.param(_frame(0, b""), "claims 0 bytes", id="empty frame"),
        pytest.param(_frame(0, b"abc", length=FRAME_BYTES + 1), "allowed are 1 to", id="over the frame size"),
        pytest.param(_frame(0, b"abc", length=2**32 - 1), "allowed are 1 to", id="largest length"),
        pytest.param(_frame(0, b"abc", length=4), "claims 4 bytes and has 3", id="truncated"),
        pytest.param(_frame(0, b"abc", length=2), "claims 2 bytes and has 3", id="trailing bytes"),
        pytest.param(_frame(1, b"abc"), "expected byte 0", id="gap"),
        pytest.param(_frame(2**64 - 1, b"abc"), "expected byte 0", id="far offset"),
        pytest.param(_frame(0, bytes(_EXPECTED + 1)), "ends at byte 11", id="over the size"),
    ],
)
def test_a_refused_frame_changes_nothing(frame: bytes, reason: str) -> None:
    content = b"0123456789"
    reader = FrameReader(_EXPECTED, digest_of(content))
    with pytest.raises(MalformedMessage, match=reason):
        reader.feed(frame)
    assert reader.feed(_frame(0, content)) == content
    reader.finish()


def test_the_same_frame_twice_is_refused() -> None:
    reader = FrameReader(6, digest_of(b"abcabc"))
    reader.feed(_frame(0, b"abc"))
    with pytest.raises(MalformedMessage, match="frame for byte 0 came, expected byte 3"):
        reader.feed(_frame(0, b"abc"))


def test_nothing_may_follow_the_last_byte() -> None:
    reader = FrameReader(3, digest_of(b"abc"))
    reader.feed(_frame(0, b"abc"))
    with pytest.raises(MalformedMessage, match="ends at byte 4"):
        reader.feed(_frame(3, b"d"))


@given(garbage=st.binary(max_size=64))
def test_garbage_is_refused(garbage: bytes) -> None:
    with pytest.raises(MalformedMessage):
        FrameReader(64, digest_of(b"")).feed(garbage)


def test_wrong_content_is_a_digest_mismatch_naming_both() -> None:
    reader = FrameReader(3, digest_of(b"abc"))
    reader.feed(_frame(0, b"abd"))
    with pytest.raises(DigestMismatch, match=f"{digest_of(b'abd')}, expected {digest_of(b'abc')}"):
        reader.finish()


def test_the_resumed_prefix_counts_towards_the_digest() -> None:
    reader = FrameReader(6, digest_of(b"abcdef"), 3)
    reader.skip(b"abX")
    reader.feed(_frame(3, b"def"))
    with pytest.raises(DigestMismatch):
        reader.finish()


def test_a_hasher_that_took_the_prefix_may_be_handed_over() -> None:
    reader = FrameReader(6, digest_of(b"abcdef"), 3, hashlib.sha256(b"abc"))
    reader.feed(_frame(3, b"def"))
    reader.finish()


def test_forgetting_or_overdoing_the_prefix_is_our_bug() -> None:
    reader = FrameReader(6, digest_of(b"abcdef"), 3)
    with pytest.raises(LocalError, match="skip"):
        reader.feed(_frame(3, b"def"))
    with pytest.raises(LocalError, match="past byte 3"):
        reader.skip(b"abcd")
    reader.skip(b"ab")
    reader.skip(b"c")
    reader.feed(_frame(3, b"def"))
    reader.finish()


@pytest.mark.parametrize("offset", [-1, 7, 2**64])
def test_an_offset_outside_the_payload_is_refused_on_both_sides(offset: int) -> None:
    with pytest.raises(MalformedMessage, match="of a payload of 6 bytes"):
        frames_of(_reader_of(b"abcdef"), 6, offset)
    with pytest.raises(MalformedMessage, match="of a payload of 6 bytes"):
        FrameReader(6, Digest("0" * 64), offset)


def test_an_empty_payload_has_no_frames_and_is_complete() -> None:
    assert list(frames_of(_reader_of(b""), 0, 0)) == []
    reader = FrameReader(0, digest_of(b""))
    assert reader.complete
    reader.finish()


def test_a_source_that_ends_early_is_our_bug() -> None:
    with pytest.raises(LocalError, match="ends at byte 3, expected 6"):
        list(frames_of(_reader_of(b"abc"), 6, 0))
