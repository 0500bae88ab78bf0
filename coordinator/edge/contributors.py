"""Whose validated work a public page shows: names and teams, and no key.

Decides how many. Reads the engine's state and the registry.
"""

from __future__ import annotations

from collections.abc import Callable

from coordinator.edge.served import RunContext
from coordinator.engine.credit import ranking
from coordinator.engine.state import EngineState
from coordinator.page.view import Contributor
from protocol.ids import WorkerId
from protocol.text import printable

MOST_CREDITED = 50


def contributors(state: EngineState, name: Callable[[WorkerId], str], run: RunContext) -> tuple[Contributor, ...]:
    """The first of the ranking, the most validated tokens first."""
    rows = ranking(state.workers.values(), tokens_a_sequence=run.settings.sequence_length, name_of=name)
    teams, first = run.registry.people.teams, [row for row in rows if row.tokens][:MOST_CREDITED]
    return tuple(
        Contributor(
            name=row.name, team=printable(teams.get(WorkerId(row.key), "")), tokens=row.tokens, accepted=row.leases
        )
        for row in first
    )
