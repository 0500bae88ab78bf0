"""Every guard of the edge, in the order of docs/security.md."""

from __future__ import annotations

from tests.guards.amount_guards import AMOUNTS
from tests.guards.caller_guards import CALLERS
from tests.guards.content_guards import CONTENT
from tests.guards.door_guards import DOOR
from tests.guards.guard import Guard
from tests.guards.peer_guards import PEERS
from tests.guards.secret_guards import SECRETS
from tests.guards.standby_guards import STANDBY
from tests.guards.worker_guards import WORKER

GUARDS: tuple[Guard, ...] = (*CONTENT, *CALLERS, *AMOUNTS, *SECRETS, *WORKER, *DOOR, *STANDBY, *PEERS)

EXCEPTIONS: dict[str, str] = {}
"""Tests that docs/security.md names and no guard does, each with the reason why nothing can be cut out."""
