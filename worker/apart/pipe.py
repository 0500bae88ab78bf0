"""Messages over a pipe: a length, and so many bytes of JSON.

Decides that a message is bounded before it is read. Holds always: two threads never write into each other's message.
"""

from __future__ import annotations

import json
import struct
import threading
from typing import IO, Any, Final

from pydantic import TypeAdapter

from protocol.errors import LocalError

MOST_BYTES: Final = 64 << 20
"""A layout of a hundred thousand tensors is some 10 MiB."""
_LENGTH: Final = struct.Struct("<I")


class MessagePipe:
    """One end: what is sent and what is received are of one kind each."""

    def __init__(self, source: IO[bytes], sink: IO[bytes], sent: TypeAdapter[Any], received: TypeAdapter[Any]) -> None:
        self._source, self._sink, self._sent, self._received = source, sink, sent, received
        self._lock = threading.Lock()

    def send(self, message: Any) -> None:
        """OSError or ValueError where the other end is gone."""
        content = json.dumps(self._sent.dump_python(message, mode="json"), separators=(",", ":")).encode()
        with self._lock:
            self._sink.write(_LENGTH.pack(len(content)) + content)
            self._sink.flush()

    def receive(self) -> Any:
        """The next message; None: the other end is gone."""
        try:
            head = self._source.read(_LENGTH.size)
            if len(head) < _LENGTH.size:
                return None
            (length,) = _LENGTH.unpack(head)
            if length > MOST_BYTES:
                raise LocalError(f"a message of {length} bytes between a worker and its trainer; at most {MOST_BYTES}")
            content = self._source.read(length)
        except (OSError, ValueError):
            return None
        return None if len(content) < length else self._received.validate_python(json.loads(content))
