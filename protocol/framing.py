"""Raw frames: how a long payload travels on a gRPC stream with an identity serializer.

A frame is 16 bytes of header (magic `BNR1`, u32 payload length, u64 offset, all big endian) and the payload. Frames
come in order, none is empty, all but the last hold FRAME_BYTES, and the whole must have the SHA-256 under which it was
promised. A transfer that broke goes on in a new stream from the first missing byte. Knows neither gRPC nor files.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Callable, Iterator
from typing import Protocol

from protocol.errors import DigestMismatch, LocalError, MalformedMessage
from protocol.ids import Digest
from protocol.limits import FRAME_BYTES, FRAME_HEADER_BYTES

_MAGIC = b"BNR1"
_HEADER = struct.Struct(">4sIQ")
assert _HEADER.size == FRAME_HEADER_BYTES


class Hasher(Protocol):
    """What `hashlib.sha256()` returns, as far as it is used here."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        """Take more bytes."""

    def hexdigest(self) -> str:
        """Digest of all bytes so far."""


class Unhashed:
    """For a receiver that hashes elsewhere: `FrameReader.finish` is then not called."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        """Nothing."""

    def hexdigest(self) -> str:
        """No digest at all."""
        return ""


def frames_of(
    read: Callable[[int, int], bytes], size: int, offset: int = 0, frame_bytes: int | None = None
) -> Iterator[bytes]:
    """Frames of bytes `offset` to `size` of a payload, where `read(offset, length)` gives exactly that part of it.

    `offset` may come from the other side: MalformedMessage if it lies outside the payload. Both sides must mean the
    same `frame_bytes`, which only simulations change.
    """
    if not 0 <= offset <= size:
        raise MalformedMessage(f"transfer asked from byte {offset} of a payload of {size} bytes")
    return _frames(read, size, offset, frame_bytes or FRAME_BYTES)


def frame_header(offset: int, length: int) -> bytes:
    """What goes before `length` bytes of a payload, from `offset` on."""
    return _HEADER.pack(_MAGIC, length, offset)


def _frames(read: Callable[[int, int], bytes], size: int, offset: int, frame_bytes: int) -> Iterator[bytes]:
    while offset < size:
        length = min(frame_bytes, size - offset)
        payload = read(offset, length)
        if len(payload) != length:
            raise LocalError(f"payload ends at byte {offset + len(payload)}, expected {size}")
        yield frame_header(offset, length) + payload
        offset += length


class FrameReader:
    """Checks the frames of one transfer, in order, and at the end the digest of the whole."""

    def __init__(
        self,
        expected_size: int,
        digest: Digest,
        offset: int = 0,
        hasher: Hasher | None = None,
        *,
        frame_bytes: int | None = None,
    ) -> None:
        """Expect bytes `offset` to `expected_size`.

        `hasher` is a SHA-256 that has taken the first `offset` bytes already; without one, give them to `skip` before
        the first frame.
        """
        if not 0 <= offset <= expected_size:
            raise MalformedMessage(f"transfer starts at byte {offset} of a payload of {expected_size} bytes")
        self.expected_size = expected_size
        self.digest = digest
        self._frame_bytes = frame_bytes or FRAME_BYTES
        self.offset = offset
        """First byte that is still missing."""
        self._hasher: Hasher = hashlib.sha256() if hasher is None else hasher
        self._hashed_bytes = 0 if hasher is None else offset
        self._ended = False

    @property
    def complete(self) -> bool:
        """Whether every byte has come; `finish` says whether they are the right ones."""
        return self.offset == self.expected_size

    def skip(self, prefix_bytes: bytes | bytearray | memoryview) -> None:
        """Take the next part of the first `offset` bytes, which an earlier stream brought, into the digest."""
        if self._hashed_bytes + len(prefix_bytes) > self.offset:
            raise LocalError(f"prefix goes past byte {self.offset}, where the transfer resumes")
        self._hasher.update(prefix_bytes)
        self._hashed_bytes += len(prefix_bytes)

    def feed(self, frame: bytes) -> memoryview:
        """Payload of the next frame, where it lies in it, which belongs at what `.offset` was before; a refused frame
        changes nothing.
        """
        self._require_prefix()
        if len(frame) < FRAME_HEADER_BYTES:
            raise MalformedMessage(f"frame at byte {self.offset} has {len(frame)} bytes, less than its header")
        magic, length, offset = _HEADER.unpack_from(frame)
        if magic != _MAGIC:
            raise MalformedMessage(f"frame at byte {self.offset} starts with {magic!r}, expected {_MAGIC!r}")
        if not 0 < length <= self._frame_bytes:
            allowed = f"allowed are 1 to {self._frame_bytes}"
            raise MalformedMessage(f"frame at byte {self.offset} claims {length} bytes, {allowed}")
        if len(frame) != FRAME_HEADER_BYTES + length:
            raise MalformedMessage(
                f"frame at byte {self.offset} claims {length} bytes and has {len(frame) - FRAME_HEADER_BYTES}"
            )
        if offset != self.offset:
            raise MalformedMessage(f"frame for byte {offset} came, expected byte {self.offset}")
        if offset + length > self.expected_size:
            raise MalformedMessage(f"frame ends at byte {offset + length} of a payload of {self.expected_size} bytes")
        if self._ended:
            # Millions of frames of one byte would cost a thousand times what their bytes do.
            raise MalformedMessage(
                f"frame at byte {offset} follows a short one: all but the last hold {self._frame_bytes} bytes"
            )
        payload = memoryview(frame)[FRAME_HEADER_BYTES:]
        self._hasher.update(payload)
        self._hashed_bytes += length
        self.offset += length
        self._ended = length < self._frame_bytes
        return payload

    def finish(self) -> None:
        """Raises MalformedMessage if bytes are missing, DigestMismatch if they are not what was promised."""
        self._require_prefix()
        if not self.complete:
            raise MalformedMessage(f"transfer ended at byte {self.offset} of {self.expected_size}")
        got = self._hasher.hexdigest()
        if not hmac.compare_digest(got.encode(), self.digest.encode()):
            raise DigestMismatch(f"payload of {self.expected_size} bytes has digest {got}, expected {self.digest}")

    def _require_prefix(self) -> None:
        if self._hashed_bytes != self.offset:
            raise LocalError(f"digest has {self._hashed_bytes} of the first {self.offset} bytes: skip() them first")
