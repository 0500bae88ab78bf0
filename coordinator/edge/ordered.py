"""What was ordered, for people and programs: one row for each order.

Decides the words. Touches nothing.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from coordinator.engine.hold import OrderRecord

WORDS = {
    "RunHeld": "held",
    "HoldLifted": "let go on",
    "Announced": "told volunteers",
    "SettingChanged": "set",
    "RunStopped": "stopped",
    "WorkerBanned": "banned",
    "WorkerUnbanned": "unbanned",
    "WorkerPardoned": "pardoned",
    "OwnerBanned": "banned an owner",
    "OwnerUnbanned": "unbanned an owner",
    "InviteBanned": "banned an invite",
    "InviteUnbanned": "unbanned an invite",
    "InviteRevoked": "revoked an invite",
    "InvitesMade": "invited",
    "OperatorKeyAdded": "gave an operator's key",
    "OperatorKeyRevoked": "took an operator's key",
    "RollbackOrdered": "rolled back",
}
"""By event."""


def order_row(record: OrderRecord, wall_s: float | None) -> dict[str, Any]:
    """`wall_s`: when it was, by the calendar, where that is known."""
    return {**dataclasses.asdict(record), "wall_s": wall_s, "what": WORDS.get(record.kind, record.kind)}
