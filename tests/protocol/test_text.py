"""Text from strangers keeps no character that steers a terminal."""

from __future__ import annotations

from protocol.text import printable


def test_only_what_prints_and_what_is_asked_for_stays():
    hostile = "a\x1b[31mb\r\n\tc\x00\u202e"
    assert printable(hostile) == "a [31mb   c  "
    assert printable(hostile, keep="\n\t") == "a [31mb \n\tc  "
