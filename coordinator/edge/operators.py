"""Who orders, whichever way they came: over the run folder's socket, with a key from elsewhere, or on the page.

Decides nothing. The name goes into the event of what is ordered.
"""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.store.operators import OperatorKey, Role

RUNS_OWN_KEY = "the operator's key"
"""As the key is called that `init` wrote into the run folder: of nobody in particular."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Orderer:
    """One operator."""

    name: str
    role: Role = Role.OPERATOR

    @property
    def may_order(self) -> bool:
        """Or only look."""
        return self.role is Role.OPERATOR


def with_key(key: OperatorKey | None) -> Orderer:
    """Whoever came from elsewhere with this key; None: the run's own."""
    return Orderer(name=RUNS_OWN_KEY) if key is None else Orderer(name=f"{key.name}, by key", role=key.role)
