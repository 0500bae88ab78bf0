"""Senses as a port: fields of `Circumstances`, found out only while a rule looks at them.

Decides how often each is asked, and that a sense that does not work here says why (`Senseless`), once and for all rules
that need it. Real ones stand beside this file; a test gives others. Touches nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

log = structlog.get_logger()


UNTOLD: Final = {"gpu_watts": "the GPU does not tell how much power it takes"}
"""Of fields that a sense which works may leave out."""


class Senseless(Exception):
    """This sense does not work here, or not now; the text is a part of a sentence that the volunteer reads."""


class Sense(Protocol):
    """Finds some fields out."""

    @property
    def fields(self) -> frozenset[str]:
        """Fields of `Circumstances` that `read` gives."""

    def read(self) -> Mapping[str, object]:
        """Their values; Senseless where they cannot be known. May block for a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a look gave."""

    facts: Mapping[str, object]
    lacking: Mapping[str, str]


class Senses:
    """Several senses as one."""

    def __init__(self, senses: Sequence[Sense], clock: Callable[[], float], every_s: float = 0.9) -> None:
        self._senses, self._clock, self._every_s = tuple(senses), clock, every_s
        self._looked: dict[int, tuple[float, Look]] = {}

    def look(self, wanted: frozenset[str]) -> Look:
        """What is `wanted`, none of it older than `every_s`."""
        facts: dict[str, object] = {}
        lacking: dict[str, str] = {}
        for number, sense in enumerate(self._senses):
            if sense.fields & wanted:
                felt = self._of(number, sense)
                facts.update(felt.facts)
                lacking.update(felt.lacking)
        known = facts.keys() | lacking.keys()
        lacking |= {name: UNTOLD.get(name, f"nothing here tells {name}") for name in wanted - known}
        return Look(facts=facts, lacking=lacking)

    def _of(self, number: int, sense: Sense) -> Look:
        now_s = self._clock()
        looked_s, felt = self._looked.get(number, (float("-inf"), None))
        if felt is None or now_s - looked_s >= self._every_s:
            try:
                felt = Look(facts=sense.read(), lacking={})
            except Senseless as why:
                felt = Look(facts={}, lacking=dict.fromkeys(sense.fields, str(why)))
            except Exception as error:  # whatever the libraries of a stranger's machine do, none ends a worker
                log.debug("sense_failed", sense=type(sense).__name__, error=repr(error))
                failed = f"{', '.join(sorted(sense.fields))} cannot be found out here"
                felt = Look(facts={}, lacking=dict.fromkeys(sense.fields, failed))
            self._looked[number] = now_s, felt
        return felt
