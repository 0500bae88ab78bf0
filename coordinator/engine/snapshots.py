"""The state as JSON text, a record at a time, so that nobody has to wait while a large one is written.

Decides nothing. Holds always: the pieces together are what `json.dumps` makes of `Engine.snapshot()` at the moment at
which they were asked for, whatever the engine has done by the time they are taken. Records are frozen: the text of one
that is still there from the snapshot before is not made again.
"""

from __future__ import annotations

import functools
import json
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from coordinator.engine.records import to_plain
from coordinator.engine.state import EngineState

_Texts = dict[Any, tuple[object, str]]


class SnapshotText:
    """Remembers the texts of one engine's records; as large as its last snapshot."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[str, _Texts] = {}

    def pieces(self, state: EngineState) -> Iterator[str]:
        """The text of `state` as it is now, in pieces of one record or one field."""
        return self._written(state.recorded(), _hints())

    def _written(self, values: Mapping[str, Any], hints: Mapping[str, Any]) -> Iterator[str]:
        before = "{"
        for name, value in values.items():
            yield f"{before}{json.dumps(name)}:"
            if isinstance(value, dict):
                yield from self._table(name, value, hints[name])
            else:
                yield _text(to_plain(value, hints[name]))
            before = ","
        yield "}"

    def _table(self, name: str, records: dict[Any, Any], declared: Any) -> Iterator[str]:
        known, kept = self._known.get(name, {}), _Texts()
        before = "{"
        for key, record in records.items():
            entry = known.get(key)
            if entry is None or entry[0] is not record:
                entry = (record, _text(to_plain({key: record}, declared))[1:-1])
            kept[key] = entry
            yield before + entry[1]
            before = ","
        self._known[name] = kept
        yield "}" if records else "{}"


@functools.cache
def _hints() -> Mapping[str, Any]:
    return typing.get_type_hints(EngineState)


def _text(plain: Any) -> str:
    """NaN and infinities use the names that Python reads and writes."""
    return json.dumps(plain, separators=(",", ":"), allow_nan=True)
