"""The one byte string that stands for a list of fields when it is signed.

Each field is preceded by its length, so two different lists never give the same bytes; the first field is the domain,
so a signature made for one purpose never serves for another. Touches nothing.
"""

from __future__ import annotations

import struct

_LENGTH = struct.Struct(">I")


def length_prefixed(domain: bytes, *fields: bytes) -> bytes:
    """`domain` and `fields`, each after its length as an unsigned 32-bit big-endian number."""
    return b"".join([part for field in (domain, *fields) for part in (_LENGTH.pack(len(field)), field)])
