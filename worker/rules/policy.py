"""A volunteer's rules as the worker's policy: what is in force now, and what is remembered between two looks.

Decides nothing that worker/rules/judging.py does not; holds the rules, the note of a pause, and whether the worker was
told to finish. Changing any of them counts from the next look on, a second later at the latest. Touches nothing.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import tzinfo

from worker.policy import Circumstances, Permission
from worker.rules.file import PauseNote
from worker.rules.judging import Felt, Objection, objections, permission_of
from worker.rules.model import VolunteerRules
from worker.words import say


class RuledPolicy:
    """One volunteer's rules; a `worker.policy.Policy`."""

    look_again_s: float | None = 1.0

    def __init__(self, rules: VolunteerRules, *, note: PauseNote | None = None, zone: tzinfo | None = None) -> None:
        """`zone`: of the local clock; None: the system's."""
        self.rules, self.note = rules, note
        self.is_finishing = False
        """Whether the volunteer wants no lease after the present one."""
        self._felt, self._zone = Felt(), zone
        self.objections: tuple[Objection, ...] = ()
        """What stood against working at the last look."""

    def may_work(self, now: Circumstances) -> Permission:
        """Whether nothing stands against it."""
        if self.note is not None and self.note.is_over(now.wall_s):
            self.note = None
        self._felt = self._felt.after(self.rules, now)
        found = objections(self.rules, now, self._felt, self.note, self._zone)
        if self.is_finishing:
            finishing = Objection(rule="finish", reason=say("no.finish"), stops_training=False)
            found = (finishing, *found)
        self.objections = found
        permission, tempo = permission_of(found, now.wall_s, self._zone), self._felt.tempo
        if tempo.share == 1.0:
            return permission
        return replace(permission, share=tempo.share, slowed=tempo.why(self.rules, now))
