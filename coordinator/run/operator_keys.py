"""Operators' keys of a run: how one is asked for and shown, and how they change while nobody serves it.

Decides nothing that the registry does not. Touches the registry and the journal of a stopped run.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from coordinator.engine.events import OperatorKeyAdded, OperatorKeyRevoked
from coordinator.run.stopped_run import stopped_run
from coordinator.store.operators import OperatorKey, Role, key_from, operators_name
from protocol.errors import MalformedMessage
from protocol.local_place import own_name

if TYPE_CHECKING:
    from coordinator.run.folder import RunFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyOrder:
    """What `operator-key add` or `revoke` asks for."""

    name: str
    public_key: str = ""
    """In hexadecimal; empty: revoke."""
    role: str = ""


def asked_key(name: str, public_key: str, role: str, now_s: float) -> OperatorKey:
    """The key that somebody wants added; MalformedMessage says what is wrong with it."""
    if role not in tuple(Role):
        raise MalformedMessage(f"a role is {' or '.join(Role)}, got {role[:32]!r}")
    return OperatorKey(name=operators_name(name), public_key=key_from(public_key), role=Role(role), added_at_s=now_s)


def key_row(key: OperatorKey) -> dict[str, Any]:
    """For people and programs."""
    added = datetime.fromtimestamp(key.added_at_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return {"name": key.name, "role": key.role.value, "public_key": key.public_key.hex(), "added": added}


def change_key_while_stopped(folder: RunFolder, order: KeyOrder, now_s: float) -> dict[str, Any]:
    """Add or revoke a key of a run that nobody serves at present; ConfigError when somebody does."""
    with stopped_run(folder) as run:
        registry = folder.registry()
        keys = registry.operators
        try:
            if not order.public_key:
                key = keys.revoke(order.name)
                run.record(OperatorKeyRevoked(at_s=run.now_s, actor=own_name(), operator=key.name))
                return {**key_row(key), "changed": True}
            key = asked_key(order.name, order.public_key, order.role, now_s)
            role, changes = key.role.value, keys.check(key)
            if changes:
                run.record(OperatorKeyAdded(at_s=run.now_s, actor=own_name(), operator=key.name, role=role))
                keys.add(key)
            return {**key_row(key), "changed": changes}
        finally:
            registry.close()


def keys_of(folder: RunFolder) -> list[dict[str, Any]]:
    """All of them, served or not."""
    registry = folder.registry()
    try:
        return [key_row(one) for one in registry.operators.all()]
    finally:
        registry.close()
