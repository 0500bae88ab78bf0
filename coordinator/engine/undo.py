"""What one event has changed so far, so that all of it can be taken back.

Decides nothing. Holds always: after `take_back` the state's records, their order and every other value are what they
were when the event began. An event costs what it changes, not what there is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_NOTHING = object()


class Undo:
    """Lives for one `handle`."""

    __slots__ = ("_records", "_values", "_wholes")

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._records: list[tuple[dict[Any, Any], Any, Any]] = []
        self._wholes: list[tuple[dict[Any, Any], dict[Any, Any]]] = []

    def note(self, records: dict[Any, Any], key: Any) -> None:
        """`records[key]` is about to be replaced or added; never removed."""
        self._records.append((records, key, records.get(key, _NOTHING)))

    def note_whole(self, records: dict[Any, Any]) -> None:
        """`records`, which is short, is about to change in any way."""
        if all(noted is not records for noted, _ in self._wholes):
            self._wholes.append((records, dict(records)))

    def changed(self, records: Mapping[Any, Any]) -> Iterator[Any]:
        """Keys of `records` that were noted, some more than once."""
        return (key for noted, key, _ in self._records if noted is records)

    @property
    def is_empty(self) -> bool:
        """Whether no record was touched."""
        return not self._records

    def take_back(self) -> Mapping[str, Any]:
        """Put the records back; the values that the state had are for it to take."""
        for records, key, before in reversed(self._records):
            if before is _NOTHING:
                del records[key]
            else:
                records[key] = before
        for records, whole in self._wholes:
            records.clear()
            records.update(whole)
        return self._values
